"""What is done with a saved run: it is tested, scores the user's posts, or is exported."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.tokenized_posts import Pool, loader
from hatemtl.command import console as report
from hatemtl.command.configuration import build, cache_of, data_of, evaluator, knowing, network_of, saved_run, tasks_of
from hatemtl.command.console import Console
from hatemtl.encoders.pretrained import vocabulary
from hatemtl.errors import UserError
from hatemtl.methods.bank.source_weights import watched
from hatemtl.network.assembly import Network, check_tokenizer
from hatemtl.network.initial_heads import check_heads
from hatemtl.saved_runs import saved_run as artifacts
from hatemtl.saved_runs.claiming import TESTED, held
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import export


def test(cfg: DictConfig) -> None:
    """Tests a saved run: `test_*` rows and predictions go beside its weights, or to save_path where one is given."""
    console, saved, tasks = Console(), saved_run(cfg), tasks_of(cfg)
    folder = Path(cfg.save_path or saved.folder)
    if (folder / "config.yaml").exists() and folder.resolve() != saved.folder.resolve():
        raise UserError(f"save_path={folder} holds another saved run, whose results would be lost; give another")
    check_heads(saved, tasks)
    with held(folder, TESTED):  # what is refused is refused before anything is computed
        before = _trained(saved)
    tasks = knowing(tasks, saved)
    for name, task in tasks.items():
        trained = saved.config["tasks"][name]["corpus"]["_target_"]
        if trained != cfg.tasks[name].corpus._target_ and cfg.save_path is None:
            raise UserError(
                f"{saved.folder} was trained on {trained} and would be tested on {type(task.corpus).__name__}; type the "
                f"corpus@tasks.{name}.corpus=NAME that it was trained on, or save_path=FOLDER to keep the results apart"
            )
    data = data_of(cfg, tasks)
    data.check_split("test")
    network = network_of(cfg, tasks, data.spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
    network.module.requires_grad_(False)
    tokenizer = network.encoder.tokenizer()
    check_tokenizer(saved, vocabulary(tokenizer))
    data.tokenize(tokenizer, network.encoder.max_length, cache_of(cfg))
    report.network(console, network.parts())
    rows = evaluate(cfg, network, data, folder, writing=partial(_writing, saved, before, folder))
    report.results(console, rows, f"{folder}: test split")


@contextmanager
def _writing(saved: SavedRun, before: dict[str, Any], folder: Path) -> Iterator[None]:
    """Keeps others from where a test's results are written. Raises UserError where the run is no more that of `before`."""
    with held(folder, TESTED):
        if _trained(saved) != before:
            raise UserError(f"{saved.folder} was trained anew while it was tested; type the same again")
        yield


def _trained(saved: SavedRun) -> dict[str, Any]:
    """run.json as training left it: no two trainings leave the same."""
    return {key: value for key, value in saved.record.items() if key != "tested_data"}


def predict(cfg: DictConfig) -> None:
    """Scores the posts of the user's own file with a saved run."""
    from hatemtl.using import predictions as outcome  # and pandas, which training does without
    from hatemtl.using import scored_file

    given = cfg.predict
    if given.input is None:
        raise UserError("action=predict needs a file of posts; type predict.input=posts.csv")
    console, source, text = Console(), Path(given.input), str(given.text)
    cells = {"delimiter": given.delimiter, "encoding": given.encoding}
    rows = scored_file.read(source, text, **cells)
    target = scored_file.output_for(source, given.output, delimiter=given.delimiter, overwrite=cfg.overwrite)
    texts = scored_file.as_posts(rows, text)
    saved, tasks = saved_run(cfg), tasks_of(cfg)
    check_heads(saved, tasks)
    spaces = {task: saved.labels[task] for task in tasks}
    outcome.check_predictable(spaces)
    names = [f"pred_{task}_{label}" for task, space in spaces.items() for label in space.names]
    scored_file.check_writable(rows, names, target, **cells)
    network = network_of(cfg, tasks, spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
    network.module.requires_grad_(False)
    report.network(console, network.parts())
    pool = Pool(network.encoder.tokenizer(), network.encoder.max_length, [texts])
    posts = loader(pool, build(cfg.batching).in_order(pool.lengths), cfg.data.workers)
    batches: Any = evaluator(cfg, target.parent).predict(network.module, posts)
    scored_file.write_scored(rows, outcome.score_columns(network.module, pool, batches), target, **cells)
    console.print(f"{len(pool)} posts scored: {target}", soft_wrap=True)


def export_run(cfg: DictConfig) -> None:
    """Writes a saved run in the format of another program."""
    if cfg.load_path is None:
        raise UserError("action=export needs the saved run to export; type load_path=FOLDER")
    encoder, saved, way = build(cfg.encoder), SavedRun(cfg.load_path), {"seed": cfg.seed, "overwrite": cfg.overwrite}
    form, folder = export.check(cfg.export.format, cfg.export.path, encoder, saved.folder, overwrite=cfg.overwrite)
    if form == "onnx":
        saved, tasks = saved_run(cfg), tasks_of(cfg)
        check_heads(saved, tasks)
        spaces = {task: saved.labels[task] for task in tasks}
        network = network_of(cfg, tasks, spaces, build(cfg.method), build(cfg.optimization), saved.folder.name)
        export.onnx(saved, encoder, {task: network.module.head(task) for task in tasks}, folder, **way)
    elif form == "merged":
        export.transformer(saved, encoder, folder, **way)
    else:
        export.adapter(saved, encoder, form, folder, **way)
    Console().print(f"{saved.folder} exported as {form}: {folder}", soft_wrap=True)


def evaluate(
    cfg: DictConfig,
    network: Network,
    data: DataModule,
    folder: Path,
    *,
    writing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """Evaluates on the test split; rows and predictions of other tasks that the folder holds stay.

    writing: held while the folder is read and written.
    """
    import pandas as pd

    from hatemtl.using import predictions as outcome

    with watched(network.module) as answers:
        evaluator(cfg, folder).test(network.module, data, verbose=False)
    tasks, path = list(network.module.heads), folder / "predictions.parquet"
    frame = outcome.predictions(network.module, data.pool)
    with writing():
        answers.write(folder / "fusion.csv")
        if path.exists():
            before = pd.read_parquet(path)
            frame = pd.concat([before[~before["task"].isin(tasks)], frame], ignore_index=True)
        artifacts.write_results(folder, network.module.rows, "test", tasks)
        artifacts.write(path, lambda temporary: frame.to_parquet(temporary, index=False))
        record = artifacts.read_record(folder)
        tested = {**record.get("tested_data", {}), **data.fingerprints()}
        artifacts.write_record(folder, {**record, "tested_data": tested})
    return network.module.rows
