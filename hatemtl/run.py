"""Dispatches the action: train, test, predict or export."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hatemtl.command.configuration import requested
from hatemtl.command.request import Request
from hatemtl.command.saved_command import using
from hatemtl.errors import Refusal, UserError, did_you_mean
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
    actions = [cfg.action] if isinstance(cfg.action, str | int | float | None) else list(cfg.action)
    if actions in (["train"], ["train", "test"]):
        request = requested(cfg)
        with _naming(request):
            result = train(request, then_test="test" in actions)
        if "test" in actions and not result.tested:  # finished before, by a command that did not test
            _use("test", using(result.folder))
    elif len(actions) == 1 and actions[0] in USES:
        _use(actions[0], cfg if cfg.load_path is None else using(cfg.load_path))
    else:
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', *USES, '[train,test]'])}")


def _use(action: str, cfg: Any) -> None:
    request = requested(cfg)
    with _naming(request):
        USES[action](request, cfg)


@contextmanager
def _naming(request: Request) -> Iterator[None]:
    """Inside, what a method refuses is told with the names that the user typed."""
    try:
        yield
    except Refusal as error:
        raise error.named(request.choices["method"], request.choices["encoder"]) from error
