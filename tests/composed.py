"""The configuration of a command line without the command line: what takes long is done once for all that share it."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hatemtl.command.suggestions import CONF, all_spelled_out
from hatemtl.command.words import chosen
from hatemtl.errors import UserError
from hatemtl.run import run


def compose_options_once() -> None:
    """Lets Hydra, here and in every command, compose each choice of options of conf/ once; keys it sets as ever."""
    defaults_of, config_of = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    lists: dict[object, DefaultsList] = {}
    configs: dict[int, DictConfig] = {}

    def defaults_once(repo: IConfigRepository, overrides_list: list[Any], **given: Any) -> DefaultsList:
        if any(source.scheme() == "file" and source.path != str(CONF) for source in repo.get_sources()):
            return defaults_of(repo, overrides_list=overrides_list, **given)  # a test wrote them, and may write again
        keys = Overrides(repo, overrides_list).config_overrides
        options = tuple(word.input_line for word in overrides_list if word not in keys)
        of = (options, *given.values())
        if of not in lists:
            lists[of] = defaults_of(repo, overrides_list=overrides_list, **given)
        return replace(lists[of], config_overrides=keys)

    def config_once(self: ConfigLoaderImpl, defaults: list[Any], repo: IConfigRepository) -> DictConfig:
        if not any(defaults is known.defaults for known in lists.values()):
            return config_of(self, defaults, repo)
        if id(defaults) not in configs:
            configs[id(defaults)] = config_of(self, defaults, repo)
        return copy.deepcopy(configs[id(defaults)])

    config_loader_impl.create_defaults_list = defaults_once
    ConfigLoaderImpl._compose_config_from_defaults_list = config_once


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
