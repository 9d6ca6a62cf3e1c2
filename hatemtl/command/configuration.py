"""The configuration as objects: what each node of it builds, and what may not stand in it together.

Nothing but this, main.py, run.py, training.py and using.py reads the configuration.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hatemtl.batches.datamodule import DataModule
from hatemtl.command.suggestions import targets
from hatemtl.encoders.fast import restore, verify
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine.startup import started
from hatemtl.merging.base import at
from hatemtl.network.assembly import Network, assemble, check_method
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task

# What to type for what is no group of files but has keys.
EXAMPLES = {"heads": "load=true", "predict": "input=posts.csv", "export": "format=peft"}
# How Hydra's error begins where `_target_` names no class or function.
NOT_FOUND = ("Error locating target", "Expected a callable target")


def build(node: Any, **runtime: Any) -> Any:
    """The object that a configuration node names, with what only the run knows.

    Raises UserError as the constructor does, or where the node does not fit the constructor.
    """
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        key = _key_of(error)
        if isinstance(cause, UserError):
            raise (at(cause, key) if key.startswith("merge.inner") else cause) from None
        if str(error).startswith(NOT_FOUND):
            target = str(OmegaConf.select(node._get_root(), f"{key}._target_"))
            if _has_no_module_that_fails(target):
                known = did_you_mean(target, targets(key))
                raise UserError(f"{key}._target_={target}: no class or function has this name; {known}") from None
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise UserError(f"{node.get('_target_')}: {cause}; `uv run main.py --cfg job` shows its keys") from error
        raise cause from error  # a bug, to be seen with its stack


def _has_no_module_that_fails(target: str) -> bool:
    """Whether all modules on the way to a name are imported, as far as there are any: then the name is mistyped."""
    module = target.rpartition(".")[0]
    while module:
        try:
            import_module(module)
            return True
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                return False  # it is there, but lacks another one
            module = module.rpartition(".")[0]
        except Exception:  # whatever the user's own module raises
            return False
    return True


def _key_of(error: InstantiationException) -> str:
    """The key of the node that could not be built, as a user types it: method.merge is what the group `merge` says."""
    found = re.search(r"full_key: (\S+)", str(error))
    key = found[1] if found else ""
    return key.removeprefix("method.") if key.startswith("method.merge") else key


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def check_types(cfg: DictConfig) -> None:
    """Raises UserError where a key that no constructor checks holds what it cannot."""
    for group, example in EXAMPLES.items():
        if not OmegaConf.is_dict(cfg[group]):
            raise UserError(f"{group}={cfg[group]}: expected one of its keys; type {group}.{example}")
    for key in ("overwrite", "heads.load", "data.cache_prefix"):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: expected true or false")
    if not _is_seed(cfg.seed):
        raise UserError(f"seed={cfg.seed}: expected a whole number from 0 to 4294967295")
    cache_of(cfg)


def tasks_of(cfg: DictConfig) -> dict[str, Task]:
    """The tasks by name. Raises UserError where there is none."""
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    return {str(name): build(node) for name, node in cfg.tasks.items()}


def knowing(tasks: dict[str, Task], saved: SavedRun | None) -> dict[str, Task]:
    """The tasks with the labels of the heads that are loaded."""
    known = saved.labels if saved is not None else {}
    return {name: task.knowing(known[name]) if name in known else task for name, task in tasks.items()}


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def heads_source(cfg: DictConfig) -> SavedRun | None:
    """The saved run whose heads are loaded, if any."""
    if cfg.heads.load and cfg.load_path is None:
        raise UserError("heads.load=true needs the saved run whose heads to load; type load_path=FOLDER")
    return SavedRun(cfg.load_path) if cfg.heads.load else None


def check_heads_merge(cfg: DictConfig, optimization: Any) -> None:
    """Raises UserError where heads would start from two things at once, or from nothing and then not be trained."""
    if cfg.heads.merge not in get_args(HeadsMerge):
        raise UserError(f"heads.merge={cfg.heads.merge}: {did_you_mean(str(cfg.heads.merge), get_args(HeadsMerge))}")
    if cfg.heads.load and cfg.heads.merge != "fresh":
        raise UserError(f"heads.load=true and heads.merge={cfg.heads.merge} both say where heads start; leave one out")
    if not optimization.total_epochs and not cfg.heads.load and cfg.heads.merge == "fresh":
        raise UserError(
            "optimization.epochs=0 would leave fresh heads untrained; type optimization.epochs=1, or for a merge "
            "heads.merge=concat or heads.merge=refit"
        )


def saved_run(cfg: DictConfig) -> SavedRun:
    """The saved run to test or predict with, once it is sure that nothing untrained would be used."""
    if not cfg.heads.load:
        raise UserError(
            f"action={cfg.action} with heads.load=false would use heads that were never trained; "
            f"type method=ah_load heads.load=true load_path=FOLDER"
        )
    if cfg.load_path is None:
        raise UserError(f"action={cfg.action} needs the saved run to use; type load_path=FOLDER")
    saved = SavedRun(cfg.load_path)
    check_method(saved, build(cfg.method), build(cfg.encoder))
    return saved


def data_of(cfg: DictConfig, tasks: dict[str, Task]) -> DataModule:
    """The posts of these tasks, to be batched and sampled as the configuration says."""
    return DataModule(
        tasks,
        batching=build(cfg.batching),
        sampling=build(cfg.sampling),
        seed=cfg.seed,
        workers=cfg.data.workers,
    )


def network_of(
    cfg: DictConfig,
    tasks: dict[str, Task],
    spaces: dict[str, Any],
    method: Any,
    optimization: Any,
    name: str,
    heads_merge: HeadsMerge = "fresh",
    data: DataModule | None = None,
) -> Network:
    """The network, seeded and in the run's number format. data: where a merge that must know posts finds some."""
    L.seed_everything(cfg.seed, verbose=False)
    encoder = build(cfg.encoder)

    def posts(split: Any, number: int) -> list[Any]:
        assert data is not None
        data.tokenize(encoder.tokenizer(), encoder.max_length, cache_of(cfg))
        return data.some(split, number)

    network = assemble(
        encoder=encoder,
        method=method,
        tasks=tasks,
        spaces=spaces,
        weighting=build(cfg.weighting),
        optimization=optimization,
        seed=cfg.seed,
        name=name,
        heads_from=heads_source(cfg),
        heads_merge=heads_merge,
        posts=posts if data is not None else None,
    )
    settings, layers = build(cfg.trainer), network.module.encoder
    if not settings.fast:
        restore(layers)
    notes = [*network.notes, verify(layers)]
    network.store(settings.dtype)
    notes.append(verify(layers))
    for line in filter(None, notes):
        Console().print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
    return network


def cache_of(cfg: DictConfig) -> Path | None:
    """The folder that keeps tokens and compiled code, if any."""
    if cfg.data.cache is not None and not (isinstance(cfg.data.cache, str) and cfg.data.cache):
        raise UserError(f"data.cache={cfg.data.cache}: expected a folder, or null for none; type data.cache=FOLDER")
    try:
        return None if cfg.data.cache is None else Path(cfg.data.cache).expanduser()
    except RuntimeError:  # a user without a home, as in some containers
        return None


def evaluator(cfg: DictConfig, root: Path) -> L.Trainer:
    """A trainer that only evaluates or predicts."""
    started()
    return build(cfg.trainer).trainer(
        build(cfg.optimization), root=root, logger=False, callbacks=[], bar=Console().is_terminal
    )
