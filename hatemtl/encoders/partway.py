"""Looks into a pass through an encoder: ends it where a hook has what it is there for, or keeps what enters a layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class EnoughError(Exception):
    """Ends the pass; for hooks to raise."""


def run_until(model: nn.Module, inputs: Mapping[str, Any], handle: RemovableHandle) -> None:
    """Calls the model until the hook of this handle raises `EnoughError`, and removes the hook."""
    try:
        model(**inputs)
    except EnoughError:
        pass
    finally:
        handle.remove()


def states(given: Any) -> Tensor:
    """Gives the hidden states (S, T, D) among what a layer gave: all of it from transformers 5 on, else its first."""
    found: Tensor = given if isinstance(given, Tensor) else given[0]
    return found


@dataclass(frozen=True)
class Watch:
    """Tells what enters a layer, (S, T, D), as a hook before it; hatemtl's own layers know it, and compute on."""

    tell: Callable[[Tensor], None]

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.tell(arguments[0] if arguments else keywords["hidden_states"])
