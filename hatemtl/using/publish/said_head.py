"""Says one task's head in the classes that transformers, PEFT and AdapterHub have for texts and for tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hatemtl.corpora.preprocess import Preprocess
from hatemtl.encoders import for_others
from hatemtl.encoders.pretrained import Transformer
from hatemtl.using.made_up_posts import Case
from hatemtl.using.merged_folder import TOLERANCE, classifier, layers_of

OUTSIDE = "O"  # what a token is called that is not marked, as in the tags of every corpus of tokens


@dataclass(frozen=True)
class SaidHead:
    """A head as others' classes have it.

    model: the encoder with it. form: whether that is a class for sequences, or for tokens. names: of its outputs. layers:
    the head's own linear layers, GELU between them. mean: whether a post's logits are the mean of its tokens'. activation:
    from logits to scores.
    """

    task: str
    model: Any
    form: Literal["sequence", "tokens"]
    names: Sequence[str]
    layers: Sequence[nn.Linear]
    mean: bool
    activation: Literal["softmax", "sigmoid", "none"]

    @property
    def class_name(self) -> str:
        return f"AutoModelFor{'Sequence' if self.form == 'sequence' else 'Token'}Classification"


def say(
    model: Transformer, task: str, head: Any, asked: Sequence[Case], rewrites: Preprocess
) -> tuple[SaidHead | None, str]:
    """The head in a class of others that gives its scores of the posts asked, or None and the reason.

    A layer on the mean of tokens is the mean of that layer on each token, so that a class for tokens says it as well.
    """
    if rewrites.asked:
        return None, f"no class rewrites posts before it reads them ({', '.join(rewrites.asked)})"
    if head.counts is not None:
        return None, "it counts the words of a list, which no class does"
    activation: Any = {"multiclass": "softmax", "multilabel": "sigmoid", "score": "none", "tokens": "softmax"}
    if head.kind not in activation:
        return None, f"no class has {head.kind} labels"
    names, how = list(head.space.names), activation[head.kind]
    if head.pool is not None and head.pool.kind == "cls":
        said, why = classifier(model, {task: head}, asked, rewrites)
        return (None if why else SaidHead(task, said, "sequence", names, layers_of(head), False, how)), why or ""
    if head.pool is not None and head.pool.kind != "mean":
        return None, f"no class pools tokens as pooling={head.pool.kind} does"
    layers = [layer for layer in head.layers if isinstance(layer, nn.Linear)] if head.pool is None else layers_of(head)
    if len(layers) != 1:
        return None, f"no class has {len(layers)} layers on the {'tokens' if head.pool is None else 'mean of tokens'}"
    if head.pool is None:  # its one logit x, beside 0, so that softmax gives σ(x)
        names = [OUTSIDE, *names]
        layers = [_beside_zero(layers[0])]
    said = for_others.token_classifier(model, layers[0].weight.detach(), layers[0].bias.detach(), names)
    if said is None:
        return None, f"the class for tokens of {model.config.model_type} has no place for a single layer"
    found = SaidHead(task, said, "tokens", names, layers, head.pool is not None, how)
    if any(case.off(task, _scores(found, head, case)) > TOLERANCE for case in asked):
        return None, f"{type(said).__name__} would compute it too coarsely"
    return found, ""


def _beside_zero(layer: nn.Linear) -> nn.Linear:
    two = nn.Linear(layer.in_features, 2)
    two.load_state_dict({name: torch.cat([torch.zeros_like(of), of]).detach() for name, of in layer.state_dict().items()})
    return two


@torch.no_grad()
def _scores(said: SaidHead, head: Any, case: Case) -> list[list[float]]:
    batch = case.pool[np.arange(len(case.pool))]
    logits: Tensor = batch.first(said.model(**batch.inputs).logits)
    if not said.mean:
        rows = (logits[..., 1] - logits[..., 0]).sigmoid().tolist()
        return [case.pool.at_words(post, row) for post, row in enumerate(rows)]
    weights = batch.first(batch.attention_mask)[..., None]
    pooled = (logits * weights).sum(dim=1) / weights.sum(dim=1)
    return (pooled if said.activation == "none" else head.scores(pooled)).tolist()
