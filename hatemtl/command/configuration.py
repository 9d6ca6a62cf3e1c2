"""Builds a `Request` of a configuration, and refuses what contradicts in it."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hatemtl.batches.augmentation import Augmentation
from hatemtl.batches.unlabelled import Unlabelled
from hatemtl.command.annotations import check_node, check_value
from hatemtl.command.request import Request
from hatemtl.command.used_run import using, using_alone
from hatemtl.command.words import chosen, config_dir, typed_words
from hatemtl.corpora.base import Corpus
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.leaks import Policy
from hatemtl.corpora.preprocess import Preprocess
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Evaluation
from hatemtl.machine.accelerator import read_accelerator
from hatemtl.machine.ledger import Cost
from hatemtl.merging.base import at
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.objective.regularisers.base import Regulariser
from hatemtl.objective.stages import Stage
from hatemtl.tasks import Task

# What to type for what is no group of files but has keys.
EXAMPLES = {"heads": "load=true", "folds": "number=5", "preprocess": "urls=true", "unlabelled": "posts=32"}
EXAMPLES |= {"cost": "per_hour=1.18", "predict": "input=posts.csv", "export": "format=peft", "publish": "folder=FOLDER"}
EXAMPLES |= {"serve": "port=8080"}
# What the keys hold that no constructor takes.
KEYS: dict[str, Any] = {
    **dict.fromkeys(("seed", "data.workers"), int),
    "data.micro_batches": int | Literal["auto"],
    **dict.fromkeys(("overwrite", "heads.load", "data.cache_prefix"), bool),
    **{"tasks": Mapping[str, Task] | None, "regulariser": Mapping[str, Regulariser] | None},
    "augmentation": Mapping[str, Augmentation] | None,
    **{"evaluations": Mapping[str, Evaluation] | None, "heads.merge": HeadsMerge, "data.leaks": Policy},
    **dict.fromkeys(("save_path", "load_path", "data.cache", "export.format", "export.path"), str | None),
    **dict.fromkeys(("predict.input", "predict.output", "predict.text", "predict.pair", "predict.delimiter"), str | None),
    **{f"publish.{key}": str | None for key in ("folder", "head_of", "base", "hub_id", "license", "language")},
    **dict.fromkeys(("publish.data", "publish.verdicts"), str | None),
    **dict.fromkeys(("publish.upload", "publish.private"), bool),
    **dict.fromkeys(("data.dir", "predict.encoding"), str),
    **{"folds.number": int | None, "folds.fold": int | None, "folds.group_by": str | None, "folds.seed": int},
    **{f"preprocess.{field.name}": bool for field in fields(Preprocess)},
    **{"unlabelled.corpus": Corpus | None, "unlabelled.posts": int},
    "folds.of": Literal["train", "test"],
    **{"serve.host": str, "serve.names": Sequence[str] | None, "serve.port": int},
    **{"serve.queue": int, "serve.precision": Literal["int8"] | None},
    **dict.fromkeys(("cost.per_hour", "cost.watts"), float | None),
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
            # of what the group merge says the key is method.merge here
            found = re.search(r"full_key: (?:method\.(?=merge))?(\S+)", str(error))
            key = found[1] if found else ""
            if key.startswith("merge.inner"):
                raise at(cause, key) from None
            own = str(cause).partition("=")[0] in (OmegaConf.select(node._get_root(), key) or ())
            raise (UserError(f"{key}.{cause}") if own else cause) from None
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise UserError(f"{node.get('_target_')}: {cause}; `uv run main.py --cfg job` shows its keys") from error
        raise cause from error  # a bug, to be seen with its stack


def requested(cfg: DictConfig) -> Request:
    """Makes the request that a configuration asks for. Raises UserError where a value is wrong or contradicts another."""
    check_types(cfg)
    if "tasks" not in cfg:
        raise UserError("tasks=[]: at least one task is needed; type tasks=[target]")
    config, optimization = known_by(cfg), _optimization(cfg)
    if cfg.heads.load and cfg.heads.merge != "fresh":
        raise UserError(f"heads.load=true and heads.merge={cfg.heads.merge} both say where heads start; leave one out")
    if not optimization.total_epochs and not cfg.heads.load and cfg.heads.merge == "fresh":
        raise UserError(
            "optimization.epochs=0 would leave fresh heads untrained; type optimization.epochs=1, or for a merge "
            "heads.merge=concat or heads.merge=refit"
        )
    cache = None
    if cfg.data.cache is not None:
        with suppress(RuntimeError):  # a user without a home, as in some containers
            cache = Path(cfg.data.cache).expanduser()
    regularisers = {str(name): build(node) for name, node in (cfg.get("regulariser") or {}).items()}
    asked = [run.folder for regulariser in regularisers.values() for run in regulariser.saved_runs()]
    used = using if GlobalHydra.instance().is_initialized() else using_alone
    return Request(
        tasks={str(name): build(node) for name, node in cfg.tasks.items()},
        regularisers=regularisers,
        teachers={folder: requested(used(folder, typed=[])) for folder in asked},
        augmentations={str(name): build(node) for name, node in (cfg.get("augmentation") or {}).items()},
        evaluations={str(name): build(node) for name, node in (cfg.get("evaluations") or {}).items()},
        optimization=optimization,
        **{group: build(cfg[group]) for group in ("encoder", "method", "weighting", "batching", "sampling", "trainer")},
        logger=build(cfg.logger),
        **{f"heads_{key}": cfg.heads[key] for key in ("load", "merge")},
        save_path=None if cfg.save_path is None else Path(cfg.save_path),
        load_path=None if cfg.load_path is None else Path(cfg.load_path),
        cache=cache,
        folds=_folds(cfg),
        unlabelled=_unlabelled(cfg),
        preprocess=Preprocess(**cfg.preprocess),
        cost=Cost(**cfg.cost),
        **{key: cfg.data[key] for key in ("cache_prefix", "leaks", "workers", "micro_batches")},
        **{key: cfg[key] for key in ("seed", "overwrite")},
        config=config,
        words=(*config_dir(), *typed_words()) if HydraConfig.initialized() else (),
    )


def _optimization(cfg: DictConfig) -> Any:
    """Builds the optimization, its stages with the weightings and samplings whose options they name."""
    made = build(cfg.optimization, stages=None)
    if cfg.optimization.stages is None:
        return made
    stages = []
    for number, node in enumerate(cfg.optimization.stages):
        key, values = f"optimization.stages[{number}]", {str(name): node[name] for name in node}
        for group in ("weighting", "sampling"):
            if values.get(group) is not None:
                values[group] = build(_option(group, str(values[group]), f"{key}.{group}"))
        for name in ("learns", "regulariser"):
            if OmegaConf.is_list(values.get(name)):
                values[name] = [*values[name]]
        try:
            stages.append(Stage(**values))
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    return replace(made, stages=stages)


def _option(group: str, option: str, key: str) -> DictConfig:
    """Composes the option of a group that a value names. Raises UserError where there is none."""
    known = GlobalHydra.instance().config_loader().get_group_options(group)
    if option not in known:
        raise UserError(f"{key}={option}: expected an option of the group {group}; {did_you_mean(option, known)}")
    return compose("config", overrides=[f"{group}={option}"])[group]


def _folds(cfg: DictConfig) -> Folds | None:
    """Gives the folds that are asked for. Raises UserError where a key says how, but not how many."""
    if cfg.folds.number is not None:
        return Folds(**cfg.folds)
    for key in ("group_by", "fold"):
        if cfg.folds[key] is not None:
            raise UserError(f"folds.{key}={cfg.folds[key]}: expected a number of folds as well; type folds=5")
    return None


def _unlabelled(cfg: DictConfig) -> Unlabelled | None:
    """Gives the unlabelled posts that are asked for. Raises UserError where a key says how many, but not of which corpus."""
    if cfg.unlabelled.corpus is not None:
        return Unlabelled(corpus=build(cfg.unlabelled.corpus), posts=cfg.unlabelled.posts)
    for word in typed_words() if HydraConfig.initialized() else ():
        if word.lstrip("+").startswith("unlabelled.posts="):
            raise UserError(f"{word}: of no corpus; type corpus@unlabelled.corpus=NAME as well, or leave it out")
    return None


def known_by(cfg: DictConfig) -> dict[str, Any]:
    """Gives the resolved configuration as plain dicts and lists, with the options of groups that made it under `choices`.

    Raises UserError where a merge was typed that the method does not read.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    hydra: Any = HydraConfig.get() if HydraConfig.initialized() else None
    if "choices" not in config and hydra is not None:
        config = {"choices": chosen(hydra), **config}
    config.pop("serve", None)  # it makes no run
    if isinstance(typed := config["trainer"].get("accelerator"), str):
        config["trainer"]["accelerator"] = read_accelerator(typed).kind  # which GPU of several makes no other run
    if config["folds"]["number"] is None or config["folds"]["of"] == "test":
        config.pop("folds")  # it trains what it would without
    if config["unlabelled"]["corpus"] is None:
        config.pop("unlabelled")
    if "${merge" in str(OmegaConf.to_container(cfg.method, resolve=False)):
        return config
    for word in hydra.overrides.task if hydra is not None else ():
        if re.match(r"[+~]*merge\b", word):
            method = hydra.runtime.choices["method"]
            raise UserError(f"{word}: method={method} reads no merge; type method=peft_merge16, or leave it out")
    config.pop("merge", None)  # what no one reads makes no other run
    config.get("choices", {}).pop("merge", None)
    return config


def check_types(cfg: DictConfig) -> None:
    """Raises UserError where any key of the configuration holds what it cannot."""
    for group, example in EXAMPLES.items():
        if not OmegaConf.is_dict(cfg[group]):
            raise UserError(f"{group}={cfg[group]}: expected one of its keys; type {group}.{example}")
    for key, annotation in KEYS.items():
        check_value(key, OmegaConf.select(cfg, key), annotation)
    for node in [node for node in cfg.values() if OmegaConf.is_dict(node) and "_target_" in node]:
        check_node(node)
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected a whole number from 0 to 4294967295")
    if cfg.data.cache == "":
        raise UserError("data.cache=: expected a folder, or null for none; type data.cache=FOLDER")
    place = os.path.expanduser(cfg.data.cache or "")  # of os.path, which takes a name of any length
    if os.path.exists(place) and not os.path.isdir(place):
        raise UserError(f"data.cache={cfg.data.cache} is no folder, and one is expected; type data.cache=null to keep none")
