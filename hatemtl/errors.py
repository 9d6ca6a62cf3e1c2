"""Holds the one error that a user can mend."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input: says what was given, what was expected and what to type next.

    `main.py` prints it without a stack and exits with 2; nothing has been written by then.
    """


class Diverged(UserError):
    """Training that came to what is no finite number, and would again."""


class Refusal(UserError):
    """A method's refusal of an encoder or of its sources, told where neither method nor encoder has a name."""

    def named(self, method: str, encoder: str) -> UserError:
        """Says the same with the names that the user typed.

        >>> print(Refusal("no such layer; type method=full").named("ah_lora16", "tiny"))
        method=ah_lora16 on encoder=tiny: no such layer; type method=full
        >>> print(Refusal("method=ah_load needs a run; type load_path=FOLDER").named("ah_load", "tiny"))
        method=ah_load on encoder=tiny needs a run; type load_path=FOLDER
        """
        given, said = f"method={method}", str(self)
        told = said.removeprefix(f"{given} ").removeprefix(f"{given}: ")
        return UserError(f"{given} on encoder={encoder}{' ' if said.startswith(f'{given} ') else ': '}{told}")


def unreadable(path: object, error: Exception, way_out: str) -> UserError:
    """Tells why a file cannot be read, and the way out: of one that is forbidden, another copy would be none.

    >>> print(unreadable("a.csv", PermissionError(13, "Permission denied"), "type another"))
    a.csv cannot be read ([Errno 13] Permission denied); give yourself the right to it
    """
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    way_out = "give yourself the right to it" if isinstance(error, PermissionError) else way_out
    return UserError(f"{path} cannot be read ({reason}); {way_out}")


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what the user can mend, inside, into a method's refusal."""
    try:
        yield
    except UserError as error:
        raise Refusal(str(error)) from error


def did_you_mean(given: object, known: Iterable[object]) -> str:
    """Ends an error about a name: with the closest known names, else with all of them, as where it is no name at all.

    >>> did_you_mean("Tinny", ["tiny", "minilm"])
    "did you mean 'tiny'?"
    >>> did_you_mean(None, [True, 3])
    'known: True, 3'
    """
    names = [str(name) for name in known]
    typed = str(given).lower() if isinstance(given, str | int) and not isinstance(given, bool) else ""
    close = difflib.get_close_matches(typed, [name.lower() for name in names], n=3, cutoff=0.6)
    close = [name for near in dict.fromkeys(close) for name in names if name.lower() == near]
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names) or 'none'}"
