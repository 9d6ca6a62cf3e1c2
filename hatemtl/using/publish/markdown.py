"""Writes Markdown of what others named: labels, corpora and sentences can be no markup, and no HTML, of the page."""

import html
import math
import re
from collections.abc import Sequence
from typing import Any


def plain(text: object) -> str:
    r"""A text as it stands, on one line.

    >>> plain("a_b <img src=x onerror=go()> | [x](y)")
    'a\\_b &lt;img src=x onerror=go()&gt; \\| \\[x\\](y)'
    """
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def code(text: object) -> str:
    """A name as code, in which nothing is markup; however many backticks it has.

    >>> code("a<b"), code("a`b")
    ('`a<b`', '``a`b``')
    """
    name = " ".join(str(text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", name)), default=0))
    inside = f" {name} " if name[0] == "`" or name[-1] == "`" else name
    return f"{fence}{inside}{fence}"


def number(value: Any) -> str:
    """A figure to three digits, a dash where there is none.

    >>> number(0.5), number(None), number(float("nan"))
    ('0.500', '—', '—')
    """
    return "—" if not isinstance(value, int | float) or not math.isfinite(value) else f"{value:.3f}"


def span(low: Any, high: Any) -> str:
    """An interval, a dash where there is none.

    >>> span(0.25, 1), span(float("nan"), 1.0)
    ('0.250 to 1.000', '—')
    """
    return "—" if "—" in (number(low), number(high)) else f"{number(low)} to {number(high)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a bar in one, even in code, is no end of it.

    >>> print(table(["label"], [[code("a|b")]]))
    | label |
    |---|
    | `a\\|b` |
    """
    lines = [head, ["---"] * len(head), *rows]
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line] for line in lines]
    return "\n".join("|---" * len(head) + "|" if i == 1 else f"| {' | '.join(line)} |" for i, line in enumerate(cells))


def block(language: str, text: str) -> str:
    """A block of code of ours."""
    return f"```{language}\n{text.strip()}\n```"
