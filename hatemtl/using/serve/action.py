"""Serves saved runs on this machine: `action=serve load_path=A[,B,…]`."""

import importlib.util
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from hatemtl.command import console as report
from hatemtl.command.console import Console
from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.machine.interruption import Interrupted
from hatemtl.machine.startup import started
from hatemtl.using.predictor import check_predictable

PACKAGES = ("starlette", "uvicorn")
# Seconds after which the thread that answers lets the network's go on; Python's own 5 ms are as long as a post takes.
SWITCH = 0.0005


def serve(requests: Sequence[Request], *, host: str, names: Sequence[str] | None, port: int, queue: int) -> Path:
    """Answers on host and port what these saved runs say of texts, until it is interrupted; gives the first one's folder.

    names: further ones by which it may be asked. queue: how many posts may wait, counted once a run.
    """
    if lacking := [package for package in PACKAGES if importlib.util.find_spec(package) is None]:
        raise UserError(f"action=serve needs {' and '.join(lacking)}; type `uv sync --extra serve`")
    if not 0 <= port < 65536:
        raise UserError(f"serve.port={port}: expected a number from 0, for any that is free, to 65535; type serve.port=0")
    if queue < len(requests):
        raise UserError(f"serve.queue={queue}: expected room for a post of each run; type serve.queue=1024")
    used = named(requests)
    for request in requests:
        saved = request.used_run("serve")
        check_predictable({task: saved.labels[task] for task in request.tasks})
    with closing(bound(host, port)) as listening:  # before what takes seconds
        _serve(used, listening, host=host, names=names or (), queue=queue)
    return requests[0].used_run("serve").folder


def named(requests: Sequence[Request]) -> dict[str, Request]:
    """Gives the requests by the names of the folders of their runs; by whole paths where two have the same."""
    folders = [Path(str(request.load_path)) for request in requests]
    if twice := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UserError(f"load_path: {twice} is there twice; type each run once")
    names = [folder.name for folder in folders]
    names = [name if names.count(name) == 1 and name else str(folder) for name, folder in zip(names, folders, strict=True)]
    return dict(zip(names, requests, strict=True))


def bound(host: str, port: int) -> socket.socket:
    """Takes the port on the host. Raises UserError where it is another program's, or there is no such host here."""
    made: socket.socket | None = None
    try:
        # asyncio sends at once on sockets that say they are TCP's; on others an answer waits 40 ms for an acknowledgement
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)[0]
        made = socket.socket(*found[:3])
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(found[4])
        made.listen(128)
        return made
    except OSError as error:
        if made is not None:
            made.close()
        why = (
            error.strerror if error.errno is None or error.errno < 0 else os.strerror(error.errno)
        )  # those of names are no errno
        said = f"serve.host={host} serve.port={port}: {why}"
        raise UserError(f"{said}; type serve.port=0 for a port that is free, or another serve.host") from error
    except UnicodeError:
        raise UserError(f"serve.host={host}: no name of a host; type serve.host=127.0.0.1") from None


def _serve(
    requests: Mapping[str, Request], listening: socket.socket, *, host: str, names: Sequence[str], queue: int
) -> None:
    import uvicorn  # with starlette slow to import

    from hatemtl.using.serve.app import app
    from hatemtl.using.serve.bounded import CONNECTIONS, Bounded
    from hatemtl.using.serve.guard import LOOPBACK
    from hatemtl.using.serve.one_encoder import together
    from hatemtl.using.serve.queue import Queue
    from hatemtl.using.serve.runs import Runs

    console = Console()
    if next(iter(requests.values())).trainer.device.type == "cpu":
        # lightning has every look for a GPU, one a request, open NVIDIA's driver; torch's own look takes no time
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    sys.setswitchinterval(SWITCH)
    loaded = together(requests)
    for predictor in loaded.predictors.values():
        report.notes(console, predictor.network.notes)
    runs = Runs(loaded)
    started()
    with closing(Queue(runs, limit=queue)) as waiting:
        waiting.predict({name: ["ready"] for name in requests}).result()  # the first call is the slowest
        address = f"[{host}]" if ":" in host else host
        console.print(f"http://{address}:{listening.getsockname()[1]}", soft_wrap=True, markup=False)
        for name, predictor in loaded.predictors.items():
            how = "in one batch with others" if name in loaded.rows and len(loaded.rows) > 1 else "alone"
            console.print(f"  {name} ({', '.join(predictor.spaces)}), {how}", soft_wrap=True, markup=False)
        if host not in LOOPBACK:
            console.print("anyone who reaches this machine may ask it: nothing is encrypted, and no one asked who it is")
        console.print("Ctrl-C ends it")
        quiet: dict[str, Any] = {"access_log": False, "log_config": None, "log_level": "critical", "server_header": False}
        bounds: dict[str, Any] = {"http": Bounded, "limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": 3}
        config = uvicorn.Config(app(runs, waiting, host=host, names=names), ws="none", **bounds, **quiet)
        with suppress(Interrupted):  # as it is meant to end; where uvicorn is first to see the signal, it just returns
            uvicorn.Server(config).run(sockets=[listening])
        console.print("ended")
