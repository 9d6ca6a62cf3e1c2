"""Trains a run: the request is met or refused, the network trained and validated; it leaves a saved run."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save_file

from hatemtl.batches.datamodule import DataModule
from hatemtl.command import console as report
from hatemtl.command.console import Console
from hatemtl.command.request import Request, Result
from hatemtl.corpora import leaks
from hatemtl.corpora.base import SPLITS
from hatemtl.errors import UserError
from hatemtl.machine.crew import ALONE, Crew, called, joined
from hatemtl.machine.crew import check as check_crew
from hatemtl.machine.flops import matmul_peak
from hatemtl.machine.ledger import Ledger
from hatemtl.machine.provenance import provenance
from hatemtl.machine.sharding import sharded
from hatemtl.machine.startup import started
from hatemtl.methods.base import LOADERS
from hatemtl.network.module import MultitaskModule
from hatemtl.saved_runs import saved_run
from hatemtl.saved_runs.claiming import CHECKPOINT, TRAINED, claim, finish, held, named_after, start
from hatemtl.saved_runs.saved_run import SavedRun, unfinished
from hatemtl.saved_runs.writing import share, write, write_rows, write_text
from hatemtl.training import thresholds
from hatemtl.training.callbacks import BestWeights, Checkpoint, EpochLine, StepTable, Throughput, check_finite
from hatemtl.training.inputs import inputs_of, inputs_to_read, sources_of
from hatemtl.training.micro_batches import cut, fit, that_fit
from hatemtl.training.prepare import prepare
from hatemtl.training.refit_heads import check_refit, refit
from hatemtl.training.refusals import check_folds, check_learns, check_splits, check_steps
from hatemtl.training.spending import LEDGER, Others, Spending
from hatemtl.using.actions import evaluate, reader, spent_on
from hatemtl.using.judging import check_evaluations, check_test


def train(
    request: Request,
    callbacks: Sequence[Callback] = (),
    *,
    then_test: bool = False,
    command: Sequence[str] | None = None,
) -> Result:
    """Trains, restores the best weights, evaluates them on the validation split and leaves a saved run.

    callbacks: further ones of Lightning's. then_test: whether the test split is evaluated too. command: starts a process
    that trains this very run, where several are asked for and none but this one was started.
    Raises UserError where the request cannot be met, before anything is written.
    """
    save_path = request.save_path or Path(named_after(request.identity))
    if not save_path.name:
        raise UserError(f"save_path={save_path}: expected the name of a folder; type save_path=adapters/NAME")
    crew, settings = called(), request.trainer
    check_learns(settings.precision)
    check_crew(crew, settings.devices, settings.nodes)
    if crew is None and settings.devices > 1 and command is None:
        raise UserError(
            f"trainer.devices={settings.devices}: type it behind main.py, or start the processes yourself, as torchrun does"
        )
    if settings.devices * settings.nodes > 1 and request.micro_batches == "auto":
        raise UserError("data.micro_batches=auto with several processes: each would find its own; type a number")
    with ExitStack() as ends:
        place = ends.enter_context(held(save_path, TRAINED)) if crew is None or crew.lead else save_path
        return _train(request, place, callbacks, ends, then_test=then_test, crew=crew, command=command)


def _train(
    request: Request,
    save_path: Path,
    more: Sequence[Callback],
    ends: ExitStack,
    *,
    then_test: bool,
    crew: Crew | None,
    command: Sequence[str] | None,
) -> Result:
    lead = crew is None or crew.lead
    method, optimization, settings = request.method, request.optimization, request.trainer
    console, ledger = Console(quiet=not lead), Ledger(request.cost, devices=settings.devices, nodes=settings.nodes)
    config, asked = request.identity, time.perf_counter()
    refits = request.heads_merge == "refit"
    known = sources_of(request)
    if request.load_path is not None and not request.heads_load and not method.starts_from():
        loader = LOADERS[SavedRun(request.load_path).record["library"]]
        raise UserError(f"load_path={request.load_path} would be used by nothing; type method={loader}, or heads.load=true")
    if request.unlabelled is not None and not any(one.of_any_post and one.weight for one in request.regularisers.values()):
        raise UserError(
            "unlabelled.corpus would be read by nothing; type regulariser=[vat] or corpus@unlabelled.corpus=null"
        )
    if optimization.total_epochs and not request.regularisers and not any(task.weight for task in request.tasks.values()):
        first = next(iter(request.tasks))
        raise UserError(f"tasks.{first}.weight=0, as of every task: nothing would be learnt; type tasks.{first}.weight=1")
    if request.evaluations and not then_test:
        raise UserError(f"evaluations=[{','.join(request.evaluations)}] judge a test; type action=[train,test]")
    if request.folds is not None and request.folds.of == "test" and not then_test:
        raise UserError("folds.of=test deals the posts of a test; type action=[train,test], or folds.of=train")
    tasks = request.tasks_knowing(request.heads_from())
    data = request.datamodule(tasks)
    check_folds(request, known, data)
    inputs = inputs_of(known, inputs_to_read(request, data))
    if not claim(save_path, config, inputs, overwrite=request.overwrite):
        saved = SavedRun(save_path)
        console.print(
            f"{save_path} is finished and of this configuration: not trained again (overwrite=true would)", soft_wrap=True
        )
        report.results(console, saved.rows, str(save_path))
        return Result(save_path, saved.rows, saved.record["best_epoch"], time.perf_counter() - asked, trained=False)
    leaked, copies = leaks.check(data.corpora, request.leaks, data.readers())
    data.leave_out(copies)
    for split in SPLITS[: 2 + then_test]:
        data.check_split(split)
    check_evaluations(request.evaluations, data)
    ledger.turn("preparing")
    network = request.network(tasks, data.spaces, name=save_path.name, data=data)
    report.notes(console, network.notes)
    module, origin = network.module, provenance()
    check_steps(request, module)
    check_splits(request, module)
    if refits:
        check_refit(module.encoder, {task: module.head(task) for task in tasks})
    words = prepare(network, data, settings, optimization.total_epochs, request.cache, cache_prefix=request.cache_prefix)
    ledger.of_which("tokenizing", data.seconds)
    best = BestWeights(patience=optimization.patience, spared=optimization.spared)
    module.optimization = cut(optimization, data)
    if optimization.total_epochs:
        module.planned(data)  # what it refuses is refused before anything is written
    check_test(request.evaluations, data, reader(request, network, data))
    throughput = Throughput()
    learn: Any = partial(_learn, request, module, data, crew, command, console=console)
    if not lead:
        whole = [Checkpoint(unfinished(save_path), writes=False)] if settings.splits else []
        learn([best, throughput, Others(ledger), *whole], folder=unfinished(save_path), logger=False, bar=False)
        sys.exit(0)  # what was trained, the lead judges and saves
    work = start(save_path, config, inputs)
    table, spending = StepTable(work / saved_run.STEPS), Spending(ledger, work, console)
    watching = [best, throughput, EpochLine(console, best), table, Others(ledger), spending]
    callbacks = [*watching, Checkpoint(work / CHECKPOINT), *more]
    console.keep(work / console.NAME)
    ends.push(lambda kind, error, at: console.failed(error))
    tracker = ends.enter_context(request.tracker(work, "train", named=save_path))  # left with an error, it has failed
    try:
        report.annotations(console, data, leaked)
        report.network(console, network.parts())
        report.merge(console, network.lost)
        write_rows(work / "merge.csv", network.merged())
        write_rows(work / "search.csv", network.search.tried)
        tracker.begin(config)
        if (work / CHECKPOINT).exists():
            console.print(f"{save_path}: an unfinished run goes on after its last whole epoch", soft_wrap=True)
        started()
        trainer, refitting = learn(callbacks, folder=work, logger=tracker.logger, bar=console.is_terminal)
        if optimization.total_epochs:
            best.restore(module)
        trainer.validate(module, data, verbose=False)
        tuned = [task for task in tasks if module.head(task).tunes]
        said = reader(request, network, data).predicted("val") if tuned else {}
        for task in tuned:
            thresholds.tune(module.head(task), said[task])
            cuts = zip(data.spaces[task].names, module.head(task).written_thresholds() or (), strict=True)
            report.notes(console, [f"thresholds of {task}: {', '.join(f'{name} {cut:.3f}' for name, cut in cuts)}"])
    except SIGTERMException:
        sys.exit(143)  # as a shell counts it; Lightning's own exit would say that all went well
    finally:
        spending.keep()
    rows, parts = module.rows, network.parts()
    heads_learn = refits or optimization.total_epochs > 0
    encoder_learns = optimization.encoder_learns
    check_finite(module, rows)
    peak = matmul_peak(trainer.strategy.root_device, settings.dtype)
    method.library.save(module.encoder, network.name, work)
    heads = {name: value.contiguous().cpu() for name, value in module.heads.state_dict().items()}
    write(work / "heads.safetensors", lambda path: save_file(heads, path))
    share(work)
    saved_run.write_labels(work, data.spaces, {task: module.head(task).written_thresholds() for task in tasks})
    for task, lexicon in data.lexicons.items():
        write_text(work / saved_run.lexicon_file(task), lexicon.text)
    saved_run.write_results(work, rows)
    saved_run.write_record(
        work,
        {
            "status": "finished",
            "method": request.choices.get("method", type(method).__name__),
            "library": method.library.name,
            "encoder": network.mark,
            "tokenizer": words,
            "encoder_source": request.encoder.source,
            **inputs,
            "leaks": leaked,
            "seed": request.seed,
            "words": [*request.words],
            "precision": trainer.precision,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step + network.search.steps,
            "best_epoch": best.epoch + 1,
            "best_step": best.step,
            **throughput.record(peak),
            "preparing_seconds": network.seconds + refitting,
            "micro_batches": {epoch + 1: number for epoch, number in data.cuts.items()},  # from which epoch on
            "compiled": module.through.compiled is not None,
            "parameters": sum(part.parameters for part in parts),
            "trained_parameters": sum(
                part.trained for part in parts if (heads_learn if part.kind == "head" else encoder_learns)
            ),
            "ledger": spending.whole(),
            **origin,
        },
    )
    tracker.figures({row.metric: row.value for row in report.figures(rows)} | spent_on(saved_run.read_record(work)))
    tracker.close(failed=False)  # what is written there lies in the folder that gets another name
    finish(work, save_path)
    console.keep(save_path / console.NAME)
    for name in (CHECKPOINT, LEDGER):  # not before: the way back would be gone if that failed
        (save_path / name).unlink(missing_ok=True)
    if then_test:  # whatever becomes of the test, the run is finished
        rows = [*rows, *evaluate(request, network, data, save_path, Ledger(request.cost))]
    report.results(console, rows, f"{save_path}: best of {trainer.current_epoch} epochs is {best.epoch + 1}")
    return Result(save_path, rows, best.epoch + 1, time.perf_counter() - asked)


def _learn(
    request: Request,
    module: MultitaskModule,
    data: DataModule,
    crew: Crew | None,
    command: Sequence[str] | None,
    callbacks: Sequence[Callback],
    *,
    folder: Path,
    logger: Any,
    bar: bool,
    console: Console,
) -> tuple[Trainer, float]:
    """Trains with all processes of the run, after the heads were refitted where asked for; gives the seconds that took."""
    settings, optimization, checkpoint = request.trainer, request.optimization, folder / CHECKPOINT
    begun = time.perf_counter()
    if request.heads_merge == "refit" and not checkpoint.exists():
        refit(module, data, device=settings.device, seed=request.seed)
    seconds = time.perf_counter() - begun
    trainer_of: Any = partial(settings.trainer, root=folder, logger=logger, bar=bar)
    if not optimization.total_epochs:
        return trainer_of(optimization, callbacks), seconds
    if request.micro_batches == "auto" and not checkpoint.exists():
        data.cut(that_fit(module, data, settings), 0)
        report.notes(console, [f"data.micro_batches=auto: {data.micro_batches} for each batch"])
    with joined(crew, settings.devices * settings.nodes, command, settings.device) as module.crew, ExitStack() as split:
        if settings.splits:
            split.enter_context(sharded(module.to(settings.device).encoder, settings.device))
        trainer = fit(trainer_of, callbacks, module, data, optimization, checkpoint, console)
    module.crew = ALONE
    return trainer, seconds
