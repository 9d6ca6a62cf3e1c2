"""What is put in the place of a library's forward goes again, alone, and nothing but rounding tells who computes."""

from copy import deepcopy
from typing import Any

import adapters
import pytest
import torch
from encoders.fast.test_lora_linear import adapted, encoder, every_kind, every_library, loras, moved, off, run, tokens
from methods.test_base import trained
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import Adapted, accelerate, is_fast, merged, restore
from hatemtl.methods.adapterhub import library as ah_library
from hatemtl.methods.adapterhub.library_fixes import DoRALinear


def replaced(model: nn.Module) -> dict[str, str]:
    """The modules that have a forward of their own, and of which kind that is."""
    return {path: type(m.__dict__["forward"]).__name__ for path, m in model.named_modules() if "forward" in m.__dict__}


def given(model: nn.Module) -> list[Adapted]:
    """What the method gave to `accelerate`."""
    steps = {path: model.get_submodule(path) for path in loras(model)}
    return [Adapted(m, m.forward.layer, m.forward.A, m.forward.B, m.forward.scale) for m in steps.values()]  # type: ignore[union-attr]


@every_kind
@every_library
def test_restored_a_model_computes_as_the_library_alone(library: str, kind: str) -> None:
    model = adapted(library, kind)
    ours, _ = run(model)
    assert set(replaced(model).values()) == {"LoRALinear", *(["BertStack"] if is_fast(model) else [])}
    assert is_fast(model) is (kind not in ("deberta", "modernbert"))
    restore(model)
    assert replaced(model) == {}
    assert not is_fast(model)
    theirs, gradients = run(model)
    assert gradients.keys() == trained(model).keys()
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    restore(model)  # once more is no more
    assert torch.equal(run(model)[0], theirs)


@every_library
def test_accelerated_anew_it_is_what_it_was(library: str) -> None:
    model = adapted(library)
    before, (hidden, gradients) = replaced(model), run(model)
    for _ in range(3):
        accelerate(model, given(model))
    assert replaced(model) == before
    again, others = run(model)
    assert torch.equal(again, hidden)
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())
    accelerate(model, [])
    assert replaced(model) == {}


class Doubled:
    """Whoever else takes the place of a forward."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.layer.weight, self.layer.bias)


def test_what_others_put_in_stays_and_what_they_had_put_in_before_comes_back() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    first, second = body
    first.forward, second.forward = Doubled(first), Doubled(second)  # type: ignore[assignment]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    doubled, factors = body(x), [nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(1))]
    body.other = factors[2]  # something else is trained
    accelerate(body, [Adapted(first, first, factors[0], factors[1], 1.0)])
    assert replaced(body) == {"0": "LoRALinear", "1": "Doubled"}
    copy = deepcopy(body)
    restore(body)
    assert replaced(body) == {"0": "Doubled", "1": "Doubled"}
    assert torch.equal(body(x), doubled)
    assert replaced(copy) == {"0": "LoRALinear", "1": "Doubled"}
    restore(copy)
    assert copy[0].forward.layer is copy[0]


def test_a_dora_is_adapterhubs_own_to_take_away() -> None:
    model = ah_library.enable(encoder())
    ah_library.add(model, "run", adapters.LoRAConfig(r=4, use_dora=True), seed=0)
    moved(ah_library.train(model, "run"))
    with torch.no_grad():
        expected = model.eval()(**tokens()).last_hidden_state
    assert {type(m.forward) for m in model.modules()} > {DoRALinear}
    restore(model)
    with torch.no_grad():
        assert torch.equal(model(**tokens()).last_hidden_state, expected)
        folded = ah_library.fold(model, "run")
        assert replaced(folded) == {}
        torch.testing.assert_close(folded(**tokens()).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


@every_library
def test_where_the_library_computes_nothing_is_merged_and_the_same_is_said(library: str) -> None:
    model, batch = adapted(library).eval(), tokens()
    with torch.inference_mode(), merged(model) as some:
        together = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
        assert some
    restore(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode(), merged(model) as some:
        apart = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
        assert not some
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert off(together, apart) < 1e-5


@pytest.mark.parametrize("other", ["LayerNorm", "heads"])
def test_whole_layers_are_computed_only_where_nothing_else_is_trained(other: str) -> None:
    model: Any = adapted()
    found = given(model)
    if other == "LayerNorm":
        model.encoder.layer[0].output.LayerNorm.weight.requires_grad_(True)
    else:
        model.more = nn.Linear(2, 2)
    accelerate(model, found)
    assert not is_fast(model)
    assert len(loras(model)) == len(found)
