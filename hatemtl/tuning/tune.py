"""Tunes: opens the study in its folder, searches, and tells what came of it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from hatemtl.command import console as report
from hatemtl.command.request import Request
from hatemtl.errors import UserError
from hatemtl.saved_runs.claiming import OPENED, differences, held, named_after
from hatemtl.training.launch.base import Launcher
from hatemtl.tuning import outcome
from hatemtl.tuning.search import Asker, Params, Place, Plan, adopt, again, search
from hatemtl.tuning.settings import Tuning


def tune(
    request: Request,
    tuning: Tuning,
    launcher: Launcher,
    plan: Plan,
    experiment: Callable[[Params], tuple[Sequence[str], Callable[[str], bool]]],
) -> Path:
    """Searches for settings; gives the study's folder.

    request: of the run that is varied. plan: makes the run of some settings. experiment: the words that make the run of
    some settings, and which keys are groups. Raises UserError, before anything is written, where the search is wrong.
    """
    console, dimensions = report.Console(), tuning.dimensions
    objectives = tuning.objectives(request)
    folder = request.save_path or Path(f"{named_after(request.identity)}-study")
    seeds = [*(tuning.seeds or [request.seed])]
    place = Place(folder, plan, seeds=len(seeds) + tuning.again)
    first: Params = {key: of.samples[-1] for key, of in dimensions.items()}  # weights may all begin at 0, and not all be it
    for key, of in dimensions.items():  # what is no key, or takes no such value, is found out before anything is written
        for value in of.samples:
            if (make := plan({**first, key: value}, seeds[0], None).request) is not None:
                make()
    from hatemtl.tuning.study import Study  # and Optuna, which other commands do without

    with held(folder, OPENED):  # not while a sweep is at work in it
        folder.mkdir(parents=True, exist_ok=True)
        study = Study(folder, tuning, objectives, _mark(request, tuning, objectives, seeds), request.seed)
    try:
        asker = Asker(study, tuning, objectives, place, seeds)
        with study.lock:
            adopted = adopt(study, asker)
        if adopted:
            report.notes(console, [f"{folder} holds the finished runs of {adopted} trials, which the new study knows now"])
        search(asker, launcher)
        _tell(study, asker, launcher, experiment, console)
    finally:
        study.close()
    return folder


def _mark(request: Request, tuning: Tuning, objectives: Mapping[str, bool], seeds: Sequence[int]) -> dict[str, str]:
    """Gives what makes this study and no other: the run that is varied, what is varied, and what is judged how."""
    told = [of.partition(": saved None, given ") for of in differences({}, request.identity)]
    searched = {key.partition("@")[2] or key for key in tuning.dimensions}
    fixed = [
        f"{key}={value}"
        for key, _, value in told
        if key != "seed"
        and not any(f"{key}.".startswith((f"{of}.", f"choices.{of}.")) for of in searched)
        and key not in {f"choices.{of}" for of in tuning.dimensions}
    ]
    return {
        "run": hashlib.sha256("\n".join(sorted(fixed)).encode()).hexdigest()[:8],
        "space": ", ".join(f"{key}: {of}" for key, of in tuning.dimensions.items()),
        "by": ", ".join(f"{'-' if lower else ''}{name}" for name, lower in objectives.items()),
        "seeds": ", ".join(map(str, seeds)),
    }


def _tell(
    study: Any,
    asker: Asker,
    launcher: Launcher,
    experiment: Callable[[Params], tuple[Sequence[str], Callable[[str], bool]]],
    console: report.Console,
) -> None:
    objectives, folder = asker.objectives, study.folder
    rows = outcome.rows_of(study, objectives)
    whys = [str(trial.user_attrs["why"]) for trial in study.trials() if "why" in trial.user_attrs]
    if not (best := study.best()):
        raise UserError(f"save_path={folder}: no trial ended well; the last: {whys[-1] if whys else 'none was begun'}")
    params, value = best[0].params, best[0].values[0]
    others = any(row["state"] == "running" for row in rows)
    fresh = again(asker, launcher, params, asker.tuning.again) if not others else []
    outcome.write_trials(folder, rows)
    words, is_group = experiment(params)
    head = f"Trial {best[0].number} of {len(rows)}, {folder}: {objectives[0]} {value:.4f}"
    path = outcome.write_experiment(folder, outcome.as_experiment(words, is_group, head))
    notes = outcome.draw(study, objectives)
    outcome.print_trials(rows, objectives, folder=folder)
    done = [row[objectives[0]] for row in rows if row["state"] == "complete"]
    notes += outcome.remark(objectives[0], done, value, _spreads(study), [of[0] for of in fresh], len(asker.seeds))
    if len(best) > 1:
        notes.append(
            f"no other trial dominates any of {', '.join(str(of.number) for of in best)}: pareto.svg; {path} is the first"
        )
    if whys:
        notes.append(f"{len(whys)} trials failed, the last: {whys[-1]}; the same command replaces what did not diverge")
    if asker.gave_up:
        notes.append(f"{asker.wrong} trials in a row failed, so no further one was begun")
    if others:
        notes.append("another process is still at work on this study; it tells at its end")
    report.notes(console, [*notes, f"the best: uv run main.py --config-dir {folder} experiment={path.stem}"])


def _spreads(study: Any) -> list[float]:
    """Gives the standard deviation over seeds of each trial that has several, by the first objective."""
    each = [[of[0] for of in trial.user_attrs.get("values_of_seeds", ())] for trial in study.trials()]
    return [stdev(values) for values in each if len(values) > 1]
