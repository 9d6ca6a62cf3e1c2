"""Runs commands of the project as forks of one process that has imported the libraries: a script's ten runs import once.

`python forks.py SOCKET` serves; `shim` writes what takes the place of `uv` on the path of a script.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASK = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect("{address}")
asked = json.dumps([os.getcwd(), sys.argv[2:], dict(os.environ)]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
sys.exit(server.recv(1)[0])
"""


@contextmanager
def instead_of_uv(folder: Path) -> Iterator[Path]:
    """Gives a folder with a `uv` whose `uv run FILE WORDS…` is a fork of a process that waits until the end."""
    address, bin = folder / "socket", folder / "bin"
    bin.mkdir()
    (bin / "uv").write_text(ASK.format(python=sys.executable, address=address))
    (bin / "uv").chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(address)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        while not address.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield bin
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    """Imports the libraries, and forks at each request until it is killed."""
    from hatemtl.machine.startup import starting

    with starting():
        import adapters  # noqa: F401
        import pandas  # noqa: F401

        import hatemtl.run  # noqa: F401

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{address}.new")
    listening.listen()
    os.rename(f"{address}.new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who asked waits; nobody else does
    while True:
        asking, _ = listening.accept()
        size, streams, _, _ = socket.recv_fds(asking, 8, 3)
        with asking.makefile("rb") as words:
            asked = words.read(int.from_bytes(size, "big"))
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = run(asked, streams)
            asking.send(bytes([code]))
            os._exit(code)
        for stream in (*streams, asking.fileno()):
            os.close(stream)
        asking.detach()


def run(asked: bytes, streams: list[int]) -> int:
    """Runs a file as Python would, in the folder, with the environment and with the streams of who asked."""
    folder, (file, *words), environment = json.loads(asked)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = [file, *words], str(Path(file).resolve().parent)
    try:
        runpy.run_path(file, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    serve(sys.argv[1])
