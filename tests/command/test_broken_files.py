"""Each file that a command reads, broken in each way: one message that names it, exit 2, and nothing written or changed."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broken import BREAKS, advises, as_anybody, contents, forbidden, helps
from conftest import ADAPTER, Outcome
from every_file import SAMPLE, laid_out
from tiers import tier


@dataclass(frozen=True)
class Read:
    """A file, the command that reads it, and the ways of being broken that it is none the worse for."""

    file: str
    words: Sequence[str]
    well: tuple[str, ...] = ()


# A file that ends earlier may be a whole one: of lines, or where what is missing is not read.
CUT, MAY_BE_ABSENT = ("cut",), ("absent", "a folder", "a loop", "dangling")
LINES = ("NUL", "a list", "a number", "nested")  # one of any text
USE, OUT = ["load_path=DIR/run", "data.cache=null"], "save_path=DIR/out"
RUN = ["run.json", ADAPTER, "adapter/adapter_config.json", "config.yaml"]
HEADS = ["labels.json", "heads.safetensors"]
PREDICT, TEST = ["action=predict", *USE, "predict.output=DIR/out.csv"], ["action=test", *USE]
EXPORT = ["action=export", "export.format=peft", "export.path=DIR/out", *USE]
PUBLISH = ["action=publish", "publish.folder=DIR/out", *USE]
MERGE = [*SAMPLE, "method=ah_merge16", "method.sources=DIR/ru*", OUT]
ENCODER = [*SAMPLE, "encoder.random=null", "encoder.source=DIR/encoder", "encoder.max_length=64", OUT]
TABLE = ["tasks=[table]", "encoder=tiny", "tasks.table.column=mood", OUT]
CORPORA = {
    "label": "hatexplain/dataset.json",
    "target": "hatexplain/post_id_divisions.json",
    "davidson": "davidson/labeled_data.csv",
    "ethos": "ethos/Ethos_Dataset_Binary.csv",
    "ethos_label": "ethos/Ethos_Dataset_Multi_Label.csv",
    "hateval": "hateval/hateval2019_en_dev.csv",
    "terra": "russian_superglue/TERRa/train.jsonl",
    "cola": "glue/CoLA/train.tsv",
}
READ = [
    *(Read(f"run/{file}", [*PREDICT, "predict.input=DIR/posts.csv"]) for file in (*RUN, *HEADS)),
    *(Read(f"run/{file}", TEST) for file in (*RUN, *HEADS)),
    Read("run/results.csv", TEST, (*MAY_BE_ABSENT, "empty", "cut")),
    Read("run/predictions.parquet", TEST, MAY_BE_ABSENT),
    *(Read(f"run/{file}", EXPORT, CUT if file == "config.yaml" else ()) for file in RUN),
    *(Read(f"run/{file}", MERGE, CUT if file == "config.yaml" else ()) for file in RUN),
    *(Read(f"run/{file}", PUBLISH) for file in ("results.csv", "predictions.parquet", "heads.safetensors")),
    Read("verdicts.json", [*PUBLISH, "publish.verdicts=DIR/verdicts.json"]),
    *(Read(f"encoder/{file}", ENCODER) for file in ("config.json", "model.safetensors", "tokenizer.json")),
    Read("encoder/tokenizer_config.json", ENCODER, MAY_BE_ABSENT),
    *(Read(f"posts.{end}", [*PREDICT, f"predict.input=DIR/posts.{end}"], CUT) for end in ("csv", "tsv")),
    Read("posts.txt", [*PREDICT, "predict.input=DIR/posts.txt"], (*CUT, *LINES)),
    *(Read(f"posts.{end}", [*PREDICT, f"predict.input=DIR/posts.{end}"]) for end in ("jsonl", "parquet")),
    *(Read(f"posts.{end}", [*TABLE, f"tasks.table.corpus.path=DIR/posts.{end}"], CUT) for end in ("csv", "tsv")),
    *(Read(f"posts.{end}", [*TABLE, f"tasks.table.corpus.path=DIR/posts.{end}"]) for end in ("jsonl", "parquet")),
    Read("three/train.csv", [*TABLE, "tasks.table.corpus.path=DIR/three"], (*CUT, "absent")),
    Read("words.txt", [*SAMPLE, "tasks.label.head.lexicon=DIR/words.txt", OUT], (*CUT, *LINES)),
    *(Read(f"words.{end}", [*SAMPLE, f"tasks.label.head.lexicon=DIR/words.{end}", OUT]) for end in ("csv", "tsv")),
    Read("questions.json", ["tasks=[squad]", "encoder=tiny", "tasks.squad.corpus.path=DIR/questions.json", OUT]),
    *(
        Read(
            f"data/{file}",
            [f"tasks=[{task}]", "encoder=tiny", "data.dir=DIR/data", OUT],
            CUT if file.endswith(("csv", "tsv")) else (),
        )
        for task, file in CORPORA.items()
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    laid_out(at := tmp_path_factory.mktemp("whole"))
    return at


def cases() -> Iterator[Any]:
    for read in READ:
        binary = read.file.endswith((".parquet", ".safetensors"))
        for way in BREAKS:
            if way not in read.well and not (binary and way == "utf-16"):
                name = f"{way} {read.file} {read.words[0]}"
                yield pytest.param(read, way, id=name, marks=tier(name, fast=40))


@pytest.mark.parametrize(("read", "way"), [*cases()])
def test_a_broken_file(cli: Callable[..., Outcome], whole: Path, tmp_path: Path, read: Read, way: str) -> None:
    shutil.copytree(whole, at := tmp_path / "at")
    BREAKS[way](at / read.file)
    before = contents(at)
    with as_anybody():
        outcome = cli(*(word.replace("DIR", str(at)) for word in read.words))
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("error: ") == 1
    assert Path(read.file).name in outcome.err or f"{at / read.file}".rpartition("/")[0] in outcome.err
    assert helps(way, outcome.err) and advises(outcome.err), outcome.err
    assert contents(at) == before


# Folders that nobody may enter (of `kept`: write to) and commands that read or write in them.
FOLDERS = [
    *(("run", words) for words in ([*PREDICT, "predict.input=DIR/posts.csv"], TEST, EXPORT, PUBLISH, MERGE)),
    *(("run/adapter", words) for words in ([*PREDICT, "predict.input=DIR/posts.csv"], MERGE)),
    ("run", ["action=serve", *USE]),
    ("encoder", ENCODER),
    ("three", [*TABLE, "tasks.table.corpus.path=DIR/three"]),
    ("data", ["tasks=[label]", "encoder=tiny", "data.dir=DIR/data", OUT]),
    *((folder, [*SAMPLE, f"save_path=DIR/{folder}{end}"]) for folder in ("shut", "kept") for end in ("/run", "/a/run")),
    *((folder, ["-m", "seed=1,2", *SAMPLE, f"save_path=DIR/{folder}/run"]) for folder in ("shut", "kept")),
    *(
        (folder, [*PREDICT[:-1], "predict.input=DIR/posts.csv", f"predict.output=DIR/{folder}/x.csv"])
        for folder in ("shut", "kept")
    ),
    ("shut", [*SAMPLE, "save_path=DIR/shut"]),
    ("shut", [*TEST, "save_path=DIR/shut"]),
    ("shut", ["action=tune", *SAMPLE, "tune.space={method.rank:[4,8]}", "tune.trials=2", "save_path=DIR/shut/study"]),
    *(("shut", [f"action={action}", "save_path=DIR/shut/run"]) for action in ("status", "collect")),
    *(("shut", [*EXPORT[:2], f"export.path=DIR/shut{end}", *USE]) for end in ("", "/out")),
    *(("shut", ["action=publish", f"publish.folder=DIR/shut{end}", *USE]) for end in ("", "/out")),
    ("shut", ["action=predict", *USE, "predict.input=DIR/shut/posts.csv"]),
    ("shut", [*TABLE, "tasks.table.corpus.path=DIR/shut/posts.csv"]),
    ("shut", [*SAMPLE, "tasks.label.head.lexicon=DIR/shut/words.txt", OUT]),
]


def closed() -> Iterator[Any]:
    for folder, words in FOLDERS:
        name = f"{folder} {' '.join(words)}"
        yield pytest.param(folder, words, id=name, marks=tier(name, fast=8))


@pytest.mark.parametrize(("folder", "words"), [*closed()])
def test_a_folder_that_is_closed(
    cli: Callable[..., Outcome], whole: Path, tmp_path: Path, folder: str, words: list[str]
) -> None:
    shutil.copytree(whole, at := tmp_path / "at")
    for name in ("shut", "kept"):
        (at / name).mkdir()
    before = contents(at)
    forbidden(at / folder, but=0o500 if folder == "kept" else 0)
    with as_anybody():
        outcome = cli(*(word.replace("DIR", str(at)) for word in words))
    (at / folder).chmod(0o700)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("error: ") == 1
    assert f"{at / folder}" in outcome.err and "Permission denied" in outcome.err
    assert advises(outcome.err), outcome.err
    assert contents(at) == before
