"""Computes as the papers say what AdapterHub's library computes otherwise, in the place of a function of its objects."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from adapters.context import AdapterSetup
from torch import Tensor, nn
from torch.nn import functional as F


class Diagonal(nn.Module):
    """VeRA's trained vectors (Kopiczko et al. 2024, arXiv:2310.11454, eq. 2), where the library trains whole matrices."""

    def forward(self, vector: Tensor) -> Tensor:
        return torch.diag(vector)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal().clone()


def dora_scale(layer: Any, lora: Any) -> tuple[Tensor, Tensor]:
    """Computes DoRA's ΔW (out, in) and m/‖W + ΔW‖ (out,) in float32 (Liu et al. 2024, arXiv:2402.09353, eq. 5)."""
    with torch.autocast(layer.weight.device.type, enabled=False):
        change = lora.scaling * (lora.lora_B @ lora.lora_A)
        # the norm is a constant in the gradient (ibid., §4.3)
        norm = torch.linalg.norm(layer.weight.float() + change.detach(), dim=1)
        return change, lora.m.weight.view(-1) / norm


class DoRAFormula:
    """y = m·(W + ΔW)·x / ‖W + ΔW‖ + b as a `forward`: the library scales the bias too, and forgets alpha / r in the norm."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if (setup := self.layer.get_active_setup()) is None:
            return F.linear(x, weight, bias)
        lora = self.layer.loras[setup.first()]
        y = (F.linear(x, weight) + lora(None, x)[0]) * dora_scale(self.layer, lora)[1]
        return y.to(weight.dtype) if bias is None else y.to(weight.dtype) + bias


def added(layer: Any, setup: Sequence[str], state: Any, lvl: int = 0) -> Any:
    """Sums the updates of a stack of LoRAs, or of parallel adapters, on a layer, as its `compose_stack`.

    The library gives B₂·A₂·(B₁·A₁·x) for LoRAs and the last one's update for parallel adapters: a source is lost.
    """
    names = [name for name in setup if name in layer.adapter_modules]
    state = layer.pre_block(names[0], state)
    states = [layer.compose_single(name, state, lvl=lvl + 1) for name in names]
    return states[-1]._replace(hidden_states=sum(state.hidden_states for state in states))


def weighted(states: Sequence[Any], weights: Tensor) -> Any:
    """Computes Σ wᵢ·hᵢ of the adapters' states; the library divides it by their number once more, in float32."""
    hidden = sum(w * state.hidden_states for w, state in zip(weights.flatten().tolist(), states, strict=True))
    return states[0]._replace(hidden_states=hidden, last=states[-1].last)


def keep_type(adapter: nn.Module, given: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lets a bottleneck with a learned scale answer in the type that it was asked in, not in float32; a hook."""
    return tuple(part.to(given[0].dtype) for part in output)


def in_order(fusion: nn.Module, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lets AdapterFusion read its sources as one block of memory; a hook.

    Without a gradient to come, a CPU multiplies the library's view of another order in bf16 a hundred times as slowly.
    """
    said = given[1].contiguous()  # keys and values are the same
    return given[0], said, said, given[3]


def without_residual(fusion: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Keeps from AdapterFusion over parallel adapters the residual, which the library would add twice; a hook."""
    return *given[:3], torch.zeros_like(given[3])


def late_average(own: Callable[..., Any], weights: dict[str, float], *arguments: Any, **keywords: Any) -> Any:
    """Weighs what the encoder says with each adapter by itself; in the place of its `forward`."""
    mean: Any = 0
    for name, weight in weights.items():
        with AdapterSetup(name):
            output = own(*arguments, **keywords)
        mean = mean + weight * output.last_hidden_state
    output.last_hidden_state = mean
    return output
