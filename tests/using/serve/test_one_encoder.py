"""A row of a batch is read with its own adapter, as that alone would read it; weights that are the same lie in one place."""

import torch
from torch import nn
from torch.nn import functional as F

from hatemtl.encoders.fast import Int8Linear
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.methods.bank.lora_bank import Gating, banks, fill
from hatemtl.using.int8 import shrink
from hatemtl.using.serve.one_encoder import RowGate, once


def test_each_row_has_its_own_lora() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    weights = [layer.weight.clone() for layer in (model[0], model[2])]
    one = {"0": LoRAUpdate(torch.randn(2, 6), torch.randn(5, 2), 0.5), "2": LoRAUpdate(torch.randn(3, 5), torch.randn(4, 3))}
    other = {"2": LoRAUpdate(torch.randn(1, 5), torch.randn(4, 1), 2.0)}
    fill(model, {"one": one, "other": other}, gating=Gating(), name="served", seed=0)
    gate = RowGate(2)
    for bank in banks(model).values():
        bank.gate = gate
    x, rows = torch.randn(3, 7, 6), torch.tensor([1, 0, 1])

    def alone(x: torch.Tensor, updates: dict[str, LoRAUpdate]) -> torch.Tensor:
        for place, weight in zip("02", weights, strict=True):
            update = updates.get(place)
            full = weight if update is None else weight + update.scale * update.B @ update.A
            x = F.linear(x, full, model[int(place)].bias)
            x = x.tanh() if place == "0" else x
        return x

    with torch.no_grad():
        with gate.reading(rows):
            together = model(x)
        with gate.reading(1):
            same = model(x[:2])
        for row, mine in enumerate(rows.tolist()):
            assert torch.allclose(together[row], alone(x[row], (one, other)[mine]), atol=1e-5)
        assert torch.allclose(same, alone(x[:2], other), atol=1e-5)


def test_what_is_the_same_takes_its_place_once() -> None:
    one, two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
    three, small = nn.Linear(64, 64, bias=False), [nn.Linear(2, 2, bias=False) for _ in range(2)]
    two.load_state_dict(one.state_dict())
    small[1].load_state_dict(small[0].state_dict())
    once([layer.weight for layer in (one, two, three, *small)])
    assert one.weight.data_ptr() == two.weight.data_ptr() != three.weight.data_ptr()
    assert small[0].weight.data_ptr() != small[1].weight.data_ptr()


def test_int8_takes_the_place_of_all_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 32, bias=False))
    shrink(model)
    assert isinstance(model[0], Int8Linear) and isinstance(model[2], Int8Linear) and model[2].bias is None
