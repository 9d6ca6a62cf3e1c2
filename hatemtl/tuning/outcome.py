"""Tells what a search came to: a table, the best settings as an experiment, pictures, and how much of the gain is choice."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import yaml

from hatemtl.command import console as report
from hatemtl.command.words import parsed
from hatemtl.harmless import shown
from hatemtl.saved_runs.sweep_names import word
from hatemtl.saved_runs.writing import write, write_rows, write_text

SHOWN = 20  # trials of the table; all stand in trials.csv


def rows_of(study: Any, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Gives a row a trial, the best by the first objective first and those without a value last."""
    lower = study.lower[0]

    def order(trial: Any) -> tuple[bool, float]:
        return trial.values is None, (trial.values or [0.0])[0] * (1 if lower else -1)

    found = []
    for trial in sorted(study.trials(), key=order):
        seconds = trial.duration.total_seconds() if trial.duration else None
        values = dict(zip(objectives, trial.values or [None] * len(objectives), strict=True))
        told = {"trial": trial.number, "state": trial.state.name.lower(), **values}
        found.append({**told, **{key: trial.params.get(key) for key in study.distributions}, "seconds_in_all": seconds})
    return found


def print_trials(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str], *, folder: Path) -> None:
    """Prints the best trials."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        return f"{value:.4g}" if name in objectives or isinstance(value, float) else word(value)

    more = f", the best {SHOWN} of" if len(rows) > SHOWN else ":"
    cells = [{name: cell(name, value) for name, value in row.items()} for row in rows[:SHOWN]]
    report.trials(report.Console(), cells, f"{folder}{more} {len(rows)} trials")


def write_trials(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all trials as trials.csv."""
    write_rows(folder / "trials.csv", rows)


def luck(values: Sequence[float], noise: float) -> float:
    """Gives by how much the best of so many equal settings lies above their mean, if seeds are all that sets them apart.

    The expected largest of n draws of a normal distribution, by Blom's approximation (1958), times their deviation.

    >>> round(luck([0.0] * 9, 1.0), 2)
    1.49
    """
    n = len(values)
    return noise * NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else 0.0


def remark(
    objective: str, values: Sequence[float], best: float, spreads: Sequence[float], fresh: Sequence[float], seeds: int
) -> list[str]:
    """Says how much of the gain is choosing the best of n on validation.

    values: of all trials, means over their seeds. spreads: standard deviations over seeds, of trials that have several.
    fresh: of the best settings with seeds that had no part in the choice.
    """
    n = len(values)
    said = [f"{objective}: the best of {n} trials has {best:.4f}, their mean is {fmean(values):.4f}"]
    known = [*spreads, *([stdev(fresh)] if len(fresh) > 1 else [])]
    if known:
        one = fmean(of**2 for of in known) ** 0.5
        by_luck = luck(values, one / seeds**0.5)
        said.append(
            f"seeds alone make runs vary by {one:.4f} (sd), so the best of {n} trials that are all equal would lie "
            f"{by_luck:.4f} from their mean; the best lies {abs(best - fmean(values)):.4f} from it"
        )
    if fresh:
        said.append(
            f"with {len(fresh)} fresh seeds, which had no part in the choice, it has {fmean(fresh):.4f}: of what it had, "
            f"{best - fmean(fresh):+.4f} came with the choice"
        )
    elif not known:
        said.append(
            "how much of that is luck is not known, since each trial has one seed; type tune.again=3 to train the best with "
            "fresh seeds, or tune.seeds=[0,1,2]"
        )
    said.append("the split that chose does not test: report the test of the best, with action=test")
    return said


def as_experiment(words: Sequence[str], is_group: Callable[[str], bool], head: str) -> str:
    """Writes overrides as a YAML that `experiment=` takes: options of groups as defaults, values under their keys."""
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    for typed in words:
        key, override = typed.lstrip("+").partition("=")[0], parsed(typed)
        assert override is not None  # it was composed before
        content: Any = override.value()  # as Hydra reads it, whose lists and keys are no YAML
        if key == "experiment":
            defaults[:0] = content if isinstance(content, list) else [content]
        elif is_group(key):
            defaults.append({f"override /{key}": content})
        else:
            node = values
            *above, last = key.split(".")
            for part in above:
                node = node.setdefault(part, {})
            node[last] = content
    body = yaml.safe_dump({**({"defaults": defaults} if defaults else {}), **values}, sort_keys=False, allow_unicode=True)
    return f"# @package _global_\n# {shown(head)}\n{body}"


def write_experiment(folder: Path, text: str) -> Path:
    """Writes it as the experiment `best` of a folder that `--config-dir` takes."""
    path = folder / "experiment" / "best.yaml"
    write_text(path, text)
    return path


def draw(study: Any, objectives: Sequence[str]) -> list[str]:
    """Draws the history, importance, slices and the Pareto front; gives why something could not be drawn."""
    import matplotlib

    matplotlib.use("Agg")  # a picture and no window
    import optuna
    from matplotlib import pyplot
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as pictures

    done = [trial for trial in study.trials() if trial.state is optuna.trial.TrialState.COMPLETE]
    notes, several = [], len(objectives) > 1
    if len(done) < 2:
        return ["fewer than two trials are complete, so nothing is drawn"]
    for i, objective in enumerate(objectives):
        sign = 1 if study.lower[i] else -1  # PED-ANOVA asks what makes a target low
        of = {"target": partial(_value, i), "target_name": objective} if several else {"target_name": objective}
        low: dict[str, Any] = {"target": partial(_value, i, sign=sign)} if several else {}
        kinds: dict[str, Callable[[], Any]] = {
            "history": partial(pictures.plot_optimization_history, study.study, **of),
            "importance": partial(
                pictures.plot_param_importances, study.study, evaluator=PedAnovaImportanceEvaluator(), **low
            ),
            "slices": partial(pictures.plot_slice, study.study, **of),
        }
        for kind, make in kinds.items():
            try:
                with warnings.catch_warnings(record=True) as warned:  # most of how Optuna is called, and not of the study
                    warnings.simplefilter("always", UserWarning)
                    _save(study.folder / f"{kind}{f'_{objective}' if several else ''}.svg", make, pyplot)
                notes += [f"{kind} of {objective}: {one.message}" for one in warned if "will be equal" in str(one.message)]
            except (ValueError, RuntimeError, TypeError) as error:
                notes.append(f"{kind} of {objective} is not drawn: {error}")
    if len(objectives) in (2, 3):
        names = [*objectives]
        make = partial(pictures.plot_pareto_front, study.study, target_names=names)
        _save(study.folder / "pareto.svg", make, pyplot)
    return notes


def _value(place: int, trial: Any, *, sign: int = 1) -> float:
    return sign * trial.values[place]


def _save(path: Path, make: Callable[[], Any], pyplot: Any) -> None:
    try:
        made = make()
        axis = made.flat[0] if hasattr(made, "flat") else made
        file = io.BytesIO()
        axis.figure.savefig(file, format="svg", bbox_inches="tight")
        write(path, lambda temporary: temporary.write_bytes(file.getvalue()))
    finally:
        pyplot.close("all")
