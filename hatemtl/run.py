"""A run: the configuration is built, checked and trained, tested or used to predict; what it leaves is a saved run.

With main.py this is the only reader of the configuration.
"""

import logging
import os
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors.torch import save_file

from hatemtl import artifacts, loggers, outcome, postfile, report
from hatemtl.artifacts import SavedRun
from hatemtl.callbacks import BestWeights, Checkpoint, Clock, EpochLine
from hatemtl.datamodule import DataModule, Pool, loader
from hatemtl.errors import UserError, did_you_mean
from hatemtl.network import Network, assemble, check_heads, check_trained
from hatemtl.provenance import provenance
from hatemtl.tasks import Task

CHECKPOINT = "last.ckpt"


def run(cfg: DictConfig) -> None:
    """Does what the configuration says: train, test or predict, or train and then test."""
    _quiet()
    actions = [cfg.action] if isinstance(cfg.action, str) else list(cfg.action)
    if actions == ["train"] or actions == ["train", "test"]:
        train(cfg, then_test="test" in actions)
    elif actions == ["test"]:
        test(cfg)
    elif actions == ["predict"]:
        predict(cfg)
    else:
        raise UserError(
            f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', 'test', 'predict', '[train,test]'])}"
        )


def build(node: Any, **runtime: Any) -> Any:
    """The object that a configuration node names, with what only the run knows.

    Raises UserError as the constructor does, or where the node does not fit the constructor.
    """
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError | TypeError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise UserError(f"{node.get('_target_')}: {cause}; `uv run main.py --cfg job` shows its keys") from error
        raise


def train(cfg: DictConfig, *, then_test: bool) -> None:
    """Trains, restores the best weights, evaluates them on the validation split and leaves a saved run."""
    console, config = Console(), _resolved(cfg)
    save_path = Path(cfg.save_path or _named_after(config))
    tasks, method, optimization = _tasks(cfg), build(cfg.method), build(cfg.optimization)
    sources = {str(source.folder): source.digest() for source in method.starts_from()}
    if not artifacts.claim(save_path, config, sources, overwrite=cfg.overwrite):
        console.print(f"{save_path} is finished and of this configuration: not trained again (overwrite=true would)")
        report.results(console, SavedRun(save_path).results, str(save_path))
        return
    data = DataModule(tasks, sampling=build(cfg.sampling), seed=cfg.seed)
    network = _network(cfg, tasks, data.spaces, method, optimization, save_path.name)
    module, settings = network.module, build(cfg.trainer)
    _tokenize(cfg, data)
    for task in tasks:
        module.head(task).weigh(*data.frequencies(task))

    best, clock = BestWeights(patience=optimization.patience, warmup=optimization.warmup), Clock()
    work = artifacts.unfinished(save_path)
    callbacks = [best, clock, EpochLine(console, best), Checkpoint(work / CHECKPOINT)]
    work.mkdir(parents=True, exist_ok=True)
    artifacts.write_record(work, {"status": "unfinished", "sources": sources})
    artifacts.write_config(work, config)
    logger = build(cfg.logger, folder=work, run=save_path.name)
    try:
        trainer = settings.trainer(optimization, logger=logger, callbacks=callbacks, bar=console.is_terminal)
        report.annotations(console, data)
        report.network(console, network.parts())
        logger.log_hyperparams(config)
        before = work / CHECKPOINT if (work / CHECKPOINT).exists() else None
        if before:
            console.print(f"{save_path}: an unfinished run goes on after its last whole epoch")
        trainer.fit(module.train(), data, ckpt_path=before, weights_only=True)
        best.restore(module)
        trainer.validate(module, data, verbose=False)
    finally:
        loggers.close(logger)
    rows = module.rows
    _save(network, data, work, rows)
    parts = network.parts()
    artifacts.write_record(
        work,
        {
            "status": "finished",
            "method": HydraConfig.get().runtime.choices["method"],
            "library": method.library,
            "encoder": network.mark,
            "encoder_source": cfg.encoder.source,
            "data": data.fingerprints(),
            "sources": sources,
            "seed": cfg.seed,
            "epochs": trainer.current_epoch,
            "best_epoch": best.epoch + 1,
            "seconds": clock.seconds,
            "examples_per_second": clock.posts / clock.seconds,
            "parameters": sum(part.parameters for part in parts),
            "trained_parameters": sum(part.trained for part in parts),
            **provenance(),
        },
    )
    (work / CHECKPOINT).unlink(missing_ok=True)
    artifacts.finish(work, save_path)
    if then_test:
        rows = rows | _test(cfg, network, data, save_path)
    report.results(console, rows, f"{save_path}: best of {trainer.current_epoch} epochs is {best.epoch + 1}")


def test(cfg: DictConfig) -> None:
    """Tests a saved run: `test_*` rows and predictions go beside its weights, or to save_path where one is given."""
    console, saved, tasks = Console(), _saved(cfg), _tasks(cfg)
    check_heads(saved, tasks)
    data = DataModule(tasks, sampling=build(cfg.sampling), seed=cfg.seed)
    network = _network(cfg, tasks, data.spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
    network.module.requires_grad_(False)
    _tokenize(cfg, data)
    report.network(console, network.parts())
    folder = Path(cfg.save_path or saved.folder)
    report.results(console, _test(cfg, network, data, folder), f"{folder}: test split")


def predict(cfg: DictConfig) -> None:
    """Scores the posts of the user's own file with a saved run."""
    if cfg.predict.input is None:
        raise UserError("action=predict needs a file of posts; type predict.input=posts.csv")
    source, text = Path(cfg.predict.input), cfg.predict.text
    target, frame = postfile.output_for(source, cfg.predict.output), postfile.read(source, text)
    saved, tasks = _saved(cfg), _tasks(cfg)
    check_heads(saved, tasks)
    spaces = {task: saved.labels[task] for task in tasks}
    optimization = build(cfg.optimization)
    network = _network(cfg, tasks, spaces, build(cfg.method), optimization, saved.folder.name)
    encoder = build(cfg.encoder)
    pool = Pool(encoder.tokenizer(), encoder.max_length, [postfile.as_posts(frame, text)])
    trainer = build(cfg.trainer).trainer(optimization, logger=False, callbacks=[], bar=Console().is_terminal)
    batches = trainer.predict(network.module, loader(pool, build(cfg.sampling).in_order(pool.lengths)))
    postfile.write_scored(frame, outcome.score_columns(network.module, pool, batches), target)
    Console().print(f"{len(pool)} posts scored: {target}")


def _network(
    cfg: DictConfig, tasks: dict[str, Task], spaces: dict[str, Any], method: Any, optimization: Any, name: str
) -> Network:
    L.seed_everything(cfg.seed, verbose=False)
    if cfg.heads.load and cfg.load_path is None:
        raise UserError("heads.load=true needs the saved run whose heads to load; type load_path=FOLDER")
    return assemble(
        encoder=build(cfg.encoder),
        method=method,
        tasks=tasks,
        spaces=spaces,
        weighting=build(cfg.weighting),
        optimization=optimization,
        seed=cfg.seed,
        name=name,
        heads_from=SavedRun(cfg.load_path) if cfg.heads.load else None,
    )


def _test(cfg: DictConfig, network: Network, data: DataModule, folder: Path) -> dict[str, float]:
    trainer = build(cfg.trainer).trainer(build(cfg.optimization), logger=False, callbacks=[], bar=Console().is_terminal)
    trainer.test(network.module, data, verbose=False)
    frame = outcome.predictions(network.module, data.pool)
    artifacts.write_results(folder, network.module.rows, "test")
    artifacts.write(folder / "predictions.parquet", lambda path: frame.to_parquet(path, index=False))
    artifacts.write_record(folder, {**artifacts.read_record(folder), "tested_data": data.fingerprints()})
    return network.module.rows


def _save(network: Network, data: DataModule, folder: Path, rows: dict[str, float]) -> None:
    network.method.save(network.module.encoder, network.name, folder)
    heads = {name: value.contiguous().cpu() for name, value in network.module.heads.state_dict().items()}
    artifacts.write(folder / "heads.safetensors", lambda path: save_file(heads, path))
    artifacts.write_labels(folder, data.spaces)
    artifacts.write_results(folder, rows, "val")


def _saved(cfg: DictConfig) -> SavedRun:
    """The saved run to test or predict with, once it is sure that nothing untrained would be used."""
    if not cfg.heads.load:
        raise UserError(
            f"action={cfg.action} with heads.load=false would use heads that were never trained; "
            f"type method=ah_load heads.load=true load_path=FOLDER"
        )
    if cfg.load_path is None:
        raise UserError(f"action={cfg.action} needs the saved run to use; type load_path=FOLDER")
    saved = SavedRun(cfg.load_path)
    check_trained(saved, build(cfg.method))
    return saved


def _tasks(cfg: DictConfig) -> dict[str, Task]:
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    return {str(name): build(node) for name, node in cfg.tasks.items()}


def _tokenize(cfg: DictConfig, data: DataModule) -> None:
    encoder = build(cfg.encoder)
    data.tokenize(encoder.tokenizer(), encoder.max_length)


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _named_after(config: dict[str, Any]) -> str:
    """A save_path that tells runs apart: tasks, method, encoder, and a digest of whatever makes another run."""
    leaves = sorted(line for line in artifacts.differences({}, config))
    choices = HydraConfig.get().runtime.choices
    digest = sha256("\n".join(leaves).encode()).hexdigest()[:8]
    return f"adapters/{'+'.join(config['tasks'])}-{choices['method']}-{choices['encoder']}-{digest}"


def _quiet() -> None:
    """Silences what libraries say that a user can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "transformers",
        "adapters",
        "bitsandbytes",
        "datasets",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*srun.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*`weights_only` was.*",
    ):
        warnings.filterwarnings("ignore", message=message)
