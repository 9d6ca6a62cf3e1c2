"""Dropout in our layers is the library's: the same places, the same scale, the same gradients, another draw each pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from encoders.fast import test_trained
from encoders.fast.test_linear import adapted, by_library, moved, off, stored
from encoders.fast.test_stack import FUSED, flat, step, tokens
from gpu_stand_in import as_on_a_gpu, drawing_elsewhere
from methods.test_base import trained
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast.dropout import Dropout, keep
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace
from hatemtl.network.forward import Forward
from hatemtl.objective.regularisers.r_drop import RDrop

CPU = torch.device("cpu")
LENGTH = 20  # above the least number of keys, so that weights are (posts·heads, T, T)


def dropping(model: Any, p: float) -> Any:
    """The model with dropout in its layers."""
    for module in model.encoder.modules() if hasattr(model, "encoder") else model.base_model.model.encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


def replaying(drawn: list[Tensor]) -> Callable[..., Tensor]:
    """Gives what takes the place of torch's dropout, by which modules do it, and transformers 5 without one."""

    def again(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Leaves out what was left out before."""
        return x.masked_fill(drawn.pop(0).view(x.shape) == 0, 0) / (1 - p) if training and p else x

    return again


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks that our layers draw from now on."""
    found, mask = list[Tensor](), Dropout.mask
    monkeypatch.setattr(Dropout, "mask", lambda own, *of: found.append(mask(own, *of)) or found[-1])
    return found


@pytest.mark.parametrize("gpu", [False, True], ids=["", "as on a GPU"])
@FUSED
@pytest.mark.parametrize("what", ["full", "adapterhub", "peft"])
@pytest.mark.parametrize(
    ("dtype", "values", "of_gradients"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 0.02, 0.02)], ids=str
)
def test_with_the_same_numbers_left_out_all_is_the_librarys(
    kind: str,
    what: str,
    dtype: torch.dtype,
    values: float,
    of_gradients: float,
    gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the library in float32, whatever the masks were drawn for."""
    if gpu:
        as_on_a_gpu(monkeypatch)
    p, drawn, batch = 0.3, noted(monkeypatch), tokens(LENGTH, padded=False)

    def model() -> Any:
        return dropping(moved(test_trained.full(kind)) if what == "full" else adapted(what, kind), p)

    ours = stored(model(), dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        hidden, gradients = step(ours, batch)
    assert len(drawn) == 6  # three a layer
    assert {mask.dtype.itemsize for mask in drawn} == {dtype.itemsize} and hidden.dtype is dtype
    monkeypatch.setattr(F, "dropout", replaying(drawn))
    expected, others = step(by_library(model()), batch)
    assert not drawn
    assert off(hidden, expected) < values
    assert gradients.keys() == others.keys()
    assert off(flat(gradients), flat(others)) < of_gradients


@pytest.fixture(params=["cpu", "elsewhere"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws on a CPU as a CPU does, or as any other device."""
    return CPU if request.param == "cpu" else drawing_elsewhere(monkeypatch)


def test_a_device_that_is_no_cpu_draws_the_masks_itself() -> None:
    state = torch.get_rng_state()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        mask = Dropout(torch.device("meta")).mask((3, 5), 0.5, dtype)
        assert mask.shape == (3, 5) and mask.device.type == "meta" and mask.dtype.itemsize == dtype.itemsize
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_so_many_are_left_out_as_asked_for(p: float, dtype: torch.dtype, device: Any) -> None:
    mask = Dropout(device).mask((301, 333), p, dtype)
    assert mask.shape == (301, 333) and mask.dtype.itemsize == dtype.itemsize
    out = mask == 0
    assert torch.equal(mask, -(~out).to(mask.dtype))  # all bits or none
    x = torch.full(out.shape, 1.7, dtype=dtype)
    assert torch.equal(keep(x, mask), x.masked_fill(out, 0))
    share = out.float().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / out.numel()) ** 0.5
    rows = out.float().mean(1)  # and no row or column stands out
    assert rows.std() < 1.3 * (p * (1 - p) / 333) ** 0.5


def test_a_draw_hangs_on_torchs_state_alone_and_the_next_is_another(device: Any) -> None:
    state = torch.get_rng_state()
    dropout = Dropout(device)
    first, second = dropout.mask((40, 50), 0.5, torch.bfloat16), dropout.mask((40, 50), 0.5, torch.bfloat16)
    assert not torch.equal(first, second)
    other = Dropout(device).mask((40, 50), 0.5, torch.bfloat16)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    again = Dropout(device)
    assert torch.equal(again.mask((40, 50), 0.5, torch.bfloat16), first)
    assert torch.equal(again.mask((40, 50), 0.5, torch.bfloat16), second)


def test_nothing_is_drawn_without_dropout_and_none_left_out_in_evaluation() -> None:
    batch = tokens(LENGTH)
    model = test_trained.full()
    state = torch.get_rng_state()
    step(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    dropping(model, 0.5).eval()
    with torch.no_grad():
        first, second = (model(**batch).last_hidden_state for _ in range(2))
        assert torch.equal(first, second)
        third = model.train()(**batch).last_hidden_state
        assert not torch.equal(third, first)  # as the library's, which drops without gradients too


@pytest.mark.parametrize("what", ["full", "peft"])
def test_r_drop_draws_two_passes_together_as_by_the_library(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: two of the library's passes that leave out what ours did, and torch's own divergence of what they say."""
    p, drawn, inputs = 0.3, noted(monkeypatch), tokens(LENGTH, padded=False)
    model = dropping(moved(test_trained.full()) if what == "full" else adapted(what), p)
    theirs, space = by_library(model), LabelSpace("multiclass", ("a", "b", "c"))
    torch.manual_seed(0)
    head = MulticlassHead(
        space=space, hidden_size=32, layers=1, dropout=0.0, pooling="cls", label_smoothing=0.0, balance=0.0
    )
    for parameter in head.parameters():
        parameter.data.mul_(3)  # so that the passes differ by more than what is rounded
    has = torch.tensor([True, False, True])
    batch = Batch(**inputs, targets={"label": torch.tensor([0, 0, 2])}, has={"label": has}, posts=torch.arange(3))

    forward = Forward(model.train(), nn.ModuleDict({"label": head}))
    forward.weights = {"label": 0.7}
    regulariser = RDrop(weight=1.0)
    regulariser.check(forward)
    first = forward(batch)
    loss = regulariser.terms(forward, batch, None, first)["divergence"]
    parameters = [*trained(model).values(), *head.parameters()]
    gradients = torch.autograd.grad(loss, parameters)
    assert len(drawn) == 12 and not torch.equal(drawn[0], drawn[6])

    monkeypatch.setattr(F, "dropout", replaying(drawn))
    a, b = (Categorical(logits=head(theirs.train()(**inputs).last_hidden_state, batch.attention_mask)) for _ in range(2))
    expected = 0.7 * ((kl_divergence(a, b) + kl_divergence(b, a)) / 2)[has].mean()
    others = torch.autograd.grad(expected, [*trained(theirs).values(), *head.parameters()])
    assert not drawn and expected > 1e-3
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-4)
    assert off(torch.cat([g.flatten() for g in gradients]), torch.cat([g.flatten() for g in others])) < 2e-4
