"""Composes the command that uses a saved run, builds a `Request` of a configuration, and refuses what contradicts in it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.batches.augmentation import Augmentation
from hatemtl.batches.unlabelled import Unlabelled
from hatemtl.command.annotations import check_node, check_value
from hatemtl.command.request import Request
from hatemtl.command.suggestions import explain, is_mistyped, spelled_out
from hatemtl.command.words import CONF, quoted, typed_words, walk
from hatemtl.corpora.base import Corpus
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.leaks import Policy
from hatemtl.corpora.preprocess import Preprocess
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Evaluation
from hatemtl.machine.accelerator import read_accelerator
from hatemtl.machine.ledger import Cost
from hatemtl.merging.base import at
from hatemtl.methods.base import LOADERS
from hatemtl.network.initial_heads import HeadsMerge
from hatemtl.objective.regularisers.base import Regulariser
from hatemtl.objective.stages import Stage
from hatemtl.saved_runs.saved_run import SavedRun, lexicon_file
from hatemtl.tasks import Task

# Groups whose options make no other run: what is logged, watched, judged and where files lie; an experiment is its values.
NO_PART = ("experiment", "logger", "trainer", "data", "evaluations", "launcher")
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
    **dict.fromkeys(("predict.input", "predict.output", "predict.text", "predict.delimiter"), str | None),
    **{f"publish.{key}": str | None for key in ("folder", "head_of", "base", "hub_id", "license", "language")},
    **dict.fromkeys(("publish.data", "publish.verdicts"), str | None),
    **dict.fromkeys(("publish.upload", "publish.private"), bool),
    **dict.fromkeys(("data.dir", "predict.encoding"), str),
    **{"folds.number": int | None, "folds.fold": int | None, "folds.group_by": str | None, "folds.seed": int},
    **{f"preprocess.{field.name}": bool for field in fields(Preprocess)},
    **{"unlabelled.corpus": Corpus | None, "unlabelled.posts": int},
    "folds.of": Literal["train", "test"],
    **{"serve.host": str, "serve.port": int, "serve.queue": int, "serve.precision": Literal["int8"] | None},
    **dict.fromkeys(("cost.per_hour", "cost.watts"), float | None),
}
# Of the run's own keys, what is said anew by whoever uses it: the encoder side and the heads are loaded, not made.
SAID_ANEW = (
    *("action", "save_path", "load_path", "overwrite", "predict", "export", "publish", "serve", "heads", "method", "merge"),
    *("logger", "choices", "weighting", "regulariser", "augmentation", "unlabelled", "corpus@unlabelled", "optimization"),
    *("launcher", "tune", "data.cache", "data.workers", "data.micro_batches"),
    *("trainer.progress", "trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.memory"),
)
GROUP, OPTION = re.compile(r"[\w/]+(@[\w.]+)?"), re.compile(r"\w+")


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
        words=typed_words() if HydraConfig.initialized() else (),
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
    corpus = build(cfg.unlabelled.corpus) if cfg.unlabelled.corpus is not None else None
    return None if corpus is None else Unlabelled(corpus=corpus, posts=cfg.unlabelled.posts)


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
            raise UserError(f"{word}: method={method} reads no merge; type method=ah_merge16, or leave it out")
    config.pop("merge", None)  # what no one reads makes no other run
    config.get("choices", {}).pop("merge", None)
    return config


def chosen(hydra: Any) -> dict[str, str]:
    """Lists the options of groups that make the run what it is, and classes that were typed in their place."""
    options = {
        str(group): str(option)
        for group, option in hydra.runtime.choices.items()
        if option is not None
        and not str(group).startswith("hydra/")
        and not {str(group), *re.findall(r"@(\w+)\.", str(group))} & {*NO_PART}
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
    for node in [node for node in cfg.values() if OmegaConf.is_dict(node) and "_target_" in node]:
        check_node(node)
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed}: expected a whole number from 0 to 4294967295")
    if cfg.data.cache == "":
        raise UserError("data.cache=: expected a folder, or null for none; type data.cache=FOLDER")


def using(folder: str | Path, *, typed: list[str] | None = None) -> DictConfig:
    """Composes the configuration that loads a saved run's encoder side and heads, with its tasks, corpora and encoder.

    Nothing that is found in its folder is ever instantiated: of its config.yaml the options of groups choose among our own
    YAMLs, and plain values are laid over what these say, where they have such a key.
    typed: the user's own overrides, which are laid over the run's; None takes those of the command line.
    Raises UserError where the run says what no run of ours does.
    """
    saved = SavedRun(folder)
    typed = list(HydraConfig.get().overrides.task) if typed is None else typed
    overrides = OverridesParser.create().parse_overrides(overrides=typed)
    theirs = {override.get_key_element().lstrip("+~"): override.value() for override in overrides}
    config = saved.config
    if (choices := config.get("choices")) is None:
        if saved.hub is not None:
            raise UserError(
                f"{folder} is an adapter of the hub, without heads or tasks of ours; train some on it: type action=train "
                f"tasks=[label] method={LOADERS[saved.record['library']]} load_path={folder}, and its encoder"
            )
        raise UserError(f"{folder}/config.yaml: has no choices of groups; type the whole command, or train the run again")
    asked: Any = theirs.get("tasks", config["tasks"])
    tasks = [asked] if isinstance(asked, str) else [str(name) for name in asked]
    for task in tasks if "tasks" not in theirs else ():
        if not OPTION.fullmatch(task):  # Hydra would follow a path to a YAML beside the run, and build what that names
            raise UserError(f"{folder}/config.yaml: {task!r} is no name of a task; do not use this run")
    own = {"method": LOADERS[saved.record["library"]], "heads.load": "true", "load_path": quoted(str(folder))}
    own["tasks"] = f"[{','.join(tasks)}]"
    ours = GlobalHydra.instance().config_loader().get_group_options("evaluations")
    own["evaluations"] = f"[{','.join(name for name in config.get('evaluations') or {} if name in ours)}]"
    for group, option in choices.items():
        if not (GROUP.fullmatch(str(group)) and OPTION.fullmatch(str(option))) or str(group).startswith("hydra"):
            raise UserError(f"{folder}/config.yaml: {group}={option} is no choice of a group; do not use this run")
        of = re.search(r"@tasks\.(\w+)\.", str(group))
        if not str(group).startswith(SAID_ANEW) and (of is None or of[1] in tasks):
            own[str(group)] = str(option)
    known: list[str] = [f"{key}={value}" for key, value in own.items() if key not in theirs]
    try:
        whole = compose("config", overrides=[*known, *typed], return_hydra_config=True)
    except MissingConfigException as error:
        for group, option in own.items():
            if group not in theirs and f"{group.partition('@')[0]}/{option}" == error.missing_cfg_file:
                raise UserError(
                    f"{folder} has {group}={option}, and there is no such option here; where a folder of yours holds it, "
                    f"type --config-dir FOLDER, in Python Predictor.load(..., config_dir=FOLDER)"
                ) from None
        raise
    cfg = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    _lay_over(cfg, config, theirs)
    for task in saved.record.get("lexicons", {}):  # the words that it was trained with lie in the run itself
        if task in cfg.tasks and f"tasks.{task}.head.lexicon" not in theirs:
            cfg.tasks[task].head.lexicon = str(saved.folder / lexicon_file(task))
    OmegaConf.set_struct(cfg, False)
    cfg.choices = chosen(whole.hydra)
    return cfg


def using_alone(folder: str | Path, typed: Sequence[str], config_dir: str | Path | None = None) -> DictConfig:
    """`using` in a process that main.py did not start, with its own Hydra or none, which is left as it is.

    config_dir: a folder with further options of groups. Raises UserError as main.py tells what was mistyped.
    """
    where = [] if config_dir is None else ["--config-dir", str(config_dir)]
    also = [f"hydra.searchpath=[{quoted(f'file://{Path(mine).resolve()}')}]" for mine in where[1:]]
    with composing([*where, *typed]):
        return using(folder, typed=[*also, *map(spelled_out, typed)])


@contextmanager
def composing(words: Sequence[str]) -> Iterator[None]:
    """Inside, Hydra composes from our YAMLs; whatever Hydra there was is put back.

    Raises UserError as main.py tells what was mistyped in these words.
    """
    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not is_mistyped(error):
            raise
        raise UserError(explain(error, [*words])) from None
    finally:
        GlobalHydra.instance().hydra = before


def _lay_over(cfg: DictConfig, saved: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Gives every key that both have the saved run's value, but where the user typed it, its group, or what it reads."""
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    own = [key.partition("@")[2] or key for key in typed if key != "tasks"]
    kept = dict(walk(saved))
    for key, before in walk(raw):
        if key not in kept or not _plain(kept[key]):
            continue
        if isinstance(before, Mapping) and before and isinstance(kept[key], Mapping):
            continue  # key by key
        anew = any(key == said or key.startswith(f"{said}.") for said in (*SAID_ANEW, *own))
        if not anew and not (isinstance(before, str) and "${" in before and any(said in before for said in own)):
            OmegaConf.update(cfg, key, kept[key], merge=False, force_add=True)


def _plain(value: Any) -> bool:
    """Tells whether a saved value is nothing but numbers, texts and lists or maps of them, and calls nothing."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and not key.startswith("_") and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and "${" not in value)
