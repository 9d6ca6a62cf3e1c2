"""Lets requests wait for the network, so many at most, and reads those that wait together in one pass."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hatemtl.using.serve.runs import Runs

TOGETHER = 256  # posts, counted once a run, from which no more requests join a pass


class Full(Exception):
    """Tells that as many posts wait as may."""


@dataclass(eq=False)
class Waiting:
    """Holds a request that waits. texts: by the run that is to read them; or do: what else is asked of the runs."""

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    do: Callable[[Runs], Any] | None = None
    answer: Future[Any] = field(default_factory=Future)

    @property
    def posts(self) -> int:
        return sum(map(len, self.texts.values())) if self.do is None else 1


class Queue:
    """Asks the runs in a thread of its own, one pass at a time. limit: of posts that wait or are read, once a run."""

    def __init__(self, runs: Runs, *, limit: int) -> None:
        self.runs, self.limit, self.posts = runs, limit, 0
        self.waiting: deque[Waiting] = deque()
        self.changed, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self._work, name="network", daemon=True)
        self.thread.start()

    def predict(self, texts: Mapping[str, Sequence[str]]) -> Future[Any]:
        """Asks what each run says of its texts: as `Runs.said`. Raises Full where there is no room."""
        return self._add(Waiting(texts))

    def do(self, what: Callable[[Runs], Any]) -> Future[Any]:
        """Asks something else of the runs, in its turn. Raises Full where there is no room."""
        return self._add(Waiting(do=what))

    def _add(self, request: Waiting) -> Future[Any]:
        with self.changed:
            if self.posts + request.posts > self.limit or self.closed:
                raise Full
            self.posts += request.posts
            self.waiting.append(request)
            self.changed.notify()
        return request.answer

    def close(self) -> None:
        """Ends the thread when the pass that it is at is done; who still waits is told so."""
        with self.changed:
            self.closed = True
            for request in self.waiting:
                request.answer.cancel()
            self.waiting.clear()
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while together := self._next():
            asked = [request for request in together if request.answer.set_running_or_notify_cancel()]
            try:
                for request, said in zip(asked, self._answers(asked), strict=True):
                    request.answer.set_result(said)
            except Exception as error:
                for request in asked:
                    if not request.answer.done():
                        request.answer.set_exception(error)
            with self.changed:
                self.posts -= sum(request.posts for request in together)

    def _next(self) -> list[Waiting]:
        """Waits for requests, and takes those that fit into a pass; none where the queue was closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            taken: list[Waiting] = []
            while self.waiting and (not taken or self._joins(taken)):
                taken.append(self.waiting.popleft())
            return taken

    def _joins(self, taken: Sequence[Waiting]) -> bool:
        """Tells whether the request that waits longest is read with these."""
        kinds = taken[0].do is None and self.waiting[0].do is None
        return kinds and sum(request.posts for request in taken) + self.waiting[0].posts <= TOGETHER

    def _answers(self, asked: Sequence[Waiting]) -> list[Any]:
        if asked and asked[0].do is not None:
            return [asked[0].do(self.runs)]
        together: dict[str, list[str]] = {}
        places: list[dict[str, slice]] = []
        for request in asked:
            places.append({})
            for name, texts in request.texts.items():
                mine = together.setdefault(name, [])
                places[-1][name] = slice(len(mine), len(mine) + len(texts))
                mine.extend(texts)
        said = self.runs.said(together)
        return [{name: said[name][mine] for name, mine in of.items()} for of in places]
