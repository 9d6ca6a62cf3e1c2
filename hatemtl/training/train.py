"""A run that trains: the configuration is built and checked, the network trained and validated; it leaves a saved run."""

import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import save_file

from hatemtl.batches.datamodule import DataModule
from hatemtl.cohort import Member, check
from hatemtl.command import console as report
from hatemtl.command.configuration import (
    build,
    cache_of,
    check_heads_merge,
    data_of,
    heads_source,
    knowing,
    network_of,
    plain,
    tasks_of,
)
from hatemtl.corpora import leaks
from hatemtl.errors import UserError, refusing
from hatemtl.machine.flops import matmul_peak
from hatemtl.machine.startup import started
from hatemtl.methods.base import LOADERS, Component
from hatemtl.network.assembly import Network, prepare
from hatemtl.saved_runs import saved_run
from hatemtl.saved_runs.claiming import claim, finish, named_after, start
from hatemtl.saved_runs.provenance import peak_memory, provenance
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training import divergence, loggers
from hatemtl.training.callbacks import BestWeights, Checkpoint, EpochLine, Throughput
from hatemtl.training.refit_heads import check_refit, refit
from hatemtl.using.actions import evaluate

CHECKPOINT = "last.ckpt"


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
        saved_run.write_rows(work / "merge.csv", network.merged())
        saved_run.write_rows(work / "search.csv", network.search.tried)
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
    divergence.check(module, data, rows)
    peak = matmul_peak(trainer.strategy.root_device, settings.dtype)
    _save(network, data, work, rows)
    saved_run.write_record(
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
        rows = rows | evaluate(cfg, network, data, work)
        divergence.check(module, data, rows)
    (work / CHECKPOINT).unlink(missing_ok=True)
    finish(work, save_path)
    report.results(console, rows, f"{save_path}: best of {trainer.current_epoch} epochs is {best.epoch + 1}")


def _learned(part: Component, optimization: Any, *, refitted: bool) -> bool:
    """Whether the run trains this part: heads by a fit or an epoch, the encoder side by an epoch of its own."""
    if part.kind == "head":
        return refitted or optimization.total_epochs > 0
    return optimization.total_epochs > optimization.heads_first


def _save(network: Network, data: DataModule, folder: Path, rows: dict[str, float]) -> None:
    network.method.save(network.module.encoder, network.name, folder)
    heads = {name: value.contiguous().cpu() for name, value in network.module.heads.state_dict().items()}
    saved_run.write(folder / "heads.safetensors", lambda path: save_file(heads, path))
    saved_run.share(folder)
    saved_run.write_labels(folder, data.spaces)
    saved_run.write_results(folder, rows, "val")
