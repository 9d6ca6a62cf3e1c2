"""Dispatches the action: train, test, predict or export."""

import os
from collections.abc import Callable
from typing import Any

from hatemtl.command.configuration import requested
from hatemtl.command.request import Request
from hatemtl.command.saved_command import using
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine.warnings_off import quiet
from hatemtl.training.train import train
from hatemtl.using.actions import export_run, predict, test

USES: dict[str, Callable[[Request, Any], object]] = {  # a saved run
    "test": lambda request, _: test(request),
    "predict": lambda request, cfg: predict(request, **cfg.predict),
    "export": lambda request, cfg: export_run(request, **cfg.export),
}


def run(cfg: Any) -> None:
    """Trains, or trains and then tests, or does something with a saved run, as the composed configuration says."""
    quiet()
    actions = [cfg.action] if isinstance(cfg.action, str) else list(cfg.action)
    if actions in (["train"], ["train", "test"]):
        request = _requested(cfg)
        with request.naming():
            result = train(request, then_test="test" in actions)
        if "test" in actions and not result.tested:  # finished before, by a command that did not test
            _use("test", using(result.folder))
    elif len(actions) == 1 and actions[0] in USES:
        _use(actions[0], cfg if cfg.load_path is None else using(cfg.load_path))
    else:
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', *USES, '[train,test]'])}")


def _requested(cfg: Any) -> Request:
    if cfg.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whoever asks for a GPU, here or in a library, finds none
    return requested(cfg)


def _use(action: str, cfg: Any) -> None:
    request = _requested(cfg)
    with request.naming():
        USES[action](request, cfg)
