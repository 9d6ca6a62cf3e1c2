"""Ends a pass through an encoder where a hook has what it is there for."""

from collections.abc import Mapping
from typing import Any

from torch import nn
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
