"""Runs one after another in this process, which starts once for all of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from hatemtl.training.launch.base import Ended, Run


@dataclass(frozen=True, kw_only=True)
class Serial:
    """Runs one after another. What kills a run, as the system does where memory ends, kills the sweep."""

    waits: ClassVar[bool] = True

    def __call__(self, runs: Iterable[Run]) -> Iterator[tuple[Run, Ended]]:
        for run in runs:
            yield run, run.here()
