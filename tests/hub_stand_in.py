"""Stands in for the hub's HTTP on this machine, so that the real client of huggingface_hub can talk to it."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from conftest import forget_sessions
from huggingface_hub import constants

COMMIT = "d" * 40


@dataclass
class Hub:
    """What the stand-in was sent. files: of the commit, by path; the large ones by the digest that they are named by."""

    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    refuses: int | None = None  # the status with which it answers whoever wants to write


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Serves the calls that making a repository and committing a folder take, until it is left."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision/")[0]
            self._answer({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": []})

        def do_PUT(self) -> None:
            hub.large[self.path.removeprefix("/large/")] = self._body()
            self._answer({})

        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization"))
            body = self._body()
            if hub.refuses is not None:
                self._answer({"error": "no"}, hub.refuses)
            elif self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                made = hub.created[-1]
                self._answer({"url": f"{hub.address}/{made.get('organization', 'me')}/{made['name']}"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                large = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                    for f in asked
                ]
                self._answer({"files": [{**one, "shouldIgnore": False} for one in large]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                upload = [{**o, "actions": {"upload": {"href": f"{hub.address}/large/{o['oid']}"}}} for o in objects]
                self._answer({"transfer": "basic", "objects": upload})
            elif re.search(r"/commit/", self.path):
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[value["path"]] = hub.large[value["oid"]]
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                self._answer({"commitUrl": f"{hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self._answer({"error": f"unknown {self.path}"}, 404)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which the client tries first
        forget_sessions()  # opened while offline; below, those opened while online
        yield hub
    forget_sessions()
    server.shutdown()
    server.server_close()
