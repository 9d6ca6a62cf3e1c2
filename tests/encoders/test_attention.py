"""The attention of the first token is the library's, computed by the formula or asked for."""

from typing import Any

import pytest
import torch
from encoders.fast.test_linear import HALF, adapted, by_library, every_library, stored
from encoders.fast.test_stack import fused, tokens
from methods.test_base import SIZE, encoder
from transformers import AutoConfig, AutoModel

from hatemtl.encoders.attention import by_head, of_first_token, watching
from hatemtl.encoders.fast import merged, stack
from hatemtl.errors import UserError

KINDS = ["bert", "electra", "roberta", "deberta", "modernbert"]


def expected(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [of[:, :, 0] for of in by_library(model)(**batch, output_attentions=True).attentions]


@every_library
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_with_merged_loras_it_is_the_librarys(library: str, kind: str) -> None:
    model, batch = adapted(library, kind).eval(), tokens(9)
    with torch.inference_mode(), merged(model):
        assert fused(model)
        means = [of_first_token(model, batch, layer=layer, head=None) for layer in (0, 1, -1)]
        second = of_first_token(model, batch, layer=1, head=2)
        states = model(**batch).last_hidden_state  # nothing is left behind
    theirs = expected(model, batch)
    for mine, of in zip(means, (theirs[0], theirs[1], theirs[-1]), strict=True):
        torch.testing.assert_close(mine, of.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second, theirs[1][:, 2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(means[0].sum(dim=1), torch.ones(3))
    assert not means[0][batch["attention_mask"] == 0].any()
    with torch.inference_mode():
        here = batch["attention_mask"].bool()
        torch.testing.assert_close(states[here], model(**batch).last_hidden_state[here], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_adapter_it_is_the_librarys(kind: str) -> None:
    model, batch = encoder(kind).eval(), tokens(7)
    with torch.inference_mode():
        mine = of_first_token(model, batch, layer=-1, head=None)
    torch.testing.assert_close(mine, expected(model, batch)[-1].mean(dim=1), atol=1e-5, rtol=1e-4)


NOT_BERT = {  # whose layers have its names, and another way: norms before, positions in the scores, a narrower inside
    "megatron-bert": {},
    "roberta-prelayernorm": {},
    "roformer": {"embedding_size": 32},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 16, "true_hidden_size": 16},
}


@pytest.mark.parametrize("kind", NOT_BERT)
def test_of_layers_that_only_look_like_berts_it_is_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZE, **NOT_BERT[kind]})
    model, batch = AutoModel.from_config(config, attn_implementation="eager").eval(), tokens(7)
    with torch.inference_mode():
        mine = of_first_token(model, batch, layer=1, head=None)
    torch.testing.assert_close(mine, expected(model, batch)[1].mean(dim=1), atol=1e-5, rtol=1e-4)


def gradients(model: Any, batch: dict[str, torch.Tensor], weights: torch.Tensor, hidden: torch.Tensor) -> Any:
    """Those of a step on both, by name."""
    draw, here = torch.Generator().manual_seed(3), batch["attention_mask"].bool()
    loss = (weights * torch.randn(weights.shape, generator=draw)).sum()
    loss = loss + (hidden[here].float() * torch.randn(hidden[here].shape, generator=draw)).sum()
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@every_library
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("layer", [0, -1])
def test_out_of_a_training_pass_of_our_layers_values_and_gradients_are_the_librarys(
    library: str, kind: str, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, ours = adapted(library, kind).train(), tokens(9), list[int]()
    through = stack.through
    monkeypatch.setattr(stack, "through", lambda layers, *rest: ours.append(len(layers)) or through(layers, *rest))
    with watching(model, [layer]) as entered:
        hidden = model(**batch).last_hidden_state
    assert ours == ([2] if layer == 0 else [1, 1]), "no layer went the library's way"
    weights = by_head(model, batch, layer=layer, entered=entered[layer])
    theirs = by_library(model)
    said = theirs(**batch, output_attentions=True)
    torch.testing.assert_close(weights, said.attentions[layer][:, :, 0], atol=1e-5, rtol=1e-4)
    found = gradients(model, batch, weights, hidden)
    expected = gradients(theirs, batch, said.attentions[layer][:, :, 0], said.last_hidden_state)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=5e-5, rtol=1e-4)
    ours.clear()
    model(**batch)
    assert ours == [2], "nothing is left behind"


def test_in_bf16_it_lies_near_the_exact_one() -> None:
    model, batch = adapted(), tokens(9)
    exact = by_library(model)(**batch, output_attentions=True).attentions[-1][:, :, 0]
    with HALF(), watching(stored(model, torch.bfloat16).train(), [-1]) as entered:
        model(**batch)
        weights = by_head(model, batch, layer=-1, entered=entered[-1])
    assert weights.dtype is torch.float32
    torch.testing.assert_close(weights, exact, atol=0.02, rtol=0.1)


@pytest.mark.parametrize("kind", ["deberta", "modernbert"])
def test_of_another_form_it_is_asked_for_with_gradients(kind: str) -> None:
    model, batch = encoder(kind), tokens(7)
    with watching(model, [-1]) as entered:
        model(**batch)
    assert not entered
    by_head(model, batch, layer=-1).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_what_an_encoder_does_not_have_is_refused() -> None:
    model, batch = encoder().eval(), tokens(5)
    for given, said in (
        ({"layer": 2, "head": None}, "layer=2: expected 0 to 1, or -1 for the last: this encoder has 2 layers"),
        ({"layer": -3, "head": None}, "layer=-3"),
        ({"layer": 0, "head": 4}, "head=4: expected 0 to 3, or null"),
    ):
        with pytest.raises(UserError, match=said):
            of_first_token(model, batch, **given)  # type: ignore[arg-type]
    other = encoder("modernbert").eval()
    other.config._attn_implementation = "sdpa"
    with pytest.raises(UserError, match="modernbert gives no attention weights with encoder.attention=sdpa; type"):
        of_first_token(other, batch, layer=-1, head=None)
