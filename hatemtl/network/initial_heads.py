"""Starts heads: fresh, from a saved run, or from what the heads of several saved runs make together."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace, Part
from hatemtl.merging import heads as merged_heads
from hatemtl.methods.base import LOADERS
from hatemtl.saved_runs import saved_run
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator, seeded
from hatemtl.tasks import Task

WEIGHTS = "heads.safetensors"
HeadsMerge = Literal["fresh", "concat", "mean", "refit"]

# Keys of a head that its weights do not tell of: those of training alone, the threshold, which each run says anew, and the
# place of a word list, of which the words count.
SAID_ANEW = ("lexicon", "dropout", "label_smoothing", "balance", "loss", "label_weights", "primary", "threshold")


@torch.no_grad()
def fresh(model: Transformer, tasks: Mapping[str, Task], spaces: Mapping[str, LabelSpace], seed: int) -> dict[str, Any]:
    """Draws a head for every task, each by itself, and a label's row of its last layer by the label's name.

    So a label starts alike in a part and in the whole, and those of two parts apart: drawn by place, the parts' adapters
    would learn to move posts along the same few directions, which a merge mixes up.
    """
    heads: dict[str, Any] = {}
    for task, space in spaces.items():
        embedding = {"embedding": model.get_input_embeddings()} if space.about == "masked tokens" else {}
        with seeded(seed, "head", task):
            heads[task] = tasks[task].made_head(model.config.hidden_size, space, **embedding)
        last = next((layer for layer in reversed([*heads[task].modules()]) if isinstance(layer, nn.Linear)), None)
        if last is not None and len(last.weight) == len(space):
            for weights, bias, label in zip(last.weight, last.bias, space.names, strict=True):
                draw, bound = generator(seed, "head", task, label), last.in_features**-0.5  # as nn.Linear draws
                weights.uniform_(-bound, bound, generator=draw)
                bias.uniform_(-bound, bound, generator=draw)
    return heads


def load(heads: Mapping[str, Any], saved: SavedRun, tasks: Mapping[str, Task]) -> None:
    """Gives every head the weights of the saved run's."""
    check_heads(saved, tasks)
    weights = saved.tensors(WEIGHTS)
    for task, head in heads.items():
        if head.space != saved.labels[task]:
            raise UserError(
                f"load_path={saved.folder}: its head for task {task!r} knows {', '.join(saved.labels[task].names)}, but the "
                f"corpus has {', '.join(head.space.names)}; type the corpus@tasks.{task}.corpus=NAME that it was trained on"
            )
        _load_head(head, _state(saved, task, tasks[task], weights), task, f"load_path={saved.folder}")


def load_thresholds(heads: Mapping[str, Any], saved: SavedRun) -> None:
    """Gives the heads that are said to be tuned the saved run's thresholds. Raises UserError where it tuned none."""
    for task, head in heads.items():
        if head.tunes:
            if saved.configured("tasks", task, "head").get("threshold") != "tuned" or task not in saved.thresholds:
                raise UserError(
                    f"tasks.{task}.head.threshold=tuned: {saved.folder} has no tuned thresholds; tune them by action=train "
                    f"load_path={saved.folder} heads.load=true optimization.epochs=0 tasks.{task}.head.threshold=tuned "
                    f"save_path=ANOTHER method={LOADERS[saved.record['library']]}, or type a number"
                )
            head.threshold.copy_(torch.tensor(saved.thresholds[task]))


def other_thresholds(saved: SavedRun, tasks: Mapping[str, Task]) -> list[str]:
    """Says of the saved run's heads that had other thresholds than these tasks' that they have them no more."""
    notes = []
    for task in [task for task in tasks if task in saved.labels]:
        asked, trained = (of.get("threshold") for of in (tasks[task].head_settings, saved.configured("tasks", task, "head")))
        if asked not in (trained, "tuned"):
            notes.append(
                f"{saved.folder} has tasks.{task}.head.threshold={trained}, and this run predicts from {asked}; "
                f"tasks.{task}.head.threshold={trained} would keep to it"
            )
    return notes


def merge(heads: Mapping[str, Any], runs: list[SavedRun], tasks: Mapping[str, Task], how: HeadsMerge) -> None:
    """Gives every head what the sources' heads for its task make together."""
    if not runs:
        raise UserError(
            f"heads.merge={how} needs saved runs whose heads to merge, and this method starts from none; type "
            f"method=peft_merge16 method.sources=\"'adapters/run_*'\", or heads.merge=fresh"
        )
    weights = {run.folder: run.tensors(WEIGHTS) for run in runs}
    for task, head in heads.items():
        with_task = [run for run in runs if task in run.labels]
        if not with_task:
            raise UserError(
                f"heads.merge={how}: no source has a head for task {task!r}, they have {', '.join(runs[0].labels)}; type "
                f"tasks=[{','.join(runs[0].labels)}], or {merged_heads.instead(how)}"
            )
        sources = {
            str(run.folder): (run.labels[task], _state(run, task, tasks[task], weights[run.folder])) for run in with_task
        }
        together = merged_heads.mean if how == "mean" else partial(merged_heads.concat, how=how)
        _load_head(head, together(task, sources, head.space), task, "the sources")


def of_run(run: SavedRun, *, tasks: Mapping[str, Task], hidden_size: int) -> dict[str, Any]:
    """Loads the heads of a saved run for those of the tasks that it was trained on, for what a merge must know of posts."""
    found, weights = {}, run.tensors(WEIGHTS)
    for task in [task for task in tasks if task in run.labels]:
        state = _state(run, task, tasks[task], weights)
        if run.labels[task].about == "masked tokens":  # it reads labels off an embedding, and draws none
            raise UserError(
                f"merge=fisher reads labels off every source's heads, and that of task {task!r} guesses masked tokens; type "
                f"merge=mean"
            )
        found[task] = tasks[task].made_head(hidden_size, run.labels[task])
        _load_head(found[task], state, task, str(run.folder))
    if not found:
        raise UserError(f"{run.folder} has no head for {', '.join(tasks)}; type tasks=[{','.join(run.labels)}]")
    return found


def _state(run: SavedRun, name: str, task: Task, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a run's head for a task. Raises UserError where that has other labels or computes otherwise."""
    _check_settings(run, name, task, f"method.sources: {run.folder}")
    return {key.removeprefix(f"{name}."): weight for key, weight in weights.items() if key.startswith(f"{name}.")}


def _load_head(head: Any, state: Mapping[str, Tensor], task: str, owner: str) -> None:
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{owner}: the head for task {task!r} is built otherwise ({str(error).splitlines()[-1].strip()}); give the "
            f"tasks.{task}.head.* keys that it was trained with"
        ) from error


def check_heads(saved: SavedRun, tasks: Mapping[str, Task]) -> None:
    """Raises UserError where the saved run has no trained head for a task, or has one for another part of its labels."""
    for name, task in tasks.items():
        if name not in saved.labels:
            raise UserError(
                f"load_path={saved.folder} has no trained head for task {name!r}; type tasks=[{','.join(saved.labels)}]"
            )
        trained = saved.configured("tasks", name)
        pattern = trained.get("mask_pattern")  # a task may leave it out
        was, asked = (None if each is None else Part.parse(each) for each in (pattern, task.mask_pattern))
        if was != asked:
            raise UserError(
                f"load_path={saved.folder}: its head for task {name!r} was trained with mask_pattern={pattern!r} (labels "
                f"{', '.join(saved.labels[name].names)}), this run asks for {task.mask_pattern!r}; type tasks.{name}."
                + ("mask_pattern=null" if pattern is None else f'mask_pattern="{pattern}"')
            )
        _check_settings(saved, name, task, f"load_path={saved.folder}")


def _check_settings(saved: SavedRun, name: str, task: Task, given: str) -> None:
    """Raises UserError where the saved head is of another kind or computes otherwise; `given` is what names it."""
    kind = saved.labels[name].kind
    if kind != task.kind:
        raise UserError(
            f"{given}: its head for task {name!r} is for {kind} labels, this run's is for {task.kind} ones; give the "
            f"tasks.{name}.* keys of {saved.folder / 'config.yaml'}"
        )
    trained = saved.configured("tasks", name, "head")
    known, lexicon = saved.record.get("lexicons", {}).get(name), task.lexicon
    if (lexicon.digest if lexicon else None) != known:
        right = saved.folder / saved_run.lexicon_file(name) if known else "null"
        had = "another word list than this run's" if known and lexicon else "a word list" if known else "no word list"
        raise UserError(
            f"{given}: its head for task {name!r} was trained with {had}; type tasks.{name}.head.lexicon={right}"
        )
    for key, value in task.head_settings.items():
        if key not in SAID_ANEW and trained.get(key) != value:
            raise UserError(
                f"{given}: its head for task {name!r} has {key}={trained.get(key)}, this run asks for {value}; "
                f"type tasks.{name}.head.{key}={trained.get(key)}"
            )
