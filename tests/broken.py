"""Saved runs that something happened to."""

from pathlib import Path

from safetensors.torch import load_file, save_file

WAYS = ["no configuration", "weights cut off", "a tensor is missing"]


def damage(weights: Path, way: str) -> None:
    """Breaks a saved adapter, given its weights, in one of `WAYS`."""
    match way:
        case "no configuration":
            (weights.parent / "adapter_config.json").unlink()
        case "weights cut off":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "a tensor is missing":
            tensors = load_file(weights)
            tensors.pop(next(key for key in tensors if "lora_B" in key))
            save_file(tensors, weights)
