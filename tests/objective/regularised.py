"""A linear network that regularisers can pass through, and what they need of a batch: for tests of their formulas."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.score import ScoreHead
from hatemtl.labels import LabelSpace
from hatemtl.objective.regularisers.base import Run

WIDTH = 3


def no_teacher(saved: Any) -> Any:
    raise AssertionError(saved)


RUN = Run(seed=0, corpora={"label": 0}, teacher=no_teacher)


class Linear:
    """An encoder that gives the embeddings as they are, or moves them by `shift`; heads on the first token."""

    def __init__(self, *tasks: str, labels: int = 4, kind: str = "multiclass") -> None:
        torch.manual_seed(0)
        self.encoder = nn.Module()
        self.encoder.words = nn.Embedding(9, WIDTH)
        self.encoder.shift = nn.Parameter(torch.zeros(WIDTH))
        self.encoder.config = SimpleNamespace(hidden_size=WIDTH)  # type: ignore[assignment]
        self.heads = nn.ModuleDict({task: self._head(kind, labels) for task in tasks or ("label",)})
        self.learns, self.progress, self.by_task = True, 0.0, False
        self.weights = dict.fromkeys(self.heads, 1.0)

    @staticmethod
    def _head(kind: str, labels: int) -> nn.Module:
        shared: dict[str, Any] = {"hidden_size": WIDTH, "layers": 1, "dropout": 0.0, "pooling": "cls"}
        if kind == "score":
            return ScoreHead(space=LabelSpace("score", ("score",)), loss="mse", **shared)
        names = tuple(map(str, range(labels)))
        return MulticlassHead(space=LabelSpace("multiclass", names), label_smoothing=0.0, balance=0.0, **shared)

    def __call__(self, batch: Any, tasks: Iterable[str] | None = None, embeddings: Tensor | None = None) -> Any:
        return self.read(self.encode(batch, embeddings), batch, tasks or [*self.heads])

    def encode(self, batch: Any, embeddings: Tensor | None = None) -> Tensor:
        return (self.embed(batch) if embeddings is None else embeddings) + self.encoder.shift

    def embed(self, batch: Any) -> Tensor:
        return self.encoder.words(batch.input_ids)  # type: ignore[operator]

    def read(self, hidden: Tensor, batch: Any, tasks: Iterable[str]) -> Any:
        return {task: self.heads[task](hidden, batch.attention_mask) for task in tasks}

    without_dropout = staticmethod(nullcontext)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        with torch.enable_grad():
            yield


def batch(posts: int = 5, length: int = 2, tasks: Iterable[str] = ("label",)) -> Any:
    """Posts of so many tokens, the last of padding; every task annotates all but the last post, by its label 1."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(posts, length, dtype=torch.int64)
    mask[:, -1] = 0
    made = SimpleNamespace(
        input_ids=torch.randint(9, (posts, length), generator=draw),
        attention_mask=mask,
        first=lambda values: values,
        has={task: torch.arange(posts) < posts - 1 for task in tasks},
        targets={task: torch.ones(posts, dtype=torch.int64) for task in tasks},
        shares={},
        learned=lambda task: made.shares.get(task, made.targets[task]),
        only=None,
        unlabelled=None,
        parts=None,
    )
    return made
