"""Deals many like cases out to those who run them: some to the fast tests, some to the slow ones, all to `make trust`."""

from zlib import crc32

import pytest

SLOW = 5  # one in so many is among the slow tests


def tier(name: str, *, fast: int) -> list[pytest.MarkDecorator]:
    """Gives the marks of one of many like cases, by its name. fast: one in so many is a fast test."""
    number = crc32(name.encode())
    if number % fast == 0:
        return []
    return [pytest.mark.slow if number // fast % SLOW == 0 else pytest.mark.trust]
