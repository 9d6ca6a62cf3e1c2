"""Loads the encoder: a tokenizer and a pretrained transformer, so that no file of theirs can run code."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from hatemtl.encoders.files import AGAIN, INDEX, WAY_OUT, check_fit, guard, weight_files
from hatemtl.errors import UserError, did_you_mean, unreadable
from hatemtl.machine import json_object
from hatemtl.machine.hub import fetch
from hatemtl.seeds import seeded

Transformer = PreTrainedModel
Tokenizer = PreTrainedTokenizerFast

FILES = ["config.json", "model*.safetensors", INDEX, "*token*", "vocab*", "merges.txt", "spm.model"]
# How transformers fails at files that are broken or tampered with.
FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, SafetensorError, StrictDataclassError),
)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pretrained transformer encoder and its tokenizer.

    source: `package:NAME/FOLDER` (files of an installed package), a local folder, or a repository of the hub, OWNER/NAME or
        OWNER/NAME@REVISION.
    max_length: token ids a post at most, the special ones included.
    attention: auto is sdpa on a GPU where the model has it, else eager, faster on CPU at a post's length.
    random: if given, weights are drawn at random instead of loaded, and these keys replace those of config.json.
    quantize: the frozen weights of all linear layers to so many bits; None to those of the computation.
    """

    source: str
    max_length: int
    attention: Literal["auto", "eager", "sdpa"]
    random: Mapping[str, Any] | None
    quantize: Literal["8bit", "4bit"] | None = None

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise UserError(f"encoder.max_length={self.max_length}: expected at least 3 token ids")
        if self.quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                f"encoder.quantize={self.quantize} needs the package bitsandbytes; type `uv sync --extra quantize`, or "
                f"encoder.quantize=null"
            )

    def folder(self) -> Path:
        """Finds the folder of the files, from the hub unless cached. Raises UserError where they may not be read."""
        if self.source.startswith("package:"):
            package, _, inside = self.source.removeprefix("package:").partition("/")
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise UserError(f"encoder.source={self.source}: package {package!r} is not installed; type `uv sync`")
            folder = Path(spec.submodule_search_locations[0]) / inside
        elif self.source.startswith((".", "/", "~")) or Path(self.source).is_dir():
            folder = Path(self.source).expanduser()
        else:
            folder = fetch(self.source, kind="model", patterns=FILES, way_out=WAY_OUT)
        if not (folder / "config.json").is_file():
            raise UserError(f"encoder.source={self.source}: no config.json there; {WAY_OUT}")
        guard(folder)
        return folder

    def weights(self) -> dict[str, str]:
        """Tells the pretrained weights from others without loading them, file by file; none where they are drawn."""
        if self.random is not None:
            return {}
        folder, found = self.folder(), {}
        for name in weight_files(folder, self.source):
            path = folder / name  # opened twice: safetensors takes what it may not read for what is not there
            with _readable(folder), path.open("rb"), safe_open(path, "pt") as file:
                found[name] = _digest((key, file.get_tensor(key)) for key in sorted(file.keys()))
        return found

    def tokenizer(self) -> Tokenizer:
        """Loads the fast tokenizer. A word in mid-text and a word at its start get the same ids."""
        folder = self.folder()
        for path in (folder / "tokenizer_config.json", folder / "config.json"):
            given = json_object.read(path, AGAIN).get("tokenizer_class") if path.is_file() else None
            if given is not None:  # a class that is none of a fast tokenizer, as that of a model, would read pickles
                named = [given] if str(given).endswith("Fast") else [f"{given}Fast", str(given)]
                found = next((cls for each in named if (cls := tokenizer_class_from_name(each)) is not None), None)
                if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerFast)):
                    raise UserError(f"{path}: tokenizer_class={given!r} is no fast tokenizer of transformers; {WAY_OUT}")
                break
        with _readable(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, add_prefix_space=True)
        if not tokenizer.is_fast:
            raise UserError(f"encoder.source={self.source}: has no fast tokenizer; {WAY_OUT}")
        words = tokenizer.backend_tokenizer.pre_tokenizer
        if not getattr(words, "add_prefix_space", True):  # transformers 5 does not pass it on
            words.add_prefix_space = True
        return tokenizer

    def model(self, *, dropout: bool, seed: int, pooler: bool = False) -> Transformer:
        """Loads the transformer in float32, in evaluation mode.

        dropout: whether its own stays on in training. seed: for random weights. pooler: whether to keep BERT's for others.
        """
        folder = self.folder()
        with _readable(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type == "camembert":  # RoBERTa by another name, which AdapterHub does not know
            config = RobertaConfig.from_dict({**config.to_dict(), "model_type": "roberta"})
        if hasattr(config, "quantization_config"):
            raise UserError(f"{folder / 'config.json'}: these weights are quantized; expected float ones; {WAY_OUT}")
        family = self._family(config)
        for key, value in (self.random or {}).items():
            if not hasattr(config, key):
                raise UserError(
                    f"encoder.random.{key}: no key of {folder / 'config.json'}; {did_you_mean(key, config.to_dict())}"
                )
            setattr(config, key, value)
        if not dropout:
            for key, value in config.to_dict().items():
                if isinstance(value, float) and key.endswith(("dropout", "dropout_prob")):
                    setattr(config, key, 0.0)
        config.return_dict, config.output_hidden_states = True, False  # the last ones are read, by name
        if hasattr(config, "reference_compile"):
            config.reference_compile = False  # ModernBERT would compile its layers by itself, under the adapters
        attention: str = self.attention
        if attention == "auto":
            attention = "sdpa" if family._supports_sdpa and torch.cuda.is_available() else "eager"
        if attention == "sdpa" and not family._supports_sdpa:
            raise UserError(
                f"encoder.attention=sdpa: {config.model_type} has no such attention; type encoder.attention=eager"
            )
        how: dict[str, Any] = {"attn_implementation": attention, "dtype": torch.float32, "trust_remote_code": False}
        if self.random is not None:
            try:
                with seeded(seed, "encoder"):
                    model = AutoModel.from_config(config, **how)
            except FAILURES as error:
                raise UserError(
                    f"encoder.random={dict(self.random)}: {config.model_type} cannot be made of these sizes ({error}); give "
                    f"others, or type encoder.random={{}} for those of config.json"
                ) from error
        else:
            weight_files(folder, self.source)
            # those of another shape are told of by name below
            how |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
            with _readable(folder), torch.random.fork_rng(devices=[]):  # a pooler that is missing would be drawn
                model, seen = AutoModel.from_pretrained(folder, config=config, **how)
            check_fit(model, seen, folder, family.base_model_prefix)
            pooler = pooler and not any(key.startswith("pooler.") for key in seen["missing_keys"])
        if getattr(model, "pooler", None) is not None and not pooler:
            model.pooler = None  # heads pool themselves, and an unused parameter stalls distributed training
        if attention == "eager" and hasattr(model, "get_extended_attention_mask"):
            # added to bf16 scores, a float32 mask lets softmax work in float32, which a CPU does several times faster
            model.get_extended_attention_mask = partial(model.get_extended_attention_mask, dtype=torch.float32)
        longest = getattr(config, "max_position_embeddings", self.max_length)
        padding = getattr(getattr(getattr(model, "embeddings", None), "position_embeddings", None), "padding_idx", None)
        if padding is not None:
            longest -= padding + 1  # RoBERTa counts positions from there
        if self.max_length > longest:
            raise UserError(
                f"encoder.max_length={self.max_length}: this encoder takes {longest} token ids at most; type "
                f"encoder.max_length={longest}"
            )
        return model.eval()

    def quantized(self, model: Transformer) -> Transformer:
        """Gives the model itself, the weights of its linear layers in 8 or 4 bits where `quantize` says so.

        8 bits as LLM.int8() has them (Dettmers et al. 2022, arXiv:2208.07339), 4 as QLoRA's NormalFloat (Dettmers et al.
        2023, arXiv:2305.14314). The float weights must be there first: a fingerprint is taken of them.
        """
        if self.quantize is None:
            return model
        import bitsandbytes  # slow to import

        bnb: Any = bitsandbytes.nn
        for path, layer in [(path, m) for path, m in model.named_modules() if type(m) is nn.Linear]:
            shape, weight = (layer.in_features, layer.out_features, layer.bias is not None), layer.weight.data
            if self.quantize == "8bit":
                small = bnb.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0)
                small.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
            else:
                small = bnb.Linear4bit(*shape, quant_type="nf4")
                small.weight = bnb.Params4bit(weight, quant_type="nf4", module=small).to("cpu")
            small.bias = layer.bias
            model.set_submodule(path, small.train(layer.training))
        # by these PEFT knows, as of a model that transformers quantized
        flags: Any = model
        flags.is_loaded_in_8bit, flags.is_loaded_in_4bit = self.quantize == "8bit", self.quantize == "4bit"
        keep_trainable(model)
        return model.requires_grad_(False)

    def _family(self, config: PretrainedConfig) -> type[PreTrainedModel]:
        """The class of its model. Raises UserError where that is none that makes hidden states of token ids."""
        family: Any = MODEL_MAPPING.get(type(config), None)
        sizes = [getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers")]
        known = isinstance(family, type) and issubclass(family, PreTrainedModel)  # a few types have two
        text = known and family.main_input_name == "input_ids" and not config.is_encoder_decoder
        if not text or not all(isinstance(size, int) for size in sizes):
            raise UserError(
                f"encoder.source={self.source}: {config.model_type} is no encoder of text that hatemtl can train; expected "
                f"one such as bert, electra, roberta, deberta-v2 or modernbert; {WAY_OUT}"
            )
        return family


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise unreadable(f"the encoder in {folder}", error, f"download it again, or {WAY_OUT}") from error


def is_quantized(model: nn.Module) -> bool:
    """Tells whether linear layers of the model are of 8 or 4 bits."""
    return any(type(module).__name__ in ("Linear8bitLt", "Linear4bit") for module in model.modules())


def keep_trainable(model: nn.Module) -> None:
    """Keeps 4-bit layers, also those of adapters, as they are: else an evaluation on a CPU repacks them for good."""
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def vocabulary(tokenizer: Tokenizer) -> str:
    """Tells tokenizers apart by sixteen hex digits: of words and rules, not of how long a text they let through."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(model: Transformer) -> str:
    """Tells one encoder from another by sixteen hex digits: of names, shapes and 1,024 values of each pretrained weight."""
    return _digest(sorted(model.state_dict().items()))


def _digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // 1024)]  # spread over the whole of it
        digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())  # of types that NumPy lacks too
    return digest.hexdigest()[:16]
