"""The configuration of a command line without the command line: what takes long is done once for all that share it."""

import copy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hatemtl.command.suggestions import CONF, all_spelled_out
from hatemtl.command.words import chosen
from hatemtl.errors import UserError
from hatemtl.run import run


@cache
def _of(*options: str) -> tuple[DictConfig, dict[str, str]]:
    """Composes options of groups alone; with what a run is known by of them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*options], return_hydra_config=True)
    choices = chosen(cfg.hydra)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def composed(*overrides: str) -> DictConfig:
    """Composes options of groups once, and sets keys as Hydra does afterwards."""
    overrides = tuple(all_spelled_out(overrides))
    options = _options(overrides)
    cfg = copy.deepcopy(_of(*options)[0])
    keys = OverridesParser.create().parse_overrides([word for word in overrides if word not in options])
    ConfigLoaderImpl._apply_overrides_to_config(keys, cfg)
    return cfg


def refused(*overrides: str) -> str:
    """The error that a run of these words ends with."""
    cfg = OmegaConf.merge({"choices": _of(*_options(overrides))[1]}, composed(*overrides))
    with pytest.raises(UserError) as error:
        run(cfg)
    return str(error.value)


def _options(overrides: tuple[str, ...]) -> list[str]:
    return [word for word in overrides if "@" in word or (CONF / word.partition("=")[0].lstrip("+~")).is_dir()]
