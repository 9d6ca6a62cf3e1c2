"""A run: the configuration is built, checked, trained, tested, used to predict or exported; it leaves a saved run."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import save_file

from hatemtl import artifacts, export, leaks, loggers, report
from hatemtl.artifacts import SavedRun
from hatemtl.callbacks import BestWeights, Checkpoint, EpochLine, Throughput
from hatemtl.cohort import Member, check, train_together
from hatemtl.configuration import (
    build,
    cache_of,
    check_heads_merge,
    check_types,
    cohort_of,
    data_of,
    evaluator,
    heads_source,
    knowing,
    network_of,
    plain,
    saved_run,
    tasks_of,
)
from hatemtl.datamodule import DataModule
from hatemtl.encoder import vocabulary
from hatemtl.errors import Refusal, UserError, did_you_mean, refusing
from hatemtl.flops import matmul_peak
from hatemtl.headstart import check_heads
from hatemtl.methods.base import LOADERS, Component
from hatemtl.methods.lora_answers import watched
from hatemtl.network import Network, check_tokenizer, prepare
from hatemtl.pool import Pool, loader
from hatemtl.provenance import peak_memory, provenance
from hatemtl.quiet import quiet
from hatemtl.refit import check_refit, refit
from hatemtl.save_path import claim, finish, named_after, start
from hatemtl.startup import started

CHECKPOINT = "last.ckpt"


def run(cfg: DictConfig) -> None:
    """Does what the configuration says: train, test or predict, or train and then test."""
    quiet()
    check_types(cfg)
    if cfg.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whoever asks for a GPU, here or in a library, finds none
    actions = [cfg.action] if isinstance(cfg.action, str) else list(cfg.action)
    runs = cohort_of(cfg, actions)
    if len(runs) > 1:
        train_together({name: partial(train, member, then_test="test" in actions) for name, member in runs.items()})
    elif actions == ["train"] or actions == ["train", "test"]:
        train(next(iter(runs.values())), then_test="test" in actions)
    elif actions == ["test"]:
        test(cfg)
    elif actions == ["predict"]:
        predict(cfg)
    elif actions == ["export"]:
        export_run(cfg)
    else:
        known = ["train", "test", "predict", "export", "[train,test]"]
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), known)}")


@contextmanager
def _naming() -> Iterator[None]:
    """Inside, what a method refuses is told with the names that the user typed."""
    try:
        yield
    except Refusal as error:
        choices = HydraConfig.get().runtime.choices
        raise error.named(choices["method"], choices["encoder"]) from error


@_naming()
def train(cfg: DictConfig, member: Member | None = None, *, then_test: bool) -> None:
    """Trains, restores the best weights, evaluates them on the validation split and leaves a saved run.

    member: the run's place in a cohort.
    """
    console, config = Console(), plain(cfg)
    if member is not None:
        console.rule(member.name)
    tasks, method, optimization = tasks_of(cfg), build(cfg.method), build(cfg.optimization)
    save_path = Path(cfg.save_path or named_after(config, HydraConfig.get().runtime.choices))
    if not save_path.name:
        raise UserError(f"save_path={cfg.save_path}: expected the name of a folder; type save_path=adapters/NAME")
    with refusing():
        starts = method.starts_from()
    if cfg.load_path is not None and not cfg.heads.load and not starts:
        raise UserError(f"load_path={cfg.load_path} would be used by nothing; type method=ah_load, or heads.load=true")
    heads_from = heads_source(cfg)
    check_heads_merge(cfg, optimization)
    tasks = knowing(tasks, heads_from)
    sources = {str(source.folder): source.digest() for source in [*starts, *([heads_from] if heads_from else [])]}
    data = data_of(cfg, tasks)
    marks = data.fingerprints()
    if not claim(save_path, config, sources, overwrite=cfg.overwrite, data=marks):
        saved = SavedRun(save_path)
        console.print(
            f"{save_path} is finished and of this configuration: not trained again (overwrite=true would)", soft_wrap=True
        )
        if then_test and not any(row.startswith("test_") for row in saved.results):
            load = LOADERS[method.library]
            raise UserError(
                f"{save_path} was not tested; type action=test method={load} heads.load=true load_path={save_path}"
            )
        report.results(console, saved.results, str(save_path))
        return
    leaked, copies = leaks.check(data.corpora, cfg.data.leaks, data.readers())
    data.leave_out(copies)
    data.check(then_test=then_test)
    network = network_of(cfg, tasks, data.spaces, method, optimization, save_path.name, cfg.heads.merge, data)
    module, settings, origin = network.module, build(cfg.trainer), provenance()
    if member is not None:
        choices = HydraConfig.get().runtime.choices
        check(module.encoder, method=choices["method"], name=choices["encoder"])
    if cfg.heads.merge == "refit":
        check_refit(module.encoder, {task: module.head(task) for task in tasks})
    words = prepare(
        network, data, settings, epochs=optimization.total_epochs, cache=cache_of(cfg), cache_prefix=cfg.data.cache_prefix
    )

    best = BestWeights(patience=optimization.patience, spared=optimization.heads_first + optimization.warmup)
    throughput = Throughput() if member is None else Throughput(member.clock)
    work = start(save_path, config, sources, marks)
    line = EpochLine(console, best, run=member.name if member is not None else None)
    callbacks = [best, throughput, line, Checkpoint(work / CHECKPOINT), *([member] if member is not None else [])]
    logger = build(cfg.logger, folder=work, run=save_path.name)
    try:
        bar = console.is_terminal and member is None
        trainer = settings.trainer(optimization, root=work, logger=logger, callbacks=callbacks, bar=bar)
        report.annotations(console, data, leaked)
        report.network(console, network.parts())
        report.merge(console, network.lost)
        artifacts.write_rows(work / "merge.csv", network.merged())
        artifacts.write_rows(work / "search.csv", network.search.tried)
        logger.log_hyperparams(config)
        before = work / CHECKPOINT if (work / CHECKPOINT).exists() else None
        if before:
            console.print(f"{save_path}: an unfinished run goes on after its last whole epoch", soft_wrap=True)
        started()
        begun = time.perf_counter()
        if cfg.heads.merge == "refit" and before is None:
            refit(module, data, device=settings.device, seed=cfg.seed)
        preparing = network.seconds + time.perf_counter() - begun
        if optimization.total_epochs:
            trainer.fit(module.train(), data, ckpt_path=before, weights_only=True)
            best.restore(module)
        trainer.validate(module, data, verbose=False)
    except SIGTERMException:
        sys.exit(143)  # as a shell counts it; Lightning's own exit would say that all went well
    finally:
        loggers.close(logger)
    rows, parts, memory = module.rows, network.parts(), peak_memory()
    peak = matmul_peak(trainer.strategy.root_device, settings.dtype)
    _save(network, data, work, rows)
    artifacts.write_record(
        work,
        {
            "status": "finished",
            "method": HydraConfig.get().runtime.choices["method"],
            "library": method.library,
            "encoder": network.mark,
            "tokenizer": words,
            "encoder_source": cfg.encoder.source,
            "data": marks,
            "leaks": leaked,
            "sources": sources,
            "seed": cfg.seed,
            "precision": trainer.precision,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step + network.search.steps,
            "best_epoch": best.epoch + 1,
            **throughput.record(peak),
            "preparing_seconds": preparing,
            "peak_memory_bytes": memory,
            "compiled": module.compiled is not None,
            "cohort": member.size if member is not None else 1,
            "parameters": sum(part.parameters for part in parts),
            "trained_parameters": sum(
                part.trained for part in parts if _learned(part, optimization, refitted=cfg.heads.merge == "refit")
            ),
            **origin,
        },
    )
    if then_test:
        rows = rows | _test(cfg, network, data, work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    finish(work, save_path)
    report.results(console, rows, f"{save_path}: best of {trainer.current_epoch} epochs is {best.epoch + 1}")


@_naming()
def test(cfg: DictConfig) -> None:
    """Tests a saved run: `test_*` rows and predictions go beside its weights, or to save_path where one is given."""
    console, saved, tasks = Console(), saved_run(cfg), tasks_of(cfg)
    folder = Path(cfg.save_path or saved.folder)
    if (folder / "config.yaml").exists() and folder.resolve() != saved.folder.resolve():
        raise UserError(f"save_path={folder} holds another saved run, whose results would be lost; give another")
    check_heads(saved, tasks)
    tasks = knowing(tasks, saved)
    for name, task in tasks.items():
        trained = saved.config["tasks"][name]["corpus"]["_target_"]
        if trained != cfg.tasks[name].corpus._target_ and cfg.save_path is None:
            raise UserError(
                f"{saved.folder} was trained on {trained} and would be tested on {type(task.corpus).__name__}; type the "
                f"corpus@tasks.{name}.corpus=NAME that it was trained on, or save_path=FOLDER to keep the results apart"
            )
    data = data_of(cfg, tasks)
    network = network_of(cfg, tasks, data.spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
    network.module.requires_grad_(False)
    tokenizer = network.encoder.tokenizer()
    check_tokenizer(saved, vocabulary(tokenizer))
    data.tokenize(tokenizer, network.encoder.max_length, cache_of(cfg))
    report.network(console, network.parts())
    report.results(console, _test(cfg, network, data, folder), f"{folder}: test split")


@_naming()
def predict(cfg: DictConfig) -> None:
    """Scores the posts of the user's own file with a saved run."""
    from hatemtl import outcome, postfile  # and pandas, which training does without

    if cfg.predict.input is None:
        raise UserError("action=predict needs a file of posts; type predict.input=posts.csv")
    console, source, text = Console(), Path(cfg.predict.input), cfg.predict.text
    target = postfile.output_for(source, cfg.predict.output, overwrite=cfg.overwrite)
    frame = postfile.read(source, text)
    saved, tasks = saved_run(cfg), tasks_of(cfg)
    check_heads(saved, tasks)
    spaces = {task: saved.labels[task] for task in tasks}
    outcome.check_predictable(spaces)
    network = network_of(cfg, tasks, spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
    network.module.requires_grad_(False)
    report.network(console, network.parts())
    pool = Pool(network.encoder.tokenizer(), network.encoder.max_length, [postfile.as_posts(frame, text)])
    posts = loader(pool, build(cfg.batching).in_order(pool.lengths), cfg.data.workers)
    batches: Any = evaluator(cfg, target.parent).predict(network.module, posts)
    postfile.write_scored(frame, outcome.score_columns(network.module, pool, batches), target)
    console.print(f"{len(pool)} posts scored: {target}", soft_wrap=True)


@_naming()
def export_run(cfg: DictConfig) -> None:
    """Writes a saved run in the format of another program."""
    encoder = build(cfg.encoder)
    form, folder = export.check(cfg.export.format, cfg.export.path, encoder, overwrite=cfg.overwrite)
    if cfg.load_path is None:
        raise UserError("action=export needs the saved run to export; type load_path=FOLDER")
    saved = SavedRun(cfg.load_path)
    if form == "onnx":
        saved, tasks = saved_run(cfg), tasks_of(cfg)
        check_heads(saved, tasks)
        spaces = {task: saved.labels[task] for task in tasks}
        network = network_of(cfg, tasks, spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
        export.onnx(saved, encoder, {task: network.module.head(task) for task in tasks}, folder, seed=cfg.seed)
    elif form == "merged":
        export.transformer(saved, encoder, folder, seed=cfg.seed)
    else:
        export.adapter(saved, encoder, form, folder, seed=cfg.seed)
    Console().print(f"{saved.folder} exported as {form}: {folder}", soft_wrap=True)


def _learned(part: Component, optimization: Any, *, refitted: bool) -> bool:
    """Whether the run trains this part: heads by a fit or an epoch, the encoder side by an epoch of its own."""
    if part.kind == "head":
        return refitted or optimization.total_epochs > 0
    return optimization.total_epochs > optimization.heads_first


def _test(cfg: DictConfig, network: Network, data: DataModule, folder: Path) -> dict[str, float]:
    """Evaluates on the test split; rows and predictions of other tasks that the folder holds stay."""
    import pandas as pd

    from hatemtl import outcome

    with watched(network.module) as answers:
        evaluator(cfg, folder).test(network.module, data, verbose=False)
    answers.write(folder / "fusion.csv")
    tasks, path = list(network.module.heads), folder / "predictions.parquet"
    frame = outcome.predictions(network.module, data.pool)
    if path.exists():
        before = pd.read_parquet(path)
        frame = pd.concat([before[~before["task"].isin(tasks)], frame], ignore_index=True)
    artifacts.write_results(folder, network.module.rows, "test", tasks)
    artifacts.write(path, lambda temporary: frame.to_parquet(temporary, index=False))
    record = artifacts.read_record(folder)
    tested = {**record.get("tested_data", {}), **data.fingerprints()}
    artifacts.write_record(folder, {**record, "tested_data": tested})
    return network.module.rows


def _save(network: Network, data: DataModule, folder: Path, rows: dict[str, float]) -> None:
    network.method.save(network.module.encoder, network.name, folder)
    heads = {name: value.contiguous().cpu() for name, value in network.module.heads.state_dict().items()}
    artifacts.write(folder / "heads.safetensors", lambda path: save_file(heads, path))
    artifacts.write_labels(folder, data.spaces)
    artifacts.write_results(folder, rows, "val")
