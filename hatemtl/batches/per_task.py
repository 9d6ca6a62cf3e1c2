"""Shares batches out among tasks and optimizer steps: one step a task, several batches a step."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hatemtl.batches.sampling import Use


def apart(
    batches: Sequence[np.ndarray], has: Mapping[str, np.ndarray], accumulate: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, str]]:
    """Gives every batch of rows once for each task that annotates posts in it, with these posts alone, in random order.

    has[task]: (N,) whether the post carries the task's annotation. accumulate: how many make an optimizer step: so many of
    one task follow each other. Those left over come last, where a step may hold more than one task's.
    """
    steps = []
    for task, annotated in has.items():
        mine = [(rows[annotated[rows]], task) for rows in batches if annotated[rows].any()]
        steps += [mine[i : i + accumulate] for i in range(0, len(mine), accumulate)]
    whole, rest = ([step for step in steps if (len(step) == accumulate) is full] for full in (True, False))
    return [use for step in (*(whole[i] for i in rng.permutation(len(whole))), *rest) for use in step]


def in_parts(uses: Sequence[Use], has: Mapping[str, np.ndarray], accumulate: int) -> Iterator[Use]:
    """Gives the same batches, each with its share of every task's annotated posts among those of its optimizer step.

    So the mean of a step is that of one large batch, however many posts of it lack an annotation, and the last step of an
    epoch is whole however few batches it has. has[task]: (N,) whether the post carries the task's annotation.
    """
    for i in range(0, len(uses), accumulate):
        step = uses[i : i + accumulate]
        counts = {
            task: [int(some[use.rows].sum()) if use.only in (None, task) else 0 for use in step]
            for task, some in has.items()
        }
        for place, use in enumerate(step):
            yield use._replace(parts={task: of[place] / max(sum(of), 1) for task, of in counts.items()})
