"""Which source answers for which label: means over tokens and posts, by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.labels import LabelSpace
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.methods.bank.lora_bank import Gating, WeightGate, fill
from hatemtl.methods.bank.source_weights import COLUMNS, watched

SPACES = {
    "target": LabelSpace("multilabel", ("a", "b", "c")),
    "label": LabelSpace("multiclass", ("x", "y")),
    "score": LabelSpace("score", ("s",)),
}


class Head(nn.Module):
    """A head that knows its labels and says nothing."""

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        self.space = space


class Network(nn.Module):
    """An encoder of one linear layer on numbers that stand for tokens, and heads."""

    def __init__(self, gating: Gating) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layer": nn.Linear(1, 2)})
        self.heads = nn.ModuleDict({task: Head(space) for task, space in SPACES.items()})
        update = LoRAUpdate(torch.ones(1, 1), torch.ones(2, 1))
        fill(self.encoder, {"one": {"layer": update}, "two": {"layer": update}}, gating=gating, name="run", seed=0)

    def forward(self, batch: Batch) -> Tensor:
        hidden: Tensor = self.encoder["layer"](batch.input_ids[..., None].float())
        self.encoder["layer"](torch.ones(1, 7, 1))  # as DeBERTa projects positions with the same weights
        return hidden


def batch(**other: Any) -> Batch:
    targets = {
        "target": torch.tensor([[1.0, 0, 0], [1.0, 1, 0], [0, 0, 0]]),
        "label": torch.tensor([0, 1, 1]),
        "score": torch.tensor([0.5, 0.1, 0.0]),
    }
    given: dict[str, Any] = {
        "input_ids": torch.tensor([[1, 3, 9], [5, 9, 9], [2, 2, 2]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
        "targets": targets,
        "has": {
            "target": torch.tensor([True, True, False]),
            "label": torch.tensor([True, True, True]),
            "score": torch.tensor([False, False, True]),
        },
        "posts": torch.arange(3),
    }
    return Batch(**{**given, **other})


@pytest.fixture
def network() -> Network:
    """Its gate gives source one a tenth of what the layer reads, source two a constant."""
    network = Network(Gating(input=True, softmax=False))
    gate: Any = next(m for m in network.modules() if isinstance(m, WeightGate))
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[0.1], [0.0]]))
        gate.bias.copy_(torch.tensor([-0.5, 0.0]))
    return network


def shown(rows: list[dict[str, Any]], source: str) -> dict[tuple[str, str], tuple[float, int]]:
    return {(row["task"], row["label"]): (float(row["weight"]), row["posts"]) for row in rows if row["source"] == source}


def test_means_over_the_posts_that_carry_a_label(network: Network) -> None:
    with watched(network) as answers, torch.no_grad():
        network(batch())
    found = shown(answers.rows(), "one")
    # the posts' tokens, without padding: (1 + 3) / 2, 5 and 2, a tenth of each
    expected = {
        ("target", "*"): (0.35, 2), ("target", "a"): (0.35, 2), ("target", "b"): (0.5, 1),
        ("label", "*"): (0.3, 3), ("label", "x"): (0.2, 1), ("label", "y"): (0.35, 2),
        ("score", "*"): (0.2, 1),
    }  # fmt: skip
    assert found.keys() == expected.keys()  # no row for label c, which no post carries
    for key, (weight, posts) in expected.items():
        assert found[key] == (pytest.approx(weight, abs=1e-6), posts)
    assert set(shown(answers.rows(), "two").values()) == {(0.5, 1), (0.5, 2), (0.5, 3)}
    assert {row["layer"] for row in answers.rows()} == {"layer"}


def test_batches_add_up(network: Network) -> None:
    both, one = batch(), batch(input_ids=torch.full((3, 3), 7))
    with watched(network) as answers, torch.no_grad():
        network(both)
        network(one)
    found = shown(answers.rows(), "one")
    assert found["target", "*"] == (pytest.approx((0.2 + 0.5 + 0.7 + 0.7) / 4, abs=1e-6), 4)
    with torch.no_grad():
        network(both)  # outside: nothing is counted
    assert shown(answers.rows(), "one") == found


def test_of_several_choices_the_first_counts(network: Network) -> None:
    owner = torch.tensor([0, 0, 1, 2])
    ids, mask = torch.tensor([[1, 3], [9, 9], [5, 9], [2, 2]]), torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])
    with watched(network) as answers, torch.no_grad():
        network(batch(input_ids=ids, attention_mask=mask, owner=owner))
    assert shown(answers.rows(), "one")["label", "*"] == (pytest.approx(0.3, abs=1e-6), 3)


def test_static_gates_say_the_same_of_all() -> None:
    network = Network(Gating(input=False, softmax=True))
    with watched(network) as answers, torch.no_grad():
        network(batch())
    assert {row["weight"] for row in answers.rows()} == {"0.5"}


def test_the_file_keeps_the_rows_of_other_tasks(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "fusion.csv"
    path.write_text(",".join(COLUMNS) + "\nother,*,layer,one,0.5,3\nlabel,old,layer,one,0.5,3\n")
    with watched(network) as answers, torch.no_grad():
        network(batch())
    answers.write(path)
    lines = path.read_text().splitlines()
    assert lines[:2] == [",".join(COLUMNS), "other,*,layer,one,0.5,3"]
    assert not [line for line in lines if line.startswith("label,old")]
    assert len(lines) == 2 + len(answers.rows())


def test_names_that_a_spreadsheet_would_compute_are_kept(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "fusion.csv"
    path.write_text(",".join(COLUMNS) + "\nother,'@b,layer,one,0.5,3\n")
    head: Any = network.heads["target"]
    head.space = LabelSpace("multilabel", ("=a", "b", "c"))
    with watched(network) as answers, torch.no_grad():
        network(batch())
    for _ in range(2):
        answers.write(path)
        lines = path.read_text().splitlines()
        assert lines[1] == "other,'@b,layer,one,0.5,3"
        assert {line.split(",")[1] for line in lines if line.startswith("target")} == {"*", "'=a", "b"}


def test_a_network_without_a_bank_leaves_no_file(tmp_path: Path) -> None:
    network = Network(Gating())
    network.encoder = nn.ModuleDict({"layer": nn.Linear(1, 2)})
    with watched(network) as answers:
        network(batch())
    answers.write(tmp_path / "fusion.csv")
    assert not list(tmp_path.iterdir())
