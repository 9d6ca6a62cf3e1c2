from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA
from laid_out import on_hub, tsv

from hatemtl.corpora.base import SPLITS, Posts
from hatemtl.corpora.glue import LAYOUTS, Glue
from hatemtl.errors import UserError

PARSES = ["promptID", "pairID", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
# The first line of the official files; CoLA's have none.
HEADERS: dict[str, list[str]] = {
    "sst2": ["sentence", "label"],
    "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "qqp": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "qnli": ["index", "question", "sentence", "label"],
    "rte": ["index", "sentence1", "sentence2", "label"],
    "wnli": ["index", "sentence1", "sentence2", "label"],
    "mnli": ["index", *PARSES, "sentence1", "sentence2", "label1", "gold_label"],
    "stsb": [
        *("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"),
        "score",
    ],
}
CODES: dict[str, Sequence[Any]] = {
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "stsb": (0.0, 2.6, 5.0),
}


def texts(task: str, name: str, n: int) -> list[tuple[str, ...]]:
    two = len(LAYOUTS[task].texts) == 2
    return [(f'the "soup {i} in {name}', f"a {name} soup, {i}")[: 1 + two] for i in range(n)]


def write(folder: Path, task: str, n: int = 60) -> Glue:
    """The official files: n training posts and 6 in each test file, labels in turns."""
    layout, codes = LAYOUTS[task], CODES.get(task, (0, 1))
    for name in layout.files:
        rows: list[list[Any]] = []
        for i, said in enumerate(texts(task, Path(name).stem, n if name == next(iter(layout.files)) else 6)):
            code = codes[i % len(codes)]
            if task == "cola":
                rows.append(["gj04", code, "" if code else "*", *said])
                continue
            given = dict(zip(layout.texts, said, strict=True)) | {layout.label: code}
            rows.append([given.get(column, f"{column} {i}") for column in HEADERS[task]])
        header = [] if task == "cola" else [HEADERS[task]]
        tsv(folder / layout.folder / name, [*header, *rows], mark="\ufeff" if task == "mrpc" else "")
    return Glue(dir=str(folder), task=task, validation=0.1)


def write_hub(cache: Path, task: str, n: int = 60) -> None:
    """The same posts on the hub; MRPC's training posts in two splits."""
    layout = LAYOUTS[task]
    columns, splits = layout.hub or layout.texts, {}
    own = [split for split in layout.splits if (task, split) != ("mrpc", "validation")]
    for split, name in zip(own, layout.files, strict=True):
        count = 3 if task == "stsb" else len(layout.names)
        rows = []
        for i, said in enumerate(texts(task, Path(name).stem, n if split == "train" else 6)):
            label = CODES[task][i % count] if task == "stsb" else i % count
            rows.append(dict(zip(columns, said, strict=True)) | {"label": label, "idx": i})
        splits[split] = rows
    if task == "mrpc":
        splits["train"], splits["validation"] = splits["train"][:-5], splits["train"][-5:]
    on_hub(cache, "nyu-mll/glue", task, splits)


@pytest.mark.parametrize("task", LAYOUTS)
def test_official_files_and_hub_say_the_same(tmp_path: Path, hub: Path, task: str) -> None:
    posts = write(tmp_path / "glue", task).load()
    layout, tests = LAYOUTS[task], 6 * (len(LAYOUTS[task].files) - 1)
    assert len(posts) == 60 + tests
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [54, 6, tests]
    assert posts.texts[0].startswith('the "soup 0 in')  # a quote is a quote
    assert (posts.pairs is None) == (len(layout.texts) == 1)
    label = posts.columns["label"]
    assert label.space.names == layout.names and label.has.all()
    if task == "stsb":
        assert label.space.kind == "score" and label.values[:3].tolist() == pytest.approx([0, 2.6, 5])
    else:
        assert label.space.kind == "multiclass"
        assert label.values[:4].tolist() == [i % len(layout.names) for i in range(4)]
    write_hub(hub, task)
    from_hub = Glue(dir=str(tmp_path / "nothing"), task=task, validation=0.1).load()
    if task == "mrpc":  # its training posts have other ids there, but validate as they do here
        assert dict(zip(from_hub.texts, from_hub.splits, strict=True)) == dict(zip(posts.texts, posts.splits, strict=True))
    else:
        assert from_hub.fingerprint() == posts.fingerprint()


def test_ids_tell_the_file(tmp_path: Path) -> None:
    posts = write(tmp_path, "mrpc", n=10).load()
    assert posts.ids[0] == "train-0" and posts.ids[-1] == "msr_paraphrase_test-5"
    assert posts.pairs is not None and posts.pairs[0] == ("a msr_paraphrase_train soup, 0",)


def test_mnli_has_a_column_of_either_kind_of_test_posts(tmp_path: Path) -> None:
    posts = write(tmp_path, "mnli").load()
    test = posts.splits == "test"
    matched, mismatched = posts.columns["matched"].has, posts.columns["mismatched"].has
    assert matched[~test].all() and mismatched[~test].all()
    assert matched[test].sum() == mismatched[test].sum() == 6
    assert not (matched & mismatched & test).any()


def test_torn_and_empty_training_rows_of_qqp_are_left_out(tmp_path: Path) -> None:
    corpus = write(tmp_path, "qqp", n=20)
    path = tmp_path / "QQP" / "train.tsv"
    torn = "9\t1\t2\twhat is a\n soup?\twhat is soup?\t1\n10\t3\t4\twhat is cake?\t\t0\n"
    path.write_text(path.read_text() + torn)
    assert len(corpus.load()) == 26
    path = tmp_path / "QQP" / "dev.tsv"
    path.write_text(path.read_text() + torn)
    with pytest.raises(UserError, match=r"dev.tsv, line 8: 4 cells, expected 6 .*; download dev.tsv again"):
        corpus.load()


def test_the_splits_are_drawn_by_the_corpus_own_seed(tmp_path: Path) -> None:
    write(tmp_path, "cola", n=200)
    drawn = [Glue(dir=str(tmp_path), task="cola", validation=0.1, seed=seed).load().splits for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("gj04\t2\t\ta cake\n", r"train.tsv, line 1, column 'label': '2', expected one of unacceptable, acceptable"),
        ("gj04\t1\t\t \n", r"train.tsv, line 1, column 'sentence': ' ', expected a text"),
        ("gj04\t1\ta cake\n", r"train.tsv, line 1: 3 cells, expected 4"),
        ("", r"train.tsv: holds no rows"),
    ],
)
def test_a_damaged_file_is_named_with_the_line_and_the_way_out(tmp_path: Path, damage: str, expected: str) -> None:
    corpus = write(tmp_path, "cola")
    (tmp_path / "CoLA" / "train.tsv").write_text(damage)
    with pytest.raises(UserError, match=f"{expected}.*; download train.tsv again from gluebenchmark.com"):
        corpus.load()


def test_a_missing_file_is_named(tmp_path: Path, hub: Path) -> None:
    corpus = write(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_matched.tsv").unlink()
    with pytest.raises(UserError, match="has no MNLI/dev_matched.tsv, but needs MNLI/train.tsv"):
        corpus.load()
    with pytest.raises(UserError, match=r"nyu-mll/glue.*data.dir=FOLDER with nothing/CoLA/train.tsv in it"):
        Glue(dir=str(tmp_path / "nothing"), task="cola", validation=0.1).load()


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="validation=1"):
        Glue(dir=".", task="cola", validation=1)


def real(task: str) -> Posts:
    layout = LAYOUTS[task]
    if not (DATA / "glue" / layout.folder / next(iter(layout.files))).is_file():
        pytest.skip(f"no {layout.folder} in {DATA}")
    return Glue(dir=str(DATA / "glue"), task=task, validation=0.1).load()


@pytest.mark.parametrize(
    ("task", "train", "test", "positive"),
    [("cola", 8551, 1043, 721), ("sst2", 67349, 872, 444), ("mrpc", 4076, 1725, 1147)],
)
def test_the_real_files_have_their_published_sizes(task: str, train: int, test: int, positive: int) -> None:
    posts = real(task)
    sizes = {split: int((posts.splits == split).sum()) for split in SPLITS}
    assert sizes["train"] + sizes["val"] == train and sizes["test"] == test
    assert sizes["val"] == pytest.approx(train / 10, rel=0.01)
    assert posts.columns["label"].values[posts.splits == "test"].sum() == positive
