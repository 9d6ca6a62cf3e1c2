"""Goes the way of a GPU where there is none: hatemtl takes this machine's CPU for one."""

from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from torch import Tensor

from hatemtl.encoders.fast import attention, posts, tape
from hatemtl.encoders.fast.dropout import Dropout

CPU = torch.device("cpu")


class Elsewhere:
    """A device that is no CPU, as far as its type goes."""

    type = "mps"


def drawing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device that draws random numbers for itself, though they lie here."""
    rand = torch.rand
    monkeypatch.setattr(
        torch, "rand", lambda *of, device=None: rand(*of, device=None if isinstance(device, Elsewhere) else device)
    )
    return Elsewhere()


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets hatemtl's own layers compute as on a device that whoever looks at its numbers has to wait for.

    Posts stay padded, the device draws the dropout's masks, and no weight is ordered for oneDNN.
    """
    there = drawing_elsewhere(monkeypatch)
    for module in (posts, attention):
        monkeypatch.setattr(module, "waits", lambda device: True)
    monkeypatch.setattr(tape, "Dropout", lambda device: Dropout(there))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


def as_on_apples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a whole run with `trainer.accelerator=mps` go the way of Apple's GPU, whose tensors lie here."""
    as_on_a_gpu(monkeypatch)
    to = Tensor.to

    def here(tensor: Tensor, *of: Any, **named: Any) -> Tensor:
        """Moves nothing to that GPU."""
        given = [CPU if isinstance(one, torch.device) and one.type == "mps" else one for one in of]
        return to(tensor, *given, **named)

    monkeypatch.setattr(Tensor, "to", here)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(MPSAccelerator, "parse_devices", staticmethod(lambda devices: [0]))
    monkeypatch.setattr(MPSAccelerator, "get_parallel_devices", staticmethod(lambda devices: [CPU]))
    monkeypatch.setattr(MPSAccelerator, "setup_device", lambda accelerator, device: None)
