"""The results of saved runs, found and read.

What the scripts of this folder share. They need no torch, and of hatemtl what needs none either.
"""

import csv
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatemtl.errors import UserError, unreadable
from hatemtl.harmless import shown, unguarded
from hatemtl.machine import json_object

PREDICTIONS = "predictions.parquet"
AGAIN = "expected what the run left; train it again"
UNFINISHED = ".unfinished"  # how the hidden folder of a run at work ends
# Keys of a configuration that make no other run: what was done with it, where it lies and how it was told.
ASIDE = (
    *("seed", "action", "save_path", "overwrite", "predict", "export", "evaluations", "logger", "launcher", "tune"),
    *("data.dir", "data.cache", "data.workers", "trainer.progress"),
    *("choices.logger", "choices.launcher", "choices.experiment"),
)
# The method that loads a run, by the library that saved it.
LOADERS = {"adapterhub": "ah_load", "peft": "peft_load", "full": "full", "bank": "bank_load", "mtl_lora": "mtl_load"}


class ResultsError(Exception):
    """Something the user can mend: what was given, what was expected, what to type next."""

    def __str__(self) -> str:
        return shown(super().__str__(), lines=True)


@dataclass(frozen=True)
class Results:
    """One results file: its path as the user wrote it, and its metrics (scores, or counts of posts) in file order."""

    path: Path
    rows: Mapping[str, float]


def find_results(patterns: Iterable[str], name: str = "results.csv") -> list[Path]:
    """The files `name` of runs that `patterns` name (run folders, files or quoted globs of them), each once, globs sorted.

    Raises ResultsError for a pattern that matches nothing and for a folder without results.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if (not matches or pattern.endswith(UNFINISHED)) and (save_path := _unfinished(pattern)):
            raise ResultsError(
                f"{pattern}: the run is not finished; train it to its end with the command that began it, which has "
                f"save_path={save_path}"
            )
        if not matches:
            raise ResultsError(f"{pattern!r} matches nothing; expected runs or their {name}; {_nearest(pattern)}")
        for match in map(Path, matches):
            path = match / name if match.is_dir() else match
            if not path.is_file():
                raise ResultsError(f"{match}: no {name} in it; expected a saved run; {_nearest(str(match))}")
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _unfinished(pattern: str) -> Path | None:
    """The save_path of a run at work, where a pattern names its hidden folder, or would name it were it finished."""
    path = Path(pattern)
    hidden = path if path.name.endswith(UNFINISHED) else path.with_name(f".{path.name}{UNFINISHED}")
    found = [Path(of) for of in sorted(glob.glob(str(hidden))) if os.path.isdir(of)]
    return found[0].with_name(found[0].name[1 : -len(UNFINISHED)]) if found else None


def _nearest(pattern: str) -> str:
    """The tail of an error about a path: what lies in the deepest folder of it that exists."""
    folder = Path(pattern)
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} holds {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}"


def read_results(path: Path) -> Results:
    """Reads a `metric,value` file.

    Raises ResultsError, with file and line, for a row that is not a metric and a number, and for a metric given twice.
    """
    rows: dict[str, float] = {}
    try:
        opened = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ResultsError(str(unreadable(path, error, AGAIN))) from None
    with opened as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if header != ["metric", "value"]:
                raise ResultsError(f"{path}:1: {','.join(header)!r}; expected the header 'metric,value'")
            for row in filter(None, reader):
                where = f"{path}:{reader.line_num}: {','.join(row)!r}"
                if len(row) != 2 or not row[0]:
                    raise ResultsError(f"{where}; expected a metric and its value")
                metric = unguarded(row[0])
                if metric in rows:
                    raise ResultsError(f"{where}; expected one row for each metric, and this one has a row above")
                try:
                    rows[metric] = float(row[1])
                except ValueError:
                    raise ResultsError(f"{where}; expected a number after the comma") from None
        except csv.Error as error:
            raise ResultsError(f"{path}:{reader.line_num}: {error}; expected a metric and its value") from None
        except UnicodeDecodeError as error:
            raise ResultsError(f"{path}: {error}; expected a CSV file in UTF-8") from None
    found = Results(path, rows)
    try:
        formats = (sidecar(found, "run.json") or {}).get("tested_precision")
    except ResultsError:  # whose business it is says so; these are the results
        formats = None
    if in_int8 := [str(task) for task, how in formats.items() if how == "int8"] if isinstance(formats, dict) else []:
        note(f"{path} was made in int8 (trainer.precision), where scores differ a little, for {', '.join(in_int8)}")
    return found


def sidecar(run: Results, name: str) -> dict[str, Any] | None:
    """What lies in `name` beside the results; None where the file is not there. Read, never instantiated."""
    path = run.path.parent / name
    if not path.is_file():
        return None
    try:
        return (json_object.read if path.suffix == ".json" else json_object.read_yaml)(path, AGAIN)
    except UserError as error:
        raise ResultsError(str(error)) from None


def parquet_table(path: Path, way_out: str, columns: list[str] | None = None) -> Any:
    """Reads the table of a Parquet file, or these columns. Raises ResultsError where it is broken or a bomb."""
    from hatemtl.machine.parquet import unpacked  # which most tables do without

    try:
        return unpacked(path, way_out, columns)
    except UserError as error:
        raise ResultsError(str(error)) from None


def leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by their keys with dots; a mapping with nothing in it is one of them.

    >>> [*leaves({"seed": 1, "tasks": {"label": {"weight": 2}}, "regulariser": {}})]
    [('seed', 1), ('tasks.label.weight', 2), ('regulariser', {})]
    """
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def is_aside(key: str) -> bool:
    """Whether a key of a configuration, with dots, makes no other run.

    >>> is_aside("data.dir"), is_aside("logger.project"), is_aside("data.leaks"), is_aside("trainer.precision")
    (True, True, False, False)
    """
    return any(f"{key}.".startswith(f"{of}.") for of in ASIDE)


def mask_pattern(run: Results, task: str) -> str | None:
    """The part that the run's configuration gives the task, "1 1" for the whole of it; None where it does not say."""
    tasks = (sidecar(run, "config.yaml") or {}).get("tasks") or {}
    if task not in tasks:
        return None
    return (tasks[task] or {}).get("mask_pattern") or "1 1"


def testing_line(run: Results) -> str:
    """What to type to test the run, but for the encoder and the data folder, whose names a run does not record."""
    tasks = (sidecar(run, "config.yaml") or {}).get("tasks") or {"target": None}
    patterns = {task: mask_pattern(run, task) for task in tasks}
    parts = [f'tasks.{task}.mask_pattern="{part}"' for task, part in patterns.items() if part not in (None, "1 1")]
    method = LOADERS.get((sidecar(run, "run.json") or {}).get("library", ""), "ah_load")
    words = [f"tasks=[{','.join(tasks)}]", "action=test", *parts, f"method={method}", "heads.load=true"]
    return f"uv run main.py {' '.join(words)} load_path={run.path.parent} (with its encoder=... and data.dir=...)"


def again(run: Results) -> str:
    """What to type to test the run; one that was sent to a folder of its own leaves nothing there that would say so."""
    return testing_line(run) if sidecar(run, "config.yaml") else "the command with action=test that made it, once more"


def read_predictions(run: Results, task: str | None) -> tuple[str, list[dict[str, Any]]]:
    """The name of a task, and post_id, gold and scores of each post that the run was tested on; `task` where it has several.

    Raises ResultsError where the run was not tested.
    """
    path = run.path.parent / PREDICTIONS
    if not path.is_file():
        raise ResultsError(f"{run.path.parent}: no {PREDICTIONS} in it; test it: {again(run)}")
    rows = parquet_table(path, f"test it again: {again(run)}", ["post_id", "task", "gold", "scores"]).to_pylist()
    task = chosen("task", task, list(dict.fromkeys(row["task"] for row in rows)))
    return task, [row for row in rows if row["task"] == task]


def column_names(paths: Iterable[Path]) -> list[str]:
    """Each run's folder, or another CSV's own name, with as many parents as it takes to tell equal ones apart."""
    files = [Path(os.path.abspath(path)) for path in paths]
    homes = [file.parent if file.name == "results.csv" else file.with_suffix("") for file in files]
    pairs = zip(files, homes, strict=True)
    parts = [(file if homes.count(home) > 1 and file.name != "results.csv" else home).parts for file, home in pairs]
    names = []
    for own in parts:
        depth = 1
        while sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append(str(Path(*own[-depth:])))
    return names


def chosen(name: str, given: str | None, known: Sequence[str]) -> str:
    """The one that was asked for, or the only one. Raises ResultsError that names what there is."""
    if given is None and len(known) == 1:
        return known[0]
    if given is None or given not in known:
        asked = "one of several is needed" if given is None else f"{given!r} is none of them"
        raise ResultsError(f"--{name}: {asked}; known: {', '.join(known)}")
    return given


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file and the folders to it; the file is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def note(text: str) -> None:
    """Tells on stderr what the table does not."""
    print(f"note: {shown(text)}", file=sys.stderr)


def is_count(metric: str) -> bool:
    """Whether a row counts true positives, false positives, false negatives, words or answers cut off, or what it is of.

    >>> is_count("test_target_tp_arab"), is_count("test_squad_answers_cut"), is_count("test_target_f1_arab")
    (True, True, False)
    >>> is_count("test_label_subgroup_auc_arab__posts"), is_count("test_label_subgroup_auc_arab__low")
    (True, False)
    """
    counted = re.search(r"_(tp|fp|fn)(_|$)|_(words|answers)_cut$", metric) is not None and "_f1_" not in metric
    return counted or metric.endswith(("__posts", "__communities"))


def is_bound(metric: str) -> bool:
    """Whether a row is an end of a figure's interval.

    >>> is_bound("test_label_subgroup_auc_arab__low"), is_bound("test_level_f1_low")
    (True, False)
    """
    return metric.endswith(("__low", "__high"))
