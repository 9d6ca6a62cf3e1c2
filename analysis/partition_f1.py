"""Pools runs that each learned a part of a multilabel task into the F1 table of one model over all labels.

Macro-F1 is the mean over all labels. Micro-F1 is exact: it is computed from the summed true positives, false positives
and false negatives, not from the F1 of the parts. Other kinds of task have no parts and are left out.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from results import Results, ResultsError, find_results, mask_pattern, note, read_results, sidecar, testing_line
from table import Table, add_output_options

EXAMPLES = """examples:
  uv run analysis/partition_f1.py "adapters/small/lora16/target_part_*/results.csv"
  uv run analysis/partition_f1.py "adapters/small/lora16/target_part_*" --format org
  uv run analysis/partition_f1.py "adapters/small/lora16/target_part_*" --output adapters/small/lora16/target_parts.csv
"""


class Counts(NamedTuple):
    """How often a label was rightly predicted, wrongly predicted and overlooked, in posts."""

    tp: int
    fp: int
    fn: int

    def f1(self) -> float:
        """2·tp / (2·tp + fp + fn), and 0 for a label that is neither there nor predicted, as in scikit-learn."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if any(self) else 0.0


def pool(counts: Mapping[str, Counts]) -> dict[str, float]:
    """The rows of one task over all its labels, in the order of the alphabet, without stage and task.

    >>> pool({"b": Counts(1, 1, 0), "a": Counts(0, 2, 1)})
    {'f1_a': 0.0, 'f1_b': 0.6666666666666666, 'macro_f1': 0.3333333333333333, 'micro_f1': 0.3333333333333333}
    """
    rows = {f"f1_{label}": counts[label].f1() for label in sorted(counts)}
    micro = Counts(*map(sum, zip(*counts.values(), strict=True))).f1()
    return {**rows, "macro_f1": sum(rows.values()) / len(rows), "micro_f1": micro}


def read_counts(run: Results, stage: str, task: str) -> dict[str, Counts]:
    """The counts of every label that the run has rows for, but for those over folds of the test posts.

    Raises ResultsError where a count is missing, is none, or contradicts the F1 beside it.
    """
    start = f"{stage}_{task}"
    found = (re.fullmatch(rf"{re.escape(start)}_(?:f1|tp|fp|fn)_(?!fold_(?:mean|sd)_)(.+)", metric) for metric in run.rows)
    counts = {}
    for label in dict.fromkeys(match[1] for match in found if match):
        values = []
        for metric in (f"{start}_{kind}_{label}" for kind in Counts._fields):
            if metric not in run.rows:
                raise ResultsError(f"{run.path} has no row {metric}: micro-F1 needs it; test again: {testing_line(run)}")
            if run.rows[metric] < 0 or not run.rows[metric].is_integer():
                raise ResultsError(f"{run.path}: {metric} is {run.rows[metric]!r}; expected a number of posts")
            values.append(int(run.rows[metric]))
        counts[label] = Counts(*values)
        stated = run.rows.get(f"{start}_f1_{label}", counts[label].f1())
        if any(values) and not abs(stated - counts[label].f1()) < 1e-4:
            contradiction = f"{start}_f1_{label} is {stated!r}, but its counts give {counts[label].f1()!r}"
            raise ResultsError(f"{run.path}: {contradiction}; test again: {testing_line(run)}")
    names = ((sidecar(run, "labels.json") or {}).get(task) or {}).get("names", list(counts))
    if differing := sorted(set(names) ^ set(counts)):
        where = f"in labels.json or among the {stage} rows of {task!r}, but not in both"
        raise ResultsError(f"{run.path}: {', '.join(differing)}: {where}; test again: {testing_line(run)}")
    return counts


def check_overlap(task: str, counts: Mapping[Path, Mapping[str, Counts]]) -> None:
    """Raises ResultsError where two runs hold the same label."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for label in sorted({label for labels in counts.values() for label in labels}):
        owners = tuple(str(path) for path, labels in counts.items() if label in labels)
        if len(owners) > 1:
            shared.setdefault(owners, []).append(label)
    if shared:
        where = "; ".join(f"{', '.join(labels)} in {' and '.join(owners)}" for owners, labels in shared.items())
        raise ResultsError(f"overlapping labels of {task!r}: {where}; pool the parts of one cut only")


def check_complete(task: str, runs: Sequence[Results]) -> None:
    """Raises ResultsError where parts are missing or are of different cuts; says so where it cannot know."""
    patterns = {run.path: mask_pattern(run, task) for run in runs}
    if silent := [str(path) for path, pattern in patterns.items() if pattern is None]:
        note(f"completeness was not checked: no config.yaml names the part of {task!r} beside {', '.join(silent)}")
        return
    parts: dict[Path, tuple[int, int]] = {}
    for path, pattern in patterns.items():
        match = re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", str(pattern))
        if match is None:
            raise ResultsError(f'{path.parent}/config.yaml: tasks.{task}.mask_pattern={pattern!r}; expected "1 4"')
        parts[path] = (int(match[1]), int(match[2]))
    if len({of for _, of in parts.values()}) > 1:
        cuts = "; ".join(f"{path} is part {index} of {of}" for path, (index, of) in parts.items())
        raise ResultsError(f"{task!r} was cut in different ways: {cuts}; pool the parts of one cut only")
    of = next(iter(parts.values()))[1]
    if missing := sorted(set(range(1, of + 1)) - {index for index, _ in parts.values()}):
        cure = 'part {0} of {1} is missing: train and test it with tasks.{2}.mask_pattern="{0} {1}"'
        raise ResultsError("\n".join(cure.format(index, of, task) for index in missing))


def check_same_posts(task: str, runs: Sequence[Results]) -> None:
    """Raises ResultsError where the fingerprints in run.json show different data; says so where there are none."""
    marks: dict[Path, dict[str, str]] = {}
    for run in runs:
        record = sidecar(run, "run.json") or {}
        if data := record.get("tested_data") or record.get("data"):
            # What else a run learned, from other corpora, does not matter here.
            marks[run.path] = {task: data[task]} if task in data else data
        else:
            note(f"that all saw the same posts was not checked: no data fingerprints in run.json beside {run.path}")
    first = next(iter(marks), None)
    for path, mark in marks.items():
        expected = marks[first or path]
        if differing := sorted(key for key in {**expected, **mark} if expected.get(key) != mark.get(key)):
            keys = ", ".join(differing)
            raise ResultsError(f"{first} and {path} saw different posts: the fingerprints of {keys} in run.json differ")


def multilabel_tasks(runs: Sequence[Results], stage: str) -> list[str]:
    """The tasks whose labels are counted in these runs. Raises ResultsError where a run was not tested, or there is none."""
    if rowless := [run for run in runs if not any(metric.startswith(f"{stage}_") for metric in run.rows)]:
        cure = "test it: {}" if stage == "test" else "train it again, or type --stage test"
        lines = (f"{run.path} has no {stage} rows; {cure.format(testing_line(run))}" for run in rowless)
        raise ResultsError("\n".join(lines))
    found = (re.fullmatch(rf"{stage}_(.+)_micro_f1", metric) for run in runs for metric in run.rows)
    tasks = sorted({match[1] for match in found if match})
    if not tasks:
        raise ResultsError(f"no multilabel task in these runs; expected rows such as {stage}_target_micro_f1")
    return tasks


def read_parts(runs: Sequence[Results], stage: str, task: str) -> dict[str, Counts]:
    """The counts of every label of the task, out of the runs that hold its parts.

    Raises ResultsError where parts overlap, are missing, or saw different posts.
    """
    members = [run for run in runs if f"{stage}_{task}_micro_f1" in run.rows]
    counts = {run.path: read_counts(run, stage, task) for run in members}
    check_overlap(task, counts)
    check_complete(task, members)
    check_same_posts(task, members)
    return {label: count for labels in counts.values() for label, count in labels.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, results.csv, or a quoted glob of them")
    add_output_options(parser)
    args = parser.parse_args(argv)
    try:
        paths = find_results(args.runs)
        runs = [read_results(path) for path in paths]
        rows = {}
        for task in multilabel_tasks(runs, args.stage):
            pooled = pool(read_parts(runs, args.stage, task))
            rows.update({f"{args.stage}_{task}_{metric}": [value] for metric, value in pooled.items()})
        Table(["value"], rows, args.digits).show(args.format, args.output, paths)
    except (ResultsError, OSError) as error:
        print(f"partition_f1.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
