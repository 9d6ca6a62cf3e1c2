"""Quotes for Hydra's grammar, and those of the shell around them."""

import random
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hatemtl.command.words import in_quotes, readable


def value(line: str) -> object:
    """What Hydra reads in a word typed in a shell."""
    (word,) = shlex.split(line)
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize(
    "text", ["a", "läuf", "a b", 'a"b', "it's", "a\\", "\\", "\\\\'", "\\\"'", 'a\\"b\\', " ", "", "$x", "[1,2", "1"]
)
def test_what_is_quoted_is_read_as_it_stands(text: str) -> None:
    assert value(in_quotes("key", text)) == text


def test_any_text_is_read_as_it_stands() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab ж\\\"'=,:()[]{}~#$!&;\n\t", k=draw.randint(0, 8)))
        assert value(in_quotes("a.b@c", text)) == text


def test_what_can_be_read() -> None:
    assert readable("seed=3")
    assert readable("++tasks.target.labels={a: [b]}")
    assert readable("~seed")
    assert not readable("seed")
    assert not readable("save_path=läuf")
