"""Writes the merged encoder and the heads as transformers loads them, once these say the same."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from hatemtl.corpora import preprocess
from hatemtl.corpora.preprocess import Preprocess
from hatemtl.encoders import for_others
from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import export, load
from hatemtl.using.made_up_posts import TEXTS, Case, cases
from hatemtl.using.merged_encoder import merged
from hatemtl.using.predictor import Predictor

TOLERANCE = 1e-4  # by which a score that others read may differ, beside the largest where that is above 1


def write(predictor: Predictor, folder: Path, *, overwrite: bool = False) -> str:
    """Writes encoder, tokenizer and heads; says how labels are read off them.

    AutoModel and AutoTokenizer load the encoder. The one head of a run that its class for sequence classification can say
    is said so, and load.py reads all but masked ones. Raises UserError where it would read something else than the network.
    """
    run, encoder = predictor.saved, predictor.network.encoder
    if asking := [task for task, space in predictor.spaces.items() if space.about == "answers"]:
        raise UserError(
            f"export.format=merged: task {asking[0]!r} finds answers in second texts, which load.py does not; type "
            f"tasks=[...] without it, or export.format=peft for the adapter alone"
        )
    heads: dict[str, Any] = {task: head for task, head in predictor.heads.items() if head.space.about != "masked tokens"}
    model = merged(run, encoder, seed=predictor.request.seed)
    asked = [*cases(predictor, model, heads)] if heads else []
    written, why = classifier(model, heads, asked, predictor.request.preprocess)

    def content(target: Path) -> None:
        fill(target, predictor, written, heads, asked)
        shutil.copy(run.folder / "config.yaml", target / "config.yaml")
        (target / "README.md").write_text(_readme(run, encoder, heads, why), encoding="utf-8")

    export.write(folder, run, encoder, "merged", content, overwrite=overwrite)
    return _how(folder, heads, why)


def fill(folder: Path, predictor: Predictor, written: Any, heads: Mapping[str, Any], asked: Sequence[Case]) -> None:
    """Fills a folder with a model, its tokenizer, and all heads with what reads them.

    asked: what load.py must say as the network does; else UserError is raised.
    """
    encoder, rewrites = predictor.network.encoder, predictor.request.preprocess
    written.save_pretrained(folder, safe_serialization=True)
    for_others.tokenizer(encoder, written.base_model).save_pretrained(folder)
    if not heads:
        return
    save_file(nn.ModuleDict(heads).state_dict(), folder / "heads.safetensors", metadata={"format": "pt"})
    labels = {task: _said(head) for task, head in heads.items()}
    (folder / "labels.json").write_text(json.dumps(labels, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copy(str(load.__file__), folder / "load.py")
    if rewrites.asked:
        shutil.copy(str(preprocess.__file__), folder / "preprocess.py")
        (folder / "preprocess.json").write_text(json.dumps(vars(rewrites)) + "\n", encoding="utf-8")
    _check(encoder, heads, asked, folder)


def _said(head: Any) -> dict[str, Any]:
    """Gives what a reader must know of a head beside its weights."""
    said = {"kind": head.kind, "names": list(head.space.names)}
    more = {"pooling": head.pool and head.pool.kind, "thresholds": head.written_thresholds()}
    return said | {key: value for key, value in more.items() if value is not None}


def classifier(
    model: Transformer, heads: Mapping[str, Any], asked: Sequence[Case], rewrites: Preprocess
) -> tuple[Any, str | None]:
    """The model to be written, and why it is the bare encoder where it is."""
    if len(heads) != 1:
        return model, f"there are {len(heads)} tasks"
    ((task, head),) = heads.items()
    name = f"{type(model).__name__.removesuffix('Model')}ForSequenceClassification"
    if rewrites.asked:
        return (
            model,
            f"{name} would not rewrite what it reads, as the network does ({', '.join(rewrites.asked)})",
        )
    if head.problem is None:
        return model, f"{name} has no {head.kind} head"
    if head.pool.kind != "cls":
        return model, f"{name} has no head of pooling={head.pool.kind}"
    said = for_others.classifier(model, layers_of(head), head.space.names, head.problem)
    if said is None:
        return model, f"{name} has no place for such a head"
    for case in asked:
        batch = case.pool[np.arange(len(case.pool))]
        with torch.no_grad():
            logits = batch.first(said(**batch.inputs).logits)
            scores = logits if head.problem == "regression" else head.scores(logits)
        if case.off(task, scores.tolist()) > TOLERANCE:
            return model, f"{name} would compute its head too coarsely"
    return said, None


def layers_of(head: Any) -> list[nn.Linear]:
    """The linear layers of a head with pooling, whose output is logits, or a score in the scale's units."""
    layers = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    if head.problem == "regression":
        last, (mean, deviation) = layers[-1], head.scale.tolist()
        layers[-1] = nn.Linear(last.in_features, last.out_features)
        layers[-1].load_state_dict({"weight": last.weight * deviation, "bias": last.bias * deviation + mean})
    return layers


def _check(encoder: Encoder, heads: Mapping[str, Any], asked: Sequence[Case], folder: Path) -> None:
    """Raises UserError where load.py would say something else than the network."""
    reader = load.Reader(folder)
    for case in asked:
        read, found = [reader([text.replace(" ", " \n") for text in TEXTS], seconds) for seconds in case.seconds], {}
        for task, head in heads.items():
            scores = read[0][task]
            if head.space.about == "second texts":
                scores = torch.cat([of_second[task] for of_second in read], dim=1).softmax(dim=1)
            found[task] = scores if isinstance(scores, list) else scores.tolist()
        case.check(found, TOLERANCE, f"what is written of {encoder.source}", "onnx")


def _how(folder: Path, heads: Mapping[str, Head], why: str | None) -> str:
    if not heads:
        return "AutoModel loads it; it has no head that says anything of a post"
    script = f'python {folder / "load.py"} "a text"'
    if why is None:
        return f'pipeline("text-classification", "{folder}", top_k=None, truncation=True) gives its scores, as does {script}'
    return (
        f"AutoModel loads the encoder, and {script} reads its labels; AutoModelForSequenceClassification would draw a head "
        f"at random, for {why}"
    )


def _readme(run: SavedRun, encoder: Encoder, heads: Mapping[str, Head], why: str | None) -> str:
    tasks = [f"- {task} ({head.kind}): {', '.join(head.space.names)}\n" for task, head in heads.items()]
    return (
        f"# {run.folder.resolve().name}\n\n"
        f"{encoder.source}, with {run.record['method']} merged into its weights by hatemtl. In this folder:\n"
        f"{_how(Path(), heads, why)}.\n\n"
        f"{''.join(tasks)}\n"
        f"Trained on texts of {encoder.max_length} tokens at most; the tokenizer cuts there with truncation=True.\n"
    )
