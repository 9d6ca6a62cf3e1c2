"""Stack computes what transformers' own layers compute, at any length, in training and merged, or lets them compute."""

from collections.abc import Iterable
from copy import deepcopy
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from encoders.fast.test_linear import (
    LIBRARIES,
    SHARED,
    adapted,
    by_library,
    every_library,
    hub_lora,
    moved,
    off,
    stored,
)
from gpu_stand_in import as_on_a_gpu
from methods.test_base import encoder as with_dropout
from methods.test_base import trained
from network.test_module import LOOKS, Waits
from torch import Tensor, nn

from hatemtl.encoders.fast import attention, merged, restore
from hatemtl.encoders.fast.attention import LEAST_KEYS
from hatemtl.encoders.fast.linear import Linear
from hatemtl.encoders.fast.posts import AREA, PADDING, ROWS, Posts, _cuts
from hatemtl.encoders.fast.stack import Stack
from hatemtl.encoders.partway import states as states_of
from hatemtl.errors import UserError

FUSED = pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "xlm-roberta"])
EXACT = 1e-5
LENGTHS = pytest.mark.parametrize("length", [1, 5, LEAST_KEYS - 1, LEAST_KEYS, LEAST_KEYS + 1, 28])


def fused(model: nn.Module) -> list[Any]:
    return [layer for m in model.modules() if isinstance(m.forward, Stack) for _, layer, _ in m.forward.layers]


def tokens(length: int, *, padded: bool = True) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(length)
    mask = torch.ones(3, length, dtype=torch.long)
    if padded:
        mask[1, -(-length // 2) :] = 0
    return {"input_ids": torch.randint(3, 20, (3, length), generator=draw), "attention_mask": mask}


def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.train().zero_grad()
    hidden = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden.float() * towards).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def compared(model: Any, batch: dict[str, Tensor], values: float = EXACT) -> tuple[Tensor, dict[str, Tensor]]:
    """The library's hidden states and gradients, from which ours lie no farther than so much, nor any factor's by itself."""
    (hidden, gradients), (expected, others) = step(model, batch), step(by_library(model), batch)
    assert gradients.keys() == others.keys()
    assert off(hidden, expected) < values
    assert off(flat(gradients), flat(others)) < EXACT
    whole = flat(others).norm()
    for name, gradient in gradients.items():  # of one place alone, q and k learn nothing
        assert (gradient - others[name]).norm() < 10 * EXACT * max(others[name].norm(), 0.01 * whole), name
    return expected, others


@FUSED
@every_library
@LENGTHS
@pytest.mark.parametrize("padded", [True, False])
def test_values_and_gradients_are_those_of_the_library(library: str, kind: str, length: int, padded: bool) -> None:
    model, batch = adapted(library, kind), tokens(length, padded=padded)
    assert len(fused(model)) == 2
    compared(model, batch)


@FUSED
@every_library
@LENGTHS
def test_merged_gives_what_unmerged_gives_and_goes_without_a_trace(library: str, kind: str, length: int) -> None:
    model, batch = adapted(library, kind).eval(), tokens(length)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.inference_mode():
        apart = model(**batch).last_hidden_state
        with merged(model):
            together = model(**batch).last_hidden_state
            assert all(
                leaf.merged is not None for layer in fused(model) for leaf in layer.leaves if isinstance(leaf, Linear)
            )
        again = model(**batch).last_hidden_state
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert torch.equal(again, apart)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every_library
@LENGTHS
def test_in_bf16_merged_errs_about_as_unmerged(library: str, length: int) -> None:
    batch = tokens(length)
    exact = adapted(library).eval()(**batch).last_hidden_state.detach()
    model = stored(adapted(library), torch.bfloat16).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        apart = off(model(**batch).last_hidden_state, exact)
        with merged(model):
            together = off(model(**batch).last_hidden_state, exact)
    assert together < 1.5 * apart < 0.04


def test_loras_on_some_layers_and_projections_only() -> None:
    batch = tokens(20)
    parts = ({"attention": ["q", "v"], "intermediate": False}, {"attention": ["k"]}, {"attention": []})
    for changes in ({"leave_out": [0]}, *parts):
        model = moved(hub_lora(**_lora(**changes)).attach(_encoder(), name="run", seed=0).model)
        hidden, _ = compared(model, batch)
        with torch.inference_mode(), merged(model.eval()):
            torch.testing.assert_close(
                model(**batch).last_hidden_state[batch["attention_mask"].bool()], hidden, atol=1e-5, rtol=1e-4
            )


def _lora(**changes: Any) -> dict[str, Any]:
    return {**SHARED, "attention": ["q", "k", "v"], "intermediate": True, "output": True, **changes}


def _encoder() -> Any:
    model = with_dropout("bert")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def padded_to(lengths: list[int], length: int, *, left: bool = False) -> Tensor:
    """A mask as transformers gives it, for posts of these lengths."""
    there = torch.arange(length) < torch.tensor(lengths)[:, None]
    there = there.flip(1) if left else there
    return torch.zeros(len(lengths), 1, 1, length).masked_fill(~there[:, None, None], torch.finfo(torch.float32).min)


@pytest.mark.parametrize(
    "lengths", [[1], [16, 16], [20, 20, 20], [5, 20, 1], [20, 19], [17, 40, 3, 3], [90, 2, 60, 61, 5, 88]], ids=str
)
@pytest.mark.parametrize("left", [False, True])
def test_posts_stand_one_behind_the_other_and_come_back(lengths: list[int], left: bool) -> None:
    length = max(lengths)
    hidden, mask = torch.randn(len(lengths), length, 6), padded_to(lengths, length, left=left)
    there = (mask == 0)[:, 0, 0]
    posts = Posts.of(hidden, mask)
    x = posts.pack(hidden)
    end = posts.groups[-1].end
    assert posts.packing is None or (len(x) % ROWS == 0 and 0 <= len(x) - end < max(ROWS, end / 16))
    assert sorted(x.abs().sum(1).sub(1e-9).clamp(min=0).tolist())[-sum(lengths) :] == sorted(
        hidden[there].abs().sum(1).sub(1e-9).clamp(min=0).tolist()
    )
    assert int((x != 0).any(1).sum()) == sum(lengths)  # nothing else is among them
    assert not posts.unpack(x)[~there].any() and torch.equal(posts.unpack(x)[there], hidden[there])
    if not left:
        assert posts.groups[-1].end - sum(lengths) <= len(posts.groups) * PADDING
    begin = 0
    for group in posts.groups:  # each with its posts' own mask
        own = x[group.begin : group.end].view(len(group.mask), group.mask.shape[-1], 6)
        assert group.begin == begin and torch.equal((own != 0).any(2), (group.mask == 0)[:, 0, 0])
        begin = group.end


def test_batches_of_all_lengths_have_few_numbers_of_rows() -> None:
    """For each of which oneDNN makes code: 32 posts of 5 to 512 tokens of like length have thousands otherwise."""
    draw, rows = np.random.default_rng(0), set()
    for _ in range(300):
        longest = int(draw.integers(8, 513))
        lengths = draw.integers(max(5, longest - longest // 8), longest + 1, 32).tolist()
        posts = Posts.of(torch.zeros(32, max(lengths), 1), padded_to(lengths, max(lengths)))
        assert posts.packing is not None
        rows.add(len(posts.packing[0]))
        assert len(posts.packing[0]) - posts.groups[-1].end <= posts.groups[-1].end / 16
    assert len(rows) < 16 * 7  # sixteen between two powers of two, from 2⁷ to 2¹⁴


def test_groups_are_of_one_length_or_little_padding_and_not_too_large() -> None:
    def sizes(lengths: list[int]) -> list[int]:
        return [
            len(group.mask)
            for group in Posts.of(torch.zeros(len(lengths), max(lengths), 2), padded_to(lengths, max(lengths))).groups
        ]

    assert sizes(64 * [40]) == [64]
    assert sizes([*63 * [40], 20]) == [64] and PADDING > 20
    assert sizes([*63 * [40], 1, 2]) == [2, 63] and 1 < PADDING < 38 + 39
    assert sizes(5 * [256]) == [1, 2, 2] and AREA == 2 * 256**2
    assert sizes([600, 600, 8]) == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_groups_cost_less(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = np.sort(draw.integers(1, 60, draw.integers(1, 11)))

    def cost(cuts: Iterable[int]) -> int:
        return sum(PADDING + int((group[-1] - group).sum()) for group in np.split(lengths, [*cuts]))

    places = range(1, len(lengths))
    assert cost(_cuts(lengths)) == min(cost(cuts) for n in range(len(lengths)) for cuts in combinations(places, n))


def test_a_mask_of_another_form_leaves_the_batch_whole() -> None:
    hidden, mask = torch.randn(3, 20, 6), torch.zeros(3, 1, 20, 20).tril()
    for given in (mask, None):
        posts = Posts.of(hidden, given)
        assert [(group.begin, group.end) for group in posts.groups] == [(0, 60)]
        assert torch.equal(posts.pack(hidden), hidden.flatten(0, 1)) and torch.equal(
            posts.unpack(posts.pack(hidden)), hidden
        )


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "xlm-roberta", "deberta", "modernbert"])
@every_library
@pytest.mark.parametrize("length", [1, LEAST_KEYS - 1, 28])
def test_as_on_a_gpu_where_posts_stay_padded_all_is_the_librarys(
    library: str, kind: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and merged, in float32 and, rounded, in bf16."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(attention, "attend_only", None)  # which looks at what it computes
    model, batch = adapted(library, kind), tokens(length)
    assert len(fused(model)) == 2
    expected, gradients = compared(model, batch)
    there = batch["attention_mask"].bool()

    def alone(model: Any, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(), merged(model.eval(), dtype):
            hidden: Tensor = model(**batch).last_hidden_state
            return hidden[there]

    assert off(alone(model, torch.float32), expected) < EXACT
    with torch.autocast("cpu", torch.bfloat16):
        half = stored(model, torch.bfloat16)
        hidden, found = step(half, batch)
        assert off(hidden, expected) < 0.02 and off(alone(half, torch.bfloat16), expected) < 0.02
    assert off(flat(found), flat(gradients)) < 0.03


@LOOKS
@FUSED
def test_as_on_a_gpu_no_evaluation_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model, batch = adapted(kind=kind).eval(), tokens(20)
    with torch.inference_mode(), merged(model), Waits() as waits:
        model(**batch)
    assert not waits.count


@FUSED
@every_library
def test_posts_of_many_lengths_in_any_order(library: str, kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    mask = torch.zeros(7, 28, dtype=torch.long)
    for row, length in enumerate([28, 1, 12, 27, 3, 28, 16]):
        mask[row, :length] = 1
    batch = {"input_ids": torch.randint(3, 20, mask.shape, generator=draw), "attention_mask": mask}
    model = adapted(library, kind)
    expected, _ = compared(model, batch)
    with torch.inference_mode(), merged(model.eval()):
        torch.testing.assert_close(model(**batch).last_hidden_state[mask.bool()], expected, atol=1e-5, rtol=1e-4)


def test_who_watches_a_layer_sees_it_computed() -> None:
    model, batch = adapted(), tokens(20)
    expected, gradients = step(model, batch)
    seen: list[Tensor] = []
    layer = model.get_submodule(next(name for name, m in model.named_modules() if type(m).__name__ == "BertLayer"))
    handle = layer.register_forward_hook(lambda module, given, output: seen.append(states_of(output)))
    hidden, others = step(model, batch)
    assert [tuple(states.shape) for states in seen] == [(3, 20, seen[0].shape[-1])]
    torch.testing.assert_close(hidden, expected, atol=5e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=5e-5, rtol=1e-4)
    handle.remove()
    assert torch.equal(step(model, batch)[0], expected)
    assert len(seen) == 1
    states = model.eval()(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 3


@every_library
def test_attention_maps_are_left_to_the_library_and_dropout_ends_with_training(library: str) -> None:
    model, batch = adapted(library), tokens(20)
    maps = model.eval()(**batch, output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in maps] == 2 * [(3, 4, 20, 20)]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    first, _ = step(model, batch)
    assert not torch.equal(first, step(model, batch)[0])
    with torch.no_grad():  # none of it in evaluation
        found, expected = (m.eval()(**batch).last_hidden_state for m in (model, by_library(model)))
        there = batch["attention_mask"].bool()
        torch.testing.assert_close(found[there], expected[there], atol=5e-6, rtol=1e-5)


@every_library
def test_a_gradient_of_gradients_is_the_librarys_or_refused(library: str) -> None:
    model, batch = adapted(library), tokens(5)
    factors = list(trained(model).values())
    with pytest.raises(UserError, match="type trainer.fast=false"):
        torch.autograd.grad(model(**batch).last_hidden_state.sin().sum(), factors, create_graph=True)
    restore(model)
    gradients = torch.autograd.grad(model(**batch).last_hidden_state.sin().sum(), factors, create_graph=True)
    whole = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(whole, factors))


def test_a_lora_that_is_not_plain_keeps_its_layers_from_it() -> None:
    for library in LIBRARIES:
        assert not fused(adapted(library, dropout=0.1))
    from hatemtl.methods.adapterhub import library as ah_library

    model = ah_library.enable(with_dropout("bert"))
    model.add_adapter("run", config="seq_bn[dropout=0.1]")
    assert not fused(ah_library.train(model, "run"))


def test_what_was_joined_in_one_type_is_joined_anew_in_another() -> None:
    model, batch = adapted(), tokens(20)
    expected, _ = step(model, batch)
    stored(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = step(model, batch)
    assert hidden.dtype is torch.bfloat16 and off(hidden, expected) < 0.02


def test_a_frozen_weight_that_was_changed_counts_as_it_is_now() -> None:
    """What is kept in another order must not outlive it."""
    model, batch = adapted(), tokens(20)
    step(model, batch)
    frozen = [p for name, p in model.named_parameters() if not p.requires_grad and p.ndim == 2 and "embed" not in name]
    with torch.no_grad():
        for parameter in frozen:
            parameter.mul_(1.5)
    exact, _ = compared(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = step(stored(model, torch.bfloat16), batch)
        with torch.no_grad():
            for parameter in frozen:
                parameter.div_(1.5)
        other, _ = step(model, batch)
    assert off(half, exact) < 0.02 < off(other, exact)


def test_a_copy_computes_the_same_and_apart() -> None:
    batch, model = tokens(20), stored(adapted(), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = step(model, batch)
        other = deepcopy(model)
        assert torch.equal(step(other, batch)[0], expected)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if "lora_B" in name:
                    parameter += 1
        assert not torch.equal(step(other, batch)[0], expected)
        assert torch.equal(step(model, batch)[0], expected)


def test_a_first_call_in_inference_mode_does_not_keep_training_from_it() -> None:
    model, batch = adapted(), tokens(20)
    with torch.inference_mode():
        model.eval()(**batch)
    _, gradients = step(model, batch)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
