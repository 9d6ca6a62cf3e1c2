"""Refuses, before anything is written, what a run asks for and no training can give."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hatemtl.batches.datamodule import DataModule
from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.machine.sharding import can_join
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.gradients import of_hidden
from hatemtl.saved_runs.saved_run import SavedRun

TELL_APART = ("task", "language", "path", "file")  # keys by whose values corpora of one class have other posts


def check_learns(precision: object) -> None:
    """Raises UserError where a number format, as `trainer.precision` names it, has no gradients."""
    if precision == "int8":
        raise UserError(
            "trainer.precision=int8 computes no gradients, so nothing would learn; leave it out to train, and type "
            "action=test load_path=FOLDER trainer.precision=int8 afterwards"
        )


def check_steps(request: Request, module: MultitaskModule) -> None:
    """Raises UserError where tasks are to be weighed against one another, and no optimizer step has two, or what they share
    stands still.
    """
    moved = {id(one) for one, stage in zip(module.weightings, module.stages, strict=True) if {*stage.parts} - {"heads"}}
    if any(one.needs == "gradients" and id(one) not in moved for one in module.weightings):
        raise UserError(
            "this weighting is of gradients that tasks share, and it would be asked only while heads learn alone; type "
            "weighting=sum there, or more optimization.epochs"
        )
    if request.trainer.devices * request.trainer.nodes > 1 and any(map(of_hidden, module.weightings)):  # type: ignore[arg-type]
        raise UserError("weighting.of=hidden is for one process; type weighting.of=parameters, or trainer.devices=1")
    corpora = [task.corpus for task in request.tasks.values()]
    of_one = request.optimization.accumulate == 1 and len({*corpora}) == len(corpora) > 1  # are batches of one corpus
    for one, stage in zip(module.weightings, module.stages, strict=True):
        sampling = stage.sampling or request.sampling
        if sampling.step == "per_task":
            given, instead = "step=per_task", "step=joint"
        elif sampling.batch == "alternating" and of_one:
            given, instead = "batch=alternating", "batch=mixed"
        else:
            continue
        if one.compares and not module.by_label:  # labels of one task are set against one another too
            raise UserError(
                f"sampling.{given} makes a step of one task, which this weighting has no other to set against; type "
                f"sampling.{instead}, or weighting=sum"
            )


def check_splits(request: Request, module: MultitaskModule) -> None:
    """Raises UserError where what is asked for needs the encoder's weights or gradients whole, and they are split."""
    settings, library = request.trainer, request.method.library.name
    if not settings.splits:
        return
    accumulate, micro = request.optimization.accumulate, request.micro_batches
    whole = [name for name, one in request.regularisers.items() if not one.by_passes]
    refused: dict[str, Any] = {
        f"trainer.devices={settings.devices}: one process has none to share with; type trainer.devices=2": (
            settings.devices * settings.nodes == 1
        ),
        f"torch {torch.__version__}: what it splits cannot be made whole again; install torch 2.15": not can_join(),
        f"method={request.choices.get('method', library)}: computes in layers of its own; type another method": (
            library in ("bank", "mtl_lora")
        ),
        f"encoder.quantize={request.encoder.quantize}: such weights are not split; type encoder.quantize=null": (
            request.encoder.quantize
        ),
        "a task that guesses masked tokens, whose head reads the encoder's embeddings: leave the task out": any(
            module.head(task).space.about == "masked tokens" for task in module.heads
        ),
        "data.cache_prefix=true: keeps what whole layers compute; type data.cache_prefix=false": request.cache_prefix,
        "this weighting takes the gradients of each task apart, and no process has them whole; type weighting=sum": (
            any(one.needs == "gradients" for one in module.weightings)
        ),
        f"optimization.accumulate={accumulate} data.micro_batches={micro}: over several batches this weighting takes the "
        f"gradients of each task apart; type optimization.accumulate=1 data.micro_batches=1, or weighting=sum": (
            (accumulate, micro) != (1, 1) and any(one.needs == "all losses" for one in module.weightings)
        ),
        f"regulariser=[{','.join(whole)}]: reads weights or embeddings by itself; leave it out": whole,
    }
    for said, there in refused.items():
        if there:
            raise UserError(f"trainer.strategy=fsdp with {said}, or trainer.strategy=ddp")


def check_folds(request: Request, sources: Sequence[SavedRun], data: DataModule) -> None:
    """Raises UserError where a run to start from, or to learn from, saw posts that this run's fold is tested on.

    One that reads a corpus of this run's must have read these very posts, dealt alike: what is dealt is what `fraction` and
    `limit` leave. data: of this run, folds dealt.
    """
    folds = request.folds
    if folds is None or folds.of == "test":
        return
    own = [part for task in request.identity["tasks"].values() for part in _parts(task["corpus"])]
    marks: set[str] = set()
    for posts in data.corpora.values() if sources else ():
        shares = [name for name, column in posts.columns.items() if column.shares is not None]
        marks |= {posts.fingerprint(name) for name in (None, *shares)}  # as tasks have it that read shares, and others
    for source in sources:
        for name, task in source.config["tasks"].items():
            shared = any(part in own for part in _parts(task.get("corpus") or {}))
            if shared and source.record.get("data", {}).get(name) not in marks:
                fold = f"fold {folds.fold} of {folds.number}"
                raise UserError(
                    f"{source.folder} was trained on posts that {fold} is tested on; start from a run of the same folds, "
                    f"trained with the same folds.number, group_by, fold and seed, and the same keys of the corpus"
                )


def _parts(corpus: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Tells which posts a corpus is of, whatever it keeps of them; of joined corpora each."""
    if corpora := corpus.get("corpora"):
        return [part for one in corpora.values() for part in _parts(one)]
    named = corpus.get("class") or str(corpus.get("_target_")).rpartition(".")[2]
    return [(named, *(corpus.get(key) for key in TELL_APART))]
