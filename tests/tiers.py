"""Deals many like cases out to those who run them: some to the fast tests, some to the slow ones, all to `make trust`."""

from collections.abc import Sequence
from itertools import product
from typing import Any
from zlib import crc32

import pytest


def tier(name: str, *, fast: int | None, slow: int = 5) -> list[pytest.MarkDecorator]:
    """Gives the marks of one of many like cases, by its name. fast: one in so many is a fast test; slow: of the rest."""
    number = crc32(name.encode())
    if fast and number % fast == 0:
        return []
    return [pytest.mark.slow if number // (fast or 1) % slow == 0 else pytest.mark.trust]


def combinations(*values: Sequence[Any], slow: int) -> list[Any]:
    """Gives every combination of an argument's values with one of each other's; one in so many is a slow test."""
    cases = [(of, "-".join(map(str, of))) for of in product(*values)]
    return [pytest.param(*of, id=name, marks=tier(name, fast=None, slow=slow)) for of, name in cases]
