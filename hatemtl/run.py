"""Dispatches the action: train, test, predict, export, publish, serve, tune, status or collect."""

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hatemtl.command import console as report
from hatemtl.command.configuration import build, known_by, requested
from hatemtl.command.faults import mendable, mending
from hatemtl.command.request import Request, Result
from hatemtl.command.several_runs import Turn, in_sweep, plan, same_run, varied
from hatemtl.command.used_run import using
from hatemtl.command.words import option_of, quoted, typed_words
from hatemtl.errors import UserError, did_you_mean
from hatemtl.machine.accelerator import gpus_kept, hide_gpus
from hatemtl.machine.crew import ALONE, called
from hatemtl.machine.following import follow
from hatemtl.machine.interruption import Interrupted, pressed
from hatemtl.machine.startup import quiet
from hatemtl.saved_runs.claiming import CHECKPOINT, SWEPT, differences, held, named_after
from hatemtl.saved_runs.saved_run import SavedRun, read_config, unfinished
from hatemtl.training.callbacks import kept_epochs
from hatemtl.training.collect import collect, status
from hatemtl.training.launch.base import Run, attempt, launched, reporting
from hatemtl.training.launch.serial import Serial
from hatemtl.training.refusals import check_learns
from hatemtl.training.sweep import Planned, carry
from hatemtl.training.train import train
from hatemtl.tuning.settings import JOURNAL
from hatemtl.tuning.space import settings
from hatemtl.tuning.tune import tune
from hatemtl.using.actions import export_run, predict, publish_run, test

USES: dict[str, Callable[[Request, Any], Path]] = {  # a saved run; each gives what it wrote
    "test": lambda request, _: test(request).folder,
    "predict": lambda request, cfg: predict(request, **cfg.predict),
    "export": lambda request, cfg: export_run(request, **cfg.export),
    "publish": lambda request, cfg: publish_run(request, **cfg.publish),
}
ASKS: dict[str, Callable[[Path], bool]] = {"status": status, "collect": collect}  # of a submitted sweep


def run(cfg: Any) -> None:
    """Trains, or trains and then tests, or does something with a saved run, as the composed configuration says.

    A run of a sweep is planned, and done when all are known.
    """
    quiet()
    follow()
    if in_sweep():
        plan(cfg, _carry, config=lambda cfg: known_by(cfg) if _trains(cfg) else None)
    else:
        alone = (_trains(cfg) or _actions(cfg) == ["tune"]) and not launched()
        if alone and not build(cfg.launcher).waits:
            raise UserError(
                f"launcher={option_of('launcher')} submits the runs of a sweep, and leaves them; type main.py -m ..., or "
                f"launcher=serial"
            )
        reporting(mending(cfg)(lambda: _do(cfg)))


def _carry(turns: Sequence[Turn]) -> bool:
    """Does the runs of a sweep; tells whether all ended well. Raises UserError where another works in a folder of them."""
    for turn in turns:
        if _trains(turn.cfg):
            check_learns(turn.cfg.trainer.precision)  # before any of them takes a folder
    if len(turns) > 1:
        _check_one("-m", "one run at a time, without -m")
    if len({repr(turn.cfg.launcher) for turn in turns}) > 1:
        raise UserError("-m with several values of launcher: one launcher starts all runs of a sweep; type one")
    if called() is None and (nodes := [turn.cfg.trainer.nodes for turn in turns if turn.cfg.trainer.nodes != 1]):
        raise UserError(
            f"-m trainer.nodes={nodes[0]}: a launcher starts each run on one machine; type trainer.nodes=1, or start each "
            f"run by itself, as docs/cluster.org shows under 'One run on several nodes'"
        )
    launcher, accelerators = build(turns[0].cfg.launcher), {str(turn.cfg.trainer.accelerator) for turn in turns}
    if not launcher.waits:
        _check_submitted(turns)
    if len(accelerators) > 1 and "cpu" in accelerators and isinstance(launcher, Serial):
        raise UserError(
            f"trainer.accelerator={','.join(sorted(accelerators))}: a process finds the same GPUs, or none, for all of its "
            f"runs; type launcher=local, which gives each a process of its own"
        )
    folders = sorted({Path(turn.save_path).parent for turn in turns if turn.moved and turn.save_path is not None})
    with ExitStack() as ends:
        ends.enter_context(gpus_kept())
        if accelerators == {"cpu"}:
            hide_gpus()
        for folder in folders:  # of the sweep's own making
            ends.enter_context(held(folder, SWEPT))
            if (folder / JOURNAL).exists():
                raise UserError(f"save_path={folder} holds a study, which has a folder of its own; give another save_path")
        return carry((_planned(turn, away=not launcher.waits) for turn in turns), launcher)


def _planned(turn: Turn, *, away: bool = False) -> Planned:
    """Plans a run. away: whether another machine is to do it, whose GPUs are not here."""
    save_path = None if turn.config is None else Path(turn.save_path or named_after(turn.config))
    run = Run(turn.name, turn.command(), lambda: attempt(lambda: _done(turn)), save_path, turn.config)
    if turn.config is None:
        return Planned(run)
    return Planned(
        run,
        lambda: turn.do(_requested_away if away else requested),
        then_test="test" in _actions(turn.cfg),
        overwrite=bool(turn.cfg.overwrite),
    )


def _check_submitted(turns: Sequence[Turn]) -> None:
    """Raises UserError where a cluster would take runs that only fail there, or leave GPUs idle that are paid for."""
    for turn in filter(lambda turn: _trains(turn.cfg), turns):
        folds, devices, gpus = turn.cfg.folds, turn.cfg.trainer.devices, turn.cfg.launcher.get("gpus", 0)
        if folds.number is not None and folds.fold is None and folds.of == "train":
            some = ",".join(str(fold + 1) for fold in range(folds.number))
            raise UserError(
                f"folds={folds.number}: a job is of one run, and folds are several; type folds.fold={some} as well"
            )
        if gpus >= 1 and gpus != devices:
            raise UserError(
                f"launcher.gpus={gpus} trainer.devices={devices}: a run has a process for each of its GPUs; type "
                f"trainer.devices={gpus}, or another launcher.gpus"
            )


def _check_one(asked: str, way_out: str) -> None:
    """Raises UserError where several processes were started for one run, of which only the lead would go on to the next."""
    if (crew := called() or ALONE).world > 1:
        raise UserError(
            f"{crew.world} processes were started to train one run, as torchrun does, and {asked} asks for several; type "
            f"{way_out}, or leave it to trainer.devices={crew.world} to start them for each run"
        )


def _done(turn: Turn) -> tuple[Path, bool]:
    with gpus_kept():
        return turn.do(_do)


def _actions(cfg: Any) -> list[Any]:
    return [cfg.action] if isinstance(cfg.action, str | int | float | None) else list(cfg.action)


def _trains(cfg: Any) -> bool:
    return _actions(cfg) in (["train"], ["train", "test"])


def _do(cfg: Any) -> tuple[Path, bool]:
    """Does what is asked for; gives the folder that it left, and whether all of it was done before."""
    actions = _actions(cfg)
    if _trains(cfg):
        request = _requested(cfg)
        if request.folds is not None and request.folds.of == "train" and request.folds.fold is None:
            return _cross_validate(cfg, request, then_test="test" in actions)
        return _train(cfg, request, then_test="test" in actions)
    if actions == ["tune"]:
        return _tune(cfg), False
    if actions == ["serve"]:
        return _serve(cfg), False
    if not isinstance(cfg.load_path, str | None):
        raise UserError(f"load_path={cfg.load_path}: expected one saved run; action=serve alone takes several")
    if len(actions) == 1 and actions[0] in USES:
        return _use(actions[0], cfg if cfg.load_path is None else using(cfg.load_path)), False
    if len(actions) == 1 and actions[0] in ASKS:
        return _asked(actions[0], cfg.save_path), False
    known = ["train", "tune", *USES, "serve", *ASKS, "[train,test]"]
    raise UserError(f"action={cfg.action}: {did_you_mean(str(cfg.action), known)}")


def _asked(action: str, save_path: str | None) -> Path:
    """Tells of the runs that were submitted to a folder; exits with 1 where one ended badly."""
    if save_path is None:
        raise UserError(f"action={action} needs the folder of the sweep that was submitted; type save_path=FOLDER")
    if not ASKS[action](Path(save_path)):
        sys.exit(1)
    return Path(save_path)


def _tune(cfg: Any) -> Path:
    """Searches for settings, each trial a run of the command that was typed but for these."""
    check_learns(cfg.trainer.precision)
    _check_one("action=tune", "action=train")
    request, tuning = _requested(cfg), build(cfg.tune)
    if request.overwrite:
        raise UserError("overwrite=true: a study goes on where it was; for a new one give another save_path")

    def plan(params: Mapping[str, Any], seed: int, save_path: Path | None) -> Planned:
        turn = varied({**settings(params), "seed": seed}, save_path)
        turn.config, turn.name = turn.do(known_by), "" if save_path is None else save_path.name
        return _planned(turn)

    def experiment(params: Mapping[str, Any]) -> tuple[Sequence[str], Callable[[str], bool]]:
        turn = varied(settings(params), None)
        return [word for word in turn.words if not word.startswith("seed=")], turn.is_group

    return _told(request, lambda: tune(request, tuning, build(cfg.launcher), plan, experiment))


def _train(cfg: Any, request: Request, *also: str, then_test: bool) -> tuple[Path, bool]:
    """Trains, and tests; gives the folder, and whether all of it was done before. also: overrides that were not typed."""
    here = [] if cfg.save_path is None else [f"save_path={quoted(str(cfg.save_path))}"]
    command = same_run(*here, *also)
    result: Result = _told(request, lambda: train(request, then_test=then_test, command=command), trains=True)
    tested = any(row.stage == "test" for row in result.rows)
    judged_anew = request.evaluations or (request.folds is not None and request.folds.of == "test")
    # results of int8 are not what this command leaves
    if then_test and not result.trained and (judged_anew or not tested or SavedRun(result.folder).tested_in_int8):
        # finished before, by a command that did not test, or not by all of these
        words = [word for word in typed_words() if not re.match(r"[+~]*(method|merge|heads|load_path)\b", word)]
        again = using(result.folder, typed=words)  # which loads what was made
        again.save_path, again.folds = str(result.folder), cfg.folds
        return _use("test", again), False
    return result.folder, not result.trained


def _cross_validate(cfg: Any, request: Request, *, then_test: bool) -> tuple[Path, bool]:
    """Trains each fold as a run of its own, FOLDER/fold_1 and so on, and prints means and deviations over them."""
    assert request.folds is not None
    _check_one(f"folds={request.folds.number}", "folds.fold=1, then the others")
    folder, runs, before = request.save_path or Path(named_after(request.identity)), {}, True
    if (folder / "config.yaml").exists():
        raise UserError(f"save_path={folder} holds a saved run; give another, in which folds have folders of their own")
    for fold in range(1, request.folds.number + 1):
        mine = copy.deepcopy(cfg)
        mine.folds.fold, mine.save_path = fold, str(folder / f"fold_{fold}")
        path, done = _train(mine, _requested(mine), f"folds.fold={fold}", then_test=then_test)
        runs[fold], before = SavedRun(path).rows, before and done
    report.folds(report.Console(), [*runs.values()], str(folder))
    return folder, before


def _requested_away(cfg: Any) -> Request:
    """Makes the request of a run that another machine does, to look up whether it is finished."""
    here = copy.deepcopy(cfg)
    here.trainer.accelerator, here.trainer.devices = "cpu", 1
    return requested(here)


def _requested(cfg: Any) -> Request:
    if cfg.trainer.accelerator == "cpu":
        hide_gpus()
    request = requested(cfg)
    request.trainer.take()
    return request


def _use(action: str, cfg: Any) -> Path:
    request = _requested(cfg)
    return _told(request, lambda: USES[action](request, cfg))


def _serve(cfg: Any) -> Path:
    """Serves saved runs side by side, each as its own command would use it."""
    from hatemtl.using.serve.action import serve

    folders = [cfg.load_path] if isinstance(cfg.load_path, str) else [*(cfg.load_path or [])]
    if not folders:
        raise UserError("action=serve needs the saved runs to serve; type load_path=FOLDER, or load_path=FOLDER,ANOTHER")
    others, precision = [word for word in typed_words() if not word.startswith("load_path=")], cfg.serve.precision
    if precision is not None:  # short for what other actions know as well
        typed = [word for word in others if word.lstrip("+~").startswith("trainer.precision")]
        if other := next((word for word in typed if word.partition("=")[2] != precision), None):
            raise UserError(f"serve.precision={precision} is short for trainer.precision=int8; leave it or {other} out")
        others.append(f"trainer.precision={precision}")
    requests = [_requested(using(str(folder), typed=others)) for folder in folders]
    how = {"host": cfg.serve.host, "names": cfg.serve.names, "port": cfg.serve.port, "queue": cfg.serve.queue}
    return _told(requests[0], lambda: serve(requests, **how))


def _told(request: Request, do: Callable[[], Any], *, trains: bool = False) -> Any:
    """Does it. Whatever ends it too early is told with the names that the user typed, and with how to go on."""
    try:
        with request.naming():
            return do()
    except (Interrupted, Exception) as error:
        if isinstance(error, Interrupted) or pressed():
            raise Interrupted(_standing(request, interrupted=True) if trains else "") from None
        if isinstance(error, UserError) or (told := mendable(error, request.config)) is None:
            raise
        raise UserError(f"{told}{_standing(request, interrupted=False) if trains else ''}") from error


def _standing(request: Request, *, interrupted: bool) -> str:
    """Says where the run stands: to whom it was broken off by, or what is kept of it, to be said behind an error."""
    save_path, total = request.save_path or Path(named_after(request.identity)), request.optimization.total_epochs
    finished, begun, epochs, work = False, False, 0, unfinished(save_path)
    with suppress(UserError, OSError):  # what cannot be read cannot go on
        finished = save_path.is_dir() and not differences(SavedRun(save_path).config, request.identity)
        begun = (work / "config.yaml").is_file() and not differences(read_config(work), request.identity)
        if begun and (work / CHECKPOINT).is_file():
            epochs = kept_epochs(work / CHECKPOINT)
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
