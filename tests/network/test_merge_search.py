"""The search for a merge's weights: where it starts, in what order it reads, and what it records of bias."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from methods.peft_adapters.test_train_and_load import lora
from methods.test_base import encoder, save
from network.test_merge_statistics import batches, head
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Needs, Predicted, Row
from hatemtl.evaluations.false_positives import FalsePositiveDifference
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace
from hatemtl.merging.learned import Learned
from hatemtl.network.merge_search import search
from hatemtl.network.merge_statistics import as_source
from hatemtl.saved_runs.saved_run import SavedRun

GRADIENT: dict[str, Any] = {"search": "gradient", "rate": 0.1, "loss": 1.0, "error": 0.0}
CMAES: dict[str, Any] = {"search": "cmaes", "rate": 0.5, "loss": 0.0, "error": 1.0}


def learned(how: dict[str, Any], **given: Any) -> Learned:
    fixed = {"entropy": 0.0, "by": "source", "start": None, "steps": 3, "posts": 12, "seed": 0}
    return Learned(**{**fixed, **how, **given})


def sources(folder: Path, count: int = 2) -> list[SavedRun]:
    for i in range(1, count + 1):
        if not (folder / f"part_{i}").exists():
            save(lora(), folder / f"part_{i}", change=i)
    return [SavedRun(folder / f"part_{i}") for i in range(1, count + 1)]


@torch.no_grad()
def said(model: nn.Module, posts: list[Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, scores, targets and which posts have them, of all posts."""
    some = head()
    found = [some(model(**batch.inputs).last_hidden_state, batch.attention_mask) for batch in posts]
    logits, targets, has = map(
        torch.cat, (found, [batch.targets["target"] for batch in posts], [batch.has["target"] for batch in posts])
    )
    return logits, some.scores(logits), targets, has


# The start


@pytest.mark.parametrize("how", [GRADIENT, {**CMAES, "by": "layer", "loss": 1.0}], ids=["gradient", "cmaes"])
def test_a_single_source_is_where_its_own_search_starts(how: dict[str, Any], tmp_path: Path) -> None:
    model, posts, [only] = encoder(), batches(), sources(tmp_path, 1)
    _, trace = search(learned(how), model, [only], {"target": head()}, posts)
    assert trace[0]["weight_1"] == 1
    with as_source(model, only):
        logits, _, targets, has = said(model, posts)
    assert trace[0]["loss"] == pytest.approx(float(head().loss(logits, targets, has)), rel=1e-4)


@pytest.mark.parametrize("how", [GRADIENT, {**CMAES, "loss": 1.0}], ids=["gradient", "cmaes"])
@pytest.mark.parametrize("start", [None, 0.3])
def test_the_order_of_the_sources_does_not_change_the_start(
    how: dict[str, Any], start: float | None, tmp_path: Path
) -> None:
    runs, merge = sources(tmp_path, 3), learned(how, start=start)
    (one, first), (other, second) = (
        search(merge, encoder(), of, {"target": head()}, batches()) for of in (runs, runs[::-1])
    )
    assert [first[0][f"weight_{n}"] for n in (1, 2, 3)] == pytest.approx([start or 1 / 3] * 3)
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    if merge.search == "gradient":  # a step of Adam looks at one weight at a time
        for a, b in zip(one, other[::-1], strict=True):
            assert {k: float(v) for k, v in a.items()} == pytest.approx({k: float(v) for k, v in b.items()}, abs=1e-4)


# The order of batches


def read_by(merge: Learned, runs: list[SavedRun], posts: list[Batch]) -> list[int]:
    """Which batch the encoder read at each of its forwards."""
    model, places, seen = encoder(), {batch.input_ids.data_ptr(): i for i, batch in enumerate(posts)}, []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: seen.append(places[given["input_ids"].data_ptr()]), with_kwargs=True
    )
    search(merge, model, runs, {"target": head()}, posts)
    handle.remove()
    return seen


def test_the_gradient_reads_all_batches_each_time_round_in_another_order(tmp_path: Path) -> None:
    runs, posts = sources(tmp_path), batches(24)
    every = list(range(len(posts)))
    seen = read_by(learned(GRADIENT, steps=15), runs, posts)
    rounds = [seen[:6], seen[6:12], seen[12:15]]
    assert [sorted(of) for of in rounds[:2]] == [every, every]
    assert len(set(rounds[2])) == 3
    assert rounds[0] != rounds[1]
    assert every not in rounds
    assert seen[15:] == every * 2  # both ends on all posts
    assert read_by(learned(GRADIENT, steps=15), runs, posts) == seen
    assert read_by(learned(GRADIENT, steps=15, seed=1), runs, posts) != seen


# What the objectives are means of


def test_the_objectives_do_not_depend_on_how_posts_are_batched(tmp_path: Path) -> None:
    """A batch counts by the posts that carry a task's annotation, of which the last here has none."""
    runs, posts, merge = sources(tmp_path), batches(), learned({**CMAES, "loss": 1.0}, entropy=1.0)
    posts[0].has["target"][1:] = False
    posts[2].has["target"][:] = False
    _, cut = search(merge, encoder(), runs, {"target": head()}, posts)
    _, whole = search(merge, encoder(), runs, {"target": head()}, [joined(posts)])
    for name in ("loss", "entropy"):
        assert [row[name] for row in cut] == pytest.approx([row[name] for row in whole], rel=1e-5)
    _, trace = search(learned(GRADIENT), encoder(), runs, {"target": head()}, posts[2:])
    assert [row["loss"] for row in trace] == [0, 0]


def joined(posts: list[Batch]) -> Batch:
    targets, has = (torch.cat([getattr(batch, of)["target"] for batch in posts]) for of in ("targets", "has"))
    rows = [torch.cat([getattr(batch, of) for batch in posts]) for of in ("input_ids", "attention_mask", "posts")]
    return Batch(*rows[:2], {"target": targets}, {"target": has}, rows[2])


# Bias


@dataclass
class Judge:
    """An evaluation that notes what it is given, and tells a plain function of it."""

    of: Callable[[Predicted], float]
    needs: ClassVar[Needs] = Needs()
    scalar: ClassVar[str] = "far"
    asked: list[dict[str, Predicted]] = field(default_factory=list)

    def check(self, spaces: Mapping[str, LabelSpace]) -> None:
        FalsePositiveDifference().check(spaces)

    def rows(self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]]) -> list[Row]:
        assert not posts
        self.asked.append(dict(predictions))
        told = [(task, name) for task in predictions for name in ("near", self.scalar)]
        return [Row("val", task, name, None, self.of(predictions[task])) for task, name in told if name == self.scalar] + [
            Row("val", task, name, None, -1000.0) for task, name in told if name != self.scalar
        ]


@pytest.mark.parametrize("threshold", [0.5, 0.45])
def test_cmaes_records_bias_that_does_not_count(threshold: float, tmp_path: Path) -> None:
    model, posts, [only], some = encoder(), batches(40), sources(tmp_path, 1), head()
    assert some.threshold is not None
    some.threshold.fill_(threshold)
    posts[1].has["target"][:2] = False
    merge = learned(CMAES, by="layer")  # one weight a layer, so that a single source can be searched for
    _, trace = search(merge, model, [only], {"target": some}, posts)
    assert all(list(row) == ["weight_1", "error", "bias"] for row in trace)
    with as_source(model, only):
        _, scores, targets, has = said(model, posts)
    whole = Predicted("val", some.space, np.arange(40)[has], scores[has].numpy(), targets[has].numpy(), threshold)
    expected = FalsePositiveDifference().rows({"target": whole}, {})[-1].value
    assert expected > 0
    assert trace[0]["bias"] == pytest.approx(expected, rel=1e-5)


def test_bias_counts_beside_error(tmp_path: Path) -> None:
    runs = sources(tmp_path)
    judge = Judge(lambda said: float(abs(said.scores - 0.25).mean()))

    def weights(**given: float) -> tuple[list[float], list[dict[str, float]]]:
        merge = learned(CMAES, bias_of=judge, steps=4, **given)
        found, trace = search(merge, encoder(), runs, {"target": head()}, batches())
        return [float(next(iter(of.values()))) for of in found], trace

    chosen, trace = weights(bias=2.0, error=0.0)
    assert set(trace[0]) == {"weight_1", "weight_2", "bias"}
    best = min(trace, key=lambda row: row["bias"])
    assert best["bias"] < trace[0]["bias"]
    assert chosen == pytest.approx([best["weight_1"], best["weight_2"]])
    assert len(judge.asked) == len(trace)
    for asked in judge.asked:  # all posts at once
        assert [*asked] == ["target"]
        assert asked["target"].posts.tolist() == list(range(12))
        assert asked["target"].scores.shape == asked["target"].gold.shape == (12, 3)
    chosen, trace = weights(bias=2.0, error=1.0)
    best = min(trace, key=lambda row: row["error"] + 2 * row["bias"])
    assert chosen == pytest.approx([best["weight_1"], best["weight_2"]])


def test_bias_is_the_mean_over_tasks(tmp_path: Path) -> None:
    runs, posts = sources(tmp_path), batches()
    for batch in posts:
        batch.targets["other"], batch.has["other"] = torch.zeros(len(batch), 3), batch.has["target"]
    biases = iter(range(1000))
    merge = learned(CMAES, bias_of=Judge(lambda said: next(biases)), steps=1)
    _, trace = search(merge, encoder(), runs, {"target": head(), "other": head(1)}, posts)
    assert [row["bias"] for row in trace] == [2 * n + 0.5 for n in range(len(trace))]


def test_the_gradient_computes_no_bias(tmp_path: Path) -> None:
    judge = Judge(lambda said: 0.0)
    _, trace = search(learned(GRADIENT, bias_of=judge), encoder(), sources(tmp_path), {"target": head()}, batches())
    assert list(trace[0]) == ["weight_1", "weight_2", "loss"]
    assert not judge.asked


def test_bias_that_cannot_be_told_is_refused_only_where_it_counts(tmp_path: Path) -> None:
    runs, posts = sources(tmp_path), batches()
    space = LabelSpace("multiclass", ("a", "b", "c"))
    given = {"pooling": "mean", "layers": 1, "dropout": 0.0, "balance": 0.0, "label_smoothing": 0.0}
    label = MulticlassHead(hidden_size=32, space=space, **given)
    for batch in posts:
        batch.targets["label"], batch.has["label"] = batch.targets["target"].argmax(dim=1), batch.has["target"]
    with pytest.raises(UserError, match="merge.bias=1.0: .*'label' is multiclass.*; or type merge.bias=0 merge.error=1"):
        search(learned(CMAES, bias=1.0), encoder(), runs, {"label": label}, posts)
    _, trace = search(learned(CMAES), encoder(), runs, {"label": label}, posts)
    assert list(trace[0]) == ["weight_1", "weight_2", "error"]
    _, both = search(learned(CMAES, bias=1.0), encoder(), runs, {"target": head(), "label": label}, posts)
    _, alone = search(learned(CMAES, bias=1.0), encoder(), runs, {"target": head()}, posts)
    assert both[0]["bias"] == alone[0]["bias"]  # of the tasks that have it
