"""Starts the command line: `hatemtl group=option key=value`; in a checkout `uv run main.py …`. See README.org."""

import _signal  # type: ignore[import-not-found]  # signal itself takes long enough to be interrupted in
import os
import sys


def command() -> None:
    """Runs what was typed. Ctrl-C ends it at any moment: also while it imports what it needs."""
    if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # which nohup sets
        _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))  # until `watch`, a moment later
    _libraries_first()
    from hatemtl.machine.interruption import watch

    watch()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print its own errors and exit with 1
    from hatemtl.command_line import answer

    answer()


def _libraries_first() -> None:
    """Lets Python look last where saved runs lie, in a folder named like a library: what came with one shall not be code."""
    try:
        working = os.getcwd()
    except FileNotFoundError:
        working = ""
    if sys.path[0] in ("", working, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))):
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    command()
