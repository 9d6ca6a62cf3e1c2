"""Holds what a model card is written from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hatemtl.corpora.origin import Origin
from hatemtl.heads.base import Head
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.publish.evaluation import Figures
from hatemtl.using.publish.said_head import SaidHead


@dataclass(frozen=True)
class Facts:
    """Holds what a card is written from.

    task: whose head `said` is; None where no class says it, which `why` tells. left_out: why a layout is not there, by its
    name. base: what others load the encoder by. compared: rows that analysis/compare.py wrote. siblings: as in
    `evaluation.siblings`, by task. corpora: origins by task. cut: by task, what tells its posts from the whole corpus in its
    own splits. data: what the author says of posts of their own.
    """

    run: SavedRun
    heads: Mapping[str, Head]
    task: str
    said: SaidHead | None
    why: str
    layouts: Sequence[str]
    left_out: Mapping[str, str]
    base: str | None
    figures: Mapping[str, Figures]
    siblings: Mapping[str, Sequence[float]]
    corpora: Mapping[str, Sequence[Origin]]
    cut: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewrites: Sequence[str] = ()
    compared: Sequence[Mapping[str, Any]] = ()
    hub_id: str | None = None
    license: str | None = None
    language: str | None = None
    data: str | None = None
    max_length: int = 0

    @property
    def name(self) -> str:
        return self.run.folder.resolve().name if self.hub_id is None else self.hub_id.rpartition("/")[2]
