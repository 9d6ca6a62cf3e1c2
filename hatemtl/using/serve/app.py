"""Answers HTTP: a page, and JSON for programs, of saved runs that wait behind a queue."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from hatemtl.corpora.files import SUFFIXES, read_table
from hatemtl.errors import UserError, did_you_mean
from hatemtl.using.scored_file import rows_of, score_columns
from hatemtl.using.serve.guard import Guard, Refused, answer, body, json_of
from hatemtl.using.serve.queue import Full, Queue
from hatemtl.using.serve.runs import By, Runs

HERE = Path(__file__).parent
TEXT = 20_000  # characters of a text
PAGES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}


class Answers:
    """Answers requests with what the runs say of their texts."""

    def __init__(self, runs: Runs, queue: Queue) -> None:
        self.runs, self.queue = runs, queue

    async def predict(self, request: Request) -> Response:
        """Gives the rows of each run, as `action=predict` writes them as JSON lines."""
        asked = await json_of(request)
        _check_keys(asked, "texts", "runs", "tasks")
        texts, names = asked.get("texts"), _chosen(asked.get("runs"), [*self.runs.predictors], "runs")
        if not isinstance(texts, list) or not texts:
            raise Refused(422, 'texts: expected a list of them, as {"texts": ["…"]}')
        for i, text in enumerate(texts):
            _check_text(text, f"texts[{i}]")
        if len(texts) * len(names) > self.queue.limit:
            many = f"{len(texts):,} texts for {len(names)} runs"
            raise Refused(413, f"{many}, expected {self.queue.limit // len(names):,} texts at most; send fewer at a time")
        spaces = {name: self.runs.predictors[name].spaces for name in names}
        known = [*dict.fromkeys(task for of in spaces.values() for task in of)]
        tasks = _chosen(asked.get("tasks"), known, "tasks")
        said = await self._wait(lambda: self.queue.predict(dict.fromkeys(names, texts)))
        rows = {}
        for name, of in spaces.items():
            columns = score_columns({task: space for task, space in of.items() if task in tasks}, said[name])
            rows[name] = [*rows_of({"text": texts, **columns})]
        return answer(rows)

    async def explain(self, request: Request) -> Response:
        """Gives each word of a text with its share in the score of a label."""
        asked = await json_of(request)
        _check_keys(asked, "text", "run", "task", "label", "by")
        text: Any = asked.get("text")
        _check_text(text, "text")
        (name,) = _chosen([asked.get("run", next(iter(self.runs.predictors)))], [*self.runs.predictors], "run")
        spaces = self.runs.predictors[name].spaces
        (task,) = _chosen([asked.get("task", next(iter(spaces)))], [*spaces], "task")
        (label,) = _chosen([asked.get("label", spaces[task].names[0])], [*spaces[task].names], "label")
        by: Any = _chosen([asked.get("by", "gradient_input")], [*get_args(By)], "by")[0]
        why = partial(Runs.why, name=name, text=text, task=task, label=label, by=by)
        words = await self._wait(lambda: self.queue.do(why))
        return answer({"run": name, "task": task, "label": label, "by": by, "words": words})

    async def table(self, request: Request) -> Response:
        """Gives the rows of a file as `action=predict` reads it, and which column holds the texts."""
        suffix = Path(request.query_params.get("name", "posts.csv")).suffix.lower()  # as some systems write .CSV
        content = await body(request)
        if suffix not in (*SUFFIXES, ".txt"):
            raise Refused(422, f"name: {did_you_mean(suffix, [*SUFFIXES, '.txt'])}")
        columns = await run_in_threadpool(_read, content, suffix)
        text = request.query_params.get("text") or ("text" if "text" in columns else next(iter(columns)))
        if text not in columns:
            raise Refused(422, f"no column {text!r}: {did_you_mean(text, columns)}")
        return answer({"text": text, "columns": [*columns], "rows": [*rows_of(columns)]})

    async def health(self, request: Request) -> Response:
        """Tells whether the network's thread is at work, and how many posts wait."""
        alive = self.queue.thread.is_alive()
        said = {"status": "ok" if alive else "down", "runs": [*self.runs.predictors], "waiting": self.queue.posts}
        return answer({**said, "limit": self.queue.limit}, 200 if alive else 503)

    async def about(self, request: Request) -> Response:
        """Tells of the runs with their tasks, labels and thresholds."""
        found = {}
        for name, predictor in self.runs.predictors.items():
            tasks = {}
            for task, space in predictor.spaces.items():
                cuts = predictor.heads[task].written_thresholds()
                tasks[task] = {"kind": space.kind, "about": space.about, "labels": space.names, "thresholds": cuts}
            found[name] = {"adapter": "in one batch" if name in self.runs.rows else "alone", "tasks": tasks}
        return answer({"runs": found, "explains": [] if self.runs.int8 else get_args(By), "limit": self.queue.limit})

    async def _wait(self, ask: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wrap_future(ask())
        except Full:
            raise Refused(503, "as many posts wait as may; try again in a moment") from None
        except UserError as error:
            raise Refused(422, str(error)) from error


def app(runs: Runs, queue: Queue, *, host: str, names: Sequence[str] = ()) -> Starlette:
    """Makes the application that answers by these runs through this queue. host, names: see `Guard`."""
    said = Answers(runs, queue)
    described = json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))
    described["components"]["schemas"]["Run"]["enum"] = [*runs.predictors]

    async def openapi(request: Request) -> Response:
        return answer(described)

    routes = [
        Route("/predict", said.predict, methods=["POST"]),
        Route("/explain", said.explain, methods=["POST"]),
        Route("/table", said.table, methods=["POST"]),
        Route("/health", said.health),
        Route("/runs", said.about),
        Route("/openapi.json", openapi),
        *(Route(path, partial(_file, name=name)) for path, name in PAGES.items()),
    ]
    guard: Any = Guard
    handlers: Any = {HTTPException: _refused}
    return Starlette(routes=routes, middleware=[Middleware(guard, host=host, names=names)], exception_handlers=handlers)


async def _file(request: Request, name: str) -> Response:
    return FileResponse(HERE / name)


async def _refused(request: Request, error: HTTPException) -> Response:
    path, headers = request.url.path, error.headers or {}
    ways = ", ".join(sorted(headers.get("Allow", "").split(", ")))
    known = did_you_mean(path, [route.path for route in request.app.routes])
    said = answer({"error": f"{request.method} {path[:99]}: {f'expected {ways}' if ways else known}"}, error.status_code)
    said.headers.update(headers)
    return said


def _read(content: bytes, suffix: str) -> Mapping[str, list[Any]]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"posts{suffix}"
        path.write_bytes(content)
        try:
            return read_table(path, delimiter=None, encoding="utf-8-sig", keys="predict.", lines="text").columns
        except UserError as error:
            raise Refused(422, str(error).replace(f"{path}", path.name).partition("; ")[0]) from None


def _check_keys(asked: Mapping[str, Any], *known: str) -> None:
    for key in asked:
        if key not in known:
            raise Refused(422, f"{key[:99]!r}: no such key; {did_you_mean(key, known)}")


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise Refused(422, f"{name}: expected a text with a word in it")
    if len(text) > TEXT:
        raise Refused(422, f"{name}: {len(text):,} characters, expected {TEXT:,} at most; leave it out, or cut it")


def _chosen(given: Any, known: Sequence[str], key: str) -> list[str]:
    """Gives the names that are asked for, all where nothing is said. Raises Refused where one is unknown."""
    if given is None:
        return [*known]
    if not isinstance(given, list) or not given:
        raise Refused(422, f"{key}: expected a list of names; known: {', '.join(known)}")
    for name in given:
        if name not in known:
            raise Refused(422, f"{key}: no {str(name)[:99]!r}; {did_you_mean(name, known)}")
    return [*dict.fromkeys(given)]
