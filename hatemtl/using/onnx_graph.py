"""Writes a network as an ONNX graph, from token ids to each task's scores, once it is seen to say the same."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatemtl.encoders import for_others
from hatemtl.saved_runs.saved_run import write_labels
from hatemtl.using import export
from hatemtl.using.made_up_posts import TEXTS, cases
from hatemtl.using.merged_encoder import merged
from hatemtl.using.predictor import Predictor, check_predictable

TOLERANCE = 1e-3  # by which a score of the graph's may differ, beside the largest where that is above 1


class _Scorer(nn.Module):
    """Token ids in, a task's scores out, task after task."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleDict(heads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return tuple(head.scores(head(hidden, attention_mask)) for head in self.heads.values())  # type: ignore[operator]


def write(predictor: Predictor, folder: Path, *, overwrite: bool = False) -> str:
    """Writes model.onnx, from (B, T) token ids to each task's scores, tokenizer and labels beside; says who computed it.

    Its inputs are those that the tokenizer gives: input_ids, attention_mask and, where the encoder has some, token_type_ids.
    Raises UserError where a task says nothing of one text, or the graph something else than the Predictor.
    """
    check_predictable(predictor.spaces)
    run, encoder, heads = predictor.saved, predictor.network.encoder, predictor.heads
    model = merged(run, encoder, seed=predictor.request.seed)
    asked = [*cases(predictor, model, heads)]
    scorer, tokenizer = _Scorer(model, heads).eval(), for_others.tokenizer(encoder, model)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    tokens = torch.arange(24).view(3, 8) % model.config.vocab_size
    traced = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": torch.zeros_like(tokens)}
    axes = {0: torch.export.Dim("posts", min=1), 1: torch.export.Dim("tokens", min=2)}
    means = set()

    def content(target: Path) -> None:
        program = torch.onnx.export(
            scorer,
            tuple(traced[name] for name in names),
            target / "model.onnx",
            input_names=names,
            output_names=list(heads),
            dynamic_shapes=(axes,) * len(names),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        for case in asked:
            given = tokenizer(TEXTS, case.seconds[0], padding=True, truncation=True, return_tensors="np")
            computed, by = _computed(target / "model.onnx", program, {name: given[name] for name in names})
            means.add(by)
            found = {task: scores.tolist() for task, scores in zip(heads, computed, strict=True)}
            for task, rows in found.items():
                if heads[task].space.about == "words":
                    found[task] = [case.pool.at_words(post, row) for post, row in enumerate(rows)]
            case.check(found, TOLERANCE, f"the graph of {encoder.source}", "merged")
        tokenizer.save_pretrained(target)
        write_labels(target, predictor.spaces, {task: head.written_thresholds() for task, head in heads.items()})

    export.write(folder, run, encoder, "onnx", content, overwrite=overwrite)
    return f"its scores of made-up posts, as {' and '.join(sorted(means))} computes them, are the network's"


def _computed(path: Path, program: Any, inputs: dict[str, np.ndarray]) -> tuple[list[Any], str]:
    """Gives what the graph makes of the inputs, and who computed it: ONNX Runtime where it is installed."""
    if importlib.util.find_spec("onnxruntime") is not None:
        session = importlib.import_module("onnxruntime").InferenceSession(str(path))
        return session.run(None, inputs), "ONNX Runtime"
    from onnx.reference import ReferenceEvaluator

    try:
        return ReferenceEvaluator(str(path)).run(None, inputs), "ONNX's reference"
    except (LookupError, RuntimeError, TypeError, ValueError):  # it lacks some operators and fails at others
        traced = program.exported_program.module()(*(torch.from_numpy(values) for values in inputs.values()))
        return [*traced], "torch (not ONNX, whose reference cannot)"
