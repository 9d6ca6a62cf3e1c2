"""Reads AdapterHub's configuration strings, `lora[r=8]|par_bn`, and names the kinds of change that they describe."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from adapters.configuration import (
    ADAPTER_CONFIG_MAP,
    AdapterConfig,
    BnConfig,
    ConfigUnion,
    LoRAConfig,
    PrefixTuningConfig,
    ReftConfig,
)
from adapters.utils import parse_adapter_config_string

from hatemtl.errors import UserError, did_you_mean
from hatemtl.saved_runs.saved_run import AGAIN

# Names that the library knows and that do not work, each with the reason and the way out.
REFUSED = {
    "prompt_tuning": "the library adds its tokens without widening the mask of attention; type method=ah_prefix",
    "mtl_lora": "it needs the task of every post, where one forward serves all tasks; type method=mtl_lora",
    "dvora": "the library scales the bias and trains whole matrices; type method=ah_dora, or method=ah_vera",
    "direft": "the library saves it as noreft, and would load that; type method.config=noreft",
}
OLD_NAMES = ("pfeiffer", "houlsby", "parallel", "scaled_parallel", "pfeiffer+inv", "houlsby+inv")
KNOWN = sorted(set(ADAPTER_CONFIG_MAP) - set(REFUSED) - set(OLD_NAMES))
# What a saved configuration calls itself, and its class; bottlenecks have no name.
ARCHITECTURES: dict[str | None, type[AdapterConfig]] = {
    **{None: BnConfig, "lora": LoRAConfig, "prefix_tuning": PrefixTuningConfig, "reft": ReftConfig},
}
# The kinds that are a change of a layer's weight and bias, whatever the input.
FOLDABLE = {"lora", "dora", "vera", "ia3"}


def configuration(text: str, *, reduction_factor: float | None = None, leave_out: Sequence[int] = ()) -> AdapterConfig:
    """Makes the library's configuration of `method.config`: names, joined by |, each with its keys in brackets."""
    said = f"method.config={text!r}"
    try:
        pairs = parse_adapter_config_string(text)
    except ValueError as error:
        raise UserError(f"{said}: {error}; type method.config='lora[r=8]|par_bn'; known: {', '.join(KNOWN)}") from error
    found: list[AdapterConfig] = []
    for name, keys in pairs:
        if name in REFUSED:
            raise UserError(f"{said}: {name} is refused: {REFUSED[name]}")
        if name not in ADAPTER_CONFIG_MAP:
            raise UserError(f"{said}: no adapter is called {name!r}; {did_you_mean(name, KNOWN)}")
        parts = _parts(ADAPTER_CONFIG_MAP[name])
        known = {key for part in parts for key in part.to_dict() if key != "architecture"}
        for key in sorted(set(keys) - known):
            raise UserError(f"{said}: {name} has no key {key!r}; {did_you_mean(key, sorted(known))}")
        found += [_replaced(part, keys) for part in parts]
    if reduction_factor is not None:
        if not any(isinstance(part, BnConfig) for part in found):
            raise UserError(f"method.reduction_factor={reduction_factor}: {text!r} has no bottleneck; type null")
        if not 0 < reduction_factor < float("inf"):
            raise UserError(f"method.reduction_factor={reduction_factor}: expected a number above 0; type 16")
        found = [_replaced(part, {"reduction_factor": reduction_factor}) for part in found]
    if leave_out:
        if any(isinstance(part, ReftConfig) for part in found):
            given = f"method.leave_out={list(leave_out)}"
            raise UserError(f"{given}: ReFT has no such key; type method.config='loreft[layers=[3]]'")
        found = [_replaced(part, {"leave_out": list(leave_out)}) for part in found]
    try:
        whole = found[0] if len(found) == 1 else ConfigUnion(*found)
    except ValueError as error:
        raise UserError(f"{said}: two of these change the same place of a layer; name one") from error
    return _checked(whole, said)


def saved(content: Any, given: str) -> AdapterConfig:
    """Reads the configuration of a saved adapter, of kinds and keys that training takes alone; `given` is the file."""
    try:
        for part in content["configs"] if content.get("architecture") == "union" else [content]:
            name = part.get("architecture")
            if name in REFUSED:
                raise UserError(f"{given}: {name} is refused: {REFUSED[name]}")
            if name not in ARCHITECTURES:
                raise UserError(f"{given}: no adapter is called {name!r}; {AGAIN}")
            known = {field.name for field in fields(ARCHITECTURES[name])}
            for key in sorted(part.keys() - known - {"architecture"}):
                raise UserError(f"{given}: {name or 'a bottleneck'} has no key {key!r}; {AGAIN}")
        return _checked(AdapterConfig.load(dict(content)), given)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{given} cannot be read ({error!r}); {AGAIN}") from error


def _parts(config: AdapterConfig) -> list[AdapterConfig]:
    return list(config.configs) if isinstance(config, ConfigUnion) else [config]


def _replaced(part: AdapterConfig, keys: dict[str, Any]) -> AdapterConfig:
    return part.replace(**{key: value for key, value in keys.items() if key in part.to_dict()})


def kinds(config: AdapterConfig) -> set[str]:
    """Names the kinds that a configuration is made of: lora, gated, dora, vera, ia3, seq_bn, par_bn, inv, prefix, reft."""
    found = set()
    for part in _parts(config):
        match part:
            case PrefixTuningConfig():
                found.add("prefix")
            case ReftConfig():
                found.add("reft")
            case BnConfig():
                found.add("par_bn" if part.is_parallel else "seq_bn")
            case LoRAConfig(composition_mode="scale"):
                found.add("ia3")
            case LoRAConfig(vera_d=None, vera_b=None):
                found.add("dora" if part.use_dora else "lora")
            case _:
                found.add("vera")
        if getattr(part, "use_gating", False):
            found.add("gated")
        if isinstance(part, BnConfig) and part.inv_adapter:
            found.add("inv")
    return found


def union(configs: Sequence[LoRAConfig], rank: int) -> LoRAConfig:
    """Makes the configuration of a LoRA of this rank and of scale 1 on every layer that any of these adapts."""
    return LoRAConfig(
        r=rank,
        alpha=rank,
        dropout=0.0,  # of a training, not of what was learnt; that of one source would depend on their order
        selfattn_lora=any(config.selfattn_lora for config in configs),
        attn_matrices=[name for name in "qkv" if any(name in config.attn_matrices for config in configs)],
        intermediate_lora=any(config.intermediate_lora for config in configs),
        output_lora=any(config.output_lora for config in configs),
        leave_out=sorted(set.intersection(*(set(config.leave_out) for config in configs))),
    )


def _checked(config: AdapterConfig, given: str) -> AdapterConfig:
    """Refuses keys with which the library fails at the first forward, or later, or trains nothing without a word."""
    for part in _parts(config):
        for key in ("r", "prefix_length", "reduction_factor"):
            value = getattr(part, key, 1)
            if isinstance(value, int | float) and value <= 0:
                raise UserError(f"{given}: {key}={value}, expected a number above 0; leave it out, or type {key}=8")
        if isinstance(part, LoRAConfig) and "vera" in kinds(part):
            if part.use_dora:
                raise UserError(f"{given}: {REFUSED['dvora']}")
            if part.intermediate_lora or part.output_lora:
                shared = "VeRA's matrices are shared by all layers, so they fit those of attention alone"
                raise UserError(f"{given}: {shared}; leave intermediate_lora and output_lora out")
        if getattr(part, "init_weights_seed", None) is not None:
            raise UserError(f"{given}: init_weights_seed gives every layer the same draw; type seed=N, the run's own")
        if isinstance(part, BnConfig) and part.stochastic_depth:
            raise UserError(f"{given}: stochastic_depth needs torchvision, which hatemtl does without; leave it out")
        if getattr(part, "dtype", None) is not None:
            raise UserError(f"{given}: what is trained stays float32; leave dtype out")
    return config
