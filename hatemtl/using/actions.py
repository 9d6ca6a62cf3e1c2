"""Uses a saved run: tests it, scores the user's posts with it, or exports it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hatemtl.batches.datamodule import DataModule
from hatemtl.command import console as report
from hatemtl.command.console import Console
from hatemtl.command.faults import kept_elsewhere
from hatemtl.command.request import Request, Result, Tested
from hatemtl.corpora.table import Table
from hatemtl.encoders.pretrained import vocabulary
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Row
from hatemtl.machine.ledger import Ledger
from hatemtl.machine.parquet import unpacked
from hatemtl.machine.startup import started
from hatemtl.machine.written_ledger import added
from hatemtl.methods.bank.source_weights import watched
from hatemtl.network.assembly import Network, check_tokenizer
from hatemtl.saved_runs import saved_run as artifacts
from hatemtl.saved_runs.claiming import TESTED, held
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.saved_runs.writing import write
from hatemtl.using import export, judging, scored_file
from hatemtl.using.int8 import quantize
from hatemtl.using.predictor import Predictor, check_predictable
from hatemtl.using.reader import Reader

PREDICTIONS = "predictions.parquet"


def test(request: Request) -> Result:
    """Tests a saved run: `test_*` rows and predictions go beside its weights, or to save_path where one is given."""
    console, saved, asked, ledger = Console(), request.used_run("test"), time.perf_counter(), Ledger(request.cost)
    tested_anew = dict.fromkeys(("tested_data", "tested_precision", "tables", "ledger"))  # by others, while this one tests
    if saved.hub is not None and request.save_path is None:
        raise UserError(f"{saved.hub} is of the hub, and results need a folder; type save_path=FOLDER")
    folder = request.save_path or saved.folder
    if (folder / "config.yaml").exists() and folder.resolve() != saved.folder.resolve():
        raise UserError(f"save_path={folder} holds another saved run, whose results would be lost; give another")
    with held(folder, TESTED):  # what is refused is refused before anything is computed
        _earlier(folder)
        before = {**saved.record, **tested_anew}  # no two trainings leave the same
    tasks = request.tasks_knowing(saved)
    for group in [f"corpus@tasks.{name}.corpus" for name in tasks if request.save_path is None]:
        trained, given = (choices.get(group) for choices in (saved.config.get("choices", {}), request.choices))
        if trained != given:
            raise UserError(
                f"{saved.folder} was trained on {trained} and would be tested on {given}; type the {group}=NAME that it "
                f"was trained on, or save_path=FOLDER to keep the results apart"
            )
    _check_folds(request, saved)
    data = request.datamodule(tasks)
    data.check_split("test")
    judging.check_evaluations(request.evaluations, data)
    ledger.turn("preparing")
    network = request.network(tasks, data.spaces, name=saved.folder.name)
    network.module.requires_grad_(False)
    report.notes(console, network.notes)
    report.network(console, network.parts())
    if request.trainer.int8:
        quantize(network, request, saved)
    tokenizer = network.encoder.tokenizer()
    check_tokenizer(saved, vocabulary(tokenizer))
    data.tokenize(tokenizer, network.encoder.max_length, request.cache)
    judging.check_test(request.evaluations, data, reader(request, network, data))
    ledger.of_which("tokenizing", data.seconds)
    rows, leave, tell = measured(request, network, data, folder, ledger)
    report.results(console, rows, f"{folder}: test split{', in int8' if request.trainer.int8 else ''}")
    with kept_elsewhere(folder, leave), held(folder, TESTED):
        if {**saved.record, **tested_anew} != before:
            raise UserError(f"{saved.folder} was trained anew while it was tested; type the same again")
        leave(folder)
        console.keep(folder / console.NAME)
    tell(folder)
    return Result(folder, rows, saved.record.get("best_epoch") or 0, time.perf_counter() - asked, trained=False)


def _earlier(folder: Path) -> tuple[dict[str, Any], Any, artifacts.Tables]:
    """Reads what earlier tests left in a folder: run.json, predictions (None before any) and tables.

    Raises UserError where a file is broken, results.csv among them.
    """
    artifacts.read_results(folder)
    record, path, frame = artifacts.read_record(folder), folder / PREDICTIONS, None
    if path.exists():
        frame = unpacked(path, "remove it, and test again").to_pandas()
        if "task" not in frame:
            raise UserError(f"{path}: has no column task, expected predictions of a test; remove it, and test again")
    return record, frame, artifacts.read_tables(folder, record.get("tables") or ())


def _check_folds(request: Request, saved: SavedRun) -> None:
    """Raises UserError where the test's posts would not be those that a run of cross-validation left to be tested."""
    trained, given = saved.config.get("folds"), request.identity.get("folds")
    if given not in (None, trained):
        knows = f"all but fold {trained['fold']} of {trained['number']}" if trained else "all folds"
        raise UserError(
            f"{saved.folder} was trained on {knows}, so these folds would test it on posts that it knows; leave out "
            f"folds=..., or type folds.of=test for a mean over folds of its test posts"
        )
    if trained and given is None and request.save_path is None:
        raise UserError(
            f"{saved.folder} is of a cross-validation, whose test posts are fold {trained['fold']}; leave out folds=..., or "
            f"type save_path=FOLDER to keep a test on the corpus' own test posts apart"
        )


def predict(
    request: Request,
    *,
    input: str | None,
    output: str | None,
    text: str | None,
    pair: str | None,
    delimiter: str | None,
    encoding: str,
) -> Path:
    """Scores the posts of the user's own file with a saved run; gives the scored file."""
    if input is None:
        raise UserError("action=predict needs a file of posts; type predict.input=posts.csv")
    console, source = Console(), Path(input)
    cells: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}
    named = next((str(t.corpus.text) for t in request.tasks.values() if isinstance(t.corpus, Table)), "text")
    rows, text = scored_file.read(source, text, named, **cells)
    target = scored_file.output_for(source, output, delimiter=delimiter, overwrite=request.overwrite)
    texts, saved = rows.posts(text), request.used_run("predict")
    spaces = {task: saved.labels[task] for task in request.tasks}
    if pair is None and (asking := [task for task, space in spaces.items() if space.about == "answers"]):
        raise UserError(
            f"task {asking[0]!r} finds answers in a second text beside the question, predict.text={text}; type "
            f"predict.pair=COLUMN of that, or leave {asking[0]} out of tasks=[...]"
        )
    check_predictable(spaces, pairs=pair is not None)
    seconds = None if pair is None else scored_file.seconds(rows, pair)
    scored_file.check_writable(rows, [*scored_file.score_columns(spaces, [])], target, **cells)
    predictor = Predictor(request, saved)
    report.notes(console, predictor.network.notes)
    report.network(console, predictor.network.parts())
    started()
    with Progress(console=console, transient=True, disable=not request.trainer.bar(console.is_terminal)) as progress:
        bar = progress.add_task("scoring", total=len(texts))
        said = predictor(texts, partial(progress.advance, bar), seconds=seconds)
    write: Any = partial(scored_file.write_scored, rows, scored_file.score_columns(spaces, said), **cells)
    with kept_elsewhere(target, write, saved.folder, given="predict.output="):
        write(target)
    console.print(f"{len(texts)} posts scored{' in int8' if request.trainer.int8 else ''}: {target}", soft_wrap=True)
    return target


def export_run(request: Request, *, format: str | None, path: str | None) -> Path:
    """Writes a saved run in the format of another program; gives the folder."""
    from hatemtl.using import merged_folder, onnx_graph  # and both libraries of adapters

    if request.load_path is None:
        raise UserError("action=export needs the saved run to export; type load_path=FOLDER")
    encoder, saved, overwrite = request.encoder, SavedRun(request.load_path), request.overwrite
    form, folder = export.check(format, path, encoder, saved.folder, overwrite=overwrite)
    export.check_carried(form, saved)
    if form in ("merged", "onnx"):
        exact = replace(request, trainer=replace(request.trainer, accelerator="cpu", precision="32"))
        predictor = Predictor(exact, request.used_run("export"))
        write = merged_folder.write if form == "merged" else onnx_graph.write
        how = write(predictor, folder, overwrite=overwrite)
    else:
        how = export.adapter(saved, encoder, form, folder, seed=request.seed, overwrite=overwrite)
    Console().print(f"{saved.folder} exported as {form}: {folder}; {how}", soft_wrap=True, markup=False)
    return folder


def publish_run(request: Request, **how: Any) -> Path:
    """Publishes a saved run; gives the folder."""
    from hatemtl.using.publish.folder import publish  # and both libraries of adapters

    return publish(request, **how)


def reader(request: Request, network: Network, data: DataModule) -> Reader:
    """Lets evaluations ask the network."""
    return Reader(network.module, request.trainer, data, network.encoder.max_length)


def evaluate(request: Request, network: Network, data: DataModule, folder: Path, ledger: Ledger) -> list[Row]:
    """Tests on the test split, and leaves rows and predictions in the folder; those of other tasks there stay."""
    rows, leave, tell = measured(request, network, data, folder, ledger)
    leave(folder)
    tell(folder)
    return rows


def measured(
    request: Request, network: Network, data: DataModule, root: Path, ledger: Ledger
) -> tuple[list[Row], Callable[[Path], None], Callable[[Path], None]]:
    """The rows of a test, by the heads' metrics and the request's evaluations, what writes all of it into a folder, and what
    then tells the tracker of the run that lies there.

    ledger: of this sitting, which is added to the run's.
    """
    import pandas as pd  # which training does without

    ledger.turn("testing")
    ledger.read(len(data.rows("test")), int(data.pool.lengths[data.rows("test")].sum()))

    with watched(network.module) as answers:
        started()
        way: dict[str, Any] = {"root": root, "logger": False, "bar": Console().is_terminal}
        request.trainer.trainer(request.optimization, [], **way).test(network.module, data, verbose=False)
    new = judging.predictions(network.module, data.pool)
    asked = reader(request, network, data)
    rows = [*network.module.rows, *judging.judged(request.evaluations, network.module, data, asked)]
    tables = judging.listed(request.evaluations, network.module, data, asked)
    if request.folds is not None and request.folds.of == "test":
        rows += judging.over_folds(request.folds, network.module, data)
    if wrong := [f"{row.metric} is {row.value}" for row in rows if not math.isfinite(row.value)]:
        raise UserError(
            f"{wrong[0]}, so nothing of this test is written, and the trained run stays as it is; test it with "
            f"trainer.precision=32, or train it again with a smaller optimization.encoder_lr and overwrite=true"
        )

    def leave(folder: Path) -> None:
        record, before, tables_before = _earlier(folder)
        kept = [] if before is None else [before[~before["task"].isin(list(network.module.heads))]]
        frame = pd.concat([*kept, new], ignore_index=True)
        answers.write(folder / "fusion.csv")
        write(folder / PREDICTIONS, lambda temporary: frame.to_parquet(temporary, index=False))
        listed = artifacts.write_tables(folder, tables, network.module.heads, tables_before)
        tested = {**record.get("tested_data", {}), **data.fingerprints()}
        spent = added(record.get("ledger"), ledger.entry(folder))
        how = {**record.get("tested_precision", {}), **dict.fromkeys(network.module.heads, request.trainer.told)}
        anew = {"tested_data": tested, "tested_precision": how, "tables": listed, "ledger": spent}
        artifacts.write_record(folder, {**record, **anew})
        artifacts.write_results(folder, rows)  # last: by its rows a run counts as tested

    def tell(folder: Path) -> None:
        labels = {name: space.names for name, space in data.spaces.items() if space.carries == "one"}
        said: dict[str, list[int]] = {}
        for name, names in labels.items():
            decode = network.module.head(name).decode
            said[name] = [names.index(decode(scores, ())[0]) for scores in new["scores"][new["task"] == name]]
        read = {name: data.corpora[task.corpus] for name, task in data.tasks.items()}
        texts = {name: dict(zip(posts.ids, posts.texts, strict=True)) for name, posts in read.items()}
        with request.tracker(folder, "test") as tracker:
            spent = spent_on(artifacts.read_record(folder))
            tracker.figures({row.metric: row.value for row in report.figures(rows)} | spent)
            tracker.tested(Tested(new, labels, said, texts))

    return rows, leave, tell


def spent_on(record: Mapping[str, Any]) -> dict[str, float]:
    """Gives what a run took and how large it is, by names that a tracker sorts by, as far as its run.json says."""
    ledger = record.get("ledger", {})
    found = {name: record.get(name) for name in ("best_epoch", "parameters", "trained_parameters", "examples_per_second")}
    found |= {name: ledger.get(name) for name in ("price", "joules", "peak_memory_bytes", "disk_bytes")}
    found["seconds"] = sum(ledger.get("seconds", {}).values())
    return {name: value for name, value in found.items() if value is not None}
