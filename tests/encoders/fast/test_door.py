"""What is put in the place of a library's forward goes again, alone; used where it says what the library says."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from encoders.fast.test_linear import (
    HALF,
    LIBRARIES,
    SHARED,
    adapted,
    encoder,
    every_kind,
    every_library,
    loras,
    moved,
    off,
    run,
    stored,
    tokens,
)
from methods.test_base import KINDS, trained
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.encoders.fast import (
    Int8Linear,
    LoRALinear,
    accelerate,
    choose,
    door,
    is_fast,
    merged,
    restore,
    rowwise,
    tape,
    verify,
)
from hatemtl.encoders.fast.rowwise import Norm


def replaced(model: nn.Module) -> dict[str, str]:
    """The modules that have a forward of their own, and of which kind that is."""
    return {path: type(m.__dict__["forward"]).__name__ for path, m in model.named_modules() if "forward" in m.__dict__}


def given(model: nn.Module) -> list[LoRALinear]:
    """What the method gave to `accelerate`."""
    return [*loras(model).values()]


@every_kind
@every_library
def test_restored_a_model_computes_as_the_library_alone(library: str, kind: str) -> None:
    model = adapted(library, kind)
    ours, _ = run(model)
    assert set(replaced(model).values()) == {"LoRALinear", "Stack"}
    assert is_fast(model)
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
    accelerate(body, [LoRALinear(first, first, factors[0], factors[1], 1.0)])
    assert replaced(body) == {"0": "LoRALinear", "1": "Doubled"}
    copy = deepcopy(body)
    restore(body)
    assert replaced(body) == {"0": "Doubled", "1": "Doubled"}
    assert torch.equal(body(x), doubled)
    assert replaced(copy) == {"0": "LoRALinear", "1": "Doubled"}
    restore(copy)
    assert copy[0].forward.layer is copy[0]


def test_the_formula_of_a_dora_comes_back() -> None:
    """What stands in the place of AdapterHub's `forward` is not ours to take away."""
    import adapters

    from hatemtl.methods.adapterhub import library as ah_library

    model = ah_library.enable(encoder())
    ah_library.add(model, "run", adapters.LoRAConfig(r=4, use_dora=True), seed=0)
    moved(ah_library.train(model, "run"))
    with torch.no_grad():
        expected = model.eval()(**tokens()).last_hidden_state
    assert {"DoRALinear", "Stack"} <= {*replaced(model).values()}
    restore(model)
    assert {*replaced(model).values()} == {"DoRAFormula"}
    here = tokens()["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(model(**tokens()).last_hidden_state[here], expected[here], atol=1e-5, rtol=1e-4)
        folded = ah_library.fold(model, "run")
        assert replaced(folded) == {}
        torch.testing.assert_close(folded(**tokens()).last_hidden_state[here], expected[here], atol=1e-5, rtol=1e-4)


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


@pytest.fixture(autouse=True)
def _first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_verified", {})
    monkeypatch.setattr(door, "_slower", {})


def fresh(library: str, kind: str = "bert") -> Any:
    """As a method attaches it: every B is zero; frozen weights as large as pretrained ones."""
    body = encoder(kind)
    for layer in body.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(10)
    return LIBRARIES[library](**SHARED).attach(body, name="run", seed=0).model


@every_kind
@every_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_was_compared_is_as_it_was_to_the_last_bit(library: str, kind: str, dtype: torch.dtype) -> None:
    model = stored(fresh(library, kind), dtype)
    next(m for m in model.modules() if isinstance(m, nn.Linear)).eval()  # modes may be mixed
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    forwards, modes, state = replaced(model), [m.training for m in model.modules()], torch.get_rng_state()
    assert verify(model, dtype) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert replaced(model) == forwards != {}
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    within = HALF if dtype is torch.bfloat16 else nullcontext
    others = stored(fresh(library, kind), dtype)
    (hidden, gradients), (expected, same) = run(model, within()), run(others, within())
    assert torch.equal(hidden, expected)
    assert all(torch.equal(gradient, same[name]) for name, gradient in gradients.items())


def wrong(model: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes our layers compute something else than the library's, or nothing."""
    if how == "activation":
        monkeypatch.setitem(
            rowwise.ACTIVATIONS, "gelu", (partial(F.gelu, approximate="tanh"), rowwise.ACTIVATIONS["gelu"][1])
        )
    elif how == "norm":
        norm = Norm.forward
        monkeypatch.setattr(Norm, "forward", lambda own, x, *of: norm(own, x.clamp(max=3), *of))
    elif how == "gradient":
        gradients = tape.Tape.gradients
        monkeypatch.setattr(tape.Tape, "gradients", lambda *of: [1.001 * gradient for gradient in gradients(*of)])
    elif how == "merged":
        monkeypatch.setattr(LoRALinear, "merge", lambda step, *_, **how: setattr(step, "merged", (step.layer.weight, None)))
    else:
        monkeypatch.setattr(tape.Posts, "pack", None)


@every_library
@pytest.mark.parametrize("how", ["activation", "norm", "gradient", "merged", "failure"])
def test_where_they_differ_the_library_computes_and_the_user_is_told(
    library: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(library)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        wrong(model, how, patch)
        note = verify(model, torch.float32)
        other = fresh(library)
        assert verify(other, torch.float32) == note  # which is as wrong
    assert note is not None and "trainer.fast=false" in note
    assert ("fail on this encoder" if how == "failure" else "differ from the library's") in note
    assert replaced(model) == replaced(other) == {}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    plain = fresh(library)
    restore(plain)
    (hidden, gradients), (expected, others) = run(model), run(plain)
    assert torch.equal(hidden, expected)
    assert gradients.keys() == others.keys() == trained(plain).keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_what_is_merged_in_int8_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(fresh("peft"), torch.float32, int8=True) is None
    monkeypatch.setattr(Int8Linear, "forward", lambda step, x: x.new_zeros(*x.shape[:-1], step.out_features))
    assert verify(fresh("peft"), torch.float32) is None
    assert verify(fresh("peft"), torch.float32, int8=True) is None  # known of this process
    door._verified.clear()
    model = fresh("peft")
    assert "differ from the library's" in str(verify(model, torch.float32, int8=True))
    assert replaced(model) == {}


def test_they_are_compared_on_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, there, moved, compared = fresh("peft"), torch.device("cpu", 0), [], []
    monkeypatch.setattr(model, "to", lambda device: moved.append(device) or model)
    monkeypatch.setattr(door, "_difference", lambda *_, **how: compared.append([*moved]) or "")
    assert verify(model, torch.float32, device=there) is None
    assert (moved, compared) == ([there, torch.device("cpu")], [[there]])
    assert verify(model, torch.float32) is None  # elsewhere
    assert len(compared) == 2


@every_library
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("slower", [True, False])
def test_where_the_library_takes_less_time_it_computes(
    library: str, slower: bool, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less for a step where it learns, else for reading, ours being merged then as they are in an evaluation."""
    model, now, steps = fresh(library), [0.0], []
    weights, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    modes, forward = [m.training for m in model.modules()], type(model).forward

    def timed(own: Any, *given: Any, **named: Any) -> Any:
        ours = bool(replaced(own))
        assert torch.is_grad_enabled() is learns
        loras = [step for step in door._found(own) if isinstance(step, LoRALinear)]
        assert bool(loras) is ours and all((lora.merged is None) is learns for lora in loras)
        steps.append(ours)
        now[0] += 2.0 if ours is slower else 1.0
        return forward(own, *given, **named)

    monkeypatch.setattr(type(model), "forward", timed)
    for _ in range(2):  # the second time it is known
        choose(model, torch.float32, torch.device("cpu"), learns=learns, clock=lambda: now[0])
    assert steps == 7 * [True] + 7 * [False]
    assert bool(replaced(model)) is is_fast(model) is not slower
    assert all(step.merged is None for step in door._found(model) if isinstance(step, LoRALinear))
    other = fresh(library)
    choose(other, torch.float32, torch.device("cpu"), learns=learns, clock=lambda: now[0])
    assert len(steps) == 14 and is_fast(other) is not slower
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_library_computes_anyway_is_not_timed_nor_where_nothing_learns() -> None:
    for model in (encoder(), fresh("peft").requires_grad_(False)):
        choose(model, torch.float32, torch.device("cpu"), clock=lambda: pytest.fail("timed"))


@every_library
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_layers_of_sdpa_are_computed_too(library: str, kind: str) -> None:
    """On a GPU the library's attention is sdpa where it has it; the mask that it makes is another one."""
    cls, config = KINDS[kind]
    fused = deepcopy(config)
    fused._attn_implementation, fused.hidden_dropout_prob, fused.attention_probs_dropout_prob = "sdpa", 0.0, 0.0
    model = cls(fused).eval()
    model.pooler = None
    model = LIBRARIES[library](**SHARED).attach(model, name="run", seed=0).model
    assert model.config._attn_implementation == "sdpa" and is_fast(model) and verify(model, torch.float32) is None
    (hidden, gradients), _ = run(model), restore(model)
    expected, others = run(model)
    torch.testing.assert_close(hidden, expected, atol=2e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-5, rtol=1e-4)


def test_a_norm_has_weights_of_its_rows_type_but_on_a_cpu() -> None:
    """CUDA's kernel takes no others; the CPU's is more exact with float32."""
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):
        _, weight, bias, _ = Norm(nn.LayerNorm(8, device=device))._numbers(torch.bfloat16)
        assert weight.dtype is bias.dtype is dtype


def test_models_of_one_kind_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, difference = [], door._difference
    monkeypatch.setattr(door, "_difference", lambda *of, **how: compared.append(of) or difference(*of, **how))
    for _ in range(2):
        verify(fresh("peft"), torch.float32)
        verify(stored(fresh("peft"), torch.bfloat16), torch.bfloat16)
    assert len(compared) == 2
    some = adapted("peft", rank=2)  # of another shape
    verify(some, torch.float32)
    assert len(compared) == 3
    compared.pop()
    verify(fresh("peft", "electra"), torch.float32)
    assert len(compared) == 3
    verify(fresh("adapterhub"), torch.float32)
    assert len(compared) == 4


def test_what_the_library_computes_anyway_needs_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_difference", None)
    assert verify(encoder(), torch.float32) is None
    model = adapted()
    assert given(model)
    restore(model)
    assert verify(model, torch.float32) is None
    assert verify(adapted(dropout=0.5), torch.float32) is None


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_of_few_positions_is_compared_too(kind: str) -> None:
    cls, config = KINDS[kind]
    few = deepcopy(config)
    few.max_position_embeddings = 5
    model = cls(few).eval()
    model.pooler = None
    assert verify(LIBRARIES["peft"](**SHARED).attach(model, name="run", seed=0).model, torch.float32) is None
    assert [*door._verified.values()] == [""]
