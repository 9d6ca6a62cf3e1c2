"""Puts quotes around what Hydra's grammar cannot read, and the shell's around them."""

import os
import shlex
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException


def parsed(override: str) -> Override | None:
    """Reads the override as Hydra does; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def readable(override: str) -> bool:
    """Tells whether Hydra can read an override."""
    return parsed(override) is not None


def quoted(text: str) -> str:
    """Writes the value that Hydra reads as this very text."""
    return QuotedString(text, Quote.double).with_quotes()


def in_quotes(key: str, value: str) -> str:
    """Writes the override that gives a key this very text, as it is typed in a shell.

    >>> print(in_quotes("save_path", "/home/läuf"))
    'save_path="/home/läuf"'
    """
    return shlex.quote(f"{key}={quoted(value)}")


def assigned(key: str, value: str) -> str:
    """Writes the override as it is typed in a shell, in quotes where Hydra would not read it without."""
    value = os.path.expanduser(value.strip())  # a shell leaves ~ within quotes alone
    plain = f"{key}={value}"
    return shlex.quote(plain) if readable(plain) else in_quotes(key, value)


def advice(key: str, value: str) -> str:
    """Says how to type a value that Hydra cannot read."""
    given, text = f"{key}={value}", in_quotes(key, os.path.expanduser(value))
    if value[:1] in ("[", "{"):
        ends = ("".join(brackets) for number in (1, 2, 3) for brackets in product("]})", repeat=number))
        if closed := next((given + end for end in ends if readable(given + end)), None):
            return f"{given}: a bracket is not closed; type {shlex.quote(closed)}, or as a text {text}"
    if value[:1] == "[":
        items = [item.strip() for item in value[1:-1].split(",")]
        listed = f"{key}=[{','.join(item if readable(f'{key}=[{item}]') else quoted(item) for item in items)}]"
        if readable(listed):
            return f"{given}: some of its items need quotes; type {shlex.quote(listed)}"
    return f"{given}: Hydra cannot read this value as it stands; put it in quotes: type {text}"
