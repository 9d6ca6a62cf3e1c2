"""Trains a run: the request is met or refused, the network trained and validated; it leaves a saved run."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save_file

from hatemtl.batches.datamodule import DataModule
from hatemtl.command import console as report
from hatemtl.command.console import Console
from hatemtl.command.request import Request, Result
from hatemtl.corpora import leaks
from hatemtl.corpora.base import SPLITS
from hatemtl.encoders.pretrained import vocabulary
from hatemtl.errors import UserError, refusing
from hatemtl.machine.flops import matmul_peak
from hatemtl.machine.provenance import peak_memory, provenance
from hatemtl.machine.startup import started
from hatemtl.network.assembly import Network, check_tokenizer
from hatemtl.network.frozen_prefix import Prefix
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.gradients import of_hidden
from hatemtl.saved_runs import saved_run
from hatemtl.saved_runs.claiming import CHECKPOINT, TRAINED, Inputs, claim, finish, held, named_after, start
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training import loggers, thresholds
from hatemtl.training.callbacks import BestWeights, Checkpoint, EpochLine, StepTable, Throughput, check_finite
from hatemtl.training.refit_heads import check_refit, refit
from hatemtl.training.trainer_settings import TrainerSettings
from hatemtl.using.actions import evaluate, reader
from hatemtl.using.judging import check_evaluations, check_test


def train(request: Request, callbacks: Sequence[Callback] = (), *, then_test: bool = False) -> Result:
    """Trains, restores the best weights, evaluates them on the validation split and leaves a saved run.

    callbacks: further ones of Lightning's. then_test: whether the test split is evaluated too.
    Raises UserError where the request cannot be met, before anything is written.
    """
    save_path = request.save_path or Path(named_after(request.identity))
    if not save_path.name:
        raise UserError(f"save_path={save_path}: expected the name of a folder; type save_path=adapters/NAME")
    with held(save_path, TRAINED) as place:
        return _train(request, place, callbacks, then_test=then_test)


def _train(request: Request, save_path: Path, more: Sequence[Callback], *, then_test: bool) -> Result:
    console, config, asked = Console(), request.identity, time.perf_counter()
    method, optimization, settings = request.method, request.optimization, request.trainer
    refits = request.heads_merge == "refit"
    with refusing():
        starts = method.starts_from()
    if request.load_path is not None and not request.heads_load and not starts:
        raise UserError(f"load_path={request.load_path} would be used by nothing; type method=ah_load, or heads.load=true")
    if request.evaluations and not then_test:
        raise UserError(f"evaluations=[{','.join(request.evaluations)}] judge a test; type action=[train,test]")
    if request.folds is not None and request.folds.of == "test" and not then_test:
        raise UserError("folds.of=test deals the posts of a test; type action=[train,test], or folds.of=train")
    heads_from = request.heads_from()
    known = [*starts, *([heads_from] if heads_from else []), *map(SavedRun, request.teachers)]
    _check_folds(request, known)
    tasks = request.tasks_knowing(heads_from)
    data = request.datamodule(tasks)
    sources = {str(source.folder): source.digest() for source in known}
    inputs: Inputs = {"sources": sources, "data": data.fingerprints()}
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
    network = request.network(tasks, data.spaces, name=save_path.name, data=data)
    report.notes(console, network.notes)
    module, origin = network.module, provenance()
    _check_steps(request, module)
    if refits:
        check_refit(module.encoder, {task: module.head(task) for task in tasks})
    words = prepare(network, data, settings, optimization.total_epochs, request.cache, cache_prefix=request.cache_prefix)
    best = BestWeights(patience=optimization.patience, spared=optimization.spared)
    if optimization.total_epochs:
        module.planned(data)  # what it refuses is refused before anything is written
    check_test(request.evaluations, data, reader(request, network, data))
    throughput = Throughput()
    work = start(save_path, config, inputs)
    table = StepTable(work / saved_run.STEPS)
    callbacks = [best, throughput, EpochLine(console, best), table, Checkpoint(work / CHECKPOINT), *more]
    logger, failed = request.logger(folder=work, run=save_path.name), True
    try:
        trainer = settings.trainer(optimization, root=work, logger=logger, callbacks=callbacks, bar=console.is_terminal)
        report.annotations(console, data, leaked)
        report.network(console, network.parts())
        report.merge(console, network.lost)
        saved_run.write_rows(work / "merge.csv", network.merged())
        saved_run.write_rows(work / "search.csv", network.search.tried)
        logger.log_hyperparams(dict(config))
        before = work / CHECKPOINT if (work / CHECKPOINT).exists() else None
        if before:
            console.print(f"{save_path}: an unfinished run goes on after its last whole epoch", soft_wrap=True)
        started()
        begun = time.perf_counter()
        if refits and before is None:
            refit(module, data, device=settings.device, seed=request.seed)
        preparing = network.seconds + time.perf_counter() - begun
        if optimization.total_epochs:
            trainer.fit(module.train(), data, ckpt_path=before, weights_only=True)
            best.restore(module)
        trainer.validate(module, data, verbose=False)
        tuned = [task for task in tasks if module.head(task).tunes]
        said = reader(request, network, data).predicted("val") if tuned else {}
        for task in tuned:
            thresholds.tune(module.head(task), said[task])
            cuts = zip(data.spaces[task].names, module.head(task).written_thresholds() or (), strict=True)
            report.notes(console, [f"thresholds of {task}: {', '.join(f'{name} {cut:.3f}' for name, cut in cuts)}"])
        failed = False
    except SIGTERMException:
        sys.exit(143)  # as a shell counts it; Lightning's own exit would say that all went well
    finally:
        loggers.close(logger, failed=failed)
    rows, parts, memory = module.rows, network.parts(), peak_memory()
    heads_learn = refits or optimization.total_epochs > 0
    encoder_learns = optimization.encoder_learns
    check_finite(module, rows)
    peak = matmul_peak(trainer.strategy.root_device, settings.dtype)
    method.library.save(module.encoder, network.name, work)
    heads = {name: value.contiguous().cpu() for name, value in module.heads.state_dict().items()}
    saved_run.write(work / "heads.safetensors", lambda path: save_file(heads, path))
    saved_run.share(work)
    saved_run.write_labels(work, data.spaces, {task: module.head(task).written_thresholds() for task in tasks})
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
            "data": inputs["data"],
            "leaks": leaked,
            "sources": sources,
            "seed": request.seed,
            "words": [*request.words],
            "precision": trainer.precision,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step + network.search.steps,
            "best_epoch": best.epoch + 1,
            "best_step": best.step,
            **throughput.record(peak),
            "preparing_seconds": preparing,
            "peak_memory_bytes": memory,
            "compiled": module.through.compiled is not None,
            "parameters": sum(part.parameters for part in parts),
            "trained_parameters": sum(
                part.trained for part in parts if (heads_learn if part.kind == "head" else encoder_learns)
            ),
            **origin,
        },
    )
    finish(work, save_path)
    (save_path / CHECKPOINT).unlink(missing_ok=True)  # not before: the way back would be gone if that failed
    if then_test:  # whatever becomes of the test, the run is finished
        rows = [*rows, *evaluate(request, network, data, save_path)]
    report.results(console, rows, f"{save_path}: best of {trainer.current_epoch} epochs is {best.epoch + 1}")
    return Result(save_path, rows, best.epoch + 1, time.perf_counter() - asked)


def _check_steps(request: Request, module: MultitaskModule) -> None:
    """Raises UserError where gradients of tasks are to be weighed against one another, and no optimizer step has two."""
    samplings = [stage.sampling or request.sampling for stage in module.stages]
    apart = [sampling.step == "per_task" for sampling in samplings]
    some = [one for one, alone in zip(module.weightings, apart, strict=True) if alone and one.needs == "gradients"]
    if not some:
        return
    if any(map(of_hidden, some)):  # type: ignore[arg-type]
        raise UserError(
            "weighting.of=hidden with sampling.step=per_task: a batch has one task; type weighting.of=parameters"
        )
    if request.optimization.accumulate == 1:
        raise UserError(
            f"sampling.step=per_task makes a step of one task, where there is nothing to weigh; type "
            f"optimization.accumulate={len(module.heads)} as well, sampling.step=joint, or weighting=sum"
        )


def _check_folds(request: Request, sources: Sequence[SavedRun]) -> None:
    """Raises UserError where a run to start from, or to learn from, saw posts that this run's fold is tested on."""

    def corpora(choices: Mapping[str, str]) -> set[str]:
        return {option for group, option in choices.items() if group.startswith("corpus@")}

    folds = request.identity.get("folds")
    for source in sources:
        config = source.config
        if folds and config.get("folds") != folds and corpora(request.choices) & corpora(config.get("choices", {})):
            raise UserError(
                f"{source.folder} was trained on posts that fold {folds['fold']} of {folds['number']} is tested on; start "
                f"from a run of the same folds, trained with the same folds.number, group_by, fold and seed"
            )


def prepare(
    network: Network, data: DataModule, settings: TrainerSettings, epochs: int, cache: Path | None, *, cache_prefix: bool
) -> str:
    """Makes network and data ready to train so many epochs: tokens, compiled code, frozen layers' states, labels' counts.

    cache: the folder that keeps the first three. Gives what tells the tokenizer from others.
    Raises UserError where cache_prefix has no such folder, or nothing to keep, or a source was trained on other tokens.
    """
    module, tokenizer = network.module, network.encoder.tokenizer()
    words = vocabulary(tokenizer)
    for source in network.method.starts_from():
        check_tokenizer(source, words)
    data.tokenize(tokenizer, network.encoder.max_length, cache)
    if network.encoder.quantize is None or settings.compile is True:  # no one has seen that it pays for quantized layers
        module.through.compiled = settings.compiled(module.encoder, tokens=data.training_tokens(epochs), cache=cache)
    if cache_prefix:
        if cache is None:
            raise UserError("data.cache_prefix=true needs a folder to keep them in; type data.cache=FOLDER")
        if data.pool.masks:
            raise UserError("data.cache_prefix=true: a masked post is another each epoch; type data.cache_prefix=false")
        if network.encoder.quantize is not None:
            raise UserError(
                "data.cache_prefix=true: what quantized layers make of a post is not kept; type data.cache_prefix=false, or "
                "encoder.quantize=null"
            )
        started()  # it may take long
        batches = data.batching.in_order(data.pool.lengths)
        prefix = Prefix(module.encoder.to(settings.device))
        prefix.fill(data.pool, batches, cache, network.mark)
        prefix.install()
        module.through.prefix = prefix
    for task in data.tasks:
        module.head(task).observe(data.observed(task))
    return words
