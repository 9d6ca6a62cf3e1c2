"""What a connection may take before its request is there: a server with bounds that a test can wait for."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hatemtl.using.serve import bounded, guard
from hatemtl.using.serve.bounded import HEAD, Bounded
from hatemtl.using.serve.guard import Guard, answer, body

ASK = b"POST /size HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n"


async def size(request: Request) -> Response:
    return answer(len(await body(request)))


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    monkeypatch.setattr(guard, "SECONDS", 0.5)
    made = Starlette(routes=[Route("/size", size, methods=["POST"])], middleware=[Middleware(Guard, host="127.0.0.1")])
    config = uvicorn.Config(made, http=Bounded, ws="none", log_level="critical", log_config=None, limit_concurrency=4)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(10)


def asked(address: Any, *parts: bytes, pause: float = 0.0) -> bytes:
    """What is answered to these parts, sent one by one, until the connection is closed; nothing where it is not."""
    with socket.create_connection(address, timeout=5) as one:
        answered = b""
        try:
            for part in parts:
                one.sendall(part)
                time.sleep(pause)
            while read := one.recv(1 << 16):
                answered += read
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answered


def test_a_request_that_is_sent_at_once_or_in_parts_is_answered(address: Any) -> None:
    whole = ASK + b"connection: close\r\n\r\n12"
    assert asked(address, whole).startswith(b"HTTP/1.1 200")
    assert asked(address, whole[:20], whole[20:70], whole[70:], pause=0.05).endswith(b"\r\n\r\n2")
    again = ASK + b"\r\n12"
    assert asked(address, again, again, whole).count(b"HTTP/1.1 200") == 3


def test_a_head_is_bounded_in_bytes(address: Any) -> None:
    assert asked(address, ASK, b"x: " + b"a" * (2 * HEAD)) == b""
    assert asked(address, ASK, *(b"x%d: %s\r\n" % (i, b"a" * 1000) for i in range(2 * HEAD // 1000))) == b""
    large = ASK + b"x: " + b"a" * 5000 + b"\r\nconnection: close\r\n\r\n12"
    assert asked(address, large).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("parts", [[b""], [ASK], [b"P"] * 20], ids=["nothing", "half", "drops"])
def test_a_head_is_bounded_in_time(address: Any, parts: list[bytes]) -> None:
    begun = time.monotonic()
    assert asked(address, *parts, pause=0.1 if len(parts) > 1 else 0.0) == b"" or parts[0] == b"P"
    assert time.monotonic() - begun < 4


def test_a_body_is_bounded_in_time(address: Any) -> None:
    assert asked(address, ASK, b"\r\n", b"1").startswith(b"HTTP/1.1 408")
    assert asked(address, ASK + b"connection: close\r\n\r\n12").startswith(b"HTTP/1.1 200")  # others go on


def test_connections_are_bounded_in_number(address: Any) -> None:
    others = [socket.create_connection(address) for _ in range(5)]
    time.sleep(0.2)
    assert asked(address, ASK + b"connection: close\r\n\r\n12").startswith(b"HTTP/1.1 503")
    for one in others:
        one.close()
    time.sleep(0.2)
    assert asked(address, ASK + b"connection: close\r\n\r\n12").startswith(b"HTTP/1.1 200")
