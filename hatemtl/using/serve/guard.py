"""Guards the server: who may ask, by which name, and how much a request may hold; what a page may load."""

import asyncio
import ipaddress
import json
import socket
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

BODY = 16 << 20  # bytes of a request
SECONDS = 60.0  # until its body is there
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",  # answers hold what people wrote
}


class Refused(Exception):
    """Refuses a request, which is answered with an error. status: of HTTP."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


def answer(content: Any, status: int = 200) -> Response:
    """Gives content as JSON lines have it: half an emoji, which is no UTF-8, as its escape."""
    text = json.dumps(content, ensure_ascii=False, default=str)
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")


async def body(request: Request, limit: int = BODY) -> bytes:
    """Reads the body of a request. Raises Refused, with no more than `limit` read, where it is larger or takes too long."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise Refused(413, f"a body of {int(declared):,} bytes, expected {limit:,} at most; send fewer texts at a time")
    read = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                read += chunk
                if len(read) > limit:
                    raise Refused(413, f"a body of more than {limit:,} bytes; send fewer texts at a time")
    except TimeoutError:
        raise Refused(408, f"the body took more than {SECONDS:.0f} s; send it faster, or fewer texts at a time") from None
    except ClientDisconnect:
        raise Refused(400, "the body ends before its end") from None
    return bytes(read)


async def json_of(request: Request) -> dict[str, Any]:
    """Reads the JSON object that a request holds. Raises Refused where it holds none."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected JSON; send the header content-type: application/json")
    try:
        found = json.loads(await body(request))
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "no UTF-8"
        raise Refused(400, f'this is no JSON ({where}); expected as {{"texts": ["…"]}}') from None
    if not isinstance(found, dict):
        raise Refused(422, 'expected a JSON object, as {"texts": ["…"]}')
    return found


class Guard:
    """Stands before an ASGI application: refuses names that are not this server's, and pages of other places; answers what
    is wrong with JSON; and logs what failed here by kind and place, never by what was sent.

    host: that the server listens on; one that is no loopback may be asked by any address of this machine, and by its name.
    names: further ones, of a server in front, whose pages these then are.
    """

    def __init__(self, app: Any, host: str, names: Collection[str] = ()) -> None:
        self.app, self.host, self.names = app, host, {name.lower() for name in names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def sending(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = {**HEADERS, **({"connection": "close"} if message["status"] in (408, 413) else {})}
                own = [(name.encode(), value.encode()) for name, value in more.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            self._check(Request(scope))
            return await self.app(scope, receive, sending)
        except Refused as refused:
            failed: Response = answer({"error": str(refused)}, refused.status)
        except Exception as error:
            *_, at = traceback.extract_tb(error.__traceback__)
            print(f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}", file=sys.stderr)
            failed = answer({"error": f"the server failed ({type(error).__name__}); its terminal says where"}, 500)
        if not started:
            await failed(scope, receive, sending)
        return None

    def _check(self, request: Request) -> None:
        """Raises Refused where a page elsewhere may have sent this, by a name that it lets point here, or from itself."""
        given = request.headers.get("host", "")
        if not self._is_ours(_hostname(f"//{given}")):
            raise Refused(421, f"this server is not {given[:99]!r}; ask it as {self.host}, or type serve.names=[NAME]")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != given and _hostname(origin) not in self.names:
            raise Refused(403, "a page of another place asks; open the server's own")

    def _is_ours(self, name: str) -> bool:
        if name in (*LOOPBACK, self.host.lower(), *self.names):
            return True
        if self.host.lower() in LOOPBACK:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name == socket.gethostname().lower()


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
