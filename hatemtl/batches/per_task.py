"""Splits batches into one optimizer step a task."""

from collections.abc import Mapping, Sequence

import numpy as np


def apart(
    batches: Sequence[np.ndarray], has: Mapping[str, np.ndarray], accumulate: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, str]]:
    """Every batch of rows once for each task that annotates posts in it, with these posts alone, in random order.

    has[task]: (N,) whether the post carries the task's annotation. accumulate: how many make an optimizer step: so many of
    one task follow each other. Those left over come last, where a step may hold more than one task's.
    """
    steps = []
    for task, annotated in has.items():
        mine = [(rows[annotated[rows]], task) for rows in batches if annotated[rows].any()]
        steps += [mine[i : i + accumulate] for i in range(0, len(mine), accumulate)]
    whole, rest = ([step for step in steps if (len(step) == accumulate) is full] for full in (True, False))
    return [use for step in (*(whole[i] for i in rng.permutation(len(whole))), *rest) for use in step]
