"""Merges what a saved run trained into its encoder's weights, and compares with it what others say of made-up posts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.encoders import for_others
from hatemtl.encoders.fast import restore
from hatemtl.encoders.pretrained import Encoder, Transformer, fingerprint
from hatemtl.errors import UserError
from hatemtl.methods import full
from hatemtl.methods.adapterhub import library as ah_library
from hatemtl.methods.adapterhub import several_adapters
from hatemtl.methods.base import module_name
from hatemtl.methods.peft_adapters import library as peft_library
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.predictor import Predictor

TOLERANCE = 1e-3  # of the largest hidden number, by which merging in float32 may change an encoder
LOADS: dict[str, Any] = {"full": full.load, "peft": peft_library.load, "adapterhub": several_adapters.load}
TEXTS = ["A post.", "Another post, which says a little more than the first one does.", "And a third"]
SECONDS = (["It has an answer, longer than itself.", "So has this.", "Why not?"], ["It has none.", "This has", "Indeed."])


def merged(run: SavedRun, encoder: Encoder, *, seed: int) -> Transformer:
    """The encoder with what the run trained merged into its weights, in float32, as plain transformers computes it.

    Raises UserError where that is impossible, or would change what the encoder says.
    """
    plain, body = (encoder.model(dropout=True, seed=seed, pooler=pooler) for pooler in (True, False))
    check_encoder(run, fingerprint(body), encoder)
    library, trained_by = run.record["library"], run.record["method"]
    if library not in LOADS:
        raise UserError(
            f"export.format=merged: what {trained_by} ({library}) adds to {encoder.source} depends on the post or its task, "
            f"so no weights hold it; train one LoRA instead, method=ah_lora16, or for a merge method=ah_merge16"
        )
    attached: Any = LOADS[library](body, run, module_name(trained_by), seed)  # named as it is told where it cannot be merged
    before = _hidden(attached)
    if library == "peft":
        attached = peft_library.fold(attached)
    elif library == "adapterhub":
        active = ah_library.active(attached)
        if len(active) != 1:
            raise UserError(
                f"export.format=merged: {run.folder} holds several adapters at work together on {encoder.source} "
                f"({trained_by}); type export.format={library}"
            )
        attached = ah_library.fold(attached, active[0])
    state = attached.state_dict()
    plain.load_state_dict({key: state.get(key, weight) for key, weight in plain.state_dict().items()})
    after = _hidden(plain)
    if not torch.allclose(before, after, rtol=0, atol=TOLERANCE * float(before.abs().max())):
        raise UserError(
            f"export.format=merged: merged into {encoder.source}, the adapter of {run.folder} ({trained_by}) would compute "
            f"something else (off by {float((before - after).abs().max()):.2g}); type export.format={library}"
        )
    return plain


@torch.no_grad()
def _hidden(model: nn.Module) -> Tensor:
    """Gives what the model makes of two made-up texts of eight tokens, as its library computes them."""
    restore(model)
    tokens = (torch.arange(16) % model.config.vocab_size).view(2, 8)  # type: ignore[operator, union-attr]
    return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


@dataclass(frozen=True)
class Case:
    """The texts as posts, each alone ([None]) or with second texts of which all but choices know the first; their scores."""

    pool: TokenizedPosts
    seconds: Sequence[list[str] | None]
    said: dict[str, list[list[float]]]

    def off(self, task: str, found: Iterable[Iterable[float]]) -> float:
        """The largest difference of scores, beside the largest score where that is above 1; infinite where one is no number.

        Of each post those that both give are compared: words that are cut off and choices that are not there score 0.
        """
        rows = zip(found, self.said[task], strict=True)
        both = np.array([pair for mine, theirs in rows for pair in zip(mine, theirs, strict=False)])
        off = float(np.abs(both[:, 0] - both[:, 1]).max()) / max(1.0, float(np.abs(both[:, 1]).max()))
        return off if off == off else float("inf")

    def check(self, found: Mapping[str, Iterable[Iterable[float]]], tolerance: float, what: str, instead: str) -> None:
        """Raises UserError where the found scores of a task are off by more than the tolerance."""
        for task, rows in found.items():
            if (off := self.off(task, rows)) > tolerance:
                form = "onnx" if instead == "merged" else "merged"
                raise UserError(
                    f"export.format={form}: of task {task!r} {what} says something else than the network (off by {off:.2g} "
                    f"on a made-up post); type export.format={instead}"
                )


def cases(predictor: Predictor, model: Transformer, tasks: Iterable[str]) -> Iterator[Case]:
    """The texts alone and, where there is room and the encoder tells segments apart as its tokenizer does, in pairs."""
    encoder, tokenizer = predictor.network.encoder, predictor.tokenizer
    types = "token_type_ids" in tokenizer.model_input_names
    known = "token_type_ids" in for_others.tokenizer(encoder, model).model_input_names
    room = encoder.max_length >= tokenizer.num_special_tokens_to_add(pair=True) + 2
    yield Case(pool := predictor.pool(TEXTS), [None], predictor.scores(pool, tasks=tasks))
    if room and types == known:
        pool = predictor.pool(TEXTS, [*zip(*SECONDS, strict=True)])
        yield Case(pool, SECONDS, predictor.scores(pool, tasks=tasks))
