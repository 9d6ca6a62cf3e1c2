"""Attention drawn to rationales: by hand, as HateXplain's code computes it, in a training step, and where it is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from encoders.fast.test_linear import by_library
from network.test_module import batch as posts_of
from network.test_module import module
from objective.regularised import RUN
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.network.frozen_prefix import Prefix
from hatemtl.objective.regularisers.rationale_attention import RationaleAttention, difference, spread

GIVEN: dict[str, Any] = {
    **{"weight": 1.0, "kind": "as_documented", "of": "encoder", "layers": [-1], "heads": None},
    **{"rationale_task": "rationale", "temperature": 0.2},
}
TASKS = ("label", "rationale")


def regulariser(**other: Any) -> RationaleAttention:
    return RationaleAttention(**{**GIVEN, **other})


def test_later_pieces_have_their_words_mark_and_special_tokens_none() -> None:
    none = -100.0
    targets = torch.tensor(
        [[none, 1, none, 0, 0.5, none], [none, 1, none, none, none, none], [none, 1, 1, none, none, none]]
    )
    inside = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    assert spread(targets, inside).tolist() == [[0, 1, 1, 0, 0.5, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]


MARKS = torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
INSIDE = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()


def attention() -> Tensor:
    scores = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    return scores.masked_fill(~INSIDE[:, None], -torch.inf).softmax(dim=2)


def theirs(a: Tensor, marks: Tensor, inside: Tensor) -> Tensor:
    """A post's loss as HateXplain's code has it, of heads (H, T): what is not padding, head by head, through log softmax."""
    due = marks[inside].softmax(dim=0)
    return torch.stack([-(due * head[inside].log_softmax(dim=0)).sum() for head in a]).sum()


def test_as_shipped_is_what_hatexplains_code_computes() -> None:
    a = attention()
    found = difference("as_shipped", a, MARKS, INSIDE, temperature=0.2)
    torch.testing.assert_close(found, torch.stack([theirs(*of) for of in zip(a, MARKS, INSIDE, strict=True)]))
    assert torch.equal(found, difference("as_shipped", a, MARKS, INSIDE, temperature=7.0)), "its factor does nothing"


def test_as_documented_is_the_cross_entropy_with_a_sharpened_softmax() -> None:
    """Of the second post by hand: t = (1, e, 1) / (e + 2) at a temperature of 1, and a = (1/2, 1/4, 1/4)."""
    a = torch.tensor([[[0.5, 0.25, 0.25, 0.0]]])
    found = difference("as_documented", a, MARKS[1:], INSIDE[1:], temperature=1.0)
    assert float(found) == pytest.approx(math.log(2) * (1 + 2 * math.e + 2) / (math.e + 2))
    sharp = difference("as_documented", torch.tensor([[[0.0, 1.0, 0.0, 0.0]]]), MARKS[1:], INSIDE[1:], temperature=0.01)
    assert float(sharp) == pytest.approx(0, abs=1e-30), "all attention on the one marked word, as a low temperature wants it"


def test_mse_is_the_mean_square_over_tokens_and_heads() -> None:
    a = torch.tensor([[[0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    found = difference("mse", a, MARKS[1:], INSIDE[1:], temperature=1.0)
    assert float(found) == pytest.approx((0.25 + 0.5625 + 0.0625) / 3 / 2)


@pytest.mark.parametrize("kind", ["as_documented", "as_shipped", "mse"])
def test_gradients_are_finite_where_attention_is_next_to_nothing(kind: Any) -> None:
    scores = torch.tensor([[[0.0, -200.0, 5.0, 0.0]] * 2] * 2).requires_grad_()
    a = scores.masked_fill(~INSIDE[:, None], -torch.inf).softmax(dim=2)
    difference(kind, a, MARKS, INSIDE, temperature=0.2).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(("layers", "heads"), [([-1], None), ([0, 1], [1])])
@pytest.mark.parametrize("lora", [True, False])
def test_a_training_step_draws_the_encoders_attention(
    layers: Sequence[int], heads: Sequence[int] | None, lora: bool
) -> None:
    """The term is that of the library's own attention, of posts with a marked word; its gradient moves the encoder."""
    multitask, posts = module(*TASKS, lora=lora).eval(), posts_of(7)
    multitask.regularise({"rationale_attention": (mine := regulariser(layers=layers, heads=heads))}, RUN)
    hidden, logits = multitask.through.states_and_logits(posts)
    assert (multitask.through.entered is not None) and [*multitask.through.entered[1]] == layers
    term = mine.terms(multitask.through, posts, hidden, logits)["difference"]
    said = by_library(multitask.encoder)(**posts.inputs, output_attentions=True).attentions
    of = torch.cat([said[layer][:, :, 0] if heads is None else said[layer][:, heads, 0] for layer in layers], dim=1)
    inside, marks = posts.attention_mask.bool(), spread(posts.targets["rationale"], posts.attention_mask.bool())
    counted = (marks > 0).any(dim=1) & posts.has["rationale"]
    assert 0 < counted.sum() < len(counted)
    expected = difference("as_documented", of, marks, inside, temperature=0.2)[counted].mean()
    torch.testing.assert_close(term, expected, atol=1e-5, rtol=1e-4)
    term.backward()
    moved = [name for name, p in multitask.encoder.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("layer.1.attention.self.key" in name for name in moved)
    assert all(p.grad is None for p in multitask.heads.parameters())
    multitask.through.entered = None  # a pass of its own, as where code is compiled, says the same
    torch.testing.assert_close(mine.terms(multitask.through, posts, hidden, logits)["difference"], term)


def test_it_learns() -> None:
    multitask, posts = module(*TASKS).train(), posts_of(7)
    multitask.regularise({"rationale_attention": regulariser(weight=10.0)}, RUN)
    optimizer, told = torch.optim.Adam([p for p in multitask.encoder.parameters() if p.requires_grad], lr=0.03), []
    for step in range(8):
        optimizer.zero_grad()
        multitask.so_far.sums.clear()
        multitask.training_step(posts, step).backward()
        optimizer.step()
        told.append(float(multitask.so_far.means("train", multitask.crew)["train_rationale_attention_difference"]))
    assert told[-1] < told[0] - 0.1


def test_it_may_be_the_attention_by_which_a_head_pools() -> None:
    multitask, posts = module("target", "rationale").train(), posts_of(7)
    multitask.regularise({"rationale_attention": (mine := regulariser(of="target"))}, RUN)
    assert not multitask.through.watched
    hidden, logits = multitask.through.states_and_logits(posts)
    mine.terms(multitask.through, posts, hidden, logits)["difference"].backward()
    query: Any = multitask.head("target").pool.query  # type: ignore[union-attr]
    assert query.weight.grad.any()


def test_it_says_nothing_in_another_tasks_step_or_while_the_encoder_rests_or_of_posts_without_a_mark() -> None:
    multitask, posts = module(*TASKS), posts_of(7)
    through, mine = multitask.through, regulariser()
    hidden, logits = through.states_and_logits(posts)
    assert mine.terms(through, posts, hidden, {"label": logits["label"]}) == {}
    through.learns = False
    assert mine.terms(through, posts, hidden, logits) == {}
    through.learns = True
    posts.targets["rationale"] = posts.targets["rationale"].clamp(max=0)
    assert mine.terms(through, posts, hidden, logits)["difference"] == 0


def test_kept_layers_below_serve_it() -> None:
    multitask, posts = module(*TASKS).eval(), posts_of(7)
    for dropout in [m for m in multitask.encoder.modules() if isinstance(m, nn.Dropout)]:
        dropout.p = 0.0
    for name, parameter in multitask.encoder.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "layer.0" not in name)
    mine, through = regulariser(), multitask.through
    multitask.regularise({"rationale_attention": mine}, RUN)
    computed = mine.terms(through, posts, *through.states_and_logits(posts))["difference"]
    through.prefix = Prefix(multitask.encoder)
    posts.prefix = through.prefix._below(posts).clone()
    through.prefix.install()
    torch.testing.assert_close(mine.terms(through, posts, *through.states_and_logits(posts))["difference"], computed)
    with pytest.raises(UserError, match=r"layers=\[0\]: nothing that is trained moves the attention of layer 0"):
        regulariser(layers=[0]).check(multitask.through)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": -0.1}, r"rationale_attention\.weight=-0\.1: expected λ, a number, 0 or more"),
        ({"temperature": 0.0}, r"rationale_attention\.temperature=0\.0: expected a number above 0"),
        ({"layers": []}, r"rationale_attention\.layers=\[\]: expected one or more numbers"),
        ({"heads": [1, 1]}, r"rationale_attention\.heads=\[1, 1\]: expected one or more numbers, each once"),
        ({"layers": [2]}, r"rationale_attention\.layers=\[2\]: expected numbers from 0 to 1, or -1 for the last"),
        ({"heads": [0, 2]}, r"rationale_attention\.heads=\[0, 2\]: expected numbers from 0 to 1, or null for all"),
        ({"rationale_task": "label"}, r"rationale_task=label is none of words.*add rationale to tasks"),
        ({"rationale_task": "marks"}, r"rationale_task=marks is none of this run \(label, rationale\)"),
        ({"of": "encodre"}, r"of=encodre: expected encoder, or a task of this run; did you mean 'encoder'"),
        ({"of": "label"}, r"of=label: the head of that task does not pool by attention; type tasks\.label\.head\.pooling"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        regulariser(**given).check(module(*TASKS).through)


def test_posts_that_are_read_with_second_texts_are_refused() -> None:
    """The mark of a first text's last word would spread over the second text."""
    through = module(*TASKS).through
    with pytest.raises(UserError, match="rationale_task=rationale: its posts are read with second texts"):
        regulariser().begin(through, replace(RUN, paired={"rationale"}))
    regulariser().begin(through, replace(RUN, paired={"label"}))


def test_tasks_that_read_by_themselves_are_refused() -> None:
    through = module(*TASKS).through
    through.by_task = True
    with pytest.raises(UserError, match="each task has an attention of its own; type method=peft_lora16"):
        regulariser().check(through)
