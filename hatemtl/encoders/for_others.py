"""Says an encoder, its tokenizer and one head in transformers' own words, for programs that know nothing of hatemtl."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from hatemtl.encoders.pretrained import Encoder, Tokenizer, Transformer
from hatemtl.heads.base import Problem

# Where a type's class for classification keeps the layer on the first token and the one above it, and what it does between.
CLASSES = {
    "bert": ("bert.pooler.dense", "classifier", "tanh"),
    **dict.fromkeys(("roberta", "xlm-roberta"), ("classifier.dense", "classifier.out_proj", "tanh")),
    "electra": ("classifier.dense", "classifier.out_proj", "gelu"),
    "deberta-v2": ("pooler.dense", "classifier", "any"),  # by the configuration's pooler_hidden_act
}
SMALL = 2.0**-12  # tanh(x·SMALL)/SMALL is x, but for a share of (x·SMALL)²/3; a power of two rounds nothing


def tokenizer(encoder: Encoder, model: Transformer) -> Tokenizer:
    """The encoder's tokenizer, cutting where `max_length` does, and giving no more than what the model's forward takes."""
    some = encoder.tokenizer()
    taken = inspect.signature(model.forward).parameters
    one_type = getattr(model.config, "type_vocab_size", None) == 1  # RoBERTa's, which a second segment's 1 is beyond
    names = [name for name in some.model_input_names if name in taken and not (one_type and name == "token_type_ids")]
    some.model_input_names, some.model_max_length = names, encoder.max_length
    some.init_kwargs["model_input_names"] = names  # else it is not saved
    return some


def head_modules(model: Any, *, tokens: bool) -> list[str]:
    """Names the modules of such a model that hold its head: all that is not the encoder's."""
    lower, upper, _ = CLASSES[model.config.model_type] if not tokens else ("classifier", "classifier", "")
    return list(dict.fromkeys(path.removesuffix(".dense").removesuffix(".out_proj") for path in (lower, upper)))


def classifier(encoder: Transformer, layers: Sequence[nn.Linear], names: Sequence[str], problem: Problem) -> Any | None:
    """The encoder with these layers on its first token, GELU between two, as its class for sequence classification.

    names: of the labels. None where that class has no place for such layers: it always has two with its own activation
    between them, so that a single one stands there as two whose activation does nothing.
    """
    if encoder.config.model_type not in CLASSES:
        return None
    lower, upper, between = CLASSES[encoder.config.model_type]
    config = copy.deepcopy(encoder.config)
    two = _as_two(layers, between)
    if two is None or getattr(config, "pooler_hidden_size", config.hidden_size) != config.hidden_size:
        return None
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = problem
    if between == "any":
        config.pooler_hidden_act = "linear" if len(layers) == 1 else "gelu"
    with torch.random.fork_rng(devices=[]):  # what is drawn is replaced below
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    _fill_body(model, encoder)
    for path, (weight, bias) in zip((lower, upper), two, strict=True):
        model.get_submodule(path).load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def token_classifier(encoder: Transformer, weight: Tensor, bias: Tensor, names: Sequence[str]) -> Any | None:
    """The encoder with one layer (C, D) on every token, as its class for token classification.

    names: of the labels. None where that class has no place for such a layer alone.
    """
    config = copy.deepcopy(encoder.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn is replaced below
            model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError:  # its type has no such class
        return None
    if not isinstance(layer := getattr(model, "classifier", None), nn.Linear) or hasattr(model, "head"):
        return None
    _fill_body(model, encoder)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return model.eval()


def _fill_body(model: Any, encoder: Transformer) -> None:
    body = getattr(model, model.base_model_prefix)
    places = body.state_dict()
    body.load_state_dict(places | {k: w for k, w in encoder.state_dict().items() if k in places or "pooler" not in k})


def _as_two(layers: Sequence[nn.Linear], between: str) -> list[tuple[Tensor, Tensor]] | None:
    """Weights and biases of two layers (D, D) and (C, D) that with this activation between them say the same as `layers`."""
    given = [(layer.weight.detach(), layer.bias.detach()) for layer in layers]
    if len(given) == 2:
        return given if between in ("gelu", "any") else None
    if len(given) > 2:
        return None
    weight, bias = given[0]
    labels, width = weight.shape
    same, none = torch.eye(width), torch.zeros(width)
    if between == "any":
        return [(same, none), (weight, bias)]
    if between == "tanh":
        return [(same * SMALL, none), (weight / SMALL, bias)]
    if 2 * labels > width:
        return None
    rest, one = width - 2 * labels, torch.eye(labels)
    lower, below = F.pad(torch.cat([weight, -weight]), (0, 0, 0, rest)), F.pad(torch.cat([bias, -bias]), (0, rest))
    return [
        (lower, below),
        (F.pad(torch.cat([one, -one], dim=1), (0, rest)), torch.zeros(labels)),
    ]  # GELU(x) - GELU(-x) is x
