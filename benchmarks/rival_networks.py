"""What the rivals train: the encoder with a library's adapter, or whole, and a head; its metrics; and posts as token ids."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.flops import Method
from benchmarks.posts import Examples, macro_f1

MAX_LENGTH = 128
IGNORED = -100
Library = Literal["transformers", "adapters"]  # the Trainer over transformers and PEFT, or AdapterHub's over its own
# Query, key, value and the feed-forward matrices by their names in any encoder here: what hatemtl's ah_lora16 adapts.
TARGETS = (
    r".*(attention\.self\.(query|key|value)(_proj)?|intermediate\.dense|layer\.\d+\.output\.dense|attn\.Wqkv|mlp\.W[io])"
)


class Mean(torch.nn.Module):
    """In place of BERT's pooler, which reads the first token: the mean of a post's tokens, (B, T, D) to (B, D)."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.mask = torch.empty(0)
        bert.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, bert: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mask = kwargs["attention_mask"]  # a pooler is not given it

    def forward(self, hidden: Tensor) -> Tensor:
        weights = self.mask.to(hidden.dtype)
        return torch.einsum("bt,btd->bd", weights / weights.sum(dim=1, keepdim=True), hidden)


def network(
    task: str,
    classes: int,
    *,
    encoder: str,
    method: Method,
    library: Library,
    dropout: bool,
    attention: str | None,
    mean: bool,
) -> Any:
    """The encoder under the method as a library has it, with the library's own head for the task.

    dropout: the encoder's own. mean: in place of transformers' head for BERT a linear one on the mean of the tokens.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

    config = AutoConfig.from_pretrained(encoder, num_labels=classes)
    if task == "target":
        config.problem_type = "multi_label_classification"
    if not dropout:
        for key in config.to_dict():
            if key.endswith(("dropout", "dropout_prob")):
                setattr(config, key, 0.0)
        config.classifier_dropout = config.cls_dropout = 0.1
    options: dict[str, Any] = {"config": config} | ({"attn_implementation": attention} if attention else {})
    if library == "adapters":
        return _with_adapters(task, classes, encoder, method, options)
    tokens = task == "rationale"
    automatic: Any = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    model = automatic.from_pretrained(encoder, **options)
    if mean:
        model.bert.pooler = Mean(model.bert)
    if method == "full":
        return model
    if method != "ah_lora16":
        raise ValueError(f"{method}: PEFT has no such adapter")
    from peft import LoraConfig, TaskType, get_peft_model

    kind = TaskType.TOKEN_CLS if tokens else TaskType.SEQ_CLS
    return get_peft_model(model, LoraConfig(task_type=kind, r=16, lora_alpha=16, target_modules=TARGETS))


def _with_adapters(task: str, classes: int, encoder: str, method: Method, options: dict[str, Any]) -> Any:
    if task != "label" or method == "full":
        raise ValueError("AdapterHub's trainer is there for the label task and adapters alone")
    from adapters import AutoAdapterModel, LoRAConfig, SeqBnConfig  # type: ignore[attr-defined]

    model = AutoAdapterModel.from_pretrained(encoder, **options)
    lora = LoRAConfig(
        r=16, alpha=16, selfattn_lora=True, intermediate_lora=True, output_lora=True, attn_matrices=["q", "k", "v"]
    )
    model.add_adapter(task, config=lora if method == "ah_lora16" else SeqBnConfig(reduction_factor=16))
    model.add_classification_head(task, num_labels=classes)
    model.train_adapter(task)
    return model


def fused(model: Any) -> Any:
    """The same with frozen weights of bf16, and its encoder compiled for batches of any length; copies are not compiled."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    getattr(inner, inner.base_model_prefix).compile(dynamic=True)
    return model


def attentions(encoder: str) -> tuple[str, ...]:
    """Those of the library's attentions that it has for an encoder, and that a CPU computes."""
    from transformers import MODEL_MAPPING, AutoConfig

    family: Any = MODEL_MAPPING[type(AutoConfig.from_pretrained(encoder))]
    return ("eager", "sdpa") if family._supports_sdpa else ("eager",)


def encode(tokenizer: Any, posts: Examples, task: str) -> list[dict[str, Any]]:
    """Token ids and what the task's head expects of each post; posts without a rationale are left out of that task."""
    if task != "rationale":
        encoded = tokenizer(posts.texts, truncation=True, max_length=MAX_LENGTH)
        truth = posts.label.tolist() if task == "label" else posts.target.tolist()
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": label}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], truth, strict=True)
        ]
    rows = []
    for words, rationale in zip(posts.words, posts.rationale, strict=True):
        if rationale is None:
            continue
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
        labels, before = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == before else int(rationale[word] > 0))
            before = word
        rows.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels})
    return rows


def optimizer(network: Any, rate: float, head_rate: float) -> torch.optim.Optimizer:
    """AdamW whose head learns at a rate of its own."""
    return torch.optim.AdamW(
        {
            "params": [parameter],
            "lr": head_rate if "classifier" in name else rate,
            "weight_decay": 0.01 * (parameter.ndim > 1),
        }
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    )


def scorer(task: str, classes: int) -> Callable[[Any], dict[str, float]]:
    """The metrics of a task's head, as Trainer computes them of all its answers."""

    def score(given: Any) -> dict[str, float]:
        logits, truth = given.predictions, np.asarray(given.label_ids)
        if task == "target":
            hit, wrong = ((logits > 0) & (truth > 0.5)).sum(0), ((logits > 0) != (truth > 0.5)).sum(0)
            return {"macro_f1": float(np.mean(2 * hit / np.maximum(2 * hit + wrong, 1)))}
        predicted, kept = logits.argmax(-1), truth != IGNORED
        return {
            "macro_f1": macro_f1(predicted[kept], truth[kept], classes),
            "accuracy": float((predicted[kept] == truth[kept]).mean()),
        }

    return score


def group_as_of_many() -> None:
    """Lets group_by_length look for posts of like length among 50 batches, as it does of 6,400 posts or more."""
    from transformers import trainer_pt_utils

    own = trainer_pt_utils.get_length_grouped_indices
    if not isinstance(own, partial):
        trainer_pt_utils.get_length_grouped_indices = partial(own, mega_batch_mult=50)
