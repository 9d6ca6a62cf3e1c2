"""Saved LoRAs as factors by layer, read from what AdapterHub or PEFT wrote, without either.

Layers have the names of the encoder's modules, so that both libraries' adapters meet. A layer that holds query, key and
value in one weight comes apart into X.q, X.k and X.v: AdapterHub gives each a LoRA of its own, PEFT one to all three.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from results import Results, ResultsError, column_names, find_results, note, sidecar
from safetensors import SafetensorError, deserialize

Matrix = NDArray[np.float64]
WEIGHTS = {"adapterhub": "adapter/adapter.safetensors", "peft": "adapter/adapter_model.safetensors"}
KEYS = {
    "adapterhub": re.compile(r"(?P<layer>.+)\.loras\.[^.]+\.lora_(?P<side>[AB])"),
    "peft": re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight"),
}
FUSED = re.compile(r"(.*\.)?Wqkv")  # ModernBERT's query, key and value, one above the other
# What makes PEFT's LoRA another one, and its ways to start that leave the encoder's own weights alone.
OTHER = ("fan_in_fan_out", "layer_replication", "alora_invocation_tokens", "arrow_config")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
AGAIN = "train it again with overwrite=true"


class LoRA(NamedTuple):
    """An update of one layer, ΔW = B·A, in double precision; A is (r, in), and B (out, r) has the scale in it."""

    A: Matrix
    B: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of the layer's weight."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Matrix:
        """ΔW itself, (out, in)."""
        return self.B @ self.A

    def nothing(self) -> "LoRA":
        """The update of zero on this layer, of rank 0."""
        return LoRA(self.A[:0], self.B[:, :0])


@dataclass(frozen=True)
class Source:
    """A saved LoRA: the run's name, the fingerprint and the name of its encoder where run.json tells, a LoRA a layer."""

    name: str
    encoder: str | None
    encoder_source: str | None
    layers: Mapping[str, LoRA]


def read_sources(patterns: Iterable[str]) -> list[Source]:
    """The LoRAs of two or more saved runs of one encoder, each run once, globs sorted.

    Raises ResultsError where a run is missing, is broken or holds no LoRA, and where they do not fit one another.
    """
    found: dict[Path, Path] = {}  # a run may be named by its folder and by a file in it
    for path in find_results(patterns, "run.json"):
        if (path.parent / "run.json").is_file():
            found.setdefault(path.parent.resolve(), path.parent)
        else:
            note(f"{path} is left out: it is no saved run")
    runs = list(found.values())
    if len(runs) < 2:
        given = f"{runs[0]} alone: one source meets no other" if runs else "no saved run is named"
        raise ResultsError(f"{given}; name two or more runs, or a quoted glob of them")
    names = column_names([run / "results.csv" for run in runs])
    sources = [read_source(run, name) for run, name in zip(runs, names, strict=True)]
    check_encoders(sources)
    check_shapes(sources)
    return sources


def read_source(run: Path, name: str) -> Source:
    """The LoRA of one saved run. Raises ResultsError where it is broken, or is something else."""
    record = _read(run, "run.json")
    library = record.get("library")
    if library not in WEIGHTS:
        raise ResultsError(
            f"{run}: method={record.get('method')} left no LoRA in it; expected runs of ah_lora16 or peft_lora16, or "
            f"merges of such runs"
        )
    config = _read(run, "adapter/adapter_config.json")
    read = _of_adapter_hub if library == "adapterhub" else _of_peft
    factors = _factors(run, run / WEIGHTS[library], KEYS[library])
    return Source(name, record.get("encoder"), record.get("encoder_source"), dict(read(run, config, factors)))


def check_encoders(sources: Sequence[Source]) -> None:
    """Raises ResultsError where two runs started from different encoders; says so where it cannot know."""
    if silent := [source.name for source in sources if source.encoder is None]:
        note(f"that all have one encoder was not checked: no fingerprint of it in run.json of {', '.join(silent)}")
    known = [source for source in sources if source.encoder is not None]
    for source in known[1:]:
        if source.encoder != known[0].encoder:
            a, b = (f"{s.name} on {s.encoder_source} ({s.encoder})" for s in (known[0], source))
            raise ResultsError(f"the sources were trained on different encoders: {a}, {b}; only those of one can be merged")


def check_shapes(sources: Sequence[Source]) -> None:
    """Raises ResultsError where two runs adapt a layer of one name but not of one shape; notes runs with none in common."""
    first: dict[str, Source] = {}
    for source in sources:
        for layer, lora in source.layers.items():
            other = first.setdefault(layer, source)
            if other.layers[layer].shape != lora.shape:
                raise ResultsError(
                    f"{layer} is {other.layers[layer].shape} in {other.name}, but {lora.shape} in {source.name}: their "
                    f"encoders are of different width; only those of one encoder can be merged"
                )
    for source in sources:
        if not any(source.layers.keys() & other.layers.keys() for other in sources if other is not source):
            note(f"{source.name} adapts no layer that another source adapts, such as {next(iter(source.layers))}")


def _read(run: Path, name: str) -> dict[str, Any]:
    content = sidecar(Results(run / "results.csv", {}), name)
    if content is None:
        raise ResultsError(f"{run} has no {name}; {AGAIN}")
    return content


def _factors(run: Path, path: Path, key: re.Pattern[str]) -> dict[str, tuple[Matrix, Matrix]]:
    """A and B by layer, as they are saved. Raises ResultsError where one is missing, or something else is there."""
    if not path.is_file():
        raise ResultsError(f"{run} has no {path.relative_to(run)}; {AGAIN}")
    try:
        saved = dict(deserialize(path.read_bytes()))
    except SafetensorError as error:
        raise ResultsError(f"{path} cannot be read ({error}); copy it again, or {AGAIN}") from None
    sides: dict[str, dict[str, Matrix]] = {}
    for name, tensor in sorted(saved.items()):
        match = key.fullmatch(name)
        if match is None:
            raise ResultsError(f"{path}: {name} is no part of a plain LoRA; leave {run} out")
        matrix = _matrix(tensor["dtype"], tensor["shape"], tensor["data"])
        if matrix is None or matrix.ndim != 2:
            given = f"{tensor['dtype']} of shape {tuple(tensor['shape'])}"
            raise ResultsError(f"{path}: {name} is {given}; expected a matrix of floats; leave {run} out")
        if not np.isfinite(matrix).all():
            cure = "its training diverged; leave it out, or train it again with a smaller optimization.encoder_lr"
            raise ResultsError(f"{path}: {name} holds what is no finite number: {cure}")
        sides.setdefault(match["layer"], {})[match["side"]] = matrix
    if not sides:
        raise ResultsError(f"{path} holds no weights; {AGAIN}")
    if lacking := [layer for layer, both in sides.items() if len(both) < 2]:
        raise ResultsError(f"{path} lacks lora_A or lora_B of {lacking[0]}; copy it again, or {AGAIN}")
    return {layer: (both["A"], both["B"]) for layer, both in sides.items()}


def _matrix(kind: str, shape: Sequence[int], data: bytes) -> Matrix | None:
    """A tensor of a safetensors file in double precision; None where it holds no floats."""
    if kind == "BF16":  # the upper half of a float32; numpy has no such type
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape).astype(np.float64)
    return np.frombuffer(data, FLOATS[kind]).reshape(shape).astype(np.float64) if kind in FLOATS else None


def _of_adapter_hub(
    run: Path, file: Mapping[str, Any], factors: Mapping[str, tuple[Matrix, Matrix]]
) -> Iterator[tuple[str, LoRA]]:
    config = file.get("config")
    if not isinstance(config, dict):
        raise ResultsError(f"{run}/adapter/adapter_config.json: no 'config' in it; {AGAIN}")
    kind = config.get("architecture") or "bottleneck"
    _check_plain(
        run,
        ([] if kind == "lora" else [f"architecture={kind}"])
        + ([] if config.get("composition_mode", "add") == "add" else ["composition_mode=scale"])
        + [key for key in ("use_gating", "use_dora", "vera_d", "vera_b") if config.get(key)],
    )
    rank, alpha = (_number(run, config, key) for key in ("r", "alpha"))
    fused = [f".{name}" for name in "qkv" if name in (config.get("attn_matrices") or "")]
    for layer, (A, B) in factors.items():
        parts = fused if FUSED.fullmatch(layer) else [""]
        if not parts or (A.shape[0], B.shape[1]) != (rank * len(parts), rank) or B.shape[0] % len(parts):
            raise _misfit(run, layer, A, B, f"r={rank:g}")
        for part, a, b in zip(parts, np.split(A, len(parts)), np.split(B, len(parts)), strict=True):
            yield layer + part, LoRA(a, b * (alpha / rank))


def _of_peft(
    run: Path, config: Mapping[str, Any], factors: Mapping[str, tuple[Matrix, Matrix]]
) -> Iterator[tuple[str, LoRA]]:
    kind = config.get("peft_type")
    # A variant of LoRA is switched on by use_... or one of OTHER; but for the scale of rsLoRA, its update is not B·A.
    variants = [key for key, on in config.items() if on and (key.startswith("use_") or key in OTHER) and key != "use_rslora"]
    start = config.get("init_lora_weights", True)
    _check_plain(
        run,
        ([] if kind == "LORA" else [f"peft_type={kind}"])
        + variants
        + ([] if start in PLAIN_STARTS else [f"init_lora_weights={start}"]),
    )
    for layer, (A, B) in factors.items():
        rank = _number(run, config, "r", layer, config.get("rank_pattern"))
        alpha = _number(run, config, "lora_alpha", layer, config.get("alpha_pattern"))
        parts = [".q", ".k", ".v"] if FUSED.fullmatch(layer) else [""]
        if (A.shape[0], B.shape[1]) != (rank, rank) or B.shape[0] % len(parts):
            raise _misfit(run, layer, A, B, f"r={rank:g}")
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        for part, b in zip(parts, np.split(B, len(parts)), strict=True):
            yield layer + part, LoRA(A, b * scale)


def _check_plain(run: Path, otherwise: Sequence[str]) -> None:
    if otherwise:
        raise ResultsError(
            f"{run}: its adapter is no plain LoRA ({', '.join(otherwise)}), and its change of the weights is not B·A; leave "
            f"it out"
        )


def _misfit(run: Path, layer: str, A: Matrix, B: Matrix, expected: str) -> ResultsError:
    given = f"{layer} has A of shape {A.shape} and B of shape {B.shape}"
    return ResultsError(f"{run}: {given}, which do not fit adapter/adapter_config.json ({expected}); {AGAIN}")


def _number(
    run: Path, config: Mapping[str, Any], key: str, layer: str = "", patterns: Mapping[str, Any] | None = None
) -> float:
    """A setting of an adapter, or what the first pattern says that the layer's name matches, as PEFT matches it."""
    value = config.get(key)
    for pattern, other in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            value = other
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or (key == "r" and value < 1):
        raise ResultsError(f"{run}/adapter/adapter_config.json: {key}={value!r}; expected a number; {AGAIN}")
    return value
