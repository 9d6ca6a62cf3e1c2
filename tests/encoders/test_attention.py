"""The attention of the first token is the library's, computed by the formula or asked for."""

from typing import Any

import pytest
import torch
from encoders.fast.test_bert_stack import fused, tokens
from encoders.fast.test_lora_linear import adapted, by_library, every_library
from methods.test_base import encoder

from hatemtl.encoders.attention import of_first_token
from hatemtl.encoders.fast import merged
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
