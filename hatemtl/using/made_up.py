"""Makes posts up, to see whether an export says of them what the network says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.base import Posts
from hatemtl.encoders import for_others
from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.network.forward import Forward

TEXTS = ["A post.", "Another post, which says a little more than the first one does.", "And a third"]
SECONDS = ["It has an answer, longer than itself.", "So has this.", "Why not?"]


@dataclass(frozen=True)
class Case:
    """The texts, each read with a second one if there are `seconds`, and what each head says of them.

    said[task]: scores, for choice the one logit of each text with its second, (texts, 1).
    """

    seconds: list[str] | None
    pool: TokenizedPosts
    batch: Batch
    said: dict[str, Tensor]


@torch.no_grad()
def cases(encoder: Encoder, model: Transformer, heads: Mapping[str, Any]) -> Iterator[Case]:
    """The texts alone and, where there is room and the encoder tells segments apart as its tokenizer does, in pairs."""
    tokenizer = encoder.tokenizer()
    types = "token_type_ids" in tokenizer.model_input_names
    known = "token_type_ids" in for_others.tokenizer(encoder, model).model_input_names
    room = encoder.max_length >= tokenizer.num_special_tokens_to_add(pair=True) + 2
    for seconds in (None, SECONDS) if room and types == known else (None,):
        pairs: list[tuple[str, ...]] | None = None if seconds is None else [(second,) for second in seconds]
        names = list(map(str, range(len(TEXTS))))
        pool = TokenizedPosts(tokenizer, encoder.max_length, [Posts(names, TEXTS, np.full(len(TEXTS), "test"), {}, pairs)])
        batch = pool[np.arange(len(pool))]
        hidden, said = Forward(model, heads).encode(batch), {}
        for task, head in heads.items():
            logits = head.eval()(hidden, batch.attention_mask)
            said[task] = logits[:, None] if head.space.about == "second texts" else head.scores(logits)
        yield Case(seconds, pool, batch, said)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of scores, beside the largest score where that is above 1; infinite where one is no number."""
    off = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    return off if off == off else float("inf")
