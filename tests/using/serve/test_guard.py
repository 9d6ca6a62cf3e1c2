"""Who may ask the server, and how much a request may hold, before any network is asked."""

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from hatemtl.using.serve.guard import BODY, Guard, answer, body, json_of

JSON = {"content-type": "application/json"}


async def echo(request: Request) -> Response:
    return answer(await json_of(request))


async def size(request: Request) -> Response:
    return answer(len(await body(request)))


async def broken(request: Request) -> Response:
    raise RuntimeError((await body(request)).decode())


def client(host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> TestClient:
    routes = [Route("/" + of.__name__, of, methods=["POST"]) for of in (echo, size, broken)]
    guarded = Starlette(routes=routes, middleware=[Middleware(Guard, host=host, names=names)])
    return TestClient(guarded, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("host", "asked", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "[::1]:8000", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "evil.example", 421),
        ("127.0.0.1", "127.0.0.1.evil.example:8000", 421),
        ("127.0.0.1", "10.0.0.7:8000", 421),
        ("127.0.0.1", "[::1", 421),
        ("0.0.0.0", "10.0.0.7:8000", 200),
        ("0.0.0.0", "evil.example", 421),
        ("box.example", "box.example:8000", 200),
    ],
)
def test_only_names_of_this_server_are_answered(host: str, asked: str, status: int) -> None:
    said = client(host).post("/echo", content=b"{}", headers={**JSON, "host": asked})
    assert said.status_code == status
    if status == 421:
        assert "serve.names=[NAME]" in said.json()["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:8000", 200), ("http://127.0.0.1:9000", 403), ("http://evil.example", 403), ("null", 403)],
)
def test_pages_of_other_places_may_not_ask(origin: str, status: int) -> None:
    assert client().post("/echo", content=b"{}", headers={**JSON, "origin": origin}).status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "hate.example.org"])  # as a server in front passes it on, or not
@pytest.mark.parametrize(("origin", "status"), [("https://hate.example.org", 200), ("https://evil.example", 403)])
def test_behind_another_server_its_names_are_this_ones(host: str, origin: str, status: int) -> None:
    behind = client(names=("Hate.example.org",))
    assert behind.post("/echo", content=b"{}", headers={**JSON, "host": host, "origin": origin}).status_code == status


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"a": "\\ud83d"}', "application/json; charset=utf-8", 200),
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a": "\xff"}', "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "text/plain", 415),  # which a page elsewhere may send without asking first
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes, kind: str, status: int) -> None:
    said = client().post("/echo", content=content, headers={"content-type": kind})
    assert said.status_code == status
    assert said.json() == {"a": "\ud83d"} if status == 200 else said.json()["error"]


def test_a_body_is_bounded_whether_it_says_its_size_or_not() -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(18):
            sent += 1 << 20
            yield b" " * (1 << 20)

    assert client().post("/size", content=b"12").json() == 2
    said = client().post("/size", content=b"", headers={"content-length": str(100 << 20)})
    assert said.status_code == 413 and said.headers["connection"] == "close"
    assert f"104,857,600 bytes, expected {BODY:,}" in said.json()["error"]
    assert client().post("/size", content=chunks()).status_code == 413


def test_a_failure_is_told_by_its_kind_and_never_by_what_was_sent(capfd: pytest.CaptureFixture[str]) -> None:
    said = client().post("/broken", content=b"secret words")
    out, err = capfd.readouterr()
    assert said.status_code == 500 and "RuntimeError" in said.json()["error"]
    assert err.startswith("RuntimeError in test_guard.py, line") and "secret" not in said.text + out + err


def test_what_a_page_may_load_is_its_own() -> None:
    said = client().post("/echo", content=b"{}", headers=JSON)
    assert "default-src 'none'" in said.headers["content-security-policy"]
    assert "'unsafe" not in said.headers["content-security-policy"] and said.headers["cache-control"] == "no-store"
