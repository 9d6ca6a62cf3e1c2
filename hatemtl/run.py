"""What the command line asks for is done."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hatemtl.cohort import train_together
from hatemtl.command.configuration import build, check_types, cohort_of, plain
from hatemtl.command.faults import mendable
from hatemtl.errors import Refusal, UserError, did_you_mean
from hatemtl.machine.interruption import Interrupted
from hatemtl.machine.warnings_off import quiet
from hatemtl.saved_runs.standing import standing
from hatemtl.training.train import train
from hatemtl.using.actions import export_run, predict, test

# What is done with a saved run.
USES = {"test": test, "predict": predict, "export": export_run}


def run(cfg: DictConfig) -> None:
    """Does what the configuration says: trains, or trains and then tests, or does something with a saved run."""
    quiet()
    check_types(cfg)
    if cfg.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whoever asks for a GPU, here or in a library, finds none
    actions = [cfg.action] if isinstance(cfg.action, str) else list(cfg.action)
    runs, then_test = cohort_of(cfg, actions), "test" in actions
    if len(runs) > 1:
        members = {name: partial(_told, train, member, then_test=then_test) for name, member in runs.items()}
        try:
            train_together(members)
        except Interrupted:
            again = "the same command goes on after the last whole epoch of each"
            raise Interrupted(f"with {len(runs)} runs unfinished; {again}") from None
    elif actions in (["train"], ["train", "test"]):
        _told(train, next(iter(runs.values())), then_test=then_test)
    elif len(actions) == 1 and actions[0] in USES:
        _told(USES[actions[0]], cfg)
    else:
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', *USES, '[train,test]'])}")


def _told(do: Callable[..., None], cfg: DictConfig, *arguments: Any, **options: Any) -> None:
    """Does it. Whatever ends it too early is told with the names that the user typed, and with how to go on."""
    choices = HydraConfig.get().runtime.choices
    try:
        do(cfg, *arguments, **options)
    except Refusal as error:
        raise error.named(choices["method"], choices["encoder"]) from error
    except Interrupted:
        where = standing(plain(cfg), choices, build(cfg.optimization).total_epochs).interrupted if do is train else ""
        raise Interrupted(where) from None
    except Exception as error:
        if isinstance(error, UserError) or (told := mendable(error, plain(cfg))) is None:
            raise
        kept = standing(plain(cfg), choices, build(cfg.optimization).total_epochs).kept if do is train else ""
        raise UserError(f"{told}{kept}") from error
