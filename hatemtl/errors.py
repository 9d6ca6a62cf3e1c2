"""The one error that a user can mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: says what was given, what was expected and what to type next.

    `main.py` prints it without a stack and exits with 2; nothing has been written by then.
    """


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The tail of an error about a name: the closest known names, else all of them."""
    known = [str(name) for name in known]
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"
