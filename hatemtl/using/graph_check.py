"""Compares an exported graph with the run that it is of."""

from pathlib import Path

import numpy as np

from hatemtl.errors import UserError
from hatemtl.using.predictor import Predictor

TEXTS = (
    "one",
    "two words",
    "a longer text, of a few more words than the others have",
)  # so that some are padded
TOLERANCE = 1e-3  # of a score, or of the largest where that is above 1


def check(model: Path, predictor: Predictor) -> None:
    """Raises UserError where the graph in `model` scores made-up texts otherwise than the run does, both in float32.

    The graph is computed as ONNX's own reference does, which needs no runtime.
    """
    from onnx.reference import ReferenceEvaluator

    pool, tasks = predictor.pool(TEXTS), [*predictor.spaces]
    batch, expected = pool[np.arange(len(pool))], predictor.scores(pool)
    inputs = {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
    found = dict(zip(tasks, ReferenceEvaluator(str(model)).run(tasks, inputs), strict=True))
    for task, space in predictor.spaces.items():
        rows = [row.tolist() for row in found[task]]
        if space.kind == "tokens":
            rows = [pool.at_words(post, row) for post, row in enumerate(rows)]
        ours, theirs = np.concatenate(expected[task]), np.concatenate(rows)
        off = float(np.abs(ours - theirs).max())
        if not off <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise UserError(
                f"export.format=onnx: the graph scores task {task!r} otherwise than the run does (off by {off:.2g}), and is "
                f"not written; type export.format=merged"
            )
