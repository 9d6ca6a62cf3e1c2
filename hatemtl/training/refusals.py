"""Refuses, before anything is written, what a run asks for and no training can give."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.machine.sharding import can_join
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.gradients import of_hidden
from hatemtl.saved_runs.saved_run import SavedRun


def check_learns(precision: object) -> None:
    """Raises UserError where a number format, as `trainer.precision` names it, has no gradients."""
    if precision == "int8":
        raise UserError(
            "trainer.precision=int8 computes no gradients, so nothing would learn; leave it out to train, and type "
            "action=test load_path=FOLDER trainer.precision=int8 afterwards"
        )


def check_steps(request: Request, module: MultitaskModule) -> None:
    """Raises UserError where tasks are to be weighed against one another, and no optimizer step has two."""
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


def check_folds(request: Request, sources: Sequence[SavedRun]) -> None:
    """Raises UserError where a run to start from, or to learn from, saw posts that this run's fold is tested on."""

    def corpora(choices: Mapping[str, str]) -> set[str]:
        return {option for group, option in choices.items() if group.startswith("corpus@")}

    folds = request.identity.get("folds")
    for source in sources:
        config = source.config
        if folds and config.get("folds") != folds and corpora(request.choices) & corpora(config.get("choices") or {}):
            raise UserError(
                f"{source.folder} was trained on posts that fold {folds['fold']} of {folds['number']} is tested on; start "
                f"from a run of the same folds, trained with the same folds.number, group_by, fold and seed"
            )
