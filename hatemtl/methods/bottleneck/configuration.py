"""Describes bottlenecks in AdapterHub's words, and tells which of these hatemtl itself can compute."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hatemtl.encoders.fast import ACTIVATIONS

Kind = Literal["seq", "double_seq", "par"]
# All that AdapterHub writes of a bottleneck; what stands in `PLAIN` is so in all that hatemtl computes itself.
PLAIN: dict[str, Any] = {
    **{"original_ln_after": True, "ln_before": False, "ln_after": False, "use_gating": False, "dropout": 0.0},
    **{"phm_layer": False, "inv_adapter": None, "cross_adapter": False, "stochastic_depth": 0.0},
}
SHARED: dict[str, Any] = {
    **PLAIN,
    **{"architecture": None, "output_adapter": True, "residual_before_ln": True, "adapter_residual_before_ln": False},
    **{"init_weights": "bert", "init_weights_seed": None, "inv_adapter_reduction_factor": None, "is_parallel": False},
    **{"phm_dim": 4, "factorized_phm_W": True, "shared_W_phm": False, "shared_phm_rule": True, "phm_rank": 1},
    **{"factorized_phm_rule": False, "phm_c_init": "normal", "phm_init_range": 0.0001, "learn_phm": True},
    **{"hypercomplex_nonlinearity": "glorot-uniform", "phm_bias": True, "scaling": 1.0},
}
NEEDED = {"reduction_factor", "non_linearity", "mh_adapter", "output_adapter", "original_ln_before", "is_parallel"}
NEEDED |= {"scaling", "leave_out", "init_weights"}
LEAST = 0.01  # a reduction factor, which makes a bottleneck a hundred times as wide as the encoder
KINDS: dict[Kind, dict[str, Any]] = {
    "seq": {"mh_adapter": False, "original_ln_before": True, "non_linearity": "relu"},
    "double_seq": {"mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"},
    "par": {
        **{"mh_adapter": False, "original_ln_before": False, "is_parallel": True},
        **{"non_linearity": "relu", "scaling": 4.0, "init_weights": "mam_adapter"},
    },
}


def configuration(
    kind: Kind, *, reduction_factor: float, non_linearity: str | None, scaling: float | None, leave_out: Sequence[int]
) -> dict[str, Any]:
    """Makes the configuration of one after the feed-forward, of one after attention too, or of one beside the former.

    non_linearity, scaling: None for those of its authors.
    """
    given = {"reduction_factor": reduction_factor, "non_linearity": non_linearity, "scaling": scaling}
    told = {key: value for key, value in given.items() if value is not None}
    return {**SHARED, **KINDS[kind], **told, "leave_out": [*leave_out]}


def odd(config: Mapping[str, Any]) -> list[str]:
    """Lists the keys of a configuration with which it is more than two linear layers, a function and a scale, or no such."""
    found = [key for key, value in PLAIN.items() if config.get(key, value) != value]
    if not config.get("is_parallel") and config.get("residual_before_ln") is not True:
        found.append("residual_before_ln")
    if not is_number(config.get("scaling", 1.0)):
        found.append("scaling")
    factor = config.get("reduction_factor")
    factors: list[Any] = [*factor.values()] if isinstance(factor, Mapping) else [factor]
    if not factors or not all(is_number(one) and one >= LEAST for one in factors):
        found.append("reduction_factor")
    if isinstance(factor, Mapping) and "default" not in factor:
        found.append("reduction_factor")
    left_out = config.get("leave_out")
    if not isinstance(left_out, list) or not all(isinstance(layer, int) for layer in left_out):
        found.append("leave_out")
    if str(config.get("non_linearity")).lower() not in ACTIVATIONS:
        found.append("non_linearity")
    return found


def is_number(value: Any) -> bool:
    """Tells whether this is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reads(config: Mapping[str, Any]) -> Literal["normed", "output", "input"]:
    """Tells what enters a bottleneck, as `encoders.fast.Bottleneck` names it."""
    if config["is_parallel"]:
        return "input"
    return "normed" if config["original_ln_before"] else "output"


def width(config: Mapping[str, Any], layer: int, hidden: int) -> int:
    """Gives how wide the bottleneck of a layer is; a reduction factor may be one for all, or by layer."""
    factor = config["reduction_factor"]
    if isinstance(factor, Mapping):
        factor = factor.get(str(layer), factor.get("default"))
    return max(1, int(hidden // factor))
