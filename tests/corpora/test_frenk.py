from dataclasses import replace
from pathlib import Path

import pytest

from hatemtl.corpora.frenk import BINARY, LABELS, Frenk
from hatemtl.errors import UserError

FINE = (
    "Acceptable speech",
    "Inappropriate",
    "Background offensive",
    "Other offensive",
    "Background violence",
    "Other violence",
)
TARGETS = ("No target", "Commenter", "Target", "Related to")


def line(i: int, topic: str) -> str:
    fine = FINE[i % 6]
    return (
        f'{topic}{i}\tsnorf "number" {i // 2}\t{fine}\t{"Offensive" if i % 6 else "Acceptable"}\t{TARGETS[i % 4]}\t{topic}'
    )


def lines(first: int, n: int, *topics: str) -> list[str]:
    return [line(i, topic) for topic in topics or ("lgbt", "migrants") for i in range(first, first + n)]


def write(path: Path, content: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(content) + "\n", encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Frenk:
    write(tmp_path / "en" / "train.tsv", lines(0, 120))
    write(tmp_path / "en" / "test.tsv", lines(500, 24))
    write(tmp_path / "hr" / "train.tsv", lines(900, 6))
    write(tmp_path / "hr" / "test.tsv", lines(950, 6))
    return Frenk(dir=str(tmp_path))


def test_six_columns_become_four_annotations(corpus: Frenk) -> None:
    posts = corpus.load()
    names = {name: column.space.names for name, column in posts.columns.items()}
    assert names == {
        "binary": BINARY,
        "label": LABELS,
        "target": ("commenter", "no_target", "related_to", "target"),
        "topic": ("lgbt", "migrants"),
    }
    i = posts.ids.index("migrants3")
    assert posts.texts[i] == 'snorf "number" 1'
    read = {name: names[name][column.values[i]] for name, column in posts.columns.items()}
    assert read == {"binary": "offensive", "label": "other_offensive", "target": "related_to", "topic": "migrants"}
    assert all(column.has.all() for column in posts.columns.values())


def test_validation_is_cut_from_training_and_shares_no_text_with_it(corpus: Frenk) -> None:
    posts = corpus.load()
    by_split = {s: {t for t, of in zip(posts.texts, posts.splits, strict=True) if of == s} for s in ("train", "val", "test")}
    assert not by_split["train"] & by_split["val"]
    assert (posts.splits == "test").sum() == 48 and abs((posts.splits == "val").sum() - 24) <= 4
    assert (replace(corpus, val=0.5).load().splits == "val").sum() == pytest.approx(120, abs=4)


def test_topics_are_merged_in_one_fixed_shuffle(corpus: Frenk) -> None:
    both, lgbt = corpus.load(), replace(corpus, topics=["lgbt"]).load()
    assert both.ids == corpus.load().ids != replace(corpus, seed=1).load().ids
    topics = both.columns["topic"].values
    assert 0.3 < topics[:60].mean() < 0.7
    assert lgbt.ids == [own for own in both.ids if own.startswith("lgbt")]
    assert set(lgbt.columns["topic"].values.tolist()) == {0}
    assert {name: column.space for name, column in lgbt.columns.items()} == {n: c.space for n, c in both.columns.items()}


def test_another_language_is_other_posts(corpus: Frenk) -> None:
    posts = replace(corpus, language="hr").load()
    assert len(posts) == 24 and all(int(own.strip("lgbtmirans")) >= 900 for own in posts.ids)


@pytest.mark.parametrize(
    ("train", "dev", "test"),
    [
        ("lgbt.en.train.tsv", "lgbt.en.dev.tsv", "lgbt.en.test.tsv"),
        ("FRENK-hate-en/data/train.tsv", "FRENK-hate-en/data/dev.tsv", "FRENK-hate-en/data/test.tsv"),
        ("FRENK_1.1/en_train_lgbt.tsv", "FRENK_1.1/en_validation_lgbt.tsv", "FRENK_1.1/en_test_lgbt.tsv"),
    ],
)
def test_language_and_split_are_read_from_the_path(tmp_path: Path, train: str, dev: str, test: str) -> None:
    for name, first in ((train, 0), (dev, 50), (test, 80), (train.replace("en", "sl"), 100)):
        write(tmp_path / name, lines(first, 6, "lgbt"))
    posts = Frenk(dir=str(tmp_path)).load()
    found = {
        split: {own for own, of in zip(posts.ids, posts.splits, strict=True) if of == split} for split in set(posts.splits)
    }
    assert found == {s: {f"lgbt{i}" for i in range(f, f + 6)} for s, f in {"train": 0, "val": 50, "test": 80}.items()}


def test_without_the_files_the_error_says_where_they_are(tmp_path: Path) -> None:
    write(tmp_path / "en" / "train.tsv", lines(0, 6))
    with pytest.raises(UserError, match="has no en/test.tsv: get it by hand at hdl.handle.net/11356/1433.*data.dir=FOLDER"):
        Frenk(dir=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ("1\thm\tAcceptable speech\tAcceptable\tNo target", ": 5 cells, expected 6"),
        ("1\thm\tFine\tAcceptable\tNo target\tlgbt", "column 'label': 'Fine', expected one of acceptable_speech"),
        ("1\thm\tInappropriate\tMaybe\tNo target\tlgbt", "column 'binary': 'Maybe', expected one of acceptable, offensive"),
        ("1\thm\tInappropriate\tOffensive\tNo target\tcats", "column 'topic': 'cats', expected one of lgbt, migrants"),
        ("1\t \tInappropriate\tOffensive\tNo target\tlgbt", "column 'text': ' ', expected a text"),
    ],
)
def test_a_damaged_line_is_named(corpus: Frenk, damaged: str, expected: str) -> None:
    write(Path(corpus.dir) / "en" / "test.tsv", [damaged])
    with pytest.raises(UserError, match=f"en/test.tsv, line 1.*{expected}"):
        corpus.load()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"topics": ["migrant"]}, "did you mean 'migrants'"),
        ({"topics": []}, "expected one or more of lgbt, migrants"),
        ({"topics": ["lgbt", "lgbt"]}, "each once"),
        ({"val": 0}, "val=0: expected the share"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Frenk(dir=".", **settings)  # type: ignore[arg-type]
