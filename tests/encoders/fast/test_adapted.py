"""(IA)³ and DoRA computed here say what the libraries say, alone and in whole layers, in training and merged."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from conftest import ADAPTERHUB
from encoders.fast.test_linear import HALF, computed, encoder, loras, moved, off, one_layer, stored
from encoders.fast.test_stack import LENGTHS, compared, fused, step, tokens
from methods.test_base import RATES, trained
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import accelerate, door, is_fast, merged, restore, verify
from hatemtl.encoders.fast.adapted import Adapted, DoRALinear, LoRALinear, ScaledLinear, product
from hatemtl.encoders.fast.linear import Linear
from hatemtl.encoders.fast.scale import Scale
from hatemtl.encoders.fast.tape import Chain
from hatemtl.methods.base import Method
from hatemtl.methods.peft_adapters.library import PEFTAdapter


def hub(config: str = "ia3", leave_out: Any = ()) -> Method:
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubAdapter

    return AdapterHubAdapter(config=config, reduction_factor=None, leave_out=[*leave_out], **RATES)


def of_peft(kind: str = "IA3Config", leave_out: Any = (), targets: str | None = None, **options: Any) -> Method:
    return PEFTAdapter(kind=kind, options=options or None, targets=targets, leave_out=[*leave_out], **RATES)


LIBRARIES: dict[str, Any] = {
    "adapterhub ia3": hub,
    "adapterhub dora": partial(hub, config="dora[r=4,alpha=6]"),
    "peft ia3": of_peft,
    "peft dora": partial(of_peft, kind="LoraConfig", use_dora=True, r=4, lora_alpha=6),
}
every_library = pytest.mark.parametrize("library", [name for name in LIBRARIES if ADAPTERHUB or "peft" in name])
OURS = {"ia3": "ScaledLinear", "dora": "DoRALinear"}  # by the kind of adapter
like_bert = pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "xlm-roberta"])


def adapted(library: str, kind: str = "bert", **other: Any) -> Any:
    """An encoder with an adapter that has learnt something: no factor of (IA)³ is 1."""
    return moved(LIBRARIES[library](**other).attach(encoder(kind), name="run", seed=0).model)


def replaced(model: nn.Module) -> set[str]:
    return {type(m.__dict__["forward"]).__name__ for m in model.modules() if "forward" in m.__dict__}


def scaled(kind: str, bias: bool = True, scale: float = 1.5) -> tuple[Tensor, Any]:
    x, lora = one_layer(bias=bias)
    layer, size = lora.layer, lora.layer.in_features if kind == "enters" else lora.layer.out_features
    shape = (1, size) if kind == "enters" else (size, 1)
    factor = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    if kind == "dora":
        return x, DoRALinear(layer, layer, lora.A, lora.B, scale, scaler=factor)
    return x, ScaledLinear(layer, layer, factor, scale, kind == "enters")


def formula(x: Tensor, ours: Any) -> Tensor:
    """As its authors write it."""
    layer = ours.layer
    if isinstance(ours, DoRALinear):
        V = layer.weight + ours.scale * ours.B @ ours.A
        y = F.linear(x, ours.scaler.view(-1, 1) * V / V.detach().norm(dim=1, keepdim=True))
        return y if layer.bias is None else y + layer.bias
    by = ours.constant * ours.scaler.flatten()
    return F.linear(by * x, layer.weight, layer.bias) if ours.enters else by * F.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("x_learns", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["enters", "leaves", "dora"])
def test_values_and_gradients_are_those_of_the_formula(kind: str, bias: bool, x_learns: bool) -> None:
    x, ours = scaled(kind, bias)
    kept, dy, found = x.clone(), torch.randn(24, 7), []
    for compute in (ours, partial(formula, ours=ours), ours.formula):
        learns = [p for p in (x.clone().requires_grad_(x_learns), *ours.factors) if p.requires_grad]
        y = compute(learns[0] if x_learns else x)
        found.append([y.detach(), *torch.autograd.grad(y, learns, dy)])
    assert torch.equal(x, kept)
    for others in found[1:]:
        for mine, plain in zip(found[0], others, strict=True):
            torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)
    ours.merge(torch.float32, int8=False)
    torch.testing.assert_close(ours(x), found[0][0], atol=1e-5, rtol=1e-5)
    ours.unmerge()
    assert torch.equal(ours(x), found[0][0])


def test_magnitudes_are_the_norms_that_a_weight_has() -> None:
    """DoRA's definition: whatever A and B, row i of the merged weight is as long as the magnitude i."""
    _, ours = scaled("dora")
    ours.merge(torch.float32, int8=False)
    torch.testing.assert_close(ours.merged[0].norm(dim=1), ours.scaler.detach().flatten().abs())


@pytest.mark.parametrize("enters", [True, False])
def test_gradients_are_those_of_differences(enters: bool) -> None:
    """Of a layer with a factor beside one with a LoRA, and one with neither: all read the same."""
    x, ours = scaled("enters" if enters else "leaves")
    _, lora = one_layer(m=7, scale=0.7)
    _, plain = one_layer(m=4)
    for layer in (ours.layer, lora.layer, plain.layer):
        layer.double()
    for factor in (*ours.factors, *lora.factors):
        factor.data = factor.data.double()
    x = x[:5].double().requires_grad_()
    some: list[Adapted | None] = [ours] if enters else [ours, lora, None]
    joint = Chain(product(*zip([ours.layer, lora.layer, plain.layer], some, strict=False)))
    others = [F.linear(x, plain.layer.weight, plain.layer.bias), lora.formula(x)]
    expected = [formula(x, ours), *([] if enters else others[::-1])]
    torch.testing.assert_close(computed(joint, x), torch.cat(expected, 1))
    factors = [factor for adapter in some if adapter is not None for factor in adapter.factors]
    assert {*map(id, joint.factors)} == {*map(id, factors)}
    assert torch.autograd.gradcheck(lambda *_: computed(joint, x), (x, *factors))
    for adapter in filter(None, some):
        adapter.merge(torch.float64, int8=False)
    for leaf in joint.leaves:
        leaf.merge(torch.float64, int8=False)
    with torch.no_grad():
        torch.testing.assert_close(computed(joint, x), torch.cat(expected, 1))


@like_bert
@every_library
@LENGTHS
@pytest.mark.parametrize("padded", [True, False])
def test_an_encoder_says_what_the_library_says(library: str, kind: str, length: int, padded: bool) -> None:
    model, batch = adapted(library, kind), tokens(length, padded=padded)
    assert replaced(model) == {OURS[library.split()[1]], "Stack"} and is_fast(model)
    assert len(fused(model)) == 2
    hidden, gradients = compared(model, batch)
    assert gradients.keys() == trained(model).keys()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with torch.inference_mode(), merged(model.eval()):
        together = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
        leaves = [leaf for layer in fused(model) for leaf in layer.leaves if isinstance(leaf, Linear)]
        assert all(leaf.merged is not None for leaf in leaves)
    torch.testing.assert_close(together, hidden, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["deberta", "modernbert"])
@every_library
@LENGTHS
def test_other_encoders_say_what_the_library_says(library: str, kind: str, length: int) -> None:
    """Of ModernBERT's q, k and v, which are one layer, AdapterHub has a kind of its own, so whole layers are left to it."""
    if (library, kind) == ("adapterhub dora", "modernbert"):
        pytest.skip("refused: of one matrix for q, k and v")
    model, batch = adapted(library, kind), tokens(length)
    assert is_fast(model) is ((library, kind) != ("adapterhub ia3", "modernbert"))
    assert OURS[library.split()[1]] in replaced(model)
    hidden, _ = compared(model, batch)
    with torch.inference_mode(), merged(model.eval()):
        together = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    assert off(together, hidden) < 1e-5


@every_library
def test_layers_that_are_left_out_have_none(library: str) -> None:
    model = adapted(library, leave_out=[0])
    ours = [path for path, m in model.named_modules() if isinstance(m.__dict__.get("forward"), Adapted)]
    assert len(ours) in ((3, 4) if "ia3" in library else (2, 5)) and all("layer.1." in path for path in ours)
    compared(model, tokens(20))


@every_library
def test_in_bf16_it_errs_about_as_the_library(library: str) -> None:
    batch = tokens(28)
    exact, others = step(adapted(library), batch)
    ours = stored(adapted(library), torch.bfloat16)
    theirs = deepcopy(ours)
    restore(theirs)
    with HALF():
        (hidden, gradients), (their_hidden, their_gradients) = step(ours, batch), step(theirs, batch)
        with torch.inference_mode(), merged(ours.eval(), torch.bfloat16):
            together = ours(**batch).last_hidden_state[batch["attention_mask"].bool()]
    assert off(hidden, exact) < 1.5 * off(their_hidden, exact) < 0.05
    assert off(together, exact) < 1.5 * off(their_hidden, exact)
    for name, gradient in gradients.items():
        assert gradient.dtype is torch.float32
        assert off(gradient, others[name]) < max(2 * off(their_gradients[name], others[name]), 0.02), name


@every_library
def test_int8_weights_hold_it(library: str) -> None:
    model, batch = adapted(library).eval(), tokens(28)
    with torch.inference_mode():
        exact = model(**batch).last_hidden_state
        with merged(model, int8=True):
            assert 0 < off(model(**batch).last_hidden_state, exact) < 0.05
        assert torch.equal(model(**batch).last_hidden_state, exact)


@every_library
def test_it_is_compared_with_the_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_verified", {})
    model = adapted(library)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify(model, torch.float32) is None and is_fast(model)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    door._verified.clear()
    own = Scale.forward
    monkeypatch.setattr(Scale, "forward", lambda *given: (lambda y, kept: (1.01 * y, kept))(*own(*given)))
    assert "differ from the library's" in str(verify(model, torch.float32))
    assert replaced(model) == ({"DoRAFormula"} if library == "adapterhub dora" else set())  # what it had before


def test_a_factor_on_what_enters_a_query_alone_leaves_whole_layers_to_the_library() -> None:
    """Q, k and v are one product of the same rows here."""
    model = adapted("peft ia3", targets=".*(query|value)", feedforward_modules=["query"])
    assert replaced(model) == {"ScaledLinear"}
    compared(model, tokens(12))
    together = adapted("peft ia3", targets=".*(value|output.dense)", feedforward_modules=["output.dense"])
    assert replaced(together) == {"ScaledLinear", "Stack"}
    compared(together, tokens(12))


@pytest.mark.skipif(not ADAPTERHUB, reason="AdapterHub's alone")
@pytest.mark.parametrize("config", ["ia3[use_gating=True]", "ia3[alpha=2.0]"])
def test_a_gate_is_left_to_the_library_and_a_scale_is_not(config: str) -> None:
    model = adapted("adapterhub ia3", config=config)
    assert replaced(model) == (set() if "gating" in config else {"ScaledLinear", "Stack"})
    compared(model, tokens(12))


def test_loras_and_factors_stand_in_one_layer() -> None:
    """On a body without adapters of a library's, against the plain formula of each layer."""
    body = encoder().requires_grad_(False)
    draw, given = torch.Generator().manual_seed(0), list[Adapted]()
    for layer in body.encoder.layer:
        own, inner, outer = layer.attention.self, layer.intermediate.dense, layer.output.dense
        A, B = (nn.Parameter(0.2 * torch.randn(shape, generator=draw)) for shape in ((2, 32), (own.query.out_features, 2)))
        given.append(LoRALinear(own.query, own.query, A, B, 1.5))
        C, D = (nn.Parameter(0.2 * torch.randn(shape, generator=draw)) for shape in ((3, 32), (own.value.out_features, 3)))
        m = nn.Parameter(0.5 + torch.rand(own.value.out_features, generator=draw))
        given.append(DoRALinear(own.value, own.value, C, D, 0.8, scaler=m))
        for place, enters in ((own.key, False), (inner, False), (outer, True)):
            size = place.in_features if enters else place.out_features
            factor = nn.Parameter(1 + 0.2 * torch.randn(size, generator=draw))
            given.append(ScaledLinear(place, place, factor, enters=enters))
    factors = [factor for adapter in given for factor in adapter.factors]
    for i, factor in enumerate(factors):
        body.register_parameter(f"factor_{i}", factor)
    accelerate(body, given)
    assert is_fast(body) and len(loras(body)) == 4  # DoRA is one, too
    found = step(body, tokens(12))
    restore(body)
    for adapter in given:
        adapter.owner.forward = adapter.formula  # type: ignore[method-assign]
    hidden, gradients = step(body, tokens(12))
    assert off(found[0], hidden) < 1e-5
    assert gradients.keys() == found[1].keys() and len(gradients) == len(factors)
    for name, gradient in gradients.items():
        assert off(found[1][name], gradient) < 1e-4, name
