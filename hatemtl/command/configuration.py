"""Builds objects of the configuration's nodes, and refuses what may not stand in it together.

Nothing but this, main.py, run.py, training.py and using.py reads the configuration.
"""

import os
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hatemtl.command.request import Request
from hatemtl.command.suggestions import targets
from hatemtl.errors import UserError, did_you_mean
from hatemtl.merging.base import at
from hatemtl.network.initial_heads import HeadsMerge

# Groups whose options make no other run: what is logged, watched and where files lie; an experiment is its values.
NO_PART = ("experiment", "logger", "trainer", "data")
# What to type for what is no group of files but has keys.
EXAMPLES = {"heads": "load=true", "predict": "input=posts.csv", "export": "format=peft"}
# How Hydra's error begins where `_target_` names no class or function.
NOT_FOUND = ("Error locating target", "Expected a callable target")


def build(node: Any, **runtime: Any) -> Any:
    """Builds the object that a configuration node names, with what only the run knows.

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
    """Tells whether all modules on the way to a name are imported, as far as there are any: then the name is mistyped."""
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


def requested(cfg: DictConfig, **changes: Any) -> Request:
    """Makes the request that a configuration asks for. changes: fields of the request in place of the configuration's.

    Raises UserError where a value is of the wrong type or range, or contradicts another.
    """
    check_types(cfg)
    if cfg.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whoever asks for a GPU, here or in a library, finds none
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    config, optimization = known_by(cfg), build(cfg.optimization)
    check_heads_merge(cfg, optimization)
    given: dict[str, Any] = {
        "tasks": {str(name): build(node) for name, node in cfg.tasks.items()},
        "regularisers": {str(name): build(node) for name, node in (cfg.get("regulariser") or {}).items()},
        "optimization": optimization,
        **{group: build(cfg[group]) for group in ("encoder", "method", "weighting", "batching", "sampling", "trainer")},
        "logger": partial(build, cfg.logger),
        "heads_load": cfg.heads.load,
        "heads_merge": cfg.heads.merge,
        "save_path": None if cfg.save_path is None else Path(cfg.save_path),
        "load_path": None if cfg.load_path is None else Path(cfg.load_path),
        "cache": cache_of(cfg),
        **{key: cfg.data[key] for key in ("cache_prefix", "leaks", "workers")},
        **{key: cfg[key] for key in ("seed", "overwrite")},
        "config": config,
    }
    return Request(**given | changes)


def known_by(cfg: DictConfig) -> dict[str, Any]:
    """Gives the resolved configuration as plain dicts and lists, with the options of groups that made it under `choices`."""
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if "choices" not in config and HydraConfig.initialized():
        config = {"choices": chosen(HydraConfig.get()), **config}
    return config


def chosen(hydra: Any) -> dict[str, str]:
    """Lists the options of groups that make the run what it is, and classes that were typed in their place."""
    options = {
        str(group): str(option)
        for group, option in hydra.runtime.choices.items()
        if option is not None and not str(group).startswith("hydra/") and group not in NO_PART
    }
    typed = dict(word.lstrip("+").partition("=")[::2] for word in hydra.overrides.task)
    return options | {key: value for key, value in typed.items() if key.endswith("._target_")}


def check_types(cfg: DictConfig) -> None:
    """Raises UserError where a key that no constructor checks holds what it cannot."""
    for group, example in EXAMPLES.items():
        if not OmegaConf.is_dict(cfg[group]):
            raise UserError(f"{group}={cfg[group]}: expected one of its keys; type {group}.{example}")
    for key in ("overwrite", "heads.load", "data.cache_prefix"):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: expected true or false")
    for key in ("save_path", "load_path"):
        if not isinstance(OmegaConf.select(cfg, key), str | None):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: expected the name of a folder; type {key}=FOLDER")
    if not _is_seed(cfg.seed):
        raise UserError(f"seed={cfg.seed}: expected a whole number from 0 to 4294967295")


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def check_heads_merge(cfg: DictConfig, optimization: Any) -> None:
    """Raises UserError where heads would start from two things at once, or from nothing and then not be trained."""
    if cfg.heads.merge not in get_args(HeadsMerge):
        raise UserError(f"heads.merge={cfg.heads.merge}: {did_you_mean(cfg.heads.merge, get_args(HeadsMerge))}")
    if cfg.heads.load and cfg.heads.merge != "fresh":
        raise UserError(f"heads.load=true and heads.merge={cfg.heads.merge} both say where heads start; leave one out")
    if not optimization.total_epochs and not cfg.heads.load and cfg.heads.merge == "fresh":
        raise UserError(
            "optimization.epochs=0 would leave fresh heads untrained; type optimization.epochs=1, or for a merge "
            "heads.merge=concat or heads.merge=refit"
        )


def cache_of(cfg: DictConfig) -> Path | None:
    """Gives the folder that keeps tokens and compiled code, if any."""
    if cfg.data.cache is not None and not (isinstance(cfg.data.cache, str) and cfg.data.cache):
        raise UserError(f"data.cache={cfg.data.cache}: expected a folder, or null for none; type data.cache=FOLDER")
    try:
        return None if cfg.data.cache is None else Path(cfg.data.cache).expanduser()
    except RuntimeError:  # a user without a home, as in some containers
        return None
