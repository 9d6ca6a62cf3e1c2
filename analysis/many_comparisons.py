"""Corrects p for many comparisons, and shows by letters which of several systems differ."""

from collections.abc import Callable, Sequence
from itertools import combinations


def holm(ps: Sequence[float]) -> list[float]:
    """p after Holm (1979), in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = least
    return adjusted


def letters(means: Sequence[float], differs: Callable[[int, int], bool]) -> list[str]:
    """A compact letter display (Piepho 2004, doi:10.1198/1061860043515): systems that share no letter differ.

    By insertion and absorption; the first letter holds the greatest mean. differs: whether systems i and j do.

    >>> letters([0.7, 0.6, 0.5], lambda i, j: {i, j} == {0, 2})
    ['a', 'ab', 'b']
    """
    order = sorted(range(len(means)), key=lambda i: -means[i])
    columns = {frozenset(order)}
    for i, j in combinations(order, 2):
        if differs(i, j):
            split = {column - {of} for column in columns for of in (i, j)}  # of one that lacks either, the rest is absorbed
            whole = {column for column in columns | split if not {i, j} <= column}
            columns = {column for column in whole if not any(column < other for other in whole)}
    ordered = sorted(columns, key=lambda column: sorted(map(order.index, column)))
    names = [chr(ord("a") + k) if k < 26 else f"({k})" for k in range(len(ordered))]
    return ["".join(name for name, column in zip(names, ordered, strict=True) if i in column) for i in range(len(means))]
