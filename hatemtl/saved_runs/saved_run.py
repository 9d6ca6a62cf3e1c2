"""Reads and writes the saved run: the folder that a run leaves, so that no reader ever meets half of it.

    config.yaml          the resolved configuration
    run.json             status, seed, git commit, versions, data fingerprints, seconds, memory, parameters
    adapter/ or encoder/ what the method trained, in its library's own format (safetensors)
    heads.safetensors    every head's weights, named task.parameter
    labels.json          every task's label space, and the thresholds of a head that has some
    lexicon_TASK.csv     the word list whose counts a task's head reads, if any
    results.csv          metric,value at full precision
    console.txt          what its commands printed
    predictions.parquet  post id, task, gold, scores, of span tasks answers (after action=test)
    merge.csv            the share of a merge's energy that its cut to a rank lost, by layer
    objective.csv        a row an optimizer step: each task's weight, and the cosines of their gradients
    search.csv           what each candidate for a merge's coefficients was worth
    errors.csv           the most confident wrong posts by label and group (after action=test evaluations=[errors])
    error_words.csv      the words that wrong posts hold more often than right ones (the same)
    fusion.csv           which source answers for which label (after action=test, of lora_fusion and lora_gate)

A run at work lives in a hidden folder beside its final place and is renamed when it is finished, so a folder without a
leading dot is a finished run, and a glob never meets an unfinished one. No pickle is read from a saved run.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hatemtl.errors import UserError, unreadable
from hatemtl.evaluations.base import BEHIND, STAGES, Row, Stage
from hatemtl.harmless import unguarded
from hatemtl.labels import LabelSpace
from hatemtl.machine import json_object
from hatemtl.machine.written_ledger import as_ledger
from hatemtl.saved_runs import from_hub
from hatemtl.saved_runs.writing import write_rows, write_text

if TYPE_CHECKING:
    from torch import Tensor

STEPS = "objective.csv"  # a row an optimizer step: each task's weight, and the cosines of their gradients
AGAIN = "train the run again with overwrite=true"
LIBRARIES = ("adapterhub", "peft", "full", "bank", "mtl_lora")  # that a run's encoder side may be saved by
# What config.yaml and run.json hold at these keys, wherever they have them.
TABLE = re.compile(r"(?!results|fusion|lexicon_)\w+\.csv")
Tables = Mapping[str, Sequence[Mapping[str, Any]]]
GROUPS = ("tasks", "encoder", "method", "trainer", "data", "optimization", "batching", "sampling")
CONFIG = dict.fromkeys(GROUPS, json_object.KEYS) | {"choices": json_object.MAYBE_KEYS, "preprocess": json_object.MAYBE_KEYS}
RECORD = {"tables": json_object.Shape(list, "a list")}
KEYED = ("data", "tested_data", "tested_precision", "versions", "sources", "lexicons", "unlabelled", "encoder_files")
RECORD |= dict.fromkeys(KEYED, json_object.KEYS)
RECORD |= {"ledger": json_object.MAYBE_KEYS, "method": json_object.TEXT, "encoder": json_object.MAYBE_TEXT}
RECORD |= {"encoder_source": json_object.TEXT, "hub": json_object.TEXT, "tokenizer": json_object.TEXT}


class SavedRun:
    """A finished run on disk, or an adapter of the hub laid out as one. Raises UserError where the folder is none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = from_hub.adopted(str(folder)) if from_hub.is_named(str(folder)) else Path(folder)
        if os.path.exists(self.folder) and not self.folder.is_dir():  # which, unlike Path's, takes a name of any length
            raise UserError(f"{folder}: a saved run is a folder, and this is no folder; give another path")
        if not os.path.isdir(self.folder):
            if self.folder.name and os.path.isdir(unfinished(self.folder)):
                raise UserError(f"{folder}: this run is not finished; train it to its end with save_path={folder}")
            raise UserError(f"{folder}: there is no such saved run; train one with save_path={folder}")
        for name in ("config.yaml", "run.json", "labels.json"):
            if not (self.folder / name).is_file():
                raise UserError(f"{folder}: not a saved run, {name} is missing; expected a folder that a training run left")
        for path in map(str, self.folder.rglob("*")):
            if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # which is read without end
                raise UserError(f"{path}: a pipe or a device, expected files; do not use this run, or {AGAIN}")

    @property
    def config(self) -> dict[str, Any]:
        """Reads the resolved configuration. To be read and compared, never instantiated."""
        config, path = read_config(self.folder), self.folder / "config.yaml"
        for name, task in config["tasks"].items():
            json_object.shaped(path, config["tasks"], AGAIN, {name: json_object.KEYS}, "tasks.")
            json_object.shaped(path, task, AGAIN, {"head": json_object.KEYS}, f"tasks.{name}.")
        return config

    def configured(self, *keys: str) -> Any:
        """Gives what the configuration holds at a key below others. Raises UserError where it has none."""
        found: Any = self.config
        for place, key in enumerate(keys):
            if not isinstance(found, dict) or key not in found:
                raise UserError(f"{self.folder / 'config.yaml'}: has no {'.'.join(keys[: place + 1])}; {AGAIN}")
            found = found[key]
        return found

    @property
    def tested_in_int8(self) -> bool:
        """Tells whether results of it were made in int8, which no command that trains leaves."""
        return "int8" in self.record.get("tested_precision", {}).values()

    @property
    def record(self) -> dict[str, Any]:
        """Reads run.json: what was measured."""
        record = _record(self.folder, "method", "library", "encoder", "encoder_source")
        if record["library"] not in LIBRARIES:
            said = f"{self.folder / 'run.json'}: library is {record['library']!r:.60}"
            raise UserError(f"{said}, expected one of {', '.join(LIBRARIES)}; {AGAIN}")
        return record

    @property
    def hub(self) -> str | None:
        """Names the repository and commit that it was fetched from, where it is of the hub and no folder of the user's."""
        return self.record.get("hub")

    @property
    def labels(self) -> dict[str, LabelSpace]:
        """Reads the label space of every task whose head was trained."""
        path = self.folder / "labels.json"
        return {task: _space(path, task, content) for task, content in json_object.read(path, AGAIN).items()}

    @property
    def thresholds(self) -> dict[str, list[float]]:
        """Reads the scores from which each label is predicted, of the tasks that have some; none of a run from before."""
        path, labels = self.folder / "labels.json", self.labels
        found = {task: of["thresholds"] for task, of in json_object.read(path, AGAIN).items() if "thresholds" in of}
        for task, given in found.items():
            each = isinstance(given, list) and len(given) == len(labels[task])
            if not each or not all(isinstance(one, float) and 0 < one <= 1 for one in given):
                raise UserError(
                    f"{path}: the thresholds of task {task!r} are {given}, expected one above 0, up to 1, for each of "
                    f"{', '.join(labels[task].names)}; {AGAIN}"
                )
        return found

    @property
    def results(self) -> dict[str, float]:
        """The lines of results.csv, in their order; empty before any."""
        return read_results(self.folder)

    @property
    def rows(self) -> list[Row]:
        """The same as rows, without those of no task of this run; a label is told apart if it is one of the task's own."""
        labels, rows = self.labels, []
        for metric, value in self.results.items():
            if of := _stage_and_task(metric, labels):
                figure, _, end = metric.rpartition("__")
                behind = next((known for known in BEHIND if known == end), None)
                name = (metric if behind is None else figure).removeprefix(f"{of[0]}_{of[1]}_")
                ends = [label for label in labels[of[1]].names if name.endswith(f"_{label}")]
                label = max(ends, key=len, default=None)
                rows.append(Row(*of, name if label is None else name.removesuffix(f"_{label}"), label, value, behind))
        return rows

    def tensors(self, name: str) -> dict[str, "Tensor"]:
        """Reads the tensors of the safetensors file `name`, on the CPU.

        Raises UserError where it is missing, above all where only a pickle stands in its place, or is broken, or one holds
        what is no finite number.
        """
        from safetensors.torch import load_file  # and torch, which readers of results do without

        path = self.folder / name
        if not path.is_file():
            raise UserError(
                f"{self.folder} has no {name} (its method: {self.record['method']}); "
                f"load it with the method that fits, or {AGAIN}"
            )
        try:
            with path.open("rb"):  # safetensors takes what it may not read for what is not there
                tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise unreadable(path, error, AGAIN) from error
        for key, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"{path}: {key} holds what is no finite number: its training diverged; leave it out, or train the run "
                    f"again with a smaller optimization.encoder_lr and optimization.head_lr"
                )
        return tensors

    def digest(self) -> str:
        """Gives sixteen hex digits that change with any weight of the run."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.safetensors")):
            digest.update(path.relative_to(self.folder).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.yaml. Raises UserError where it is broken."""
    path = folder / "config.yaml"
    return json_object.shaped(path, json_object.read_yaml(path, AGAIN, "tasks"), AGAIN, CONFIG)


def _record(folder: Path, *keys: str) -> dict[str, Any]:
    path = folder / "run.json"
    record = json_object.shaped(path, json_object.read(path, AGAIN, *keys), AGAIN, RECORD)
    as_ledger(path, record.get("ledger") or {}, AGAIN, "ledger.")
    return record


def _space(path: Path, task: str, content: Any) -> LabelSpace:
    match content:
        case {"kind": str(kind), "names": [*names]} if all(isinstance(name, str) for name in names):
            with suppress(UserError):  # of another kind, or a label twice
                return LabelSpace(kind, tuple(names))  # type: ignore[arg-type]
    raise UserError(f"{path}: the labels of task {task!r} are {content!r:.80}, expected their kind and names; {AGAIN}")


def write_results(folder: Path, rows: Sequence[Row]) -> None:
    """Writes rows into the folder's results.csv, in place of all that it holds of these tasks at these stages."""
    labels = folder / "labels.json"
    known = {*(row.task for row in rows), *(json_object.read(labels, AGAIN) if labels.exists() else ())}
    anew = {(row.stage, row.task) for row in rows}
    lines = {name: value for name, value in read_results(folder).items() if _stage_and_task(name, known) not in anew}
    lines |= {row.metric: float(row.value) for row in rows}
    write_rows(folder / "results.csv", [{"metric": metric, "value": value} for metric, value in lines.items()])


def read_tables(folder: Path, names: Iterable[Any]) -> Tables:
    """Reads what evaluations of earlier tests listed, rows by the name of their file. Raises UserError where one is broken.

    names: as run.json has them, which may be another's: none may lead out of the folder.
    """
    found: dict[str, Any] = {}
    for name in names:
        if not isinstance(name, str) or TABLE.fullmatch(name) is None:
            said = f"{folder / 'run.json'}: tables holds {name!r:.60}"
            raise UserError(f"{said}, expected names of CSV files of the folder; do not use this run, or {AGAIN}")
        path = folder / name
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    found[name] = [{key: unguarded(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
                if not all(row.get("task") for row in found[name]):
                    raise ValueError("a row without its task")
            except (ValueError, TypeError, AttributeError, csv.Error) as error:
                raise UserError(f"{path}: expected a table with a column task ({error}); remove it") from None
    return found


def write_tables(folder: Path, tables: Tables, tasks: Iterable[str], before: Tables) -> list[str]:
    """Writes what evaluations list of these tasks, in place of what earlier tests did of them.

    tables, before: rows by the name of their file. Gives the files that are there now.
    """
    anew, there = {*tasks}, []
    for name in sorted({*tables, *before}):
        rows = [*(row for row in before.get(name, ()) if row["task"] not in anew), *tables.get(name, ())]
        if rows:
            columns = dict.fromkeys(column for row in rows for column in row)
            write_rows(folder / name, [{column: row.get(column, "") for column in columns} for row in rows])
            there.append(name)
        else:
            (folder / name).unlink(missing_ok=True)
    return there


def read_results(folder: Path) -> dict[str, float]:
    """Reads the lines of results.csv, none before any. Raises UserError where it is broken."""
    path = folder / "results.csv"
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames not in (None, ["metric", "value"]):
                raise ValueError(f"found {', '.join(rows.fieldnames)!r:.60}")
            return {unguarded(row["metric"]): float(row["value"]) for row in rows}
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path}: expected the columns metric and value, a number ({error}); remove it, or {AGAIN}"
        ) from None


def _stage_and_task(metric: str, tasks: Iterable[str]) -> tuple[Stage, str] | None:
    """Tells whose a line of results.csv is, by its name; of tasks whose names begin alike, the longer one's."""
    found = [(stage, task) for stage in STAGES for task in tasks if metric.startswith(f"{stage}_{task}_")]
    return max(found, key=lambda of: len(of[1]), default=None)


def write_labels(
    folder: Path, spaces: Mapping[str, LabelSpace], thresholds: Mapping[str, Sequence[float] | None] | None = None
) -> None:
    """Writes labels.json. thresholds: the scores from which each label is predicted, of the tasks that have some."""
    content: dict[str, Any] = {task: {"kind": space.kind, "names": list(space.names)} for task, space in spaces.items()}
    for task, of_labels in (thresholds or {}).items():
        content[task] |= {} if of_labels is None else {"thresholds": [*of_labels]}
    write_text(folder / "labels.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def lexicon_file(task: str) -> str:
    """Names the file in which a run keeps the word list of a task's head."""
    return f"lexicon_{task}.csv"


def read_record(folder: Path) -> dict[str, Any]:
    """Reads run.json; nothing where a test was sent to a folder of its own."""
    return _record(folder) if (folder / "run.json").exists() else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.json."""
    write_text(folder / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml."""
    write_text(folder / "config.yaml", json_object.as_yaml(config))


def unfinished(save_path: Path) -> Path:
    """Gives the folder in which a run for `save_path` lives until it is finished."""
    return save_path.with_name(f".{save_path.name}.unfinished")
