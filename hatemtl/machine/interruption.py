"""Ctrl-C: a command ends with exit code 130 and a line that says how to go on, never with a stack.

Python itself starts before the first line of main.py, some hundredths of a second in which it still prints one.
"""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

AGAIN = 0.05  # seconds until what could not be raised is tried again
SAID, DONE = b"interrupted\n", b"interrupted when all was done\n"


class Interrupted(BaseException):
    """The user pressed Ctrl-C; says where that left the command.

    No KeyboardInterrupt, of which Lightning would make an exit of its own.
    """


_watched: int | None = None  # the process: those that it forks have its handlers, and end with it anyway
_pressed = False
_said = SAID


def watch() -> None:
    """From now on Ctrl-C ends this process at once, even in the middle of an import."""
    global _watched, _pressed, _said
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as nohup has it
        return
    _watched, _pressed, _said = os.getpid(), False, SAID
    signal.signal(signal.SIGINT, _leave)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        global _pressed
        if unraisable.exc_type is Interrupted:  # raised where Python can only print it, as while an object is deleted
            _pressed = False
            threading.Timer(AGAIN, _thread.interrupt_main).start()
        elif not _pressed:  # what is broken off in the middle, as a loader that starts its processes, says so at its end
            before(unraisable)

    sys.unraisablehook = hook


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C raises Interrupted, so that what is half written is cleared away; pressed again, it ends at once."""
    if signal.getsignal(signal.SIGINT) is not _leave:  # where nothing is watched: another program calls this
        yield
        return
    global _said
    signal.signal(signal.SIGINT, _raise)
    try:
        _said = SAID
        yield
        _said = DONE
    finally:
        signal.signal(signal.SIGINT, _leave)


def pressed() -> bool:
    """Tells whether Ctrl-C was raised, of which a library that was at work may have made an error of its own."""
    return _pressed


def _raise(*_: Any) -> None:
    global _pressed
    if _pressed:
        _leave()
    elif os.getpid() == _watched:
        _pressed = True
        raise Interrupted


def _leave(*_: Any) -> None:
    """Ends the process without all that Python does at an end."""
    if os.getpid() == _watched:
        with suppress(Exception):  # it may be in the middle of a line
            sys.stdout.flush()
        with suppress(OSError):
            cursor = b"\x1b[?25h" if os.isatty(2) else b""  # which a progress bar has hidden
            os.write(2, cursor + _said)
        os._exit(130)
