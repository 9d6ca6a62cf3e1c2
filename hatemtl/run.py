"""Dispatches the action: train, test, predict or export."""

import copy
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hatemtl.command import console as report
from hatemtl.command.configuration import requested, same_run, using
from hatemtl.command.faults import mendable
from hatemtl.command.request import Request, Result
from hatemtl.command.several_runs import Turn, in_turn
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine.interruption import Interrupted
from hatemtl.machine.startup import quiet
from hatemtl.saved_runs.claiming import CHECKPOINT, differences, named_after
from hatemtl.saved_runs.saved_run import SavedRun, read_config, unfinished
from hatemtl.training.train import train
from hatemtl.using.actions import export_run, predict, test

USES: dict[str, Callable[[Request, Any], Path]] = {  # a saved run; each gives what it wrote
    "test": lambda request, _: test(request).folder,
    "predict": lambda request, cfg: predict(request, **cfg.predict),
    "export": lambda request, cfg: export_run(request, **cfg.export),
}


def run(cfg: Any) -> None:
    """Trains, or trains and then tests, or does something with a saved run, as the composed configuration says.

    In a sweep what fails is told, and the next run begins.
    """
    quiet()
    with in_turn() as turn:
        _do(cfg, turn)


def _do(cfg: Any, turn: Turn) -> None:
    actions = [cfg.action] if isinstance(cfg.action, str | int | float | None) else list(cfg.action)
    if actions in (["train"], ["train", "test"]):
        request = _requested(cfg)
        if request.folds is not None and request.folds.of == "train" and request.folds.fold is None:
            _cross_validate(cfg, request, turn, then_test="test" in actions)
        else:
            folder, before = _train(cfg, request, then_test="test" in actions)
            turn.finished(folder, before=before)
    elif len(actions) == 1 and actions[0] in USES:
        turn.finished(_use(actions[0], cfg if cfg.load_path is None else using(cfg.load_path)))
    else:
        raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), ['train', *USES, '[train,test]'])}")


def _train(cfg: Any, request: Request, *also: str, then_test: bool) -> tuple[Path, bool]:
    """Trains, and tests; gives the folder, and whether all of it was done before. also: overrides that were not typed."""
    command = same_run(*also)
    result: Result = _told(request, lambda: train(request, then_test=then_test, command=command), trains=True)
    tested = any(row.stage == "test" for row in result.rows)
    judged_anew = request.evaluations or (request.folds is not None and request.folds.of == "test")
    if then_test and not result.trained and (judged_anew or not tested):
        # finished before, by a command that did not test, or not by all of these
        again = using(result.folder)
        again.save_path, again.folds = str(result.folder), cfg.folds
        return _use("test", again), False
    return result.folder, not result.trained


def _cross_validate(cfg: Any, request: Request, turn: Turn, *, then_test: bool) -> None:
    """Trains each fold as a run of its own, FOLDER/fold_1 and so on, and prints means and deviations over them."""
    assert request.folds is not None
    folder, runs, before = request.save_path or Path(named_after(request.identity)), {}, True
    if (folder / "config.yaml").exists():
        raise UserError(f"save_path={folder} holds a saved run; give another, in which folds have folders of their own")
    for fold in range(1, request.folds.number + 1):
        mine = copy.deepcopy(cfg)
        mine.folds.fold, mine.save_path = fold, str(folder / f"fold_{fold}")
        own = f"folds.fold={fold}", f"save_path={mine.save_path}"
        path, done = _train(mine, _requested(mine), *own, then_test=then_test)
        runs[fold], before = SavedRun(path).rows, before and done
    report.folds(report.Console(), [*runs.values()], str(folder))
    turn.finished(folder, before=before)


def _requested(cfg: Any) -> Request:
    if cfg.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # whoever asks for a GPU, here or in a library, finds none
    return requested(cfg)


def _use(action: str, cfg: Any) -> Path:
    request = _requested(cfg)
    return _told(request, lambda: USES[action](request, cfg))


def _told(request: Request, do: Callable[[], Any], *, trains: bool = False) -> Any:
    """Does it. Whatever ends it too early is told with the names that the user typed, and with how to go on."""
    try:
        with request.naming():
            return do()
    except Interrupted:
        raise Interrupted(_standing(request, interrupted=True) if trains else "") from None
    except Exception as error:
        if isinstance(error, UserError) or (told := mendable(error, request.config)) is None:
            raise
        raise UserError(f"{told}{_standing(request, interrupted=False) if trains else ''}") from error


def _standing(request: Request, *, interrupted: bool) -> str:
    """Says where the run stands: to whom it was broken off by, or what is kept of it, to be said behind an error."""
    save_path, total = request.save_path or Path(named_after(request.identity)), request.optimization.total_epochs
    finished, begun, epochs, work = False, False, 0, unfinished(save_path)
    with suppress(UserError, OSError, RuntimeError, KeyError):  # what cannot be read cannot go on
        finished = save_path.is_dir() and not differences(SavedRun(save_path).config, request.identity)
        begun = (work / "config.yaml").is_file() and not differences(read_config(work), request.identity)
        if begun and (work / CHECKPOINT).is_file():
            epochs = torch.load(work / CHECKPOINT, weights_only=True, mmap=True)["epoch"] + 1
    if interrupted and finished:
        return f"with the run finished: save_path={save_path}"
    if interrupted:
        after = f"after epoch {epochs} of {total}; the same command goes on from there"
        before = "before the end of its first epoch; the same command begins anew"
        return f"{after if epochs else before}: save_path={save_path}"
    if not begun:
        return f"; the trained run is kept: save_path={save_path}" if finished else ""
    kept = f"; epoch {epochs} of {total} is kept, and the same command goes on from there" if epochs else ""
    return f"{kept}; other settings need overwrite=true"
