"""Reads what analysis/compare.py said of a run beside other systems, once it is sure that it is of this run."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hatemtl.errors import UserError, unreadable
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.publish.evaluation import siblings
from hatemtl.using.publish.places import is_place, last

NEEDED = {"system", "metric", "mean"}
NUMBERS, TEXTS = (
    ("mean", "runs", "low", "high", "difference", "p_holm", "smallest_p"),
    ("system", "metric", "verdict", "sentence"),
)
AS_NEAR = 1e-3  # as a mean is to the run's own value: a figure is computed anew from scores in float32


def read(path: Path, run: SavedRun) -> list[Mapping[str, Any]]:
    """The rows that analysis/compare.py wrote as JSON. Raises UserError where they are none, or not of the run."""
    given, again = f"publish.verdicts={path}", "type analysis/compare.py BASELINE RUN --metric METRIC --output FILE.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{given}: no such file; {again}") from error
    except OSError as error:
        raise unreadable(given, error, again) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{given}: no JSON ({error}); {again}") from error
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and row.keys() >= NEEDED for row in rows)):
        raise UserError(f"{given}: expected the rows that analysis/compare.py writes; {again}")
    for row in rows:
        _check_types(row, given, again)
    results = run.results
    for metric in dict.fromkeys(row["metric"] for row in rows):
        if metric not in results:
            raise UserError(f"{given}: it compares by {metric}, which is no row of {run.folder}/results.csv; {again}")
        _check_own(run, metric, [row["mean"] for row in rows if row["metric"] == metric], given, again)
    return [_without_places(row, [of["system"] for of in rows]) for row in rows]


def _without_places(row: Mapping[str, Any], systems: Sequence[str]) -> dict[str, Any]:
    """The row with systems that are paths of this machine named without where they lie, in its sentence as well."""
    told = dict(row)
    for name in sorted(filter(is_place, systems), key=len, reverse=True):
        told |= {key: told[key].replace(name, last(name)) for key in TEXTS if isinstance(told.get(key), str)}
    return told


def _check_types(row: Mapping[str, Any], given: str, again: str) -> None:
    for keys, kind, name in ((NUMBERS, int | float, "a number"), (TEXTS, str, "a text")):
        for key in keys:
            value = row.get(key)
            if (value is not None or key in NEEDED) and (isinstance(value, bool) or not isinstance(value, kind)):
                raise UserError(f"{given}: {key}={value!r}, expected {name}; {again}")


def _check_own(run: SavedRun, metric: str, means: Sequence[float], given: str, again: str) -> None:
    """Raises UserError where no system is the run, or all its seeds."""
    own, mean = run.results[metric], fmean(siblings(run, metric))
    if not any(math.isclose(of, known, abs_tol=AS_NEAR) for of in means for known in (own, mean)):
        seeds = "" if math.isclose(own, mean) else f", with the seeds beside it {mean:.3f}"
        raise UserError(f"{given}: by {metric} {run.folder} has {own:.3f}{seeds}, and no system in it has; {again}")
