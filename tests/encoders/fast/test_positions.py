"""Stack computes what transformers' ModernBERT and DeBERTa-v3 compute, packed and merged, or lets them compute."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from encoders.fast.test_linear import HALF, SHARED, adapted, by_library, moved, off, stored
from encoders.fast.test_stack import EXACT, LENGTHS, compared, flat, fused, step, tokens
from methods.test_base import KINDS, SIZE, V3
from methods.test_base import encoder as with_dropout
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, ModernBertConfig, ModernBertModel

from hatemtl.encoders.fast import accelerate, door, is_fast, merge, merged, positions, unmerge, verify
from hatemtl.encoders.fast.attention import Attention
from hatemtl.encoders.fast.linear import Linear
from hatemtl.encoders.fast.positions import Distances, Turn
from hatemtl.encoders.fast.posts import Group
from hatemtl.encoders.fast.tape import Tape
from hatemtl.encoders.partway import states as states_of
from hatemtl.methods.peft_adapters import library as peft_library

STACKED = pytest.mark.parametrize(
    ("library", "kind"),
    [("adapterhub", "deberta"), ("adapterhub", "modernbert"), ("peft", "deberta"), ("peft", "modernbert")],
)
EACH = pytest.mark.parametrize("kind", ["deberta", "modernbert"])


def mixed() -> dict[str, Tensor]:
    """Posts of many lengths in any order."""
    mask = torch.zeros(7, 28, dtype=torch.long)
    for row, length in enumerate([28, 1, 12, 27, 3, 28, 16]):
        mask[row, :length] = 1
    draw = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(3, 20, mask.shape, generator=draw), "attention_mask": mask}


@STACKED
@LENGTHS
@pytest.mark.parametrize("padded", [True, False])
def test_values_and_gradients_are_those_of_the_library(library: str, kind: str, length: int, padded: bool) -> None:
    model = adapted(library, kind)
    assert len(fused(model)) == 2
    compared(model, tokens(length, padded=padded))


@STACKED
def test_posts_of_many_lengths_in_any_order(library: str, kind: str) -> None:
    model, batch = adapted(library, kind), mixed()
    compared(model, batch)
    hidden = model.eval()(**batch).last_hidden_state
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):  # packed, none reads another
        alone: Any = model(**{key: value[row : row + 1, :length] for key, value in batch.items()}).last_hidden_state
        assert off(hidden[row, :length].detach(), alone[0].detach()) < EXACT


@STACKED
def test_padding_may_stand_on_the_left(library: str, kind: str) -> None:
    batch = {key: value.flip(1) for key, value in mixed().items()}
    compared(adapted(library, kind), batch)


@STACKED
@LENGTHS
def test_merged_gives_what_unmerged_gives_and_goes_without_a_trace(library: str, kind: str, length: int) -> None:
    model, batch = adapted(library, kind).eval(), tokens(length)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    there = batch["attention_mask"].bool()
    with torch.inference_mode():
        apart = model(**batch).last_hidden_state[there]
        with merged(model):
            assert all(
                leaf.merged is not None for layer in fused(model) for leaf in layer.leaves if isinstance(leaf, Linear)
            )
            for each in (5, length, 28):  # what is known of distances serves shorter posts, and grows
                model(**tokens(each))
                together = model(**batch).last_hidden_state[there]
                assert off(together, apart) < EXACT
        again = model(**batch).last_hidden_state[there]
    assert torch.equal(again, apart)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@EACH
def test_merged_anew_after_a_step_the_step_counts(kind: str) -> None:
    model, batch = adapted("peft", kind).eval(), tokens(20)
    with torch.inference_mode(), merged(model):
        before = model(**batch).last_hidden_state
    moved(model)
    with torch.inference_mode():
        apart = model(**batch).last_hidden_state
        with merged(model):
            assert off(model(**batch).last_hidden_state, apart) < EXACT < off(before, apart)


@STACKED
def test_in_bf16_it_errs_about_as_the_library(library: str, kind: str) -> None:
    batch = mixed()
    exact, gradients = step(adapted(library, kind), batch)
    model = stored(adapted(library, kind), torch.bfloat16)
    with HALF():
        (hidden, ours), (other, theirs) = step(model, batch), step(by_library(model), batch)
        with torch.inference_mode(), merged(model.eval()):
            together = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    assert off(hidden, exact) < 3 * off(other, exact) < 0.03
    assert off(together, exact) < 3 * off(other, exact)
    assert off(flat(ours), flat(gradients)) < 2 * off(flat(theirs), flat(gradients)) < 0.06


@EACH
def test_in_int8_it_says_nearly_the_same(kind: str) -> None:
    model, batch = adapted("peft", kind).eval(), mixed()
    there = batch["attention_mask"].bool()
    with torch.inference_mode():
        exact = model(**batch).last_hidden_state[there]
        merge(model, int8=True)
        assert 0 < off(model(**batch).last_hidden_state[there], exact) < 0.03
        unmerge(model)
        assert torch.equal(model(**batch).last_hidden_state[there], exact)


@EACH
def test_embeddings_may_be_given_and_learn(kind: str) -> None:
    model, batch = adapted("peft", kind).eval(), mixed()
    found, mask = [], batch["attention_mask"]
    for each in (model, by_library(model)):
        embeddings = each.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
        hidden = each(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state[mask.bool()]
        towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
        (gradient,) = torch.autograd.grad((hidden * towards).sum(), embeddings)
        found.append((hidden.detach(), gradient[mask.bool()]))
    for mine, exact in zip(*found, strict=True):
        assert off(mine, exact) < EXACT


@pytest.mark.parametrize("bias", [False, True])
def test_modernberts_own_weights_are_trained_with_biases_or_without(bias: bool) -> None:
    torch.manual_seed(0)
    given = {"pad_token_id": 0, "local_attention": 8, "attention_bias": bias, "mlp_bias": bias, "norm_bias": bias}
    model: Any = ModernBertModel(ModernBertConfig(**SIZE, **given))
    accelerate(model, own=True)
    assert len(fused(model)) == 2
    compared(model, mixed())
    model.layers[0].requires_grad_(False)
    model.layers[1].attn.requires_grad_(False)
    accelerate(model, own=True)
    compared(model, mixed())


@EACH
def test_frozen_layers_below_the_first_lora_keep_nothing(kind: str) -> None:
    """And the lowest LoRA may be on any projection."""
    for targets in (r".*1\.(attention\.self\.query_proj|attn\.Wqkv)", r".*1\.(output\.dense|mlp\.Wo)"):
        model = peft_library.PEFTLoRA(**SHARED, targets=targets).attach(_still(with_dropout(kind)), name="run", seed=0).model
        assert len(fused(model)) == 2
        compared(moved(model), mixed())


def _still(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deberta", {"position_buckets": -1, "max_relative_positions": -1}),
        ("deberta", {"norm_rel_ebd": "none", "position_biased_input": True, "type_vocab_size": 2}),
        ("modernbert", {"attention_bias": True, "mlp_bias": True, "norm_bias": True}),
        ("modernbert", {"local_attention": 2, "local_rope_theta": 100.0, "global_attn_every_n_layers": 1}),
        ("modernbert", {"local_attention": 2, "local_rope_theta": 100.0, "global_attn_every_n_layers": 2}),
    ],
    ids=str,
)
def test_whatever_else_a_configuration_says(kind: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if kind == "deberta":
        body: Any = DebertaV2Model(DebertaV2Config(**SIZE, **{**V3, **changes})).eval()
    else:
        body = ModernBertModel(ModernBertConfig(**SIZE, **{"pad_token_id": 0, "local_attention": 8, **changes})).eval()
    for name, parameter in body.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    model = moved(peft_library.PEFTLoRA(**SHARED, targets=None).attach(_still(body), name="run", seed=0).model)
    assert len(fused(model)) == 2
    compared(model, mixed())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deberta", {"share_att_key": False}),
        ("deberta", {"pos_att_type": "c2p"}),
        ("deberta", {"conv_kernel_size": 3}),
        ("deberta", {"hidden_act": "relu"}),
        ("modernbert", {"hidden_activation": "relu"}),
    ],
    ids=str,
)
def test_other_forms_are_left_to_the_library(kind: str, changes: dict[str, Any]) -> None:
    cls, config = KINDS[kind]
    known = {**SIZE, **(V3 if kind == "deberta" else {"pad_token_id": 0}), **changes}
    model = cls(type(config)(**known)).eval()
    assert not is_fast(peft_library.PEFTLoRA(**SHARED, targets=None).attach(model, name="run", seed=0).model)


@pytest.mark.parametrize("window", [1, 4, 26, 27, 40, -1])
def test_a_local_layer_reads_what_is_near(window: int) -> None:
    group = Group(0, 28, torch.zeros(1, 1, 1, 28))
    (near,) = Attention(1, window=window)._groups(Tape([group], torch.device("cpu"), records=False))
    places = torch.arange(28)
    expected = (places[:, None] - places).abs() <= (28 if window < 0 else window)
    assert torch.equal((near.mask == 0).expand(1, 1, 28, 28)[0, 0], expected)
    assert (near is group) == bool(expected.all())


@EACH
def test_who_watches_asks_for_more_or_drops_out_is_served_by_the_library(kind: str) -> None:
    model, batch = adapted("peft", kind), tokens(20)
    expected, _ = step(model, batch)
    layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[0]
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: seen.append(states_of(output)))
    hidden, _ = step(model, batch)
    assert [tuple(states.shape) for states in seen] == [(3, 20, SIZE["hidden_size"])]
    assert off(hidden, expected) < EXACT
    handle.remove()
    assert torch.equal(step(model, batch)[0], expected) and len(seen) == 1
    assert len(model.eval()(**batch, output_hidden_states=True).hidden_states) == 3
    assert len(model(**batch, output_attentions=True).attentions) == 2
    assert isinstance(model(**batch, return_dict=False), tuple)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    if kind == "deberta":  # ModernBERT made none, its configuration asking for none
        assert not torch.equal(step(model, batch)[0], step(model, batch)[0])


@EACH
def test_a_copy_computes_the_same_and_apart(kind: str) -> None:
    batch, model = tokens(20), stored(adapted("peft", kind), torch.bfloat16)
    with HALF():
        with torch.inference_mode(), merged(model.eval()):
            model(**batch)
        expected, _ = step(model, batch)
        other = deepcopy(model)
        assert torch.equal(step(other, batch)[0], expected)
        moved(other)
        assert not torch.equal(step(other, batch)[0], expected)
        assert torch.equal(step(model, batch)[0], expected)


@pytest.mark.parametrize(
    ("kind", "how"), [("deberta", "distance"), ("deberta", "gradient"), ("modernbert", "window"), ("modernbert", "angle")]
)
def test_where_they_differ_the_library_computes_and_the_user_is_told(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_verified", {})
    model = adapted("peft", kind)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(10)  # as large as pretrained ones
    assert verify(model, torch.float32) is None and is_fast(model)
    monkeypatch.setattr(door, "_verified", {})
    if how == "distance":
        embedded = Distances._embedded
        monkeypatch.setattr(Distances, "_embedded", lambda own, rows: embedded(own, rows).flip(0))
    elif how == "gradient":
        back = positions._aslant_back
        monkeypatch.setattr(positions, "_aslant_back", lambda *of: 1.01 * back(*of))
    elif how == "window":
        monkeypatch.setattr(Attention, "_groups", lambda attention, tape: tape.groups)
    else:
        turn = Turn._turn
        monkeypatch.setattr(Turn, "_turn", lambda *of, back=False: turn(*of, back=back).mul_(1.001))
    note = verify(model, torch.float32)
    assert note is not None and "differ from the library's" in note and "trainer.fast=false" in note
    assert not is_fast(model)
