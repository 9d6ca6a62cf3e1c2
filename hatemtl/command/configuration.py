"""Builds objects of the configuration's nodes, and refuses what may not stand in it together.

No lower room knows Hydra: what trains and uses runs gets a `Request`.
"""

import re
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hatemtl.command.annotations import check_node, check_value
from hatemtl.command.request import Request
from hatemtl.command.suggestions import targets
from hatemtl.corpora.leaks import Policy
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Evaluation
from hatemtl.merging.base import at
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.objective.regularisers import Regulariser
from hatemtl.tasks import Task

# Groups whose options make no other run: what is logged, watched, judged and where files lie; an experiment is its values.
NO_PART = ("experiment", "logger", "trainer", "data", "evaluations")
# Groups that only some methods read, and one that does.
READ_BY_METHOD = {"merge": "method=ah_merge16"}
# What to type for what is no group of files but has keys.
EXAMPLES = {"heads": "load=true", "predict": "input=posts.csv", "export": "format=peft"}
# What the keys hold that no constructor takes.
KEYS: dict[str, Any] = {
    "seed": int,
    "overwrite": bool,
    "tasks": Mapping[str, Task] | None,
    "regulariser": Mapping[str, Regulariser] | None,
    "evaluations": Mapping[str, Evaluation] | None,
    **dict.fromkeys(("save_path", "load_path", "data.cache"), str | None),
    "heads.load": bool,
    "heads.merge": HeadsMerge,
    "data.dir": str,
    "data.cache_prefix": bool,
    "data.leaks": Policy,
    "data.workers": int,
    **dict.fromkeys(("predict.input", "predict.output", "predict.text", "predict.delimiter"), str | None),
    "predict.encoding": str,
    **dict.fromkeys(("export.format", "export.path"), str | None),
}
# How Hydra's error begins where `_target_` names no class or function.
NOT_FOUND = ("Error locating target", "Expected a callable target")


def build(node: Any, **runtime: Any) -> Any:
    """Builds the object that a configuration node names, with what only the run knows.

    Raises UserError as the constructor does, or where the node does not fit the constructor.
    """
    check_node(node)
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        key = _key_of(error)
        if isinstance(cause, UserError):
            raise _at(cause, key, node) from None
        if str(error).startswith(NOT_FOUND):
            target = str(OmegaConf.select(node._get_root(), f"{key}._target_"))
            if _has_no_module_that_fails(target):
                known = did_you_mean(target, targets(key))
                raise UserError(f"{key}._target_={target}: no class or function has this name; {known}") from None
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise UserError(f"{node.get('_target_')}: {cause}; `uv run main.py --cfg job` shows its keys") from error
        raise cause from error  # a bug, to be seen with its stack


def _at(error: UserError, key: str, node: DictConfig) -> UserError:
    """The error of a constructor, told by the whole key that the user types."""
    if key.startswith("merge.inner"):
        return at(error, key)
    given = OmegaConf.select(node._get_root(), key)
    return UserError(f"{key}.{error}") if str(error).partition("=")[0] in (given or ()) else error


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


def requested(cfg: DictConfig) -> Request:
    """Makes the request that a configuration asks for.

    Raises UserError where a value is of the wrong type or range, or contradicts another.
    """
    check_types(cfg)
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    config, optimization = known_by(cfg), build(cfg.optimization)
    check_heads_merge(cfg, optimization)
    fields: dict[str, Any] = {
        "tasks": {str(name): build(node) for name, node in cfg.tasks.items()},
        "regularisers": {str(name): build(node) for name, node in (cfg.get("regulariser") or {}).items()},
        "evaluations": {str(name): build(node) for name, node in (cfg.get("evaluations") or {}).items()},
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
    return Request(**fields)


def known_by(cfg: DictConfig) -> dict[str, Any]:
    """Gives the resolved configuration as plain dicts and lists, with the options of groups that made it under `choices`."""
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if "choices" not in config and HydraConfig.initialized():
        config = {"choices": chosen(HydraConfig.get()), **config}
    for group in unread(cfg):  # what no one reads makes no other run
        config.pop(group)
        config.get("choices", {}).pop(group, None)
    return config


def unread(cfg: DictConfig) -> list[str]:
    """The groups that the chosen method does not read.

    Raises UserError where one was typed.
    """
    given = str(OmegaConf.to_container(cfg.method, resolve=False))
    found = [group for group in READ_BY_METHOD if f"${{{group}" not in given]
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for word in typed:
        group = word.lstrip("+~").partition("=")[0].partition(".")[0]
        if group in found:
            method = HydraConfig.get().runtime.choices["method"]
            raise UserError(f"{word}: method={method} reads no {group}; type {READ_BY_METHOD[group]}, or leave it out")
    return found


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
    """Raises UserError where any key of the configuration holds what it cannot."""
    for group, example in EXAMPLES.items():
        if not OmegaConf.is_dict(cfg[group]):
            raise UserError(f"{group}={cfg[group]}: expected one of its keys; type {group}.{example}")
    for key, annotation in KEYS.items():
        check_value(key, OmegaConf.select(cfg, key), annotation)
    for node in cfg.values():
        if OmegaConf.is_dict(node) and "_target_" in node:
            check_node(node)
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected a whole number from 0 to 4294967295")


def check_heads_merge(cfg: DictConfig, optimization: Any) -> None:
    """Raises UserError where heads would start from two things at once, or from nothing and then not be trained."""
    if cfg.heads.load and cfg.heads.merge != "fresh":
        raise UserError(f"heads.load=true and heads.merge={cfg.heads.merge} both say where heads start; leave one out")
    if not optimization.total_epochs and not cfg.heads.load and cfg.heads.merge == "fresh":
        raise UserError(
            "optimization.epochs=0 would leave fresh heads untrained; type optimization.epochs=1, or for a merge "
            "heads.merge=concat or heads.merge=refit"
        )


def cache_of(cfg: DictConfig) -> Path | None:
    """The folder that keeps tokens and compiled code, if any."""
    if cfg.data.cache == "":
        raise UserError(f"data.cache={cfg.data.cache}: expected a folder, or null for none; type data.cache=FOLDER")
    try:
        return None if cfg.data.cache is None else Path(cfg.data.cache).expanduser()
    except RuntimeError:  # a user without a home, as in some containers
        return None
