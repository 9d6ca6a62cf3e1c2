"""A run that diverged: found before anything of it is saved as finished, and told with its likely cause."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.evaluations.base import Row
from hatemtl.network.module import MultitaskModule

AGAIN = "overwrite=true, since the unfinished run is another"


def check(module: MultitaskModule, rows: Sequence[Row]) -> None:
    """Raises UserError where a weight that is to be saved, or a result, is no finite number."""
    saved = {**module.trained_state(), **module.heads.state_dict(prefix="heads.")}
    broken = [name for name, tensor in saved.items() if not finite(tensor)]
    wrong = [f"{row.metric} is {row.value}" for row in rows if not math.isfinite(row.value)]
    found = [f"{len(broken)} of {len(saved)} trained tensors hold NaN or infinity, as {broken[0]}"] if broken else wrong[:1]
    if found:
        raise UserError(f"{found[0]}, so nothing is saved as finished: {why(module)}")


def why(module: MultitaskModule) -> str:
    """The likely cause, looked for in what is frozen, and what to type."""
    for name, parameter in module.encoder.named_parameters():
        if not parameter.requires_grad and not finite(parameter):
            return f"{name} of the pretrained encoder holds NaN or infinity; type another encoder=NAME, and {AGAIN}"
    rates = module.optimization
    if not rates.total_epochs:
        return f"nothing was trained, so a merge made them; type another merge=NAME or heads.merge=NAME, and {AGAIN}"
    heads = f"optimization.head_lr (now {rates.head_lr:g})"
    lower = f"optimization.head_lr={min(rates.head_lr / 10, 1e-3):g}"
    if any(parameter.requires_grad for parameter in module.encoder.parameters()):
        heads = f"optimization.encoder_lr (now {rates.encoder_lr:g}) or {heads}"
        lower = f"optimization.encoder_lr={min(rates.encoder_lr / 10, 1e-4):g} {lower}"
    half = any(parameter.dtype is torch.bfloat16 for parameter in module.encoder.parameters())
    exact = ", or trainer.precision=32" if half else ""
    return f"{heads} is likely too high; type {lower}{exact}, and {AGAIN}"


def finite(tensor: Tensor) -> bool:
    """Tells whether all that it holds are numbers."""
    return bool(torch.isfinite(tensor).all())
