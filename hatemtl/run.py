"""What the command line asks for is done."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hatemtl.command.configuration import check_types
from hatemtl.errors import Refusal, UserError, did_you_mean
from hatemtl.machine.warnings_off import quiet
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
    named = _naming()
    if actions in (["train"], ["train", "test"]):
        named(train)(cfg, then_test="test" in actions)
    elif len(actions) == 1 and actions[0] in USES:
        named(USES[actions[0]])(cfg)
    else:
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', *USES, '[train,test]'])}")


@contextmanager
def _naming() -> Iterator[None]:
    """Inside, what a method refuses is told with the names that the user typed."""
    try:
        yield
    except Refusal as error:
        choices = HydraConfig.get().runtime.choices
        raise error.named(choices["method"], choices["encoder"]) from error
