"""Composes the command that uses a saved run, of which nothing but its choices of options and plain values is taken."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.suggestions import explain, is_mistyped, spelled_out
from hatemtl.command.words import CONF, chosen, quoted, walk
from hatemtl.errors import UserError
from hatemtl.methods.base import LOADERS
from hatemtl.saved_runs.saved_run import SavedRun, lexicon_file

# Of the run's own keys, what is said anew by whoever uses it: the encoder side and the heads are loaded, not made.
SAID_ANEW = (
    *("action", "save_path", "load_path", "overwrite", "predict", "export", "publish", "serve", "heads", "method", "merge"),
    *("logger", "choices", "weighting", "regulariser", "augmentation", "unlabelled", "corpus@unlabelled", "optimization"),
    *("launcher", "tune", "data.cache", "data.workers", "data.micro_batches"),
    *("trainer.progress", "trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.memory", "trainer.threads"),
)
GROUP, OPTION = re.compile(r"[\w/]+(@[\w.]+)?"), re.compile(r"\w+")


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
