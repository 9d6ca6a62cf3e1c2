"""Tells where the runs of a submitted sweep stand, and gathers what they found."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from hatemtl.command import console as report
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.saved_runs.writing import write_text
from hatemtl.training.launch import ray, slurm
from hatemtl.training.launch.base import Ended
from hatemtl.training.launch.submission import Submitted, read, stands
from hatemtl.training.sweep import AT_WORK, WELL


def status(folder: Path) -> bool:
    """Prints where each run stands; tells whether none ended badly. Raises UserError where nothing was submitted."""
    return _told(_ends(folder))


def collect(folder: Path) -> bool:
    """Prints where each run stands, and writes one table of the results of all that are finished; tells as `status` does."""
    ends = _ends(folder)
    rows = []
    for name, ended in ends.items():
        results: Mapping[str, float] = {}
        try:
            results = SavedRun(ended.told).results if ended.state in WELL else {}
        except UserError as error:  # which keeps no other from being gathered
            ends[name] = ended = Ended("failed", str(error))
        rows.append({"run": name, "state": ended.state, "told": ended.told, **results})
    file = io.StringIO()
    writer = csv.DictWriter(file, [*dict.fromkeys(key for row in rows for key in row)], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    place = folder.absolute()  # beside it, since all that a glob finds in it is taken for a run
    collected = place.with_name(f"{place.name}.collected.csv")
    write_text(collected, file.getvalue())
    well = _told(ends)
    left = sum(ended.state not in (*WELL, "failed") for ended in ends.values())
    print(f"{collected}: the results of {sum(ended.state in WELL for ended in ends.values())} of {len(ends)} runs")
    if left:
        print(f"note: {left} of {len(ends)} runs are not at their end; collect them again later")
    return well


def _ends(folder: Path) -> dict[str, Ended]:
    runs = read(folder)
    on_ray = [run for run in runs.values() if run.cluster.startswith(ray.CLUSTER)]
    found = slurm.states(folder, [run for run in runs.values() if run not in on_ray]) | ray.states(folder, on_ray)
    return {run.name: _stands(folder, run, found[name]) for name, run in runs.items()}


def _stands(folder: Path, run: Submitted, state: str | None) -> Ended:
    try:
        return stands(folder, run, state)
    except UserError as error:  # of what stands in its place, which keeps no other from being told
        return Ended("failed", str(error))


def _told(ends: Mapping[str, Ended]) -> bool:
    report.sweep(report.Console(), [(name, ended.state, ended.told) for name, ended in ends.items()])
    return all(ended.state in (*WELL, *AT_WORK) for ended in ends.values())
