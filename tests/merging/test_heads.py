"""Heads of several runs made one."""

import pytest
import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace, Part
from hatemtl.merging.heads import concat, mean

WHOLE = LabelSpace("multilabel", ("a", "b", "c", "d", "e"))


def head(labels: int, seed: int, width: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "layers.1.weight": torch.randn(labels, width, generator=draw),
        "layers.1.bias": torch.randn(labels, generator=draw),
    }


def parts(of: int) -> dict[str, tuple[LabelSpace, dict[str, Tensor]]]:
    spaces = [WHOLE.part(Part(i, of)) for i in range(1, of + 1)]
    return {f"part_{i}": (space, head(len(space), i)) for i, space in enumerate(spaces, 1)}


@pytest.mark.parametrize("of", [2, 3, 5])
def test_every_label_is_read_as_its_part_reads_it(of: int) -> None:
    sources, vectors = parts(of), torch.randn(7, 3)
    merged = concat("target", sources, WHOLE)
    logits = vectors @ merged["layers.1.weight"].T + merged["layers.1.bias"]
    for space, state in sources.values():
        own = vectors @ state["layers.1.weight"].T + state["layers.1.bias"]
        for i, label in enumerate(space.names):
            assert torch.equal(logits[:, WHOLE.names.index(label)], own[:, i])


def test_the_order_of_the_parts_does_not_matter() -> None:
    sources = parts(3)
    turned = dict(reversed(sources.items()))
    first, second = concat("target", sources, WHOLE), concat("target", turned, WHOLE)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_labels_of_no_part_or_of_two_are_named() -> None:
    sources = parts(3)
    with pytest.raises(UserError, match="no source was trained for the label 'b' of task 'target'.*heads.merge=refit"):
        concat("target", {"part_1": sources["part_1"], "part_3": sources["part_3"]}, WHOLE)
    with pytest.raises(UserError, match="part_1 and again were both trained for the label 'a'"):
        concat("target", {**sources, "again": sources["part_1"]}, WHOLE)
    with pytest.raises(UserError, match="^heads.merge=refit: part_1 and again were both.*, or type merge=mean"):
        concat("target", {**sources, "again": sources["part_1"]}, WHOLE, "refit")


def test_labels_that_every_source_knows_are_read_by_the_mean() -> None:
    sources = {"one": (WHOLE, head(5, 1)), "two": (WHOLE, head(5, 2))}
    side_by_side, together = concat("target", sources, WHOLE), mean("target", sources, WHOLE)
    assert all(torch.equal(side_by_side[key], together[key]) for key in together)


def test_what_all_labels_share_must_be_the_same() -> None:
    sources = parts(2)
    same = {name: (space, {**state, "pool.query.weight": torch.ones(1, 3)}) for name, (space, state) in sources.items()}
    assert torch.equal(concat("target", same, WHOLE)["pool.query.weight"], torch.ones(1, 3))
    apart = {
        name: (space, {**state, "pool.query.weight": torch.full((1, 3), i)})
        for i, (name, (space, state)) in enumerate(sources.items())
    }
    with pytest.raises(UserError, match=r"weights that all their labels share \(pool.query.weight\).*heads.merge=refit"):
        concat("target", apart, WHOLE)


def test_the_mean_of_heads_is_the_mean_of_their_logits() -> None:
    sources, vectors = {str(i): (WHOLE, head(5, i)) for i in range(3)}, torch.randn(4, 3)
    merged = mean("target", sources, WHOLE)
    logits = [vectors @ state["layers.1.weight"].T + state["layers.1.bias"] for _, state in sources.values()]
    torch.testing.assert_close(vectors @ merged["layers.1.weight"].T + merged["layers.1.bias"], torch.stack(logits).mean(0))
    with pytest.raises(UserError, match="part_1 for task 'target' knows a, c, e.*heads.merge=concat for parts"):
        mean("target", parts(2), WHOLE)
