"""Heads in the classes of others: which class says which head, and why others are said by none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from using.test_export import METHODS, predictor, source, trained
from using.test_merged_folder import head

from hatemtl.corpora.preprocess import AS_IS, Preprocess
from hatemtl.using.made_up_posts import cases
from hatemtl.using.merged_encoder import merged
from hatemtl.using.publish.said_head import SaidHead, say

SAID = {
    ("multiclass", "cls", 1): ("sequence", False, ["kind", "rude", "neither"]),
    ("multiclass", "mean", 1): ("tokens", True, ["kind", "rude", "neither"]),
    ("multilabel", "mean", 1): ("tokens", True, ["kind", "rude", "neither"]),
    ("score", "mean", 1): ("tokens", True, ["level"]),
    ("tokens", "", 1): ("tokens", False, ["O", "rationale"]),
}
REFUSED = {
    ("multiclass", "attention", 1): "no class pools tokens as pooling=attention does",
    ("multiclass", "mean", 2): "no class has 2 layers on the mean of tokens",
    ("multiclass", "cls", 2): "has no place for such a head",
    ("ordinal", "mean", 1): "no class has ordinal labels",
    ("tokens", "", 2): "no class has 2 layers on the tokens",
}
Say = Callable[..., tuple[SaidHead | None, str]]


def saying(folder: Path, kind: str, heads: list[tuple[str, str, int]]) -> Say:
    """Says one of these heads on a merged encoder of this kind."""
    encoder, tasks = source(folder, kind), {"_".join(map(str, of)): head(*of) for of in heads}
    run, _ = trained(METHODS["peft_lora"], encoder, folder)
    model = merged(run, encoder, seed=0)
    asked = [*cases(predictor(run, encoder, tasks), model, tasks)]

    def said(*of: Any, rewrites: Preprocess = AS_IS) -> tuple[SaidHead | None, str]:
        task = "_".join(map(str, of))
        return say(model, task, tasks[task], asked, rewrites)

    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Say:
    return saying(tmp_path_factory.mktemp("said"), "bert", [*SAID, *REFUSED])


@pytest.mark.parametrize("of", SAID, ids=str)
def test_a_head_is_said_by_a_class_for_texts_or_for_tokens(of: tuple[str, str, int], said: Say) -> None:
    """`say` itself compares the scores with the network's, to 1e-4."""
    found, why = said(*of)
    assert found is not None and why == ""
    assert (found.form, found.mean, [*found.names]) == SAID[of]
    assert [*found.model.config.id2label.values()] == SAID[of][2]


@pytest.mark.parametrize("of", REFUSED, ids=str)
def test_a_head_that_no_class_says_is_told_why(of: tuple[str, str, int], said: Say) -> None:
    found, reason = said(*of)
    assert found is None and REFUSED[of] in reason


def test_no_class_rewrites_posts(said: Say) -> None:
    found, reason = said("multiclass", "mean", 1, rewrites=Preprocess(urls=True))
    assert (found, reason) == (None, "no class rewrites posts before it reads them (urls)")


def test_modernbert_has_a_layer_of_its_own_under_its_classes(tmp_path: Path) -> None:
    found, reason = saying(tmp_path, "modernbert", [("multiclass", "mean", 1)])("multiclass", "mean", 1)
    assert found is None and "modernbert has no place" in reason
