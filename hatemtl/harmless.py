"""Makes names and texts of others harmless to look at: in a terminal, in a spreadsheet."""

import re

# Controls, halves of surrogate pairs, ends of lines and paragraphs, and what turns the direction of writing.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"'*(?![+-](?:[.,]?\d[\d.,]*(?:[eE][+-]?\d+)?|inf|nan)\Z)[=+\-@\t\r]", re.ASCII)


def shown(text: str, *, lines: bool = False) -> str:
    r"""Writes the text with controls and turns of direction as Python does; `lines`: but for the ends of lines.

    >>> print(shown("women\x1b[2J\u202e"), shown("النساء"))
    women\x1b[2J\u202e النساء
    """
    return _UNSEEN.sub(lambda found: found[0] if lines and found[0] == "\n" else repr(found[0])[1:-1], text)


def guarded(cell: object) -> object:
    """Guards the cell of a CSV file: a text, but no number, that a spreadsheet would compute has an apostrophe in front.

    >>> guarded("=SUM(A1)"), guarded("@name"), guarded("-0.5"), guarded(-0.5), guarded("a-b")
    ("'=SUM(A1)", "'@name", '-0.5', -0.5, 'a-b')
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """Gives the text that `guarded` was given.

    >>> unguarded("'=SUM(A1)"), unguarded("'quoted'")
    ('=SUM(A1)', "'quoted'")
    """
    return cell.removeprefix("'") if _FORMULA.match(cell) else cell
