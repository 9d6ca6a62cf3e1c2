"""Heads that read the counts of a lexicon beside the pooled vector."""

from functools import partial
from typing import Any

import pytest
import torch

from hatemtl.errors import UserError
from hatemtl.heads.layers import Counts
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.labels import LabelSpace

SHARED: dict[str, Any] = {"hidden_size": 4, "pooling": "mean", "dropout": 0.0}
HEADS: dict[str, Any] = {
    "multiclass": partial(MulticlassHead, label_smoothing=0.0, balance=0.0),
    "multilabel": partial(MultilabelHead, threshold=0.5, balance=0.0),
    "ordinal": partial(OrdinalHead, balance=0.0),
    "score": partial(ScoreHead, loss="mse"),
}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", HEADS)
def test_logits_are_those_of_the_vector_and_the_standardised_counts(kind: str, layers: int) -> None:
    torch.manual_seed(0)
    space = LabelSpace(kind, ("a",) if kind == "score" else ("a", "b", "c"))  # type: ignore[arg-type]
    head = HEADS[kind](**SHARED, space=space, layers=layers, lexicon="words.txt", counts=2)
    head.counts.observe(torch.tensor([[0.0, 0.1], [0.2, 0.1]]))
    assert head.counts.scale.tolist() == [[pytest.approx(0.1), pytest.approx(0.1)], [pytest.approx(0.1), 1.0]]
    hidden, mask, counts = torch.randn(3, 5, 4), torch.ones(3, 5), torch.tensor([[0.3, 0.1], [0.1, 1.1], [0.0, 0.0]])
    read = torch.cat([hidden.mean(dim=1), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, -0.1]])], dim=1)
    expected = head.layers(read) - (head.thresholds if kind == "ordinal" else 0)
    torch.testing.assert_close(head(hidden, mask, counts), expected)
    with pytest.raises(UserError, match="counts the words of whole posts"):
        head(hidden, mask)


def test_a_loaded_head_keeps_the_scale_that_its_weights_were_trained_for() -> None:
    head = Counts(1)
    head.observe(torch.tensor([[0.0], [2.0]]))
    head.observe(torch.tensor([[5.0], [9.0]]))
    assert head.scale.tolist() == [[1.0], [1.0]]
    assert "scale" in head.state_dict()


def test_a_head_without_a_lexicon_is_as_it_was() -> None:
    torch.manual_seed(0)
    head = MulticlassHead(**SHARED, space=LabelSpace("multiclass", ("a", "b")), layers=1, label_smoothing=0.0, balance=0.0)
    assert head.counts is None
    assert [*head.state_dict()] == ["layers.1.weight", "layers.1.bias"]
    with pytest.raises(ValueError, match="expected both or none"):
        MulticlassHead(**SHARED, space=head.space, layers=1, label_smoothing=0.0, balance=0.0, lexicon="words.txt")
