"""Requests wait in their order, are read together, and are sent away where too many wait."""

import threading
from typing import Any

import pytest

from hatemtl.using.serve.queue import TOGETHER, Full, Queue


class Stub:
    """Runs that say of a text its length, once they may; passes: how many posts each pass had."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.begun, self.may = threading.Semaphore(0), threading.Semaphore(0)

    def said(self, asked: Any) -> Any:
        self.passes.append(sum(map(len, asked.values())))
        self.begun.release()
        self.may.acquire()
        if any("bad" in texts for texts in asked.values()):
            raise ValueError("bad")
        return {name: [*map(len, texts)] for name, texts in asked.items()}


def at_work(limit: int) -> tuple[Stub, Queue, Any]:
    """A queue whose thread is at its first request."""
    stub = Stub()
    queue = Queue(stub, limit=limit)  # type: ignore[arg-type]
    first = queue.predict({"a": ["x"]})
    stub.begun.acquire()
    return stub, queue, first


def test_what_waits_together_is_read_together_and_given_to_whom_it_is() -> None:
    stub, queue, first = at_work(100)
    some = queue.predict({"a": ["xx", "xxx"], "b": ["xx", "xxx"]})
    other = queue.predict({"b": ["xxxx"]})
    what = queue.do(lambda runs: "done")
    last = queue.predict({"a": ["xxxxx"]})
    assert queue.posts == 1 + 4 + 1 + 1 + 1
    for _ in range(3):
        stub.may.release()
    assert first.result(5) == {"a": [1]}
    assert some.result(5) == {"a": [2, 3], "b": [2, 3]} and other.result(5) == {"b": [4]}
    assert what.result(5) == "done" and last.result(5) == {"a": [5]}
    assert stub.passes == [1, 5, 1]
    queue.close()
    assert queue.posts == 0 and not queue.thread.is_alive()


def test_a_pass_has_an_end() -> None:
    stub, queue, _ = at_work(10 * TOGETHER)
    each = [queue.predict({"a": ["x"] * (TOGETHER - 1)}) for _ in range(2)] + [queue.predict({"a": ["x"]})]
    for _ in range(4):
        stub.may.release()
    assert [len(of.result(5)["a"]) for of in each] == [TOGETHER - 1, TOGETHER - 1, 1]
    assert stub.passes == [1, TOGETHER - 1, TOGETHER]
    queue.close()


def test_beyond_the_limit_there_is_no_room_until_some_is_done() -> None:
    stub, queue, first = at_work(3)
    rest = queue.predict({"a": ["x", "x"]})
    with pytest.raises(Full):
        queue.predict({"a": ["x"]})
    for _ in range(3):
        stub.may.release()
    first.result(5), rest.result(5)
    while queue.posts:  # counted down a moment after the answer
        pass
    assert queue.predict({"a": ["x", "x", "x"]}).result(5) == {"a": [1, 1, 1]}
    queue.close()
    with pytest.raises(Full):
        queue.predict({"a": ["x"]})


def test_a_failure_is_the_requests_own_and_the_thread_goes_on() -> None:
    stub, queue, _ = at_work(9)
    for _ in range(3):
        stub.may.release()
    with pytest.raises(ValueError):
        queue.predict({"a": ["bad"]}).result(5)
    assert queue.predict({"a": ["good"]}).result(5) == {"a": [4]}
    queue.close()


def test_who_waits_when_it_ends_is_told_so() -> None:
    stub, queue, first = at_work(9)
    waits = queue.predict({"a": ["x"]})
    stub.may.release()
    queue.close()
    assert first.result(5) == {"a": [1]}
    assert waits.cancelled() or waits.result(5)
