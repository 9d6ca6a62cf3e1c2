"""Builds objects of the configuration's nodes, and a `Request` of them all; refuses what may not stand in it together."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hatemtl.command.annotations import check_node, check_value
from hatemtl.command.request import Request
from hatemtl.corpora.leaks import Policy
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Evaluation
from hatemtl.merging.base import at
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.objective.regularisers import Regulariser
from hatemtl.tasks import Task

# Groups whose options make no other run: what is logged, watched, judged and where files lie; an experiment is its values.
NO_PART = ("experiment", "logger", "trainer", "data", "evaluations")
# What to type for what is no group of files but has keys.
EXAMPLES = {"heads": "load=true", "predict": "input=posts.csv", "export": "format=peft"}
# What the keys hold that no constructor takes.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("seed", "data.workers"), int),
    **dict.fromkeys(("overwrite", "heads.load", "data.cache_prefix"), bool),
    **{"tasks": Mapping[str, Task] | None, "regulariser": Mapping[str, Regulariser] | None},
    **{"evaluations": Mapping[str, Evaluation] | None, "heads.merge": HeadsMerge, "data.leaks": Policy},
    **dict.fromkeys(("save_path", "load_path", "data.cache", "export.format", "export.path"), str | None),
    **dict.fromkeys(("predict.input", "predict.output", "predict.text", "predict.delimiter"), str | None),
    **dict.fromkeys(("data.dir", "predict.encoding"), str),
}


def build(node: Any, **runtime: Any) -> Any:
    """Builds the object that a node names, with what only the run knows. Raises UserError where it or the node says no."""
    check_node(node)
    try:
        return instantiate(node, **runtime, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise _at(cause, error, node) from None
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise UserError(f"{node.get('_target_')}: {cause}; `uv run main.py --cfg job` shows its keys") from error
        raise cause from error  # a bug, to be seen with its stack


def _at(error: UserError, by_hydra: InstantiationException, node: DictConfig) -> UserError:
    """The error of a constructor, told by the whole key that the user types."""
    found = re.search(r"full_key: (?:method\.(?=merge))?(\S+)", str(by_hydra))  # method.merge is what the group merge says
    key = found[1] if found else ""
    if key.startswith("merge.inner"):
        return at(error, key)
    given = OmegaConf.select(node._get_root(), key)
    return UserError(f"{key}.{error}") if str(error).partition("=")[0] in (given or ()) else error


def requested(cfg: DictConfig) -> Request:
    """Makes the request that a configuration asks for. Raises UserError where a value is wrong or contradicts another."""
    check_types(cfg)
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    config, optimization = known_by(cfg), build(cfg.optimization)
    if cfg.heads.load and cfg.heads.merge != "fresh":
        raise UserError(f"heads.load=true and heads.merge={cfg.heads.merge} both say where heads start; leave one out")
    if not optimization.total_epochs and not cfg.heads.load and cfg.heads.merge == "fresh":
        raise UserError(
            "optimization.epochs=0 would leave fresh heads untrained; type optimization.epochs=1, or for a merge "
            "heads.merge=concat or heads.merge=refit"
        )
    return Request(
        tasks={str(name): build(node) for name, node in cfg.tasks.items()},
        regularisers={str(name): build(node) for name, node in (cfg.get("regulariser") or {}).items()},
        evaluations={str(name): build(node) for name, node in (cfg.get("evaluations") or {}).items()},
        optimization=optimization,
        **{group: build(cfg[group]) for group in ("encoder", "method", "weighting", "batching", "sampling", "trainer")},
        logger=partial(build, cfg.logger),
        heads_load=cfg.heads.load,
        heads_merge=cfg.heads.merge,
        save_path=None if cfg.save_path is None else Path(cfg.save_path),
        load_path=None if cfg.load_path is None else Path(cfg.load_path),
        cache=cache_of(cfg),
        **{key: cfg.data[key] for key in ("cache_prefix", "leaks", "workers")},
        **{key: cfg[key] for key in ("seed", "overwrite")},
        config=config,
    )


def known_by(cfg: DictConfig) -> dict[str, Any]:
    """Gives the resolved configuration as plain dicts and lists, with the options of groups that made it under `choices`.

    Raises UserError where a merge was typed that the method does not read.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    hydra: Any = HydraConfig.get() if HydraConfig.initialized() else None
    if "choices" not in config and hydra is not None:
        config = {"choices": chosen(hydra), **config}
    if "${merge" in str(OmegaConf.to_container(cfg.method, resolve=False)):
        return config
    for word in hydra.overrides.task if hydra is not None else ():
        if re.match(r"[+~]*merge\b", word):
            method = hydra.runtime.choices["method"]
            raise UserError(f"{word}: method={method} reads no merge; type method=ah_merge16, or leave it out")
    config.pop("merge", None)  # what no one reads makes no other run
    config.get("choices", {}).pop("merge", None)
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


def cache_of(cfg: DictConfig) -> Path | None:
    """The folder that keeps tokens and compiled code, if any."""
    if cfg.data.cache == "":
        raise UserError(f"data.cache={cfg.data.cache}: expected a folder, or null for none; type data.cache=FOLDER")
    try:
        return None if cfg.data.cache is None else Path(cfg.data.cache).expanduser()
    except RuntimeError:  # a user without a home, as in some containers
        return None
