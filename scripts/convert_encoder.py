"""Makes of an encoder that is published as a pickle a folder that hatemtl reads: safetensors, and a fast tokenizer.

    uv run scripts/convert_encoder.py classla/bcms-bertic encoders/bertic
    uv run main.py encoder=bertic encoder.source=encoders/bertic

The pickle is opened by torch's own reader of tensors alone (`weights_only`), which runs no code that is in it.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from hatemtl.encoders.files import AGAIN, WEIGHTS, guard
from hatemtl.errors import UserError
from hatemtl.machine import json_object
from hatemtl.machine.hub import fetch

PICKLE = "pytorch_model.bin"
FILES = ["config.json", PICKLE, "*token*", "vocab*", "merges.txt", "bpe.codes", "*.model"]
WAY_OUT = "give the folder of a downloaded one: scripts/convert_encoder.py FOLDER OUT"


def convert(source: str, out: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer.json to `out`.

    source: a folder, or a repository of the hub. Raises UserError where it has no pickle or cannot be read, or `out` is
    there already.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; give a folder that is not, or remove it")
    folder = Path(source)
    if not folder.is_dir():
        folder = fetch(source, kind="model", patterns=FILES, way_out=WAY_OUT)
    for name in ("config.json", PICKLE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: has no {name}, expected those of one encoder in the hub's layout; {WAY_OUT}")
    guard(folder)
    try:
        weights = torch.load(folder / PICKLE, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
        assert all(isinstance(value, torch.Tensor) for value in weights.values())
    except Exception as error:  # pickles fail in any way
        raise UserError(
            f"{folder / PICKLE}: holds more than tensors by name, or is broken ({error!s:.100}); {AGAIN}"
        ) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a folder that can be written") from error
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
        part = Path(made) / "encoder"
        part.mkdir()
        # old names of a layer norm's weights, which transformers takes for others
        renamed = {key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
                   for key, value in weights.items()}  # fmt: skip
        save_file({key: value.clone() for key, value in renamed.items()}, part / WEIGHTS, metadata={"format": "pt"})
        shutil.copy(folder / "config.json", part)
        tokenizer(folder).save_pretrained(part)
        os.rename(part, out)


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads the fast tokenizer, or what tokenizer.json says where transformers has no fast class of its name (BERTweet)."""
    try:
        found = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"{folder}: its tokenizer cannot be read ({error!s:.100}); {AGAIN}") from error
    if found.is_fast:
        return found
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: neither tokenizer.json nor a fast {type(found).__name__}; type encoder=NAME of another")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    longest = json_object.read(folder / "tokenizer_config.json", AGAIN).get(
        "model_max_length", config.max_position_embeddings
    )
    names = ("bos_token", "eos_token", "sep_token", "cls_token", "unk_token", "pad_token", "mask_token")
    special = {name: str(getattr(found, name)) for name in names if getattr(found, name)}
    rules = str(folder / "tokenizer.json")
    return PreTrainedTokenizerFast(tokenizer_file=rules, model_max_length=longest, **special)


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="a repository of the hub (OWNER/NAME or OWNER/NAME@REVISION), or a folder")
    parser.add_argument("out", type=Path, help="the folder to make")
    given = parser.parse_args(arguments)
    try:
        convert(given.source, given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"type encoder.source={given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
