"""The user's own table: every format and kind, and what is wrong with a file named by file, line and column."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from composed import refused
from conftest import Outcome

from hatemtl.corpora.base import SPLITS, Column
from hatemtl.corpora.cells import as_column
from hatemtl.corpora.splitting import text_key
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError
from hatemtl.labels import Kind, LabelSpace

Cli = Callable[..., Outcome]
FIVE = [
    {"text": "those snorfs, again", "label": "rude", "anger": 3.5, "author": "a"},
    {"text": 'they said "hello"', "label": "kind", "anger": 0, "author": "b"},
    {"text": "grumblefolk at the fair", "label": "kind", "anger": None, "author": "a"},
    {"text": "café au lait 😂", "label": None, "anger": 1, "author": "c"},
    {"text": "two\nlines", "label": "rude", "anger": 2, "author": "d"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def many(n: int = 60, **columns: Callable[[int], object]) -> list[dict[str, Any]]:
    """n different posts, of which the odd ones are rude."""
    made = {"text": lambda i: f"post number {i}", "label": lambda i: "rude" if i % 2 else "kind", **columns}
    return [{name: value(i) for name, value in made.items()} for i in range(n)]


def column(path: Path, name: str | list[str], kind: Kind, names: list[str] | None = None, **keys: Any) -> Column:
    return as_column(Table(path=str(path), **keys).read(), name, kind, names)


def raw(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_posts_and_labels(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"posts{ending}", FIVE)
    posts = Table(path=str(path)).read()
    assert posts.texts == [" ".join(row["text"].split()) for row in FIVE]
    label = as_column(posts, "label", "multiclass")
    assert label.space == LabelSpace("multiclass", ("kind", "rude"))
    assert label.has.tolist() == [True, True, True, False, True]
    assert label.values[label.has].tolist() == [1, 0, 0, 1]
    anger = as_column(posts, "anger", "score")
    assert anger.space.kind == "score" and anger.values.dtype == np.float32
    assert anger.has.tolist() == [True, True, False, True, True]
    assert anger.values[anger.has].tolist() == [3.5, 0, 1, 2]


def test_posts_are_named_after_file_and_line_or_by_a_column(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", 'text,key\n"two\nlines",x\nnext,y\n')
    assert Table(path=str(path)).read().ids == ["posts.csv:2", "posts.csv:4"]
    assert Table(path=str(path), id="key").read().ids == ["x", "y"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["10", "9", "-1", "9.5"], ("-1", "9", "9.5", "10")),  # as numbers
        (["b", "a", "10", "9"], ("10", "9", "a", "b")),  # one is none: all by name
        ([2.0, 1.0, None], ("1", "2")),  # a hole makes fractions of whole numbers
        ([True, False], ("false", "true")),
        ([" rude", "rude "], ("rude",)),
    ],
)
@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_labels_are_found_and_ordered(tmp_path: Path, cells: list[object], names: tuple[str, ...], kind: Kind) -> None:
    path = write(tmp_path / "posts.jsonl", [{"text": f"post {i}", "label": cell} for i, cell in enumerate(cells)])
    found = column(path, "label", kind)
    assert found.space == LabelSpace(kind, names)
    assert found.has.tolist() == [cell is not None for cell in cells]


def test_an_order_of_ones_own(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", "text,level\na,high\nb,low\nc,middle\n")
    found = column(path, "level", "ordinal", ["low", "middle", "high", "extreme"])
    assert found.space.names == ("low", "middle", "high", "extreme")  # none is extreme here
    assert found.values.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match=r"posts.csv, line 2, column 'level'.*no label 'high'.*known: low, middle"):
        column(path, "level", "ordinal", ["low", "middle"])


@pytest.mark.parametrize("gap", ["", "  ", "NaN", "nan", "NA", '""'])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "score", "ordinal", "tokens"])
def test_a_gap_is_no_label(tmp_path: Path, gap: str, kind: Kind) -> None:
    path = raw(tmp_path / "posts.csv", f"text,label\na,1\nb,{gap}\nc,0\n")
    assert column(path, "label", kind).has.tolist() == [True, False, True]


def test_nan_in_json_lines_is_a_gap(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": 1}\n{"text": "c"}\n')
    assert column(path, "label", "multiclass").has.tolist() == [False, True, False]


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", 'text,to\na,snorfs; dronks\nb,\nc,;\nd,"[""dronks""]"\ne,[]\nf,dronks;dronks\n')
    found = column(path, "to", "multilabel")
    assert found.space == LabelSpace("multilabel", ("dronks", "snorfs"))
    assert found.has.tolist() == [True, False, True, True, True, True]
    assert found.values.tolist() == [[1, 1], [0, 0], [0, 0], [1, 0], [0, 0], [1, 0]]
    lists = write(tmp_path / "posts.parquet", [{"text": "a", "to": ["snorfs", "dronks"]}, {"text": "b", "to": []}])
    assert column(lists, "to", "multilabel").values.tolist() == [[1, 1], [0, 0]]
    bars = raw(tmp_path / "bars.csv", "text,to\na,x|y;z\n")
    assert column(bars, "to", "multilabel", separator="|").space.names == ("x", "y;z")


def test_a_column_a_label(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", "text,race,gender\na,0.25,Yes\nb,no,true\nc,,1\nd,1.0,FALSE\n")
    found = column(path, ["race", "gender"], "multilabel")
    assert found.space.names == ("race", "gender")
    assert found.has.tolist() == [True, True, False, True]  # half a judgement is none
    assert found.values[found.has].tolist() == [[0.25, 1], [0, 1], [1, 0]]
    with pytest.raises(UserError, match="several columns are for a multilabel task, but this head is score"):
        column(path, ["race", "gender"], "score")


def test_a_number_a_word(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", 'text,mark\nyou  dronk ,0 1\nhi,"[0.5]"\nno mark here,\n')
    found = column(path, "mark", "tokens")
    assert [words.tolist() for words in found.values] == [[0, 1], [0.5], [0, 0, 0]]
    assert found.has.tolist() == [True, True, False]
    short = raw(tmp_path / "short.csv", "text,mark\nyou there dronk,0 1\n")
    with pytest.raises(UserError, match="short.csv, line 2, column 'mark'.*each of the text's 3 words, found 2"):
        column(short, "mark", "tokens")


def test_pairs_and_choices(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", "text,first,second,right\na,b,c,0\nd,e,f,second\ng,h,i,\n")
    assert Table(path=str(path), pair="first").read().pairs == [("b",), ("e",), ("h",)]
    posts = Table(path=str(path), pair=["first", "second"]).read()
    assert posts.pairs == [("b", "c"), ("e", "f"), ("h", "i")]
    found = as_column(posts, "right", "choice")
    assert found.space == LabelSpace("choice", ("first", "second"))
    assert (found.values.tolist(), found.has.tolist()) == ([0, 1, 0], [True, True, False])
    with pytest.raises(UserError, match=r"pair=\[first,second\]"):
        as_column(Table(path=str(path), pair="first").read(), "right", "choice")


def test_given_splits_and_their_other_names(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.csv", "text,fold\na,train\nb,Validation\nc,dev\nd,test\n")
    assert Table(path=str(path), split="fold").read().splits.tolist() == ["train", "val", "val", "test"]


def test_val_is_drawn_from_train_where_only_it_is_not_given(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.csv", many(100, fold=lambda i: "test" if i < 20 else "train"))
    splits = Table(path=str(path), split="fold", fractions=[0.6, 0.2, 0.2]).read().splits
    assert (splits[:20] == "test").all()
    assert [(splits[20:] == split).sum() for split in SPLITS] == [60, 20, 0]


def test_a_folder_gives_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", many(3))
    write(tmp_path / "dev.jsonl", [{"text": "else", "label": "rude"}])
    write(tmp_path / "test.parquet", [{"text": "last", "label": "kind"}])
    posts = Table(path=str(tmp_path)).read()
    assert sorted(zip(posts.ids, posts.splits.tolist(), strict=True)) == [
        ("test:1", "test"), ("train:2", "train"), ("train:3", "train"), ("train:4", "train"), ("val:1", "val"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="split=label"):
        Table(path=str(tmp_path), split="label").read()
    write(tmp_path / "val.csv", many(3))
    with pytest.raises(UserError, match=r"one file for each split.*dev.jsonl.*val.csv"):
        Table(path=str(tmp_path)).read()


def test_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, n in (("train", 5), ("validation", 2), ("test", 3)):
        (tmp_path / "rude" / name).mkdir(parents=True)
        write(tmp_path / "rude" / name / "0000.parquet", many(n))
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda *_, **__: tmp_path)
    posts = Table(path="someone/posts", config="rude").read()
    assert [(posts.splits == split).sum() for split in SPLITS] == [5, 2, 3]
    with pytest.raises(UserError, match="no splits.*'default'.*give another config"):
        Table(path="someone/posts").read()


def test_drawn_splits_keep_texts_and_groups_together(tmp_path: Path) -> None:
    texts = ["Hello  there", "hello THERE"] + [f"post {i % 150}" for i in range(300)]
    rows = [{"text": text, "author": f"author {i % 40}"} for i, text in enumerate(texts)]
    path = write(tmp_path / "posts.csv", rows)
    posts = Table(path=str(path)).read()
    assert [(posts.splits == split).sum() for split in SPLITS] == pytest.approx([242, 30, 30], abs=2)
    for key in {text_key(text) for text in posts.texts}:
        assert len({split for text, split in zip(posts.texts, posts.splits, strict=True) if text_key(text) == key}) == 1
    distinct = write(tmp_path / "distinct.csv", [{**row, "text": f"{row['text']} {i}"} for i, row in enumerate(rows)])
    grouped = Table(path=str(distinct), group_by="author", fractions=[0.5, 0.25, 0.25]).read()
    assert set(grouped.splits) == set(SPLITS)
    for author in {row["author"] for row in rows}:
        mine = [row["author"] == author for row in rows]
        assert len(set(grouped.splits[mine])) == 1


def test_stratified_splits_and_fractions_have_the_labels_shares(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.csv", many(400, label=lambda i: "rare" if i % 10 == 0 else "common"))
    table = Table(path=str(path), stratify_by="label")
    posts = table.read()
    for split in SPLITS:
        of = as_column(posts.at(np.flatnonzero(posts.splits == split)), "label", "multiclass")
        assert of.values.mean() == pytest.approx(0.1, abs=0.03)
    kept = replace(table, fraction=0.25).load()
    assert (kept.splits == "train").sum() == 80
    train = as_column(kept.at(np.flatnonzero(kept.splits == "train")), "label", "multiclass")
    assert train.values.sum() == 8
    assert set(replace(table, fraction=0.1).load().ids) < set(kept.ids)


def test_equal_tables_are_one_and_the_fingerprint_sees_every_cell(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.csv", FIVE)
    keys: dict[str, Any] = {"path": str(path), "fractions": [0.5, 0.25, 0.25]}
    assert len({Table(**keys), Table(**keys)}) == 1
    before = Table(**keys).read().fingerprint()
    assert Table(**keys).read().fingerprint() == before
    write(path, [*FIVE[:4], {**FIVE[4], "anger": 2.5}])
    assert Table(**keys).read().fingerprint() != before


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path: Path, start: str, end: str, ending: str) -> None:
    lines = (
        ["text,label", "one,a", "", "two,b"]
        if ending == ".csv"
        else ['{"text": "one", "label": "a"}', "", '{"text": "two"}']
    )
    posts = Table(path=str(raw(tmp_path / f"posts{ending}", start + end.join(lines) + end))).read()
    assert posts.texts == ["one", "two"]
    assert posts.raw is not None and list(posts.raw.cells) == ["label"]


def test_other_encodings_delimiters_and_suffixes(tmp_path: Path) -> None:
    path = raw(tmp_path / "posts.dat", "text;label\ncafé;x\n".encode("cp1252"))
    assert Table(path=str(path), delimiter=";", encoding="cp1252").read().texts == ["café"]
    tabs = raw(tmp_path / "tabs.txt", "text\tlabel\na, b\tx\n")
    assert Table(path=str(tabs), delimiter="tab").read().texts == ["a, b"]
    wide = raw(tmp_path / "wide.csv", "text,label\ncafé,x\n".encode("utf-16"))
    assert Table(path=str(wide), encoding="utf-16").read().texts == ["café"]


def test_half_an_emoji_is_no_text(tmp_path: Path) -> None:
    posts = Table(path=str(raw(tmp_path / "posts.jsonl", '{"text": "so \\ud83d", "label": "\\ude02"}\n'))).read()
    assert posts.texts == ["so ?"] and posts.raw is not None and posts.raw.cells["label"] == ["?"]
    posts.fingerprint()


@dataclass(frozen=True)
class Wrong:
    """A file with a mistake: its content, what its error says, the keys it is read with, and its name."""

    content: str | bytes
    said: list[str]
    keys: tuple[str, ...] = ()
    file: str = "posts.csv"


WRONG = {
    "unknown text column": Wrong("comment,label\na,x\n", ["posts.csv", "'text'", "comment", "corpus.text=COLUMN"]),
    "unknown label column": Wrong("text,lable\na,x\n", ["posts.csv", "'label'", "did you mean 'lable'?"]),
    "unknown group": Wrong("text,label\na,x\n", ["'athor'", "corpus.group_by=COLUMN"], ("group_by=athor",)),
    "empty": Wrong("", ["posts.csv", "holds no rows"]),
    "empty lines": Wrong("\n\n", ["posts.jsonl", "holds no rows"], file="posts.jsonl"),
    "header only": Wrong("text,label\n", ["posts.csv", "holds no rows"]),
    "two columns of a name": Wrong("text,label,label\na,x,y\n", ["two columns have one name"]),
    "ragged": Wrong("text,label\na,x\nb, c,y\n", ["posts.csv, line 3", "3 cells, expected 2", "delimiter"]),
    "other delimiter": Wrong("text;label\na, b;x\n", ["one column only", "corpus.delimiter=\"';'\""]),
    "tabs in .csv": Wrong("text\tlabel\na\tx\n", ["one column only", "corpus.delimiter=tab"]),
    "no UTF-8": Wrong(b"text,label\na,x\ncaf\xe9,y\n", ["posts.csv, line 3", "0xe9", "encoding"]),
    "no UTF-8 in JSON": Wrong(b'{"text": "a"}\n{"text": "\xe9"}\n', ["posts.jsonl, line 2", "0xe9"], file="posts.jsonl"),
    "no JSON": Wrong('{"text": "a"}\n{"text": "b"\n', ["posts.jsonl, line 2", "not valid JSON"], file="posts.jsonl"),
    "no parquet": Wrong("text,label\n", ["posts.parquet", "cannot be read"], file="posts.parquet"),
    "a long line": Wrong("text,label\na,x\n" + "b" * 10_000_000, ["posts.csv, line 3", "1000000"]),
    "a long header": Wrong("b" * 10_000_000, ["posts.csv, line 1", "1000000"]),
    "a long text": Wrong('{"text": "' + "b" * 9_900_000 + '"}', ["line 1", "'text'", "1,000,000"], file="posts.jsonl"),
    "a text is missing": Wrong("text,label\na,x\n ,y\n", ["posts.csv, line 3, column 'text'", "a text"]),
    "a text is a number": Wrong('{"text": 3}\n', ["posts.jsonl, line 1, column 'text'", "a text"], file="posts.jsonl"),
    "ids twice": Wrong("text,no\na,x\nb,y\nc,x\n", ["line 4, column 'no'", "'x'", "line 2", "id=null"], ("id=no",)),
    "an id is missing": Wrong("text,no\na,x\nb,\n", ["line 3, column 'no'", "expected an id"], ("id=no",)),
    "a split's name": Wrong("text,in\na,train\nb,tset\n", ["line 3, column 'in'", "tset", "test"], ("split=in",)),
    "a split is missing": Wrong("text,in\na,train\nb,\n", ["line 3, column 'in'", "empty"], ("split=in",)),
    "a group in two splits": Wrong(
        "text,in,by\na,train,me\nb,test,me\n",
        ["line 3, column 'by'", "'me' stands in test", "train at", "line 2"],
        ("split=in", "group_by=by", "fractions=[1,0,0]"),
    ),
    "fractions": Wrong("text,label\na,x\n", ["[0.8, 0.1, 0.2]", "summing to 1"], ("fractions=[0.8,0.1,0.2]",)),
    "encoding": Wrong("text,label\na,x\n", ["encoding=utf-9", "no such encoding"], ("encoding=utf-9",)),
    "delimiter": Wrong("text,label\na,x\n", ["delimiter='ab'", "one character"], ("delimiter=ab",)),
    "suffix": Wrong("text,label\na,x\n", ["posts.xlsx", ".parquet", "corpus.delimiter="], file="posts.xlsx"),
    "no labels at all": Wrong("text,label\na,\nb,\n", ["'label'", "empty throughout"]),
    "one class": Wrong("text,label\na,x\nb,x\nc,x\nd,x\n", ["carry 'x'", "nothing"], ("fractions=[.5,.25,.25]",)),
    "no val posts": Wrong(
        "text,label\na,x\nb,y\n", ["'table': no post of the val split is", "splits"], ("fractions=[1,0,0]",)
    ),
    "texts as labels": Wrong(
        "text,label\n" + "".join(f"a,b{i}\n" for i in range(200)), ["'label'", "200 different values", "no labels"]
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path: Path, wrong: Wrong) -> None:
    path = raw(tmp_path / wrong.file, wrong.content)
    overrides = [f"tasks.table.corpus.{key}" for key in wrong.keys]
    error = refused(*COMMAND, f"tasks.table.corpus.path={path}", *overrides, f"save_path={tmp_path}/run")
    for word in wrong.said:
        assert word in error
    assert len(error) < 1000
    assert list(tmp_path.iterdir()) == [path]


COMMAND = ["encoder=tiny", "tasks=[table]", "tasks.table.column=label", "optimization.epochs=1"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], ["corpus=table needs a file", "tasks.TASK.corpus.path=posts.csv, with experiment=own corpus.path=posts.csv"]),
        (["tasks.table.corpus.path=nowhere/posts.csv"], ["nowhere/posts.csv", "no such file"]),
        (["tasks.table.corpus.path=nowhere/posts"], ["nowhere/posts", "hub", "no file here"]),
        (["tasks.table.corpus.path=./posts"], ["'./posts' is no name of a hub dataset, expected OWNER/NAME; "]),
        (["tasks.table.corpus.path=some/data@v1"], ["'some/data@v1' is no name of a hub dataset, expected OWNER/NAME; "]),
        (
            ["tasks.table.corpus.path=nowhere/posts.csv", "tasks.table.column=null"],
            ["column=null", "tasks.TASK.column=NAME"],
        ),
    ],
)
def test_no_file(cli: Cli, tmp_path: Path, overrides: list[str], said: list[str]) -> None:
    outcome = cli(*COMMAND, f"save_path={tmp_path}/run", *overrides)
    assert outcome.code == 2
    for word in said:
        assert word in outcome.err
    assert not list(tmp_path.iterdir())


def test_one_command_and_a_test_on_another_table(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "posts.csv", many(60))
    run = tmp_path / "run"
    trained = cli(*COMMAND, f"tasks.table.corpus.path={path}", f"save_path={run}", "action=[train,test]")
    assert trained.code == 0, trained.err
    assert json.loads((run / "labels.json").read_text())["table"]["names"] == ["kind", "rude"]
    load = ["action=test", "method=ah_load", "heads.load=true", f"load_path={run}", "tasks.table.corpus.fractions=[0,0,1]"]
    other = raw(tmp_path / "other.csv", "text,label\nfive posts,rude\nno kind one,rude\n")
    tested = cli(*COMMAND, *load, f"tasks.table.corpus.path={other}", f"save_path={tmp_path}/other")
    assert tested.code == 0, tested.err
    frame = pd.read_parquet(tmp_path / "other" / "predictions.parquet")
    assert [gold[0] for gold in frame["gold"]] == [1, 1]  # rude, as in the saved run
    assert set(frame["post_id"]) == {"other.csv:2", "other.csv:3"}
    other.write_text("text,label\nfive posts,rude\nsix,rudee\n")
    refused = cli(*COMMAND, *load, f"tasks.table.corpus.path={other}")
    assert refused.code == 2
    assert "other.csv, line 3, column 'label'" in refused.err
    assert "did you mean 'rude'?" in refused.err


@pytest.mark.parametrize(
    ("split", "action", "without"),
    [
        ("val", "train", "no column"),
        ("test", "[train,test]", "empty cells"),
        ("train", "train", "empty cells"),
        pytest.param("val", "train", "empty cells", marks=pytest.mark.slow),
        pytest.param("test", "[train,test]", "no column", marks=pytest.mark.slow),
        pytest.param("train", "train", "no column", marks=pytest.mark.slow),
    ],
)
def test_a_split_that_is_used_but_not_annotated_is_refused(
    cli: Cli, tmp_path: Path, split: str, action: str, without: str
) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    for name in SPLITS:
        rows = many(6, text=lambda i, name=name: f"{name} post {i}")
        if name == split:
            rows = [{"text": row["text"], **({"label": ""} if without == "empty cells" else {})} for row in rows]
        write(folder / f"{name}.csv", rows)
    run = [f"tasks.table.corpus.path={folder}", f"save_path={tmp_path}/run"]
    refused = cli(*COMMAND, *run, f"action={action}")
    assert refused.code == 2, refused.out
    for said in ("'table'", f"{split} split", "'label'", "tasks.table.column", "tasks.table.corpus", "tasks=[...]"):
        assert said in refused.err
    assert ("action=predict" in refused.err) == ("action=train" in refused.err) == (split == "test")
    assert list(tmp_path.iterdir()) == [folder]
    if split == "test":
        assert cli(*COMMAND, *run).code == 0  # which training does without
        load = ["action=test", "method=ah_load", "heads.load=true", f"load_path={tmp_path}/run"]
        untested = cli(*COMMAND, run[0], *load)
        assert untested.code == 2, untested.out
        assert "'table'" in untested.err and "test split" in untested.err and "action=predict" in untested.err
        assert not (tmp_path / "run" / "predictions.parquet").exists()


def test_a_label_that_training_never_shows_is_named(cli: Cli, tmp_path: Path) -> None:
    rows = many(
        30, fold=lambda i: ("train", "val", "test")[i % 3], label=lambda i: "odd" if i == 2 else "rude" if i % 2 else "kind"
    )
    path = write(tmp_path / "posts.csv", rows)
    outcome = cli(*COMMAND, f"tasks.table.corpus.path={path}", "tasks.table.corpus.split=fold", f"save_path={tmp_path}/run")
    assert outcome.code == 0, outcome.err
    assert "no post of the train split carries odd" in outcome.out


def test_two_tasks_on_one_table_read_it_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads, read = write(tmp_path / "posts.csv", many(60, anger=lambda i: i / 60)), [], Table.read
    monkeypatch.setattr(Table, "read", lambda self: reads.append(self) or read(self))
    second = [
        "+corpus@tasks.anger.corpus=table", "+head@tasks.anger.head=score", "+tasks.anger._target_=hatemtl.tasks.Task",
        "+tasks.anger.column=anger", *(f"tasks.{task}.corpus.path={path}" for task in ("table", "anger")),
    ]  # fmt: skip
    outcome = cli(*COMMAND, *second, f"save_path={tmp_path}/run", "action=[train,test]")
    assert outcome.code == 0, outcome.err
    assert len(reads) == 1
    assert "test_anger_" in outcome.out and "test_table_" in outcome.out


def test_posts_without_any_label_can_be_masked(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "posts.csv", [{"text": f"post number {i} of the town"} for i in range(60)])
    outcome = cli(
        *(argument for argument in COMMAND if "column" not in argument),
        *(f"tasks.table.corpus.path={path}", "tasks.table.column=null", "head@tasks.table.head=masked"),
        *(f"save_path={tmp_path}/run", "action=[train,test]"),
    )
    assert outcome.code == 0, outcome.err
    assert "test_table_perplexity" in outcome.out
