"""Gathers the runs of the systems to be compared: one of each seed, of the same configuration, tested on the same posts.

A system may be made of parts: runs of one seed that each learned some labels of a task are joined, post by post, into one.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from outcomes import Outcome, read_outcome
from partition_f1 import check_complete, check_same_posts
from results import (
    Results,
    ResultsError,
    find_results,
    is_aside,
    leaves,
    mask_pattern,
    note,
    read_results,
    sidecar,
    testing_line,
)


@dataclass(frozen=True)
class System:
    """One system: the runs of each seed, several where each is a part."""

    name: str
    runs: Mapping[int, Sequence[Results]]

    def each(self) -> Iterator[Results]:
        for runs in self.runs.values():
            yield from runs


def find_systems(patterns: Sequence[str], names: Sequence[str] | None, *, least: int = 2) -> list[System]:
    """The systems in the order given, by name. Raises ResultsError for fewer than `least`, and for a run that is in two."""
    if len(patterns) < least:
        raise ResultsError("one system given; expected two or more, the first the baseline: compare.py A B --metric ...")
    if twice := next((pattern for i, pattern in enumerate(patterns) if pattern in patterns[:i]), None):
        raise ResultsError(f"{twice} is given twice: a run is not compared with itself; leave one out")
    names = names or distinguishing(patterns)
    if len(names) != len(patterns):
        raise ResultsError(
            f"--name: {len(names)} names for {len(patterns)} systems; expected one for each of {', '.join(patterns)}"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ResultsError(f"two systems are called {twice!r}; give each a name of its own with --name")
    systems = [_system(name, find_results([pattern])) for name, pattern in zip(names, patterns, strict=True)]
    owners: dict[Path, str] = {}
    for system in systems:
        for run in system.each():
            if (other := owners.setdefault(run.path.resolve(), system.name)) != system.name:
                raise ResultsError(
                    f"{run.path.parent} is in {other} and in {system.name}: a run is not compared with itself"
                )
    return systems


def distinguishing(patterns: Sequence[str]) -> list[str]:
    """What tells the patterns apart: their words, but for those that all begin or end with.

    >>> distinguishing(["adapters/lora_seed_?", "adapters/full_seed_?"]), distinguishing(["runs/lora", "runs/lora_r8"])
    (['lora', 'full'], ['lora', 'lora_r8'])
    """
    words = [re.findall(r"[^/_*?.-]+|[/_*?.-]+", pattern.rstrip("/")) for pattern in patterns]
    first = min(_alike(words), min(map(len, words)) - 1)
    rest = [word[first:] for word in words]
    last = min(_alike([word[::-1] for word in rest]), min(map(len, rest)) - 1)
    kept = ("".join(word[: len(word) - last]).strip("/_*?.-") for word in rest)
    return [name or pattern for name, pattern in zip(kept, patterns, strict=True)]


def _alike(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))


def _system(name: str, paths: Sequence[Path]) -> System:
    runs: dict[int, list[Results]] = {}
    for run in map(read_results, paths):
        seed = (sidecar(run, "run.json") or {}).get("seed")
        if not isinstance(seed, int):
            raise ResultsError(f"{run.path.parent}: no run.json that says its seed; expected a saved run, in its own folder")
        runs.setdefault(seed, []).append(run)
    system = System(name, dict(sorted(runs.items())))
    first, *others = system.each()
    for other in others:
        if differing := _differing(first, other):
            raise ResultsError(
                f"{first.path.parent} and {other.path.parent} are of one system, {name}, but differ in {differing}; runs of "
                "one system differ by seed alone: give each system its own glob"
            )
    return system


def _settings(run: Results) -> dict[str, Any]:
    """The run's configuration, flat, but for what makes no other system: parts are of one, each with a start of its own."""

    def aside(key: str) -> bool:
        return is_aside(key) or key == "load_path" or key.endswith(".mask_pattern")

    return {key: value for key, value in leaves(sidecar(run, "config.yaml") or {}) if value != {} and not aside(key)}


def _differing(one: Results, other: Results) -> str:
    """The settings in which two runs differ, but for the seed's number in a path, as of the sources of a merge."""
    a, b = _settings(one), _settings(other)
    seeds = [str((sidecar(run, "run.json") or {}).get("seed")) for run in (one, other)]

    def same(key: str) -> bool:
        x, y = a.get(key, ...), b.get(key, ...)
        blank = [re.sub(_alone(seed), "", str(value)) for seed, value in zip(seeds, (x, y), strict=True)]
        return x == y or ("/" in f"{x}{y}" and blank[0] == blank[1])

    return ", ".join(sorted(key for key in {**a, **b} if not same(key))[:4])


def _alone(number: object) -> str:
    """Makes a pattern of a whole number that is part of no other, nor of a fraction, as 1 in 0.1."""
    return rf"(?<!\d)(?<!\d\.){number}(?!\.?\d)"


def judged_otherwise(systems: Sequence[System]) -> str | None:
    """Says which keys of an evaluation differ between two runs that are both judged by it, by their configurations."""
    seen: dict[str, tuple[str, Path]] = {}
    for run in (run for system in systems for run in system.each()):
        for key, value in leaves((sidecar(run, "config.yaml") or {}).get("evaluations") or {}):
            was, where = seen.setdefault(key, (str(value), run.path.parent))
            if was != str(value):
                return f"evaluations.{key} is {was} in {where} and {value} in {run.path.parent}"
    return None


def siblings(system: System) -> list[Results]:
    """Tested runs beside the system's, of the same configuration but of other seeds, that were not given."""
    first, *_ = system.each()
    if any(len(runs) > 1 for runs in system.runs.values()) or sidecar(first, "config.yaml") is None:
        return []
    home, seed = os.path.abspath(first.path.parent), next(iter(system.runs))
    spots = [found.span() for found in re.finditer(_alone(seed), home)]
    patterns = [glob.escape(home[:i]) + "*" + glob.escape(home[j:]) for i, j in spots] + [
        glob.escape(os.path.dirname(home)) + "/*"
    ]
    given = {run.path.resolve() for run in system.each()}
    found: dict[int, Results] = {}
    for folder in sorted({Path(match) for pattern in patterns for match in glob.glob(pattern)}):
        path = folder / "results.csv"
        if path.resolve() in given or not all(
            (folder / name).is_file() for name in ("results.csv", "run.json", "config.yaml")
        ):
            continue
        try:
            run = read_results(path)
            other = (sidecar(run, "run.json") or {}).get("seed")
            if isinstance(other, int) and other not in system.runs and not _differing(first, run):
                found.setdefault(other, run)
        except ResultsError:
            continue  # what lies beside the runs that were asked for is not the question
    return list(found.values())


def outcomes(system: System, task: str) -> list[Outcome]:
    """What the system said of the posts, a seed each. Raises ResultsError where runs of a seed are no cut of the labels."""
    return [_joined(system, seed, [read_outcome(run, task) for run in runs]) for seed, runs in system.runs.items()]


def _joined(system: System, seed: int, parts: Sequence[Outcome]) -> Outcome:
    for part in parts:
        part.check()
    first, task = parts[0], parts[0].task
    whole = mask_pattern(first.run, task)
    if len(parts) == 1 and whole in (None, "1 1"):
        return first
    runs = [part.run for part in parts]
    where = ", ".join(str(run.path.parent) for run in runs)
    labels = [name for part in parts for name in part.names]
    if any(mask_pattern(run, task) in (None, "1 1") for run in runs) or len(set(labels)) < len(labels):
        raise ResultsError(
            f"{system.name}: {where} are all of seed {seed}; expected a run a seed, or parts whose labels are disjoint"
        )
    check_complete(task, runs)
    check_same_posts(task, runs)
    for part in parts[1:]:
        same_posts(first, part, gold=False)
    gold, scores = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("gold", "scores"))
    thresholds = np.concatenate([part.thresholds for part in parts])
    return replace(first, names=tuple(labels), gold=gold, scores=scores, thresholds=thresholds).ordered(sorted(labels))


def same_posts(one: Outcome, other: Outcome, *, gold: bool = True) -> None:
    """Raises ResultsError where two runs were tested on other posts, or on posts annotated otherwise."""
    where = f"{one.run.path.parent} and {other.run.path.parent}"
    if one.posts != other.posts:
        alone = sorted({*one.posts} ^ {*other.posts})
        raise ResultsError(
            f"{where} were tested on different posts: {len(one.posts)} and {len(other.posts)}, {len(alone)} in one alone, "
            f"as {alone[0]}; test both on the same, as {testing_line(other.run)}"
        )
    if gold and (one.kind, one.names) != (other.kind, other.names):
        raise ResultsError(
            f"{where} know different labels of {one.task!r}: {', '.join(one.names)} and {', '.join(other.names)}"
        )
    same = (np.array_equal(x, y, equal_nan=True) for x, y in zip(one.gold, other.gold, strict=True))
    if gold and not all(same):
        raise ResultsError(
            f"{where} were tested on the same posts with different annotations of {one.task!r}; test both again"
        )


def comparable(systems: Sequence[System], task: str, *, leaked: bool) -> dict[str, list[Outcome]]:
    """What each system said, a seed each, labels in one order.

    Raises ResultsError where runs saw other posts, annotations or splits, learned from test posts, or are copies.
    """
    said = {system.name: outcomes(system, task) for system in systems}
    base = said[systems[0].name][0]
    aligned: dict[str, list[Outcome]] = {}
    for name, of_system in said.items():
        for outcome in of_system:
            mine = outcome
            if outcome.kind == "multilabel" and sorted(outcome.names) == sorted(base.names):
                mine = outcome.ordered(base.names)
            same_posts(base, mine)
            aligned.setdefault(name, []).append(mine)
    seen: list[tuple[str, Outcome]] = [(name, outcome) for name, of_system in aligned.items() for outcome in of_system]
    for i, (name, outcome) in enumerate(seen):
        for other, before in seen[:i]:
            if all(np.array_equal(x, y, equal_nan=True) for x, y in zip(outcome.scores, before.scores, strict=True)):
                raise _copied(before.run, other, outcome.run, name, "predictions")
    _check_splits(systems, task, "tested_data")
    for system in systems:
        for run in system.each():
            _check_leaks(run, system.name, "test", leaked=leaked)
    return aligned


def check_validated(systems: Sequence[System], task: str, *, leaked: bool) -> None:
    """Raises ResultsError where runs were validated on other splits, learned from these posts, or are copies."""
    _check_splits(systems, task, "data")
    seen: list[tuple[str, Results, dict[str, float]]] = []
    for system in systems:
        for run in system.each():
            rows = {metric: value for metric, value in run.rows.items() if metric.startswith(f"val_{task}_")}
            for other, before, theirs in seen:
                if rows == theirs:
                    raise _copied(before, other, run, system.name, f"val_{task} rows")
            seen.append((system.name, run, rows))
            _check_leaks(run, system.name, "val", leaked=leaked)


def _copied(one: Results, of_one: str, other: Results, of_other: str, what: str) -> ResultsError:
    return ResultsError(
        f"{one.path.parent} ({of_one}) and {other.path.parent} ({of_other}) have identical {what}: a run is not compared "
        "with itself or its copy"
    )


def _check_splits(systems: Sequence[System], task: str, key: str) -> None:
    """key: of run.json, tested_data of a test, which may be of another corpus than the training's, data."""
    marks: dict[Path, str] = {}
    for run in (run for system in systems for run in system.each()):
        record = sidecar(run, "run.json") or {}
        if task in (data := record.get(key) or record.get("data") or {}):
            marks[run.path.parent] = data[task]
    if len(set(marks.values())) > 1:
        one = next(iter(marks))
        another = next(folder for folder, mark in marks.items() if mark != marks[one])
        raise ResultsError(f"{one} and {another} saw other splits: the fingerprints of {task!r} in run.json differ")


def _check_leaks(run: Results, name: str, split: str, *, leaked: bool) -> None:
    record = sidecar(run, "run.json") or {}
    marks = {*(record.get("tested_data") or record.get("data") or {}).values()}
    for origin in _origins(run, {run.path.resolve()}):
        before = sidecar(origin, "run.json") or {}
        if origin is not run and not marks & {*(before.get("data") or {}).values()}:
            continue  # it learned from another corpus, and the posts that it was tested on are others
        found = [
            of for of in map(str, before.get("leaks") or []) if re.match(rf"of the {split} posts, .* stand in train ", of)
        ]
        if kept := [line for line in found if not re.search(r"train posts are left out", line)]:
            whose = str(run.path.parent) if origin is run else f"{origin.path.parent}, which {run.path.parent} started from,"
            done = {"test": "tested", "val": "validated"}[split]
            told = f"{whose} ({name}) learned from posts that it was {done} on: {kept[0].partition('; ')[0]}"
            if not leaked:
                raise ResultsError(f"{told}; train it with data.leaks=drop, or type --leaked to compare all the same")
            note(told)


def _origins(run: Results, seen: set[Path]) -> Iterator[Results]:
    """The run, and all that it started from, was taught by or took heads from, where they are still there."""
    yield run
    for folder in (sidecar(run, "run.json") or {}).get("sources") or {}:
        path = Path(folder) / "results.csv"
        if path.parent.is_dir() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield from _origins(Results(path, {}), seen)
