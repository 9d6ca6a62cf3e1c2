import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from laid_out import on_hub

from hatemtl.corpora.base import Posts
from hatemtl.corpora.measuring_hate_speech import ITEMS, MeasuringHateSpeech
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun

FLAGS = ["target_race_asian", "target_race_middle_eastern", "target_race", "target_age_seniors", "target_age"]


def row(comment: int, text: str, score: float, named: str = "", **items: float | None) -> dict[str, Any]:
    """An annotator's row; `named` are the subgroups they name."""
    flags = {flag: flag.removeprefix("target_") in named.split() for flag in FLAGS}
    for group in ("target_race", "target_age"):
        flags[group] = any(on for flag, on in flags.items() if flag.startswith(f"{group}_"))
    answers = {**dict.fromkeys(ITEMS, 1.0), **items}
    return {
        "comment_id": comment,
        "annotator_id": 7,
        **answers,
        "hate_speech_score": score,
        "text": text,
        **flags,
        "std_err": 0.1,
    }


ROWS = [
    row(30, "snorfs must go", 0.6, "race_asian", sentiment=4, hatespeech=2),
    row(10, "what a fine day", -0.2, sentiment=0),
    row(30, "snorfs must go", 0.6, "race_asian age_seniors", sentiment=3, hatespeech=1),
    row(20, "we stand by snorfs", -1.5, "age_seniors", sentiment=1),
    row(30, "snorfs must go", 0.6, "race_middle_eastern", sentiment=1, hatespeech=1),
    row(20, "we stand by snorfs", -1.5, "", sentiment=None),
]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "measuring-hate-speech.csv") -> MeasuringHateSpeech:
    folder.mkdir(exist_ok=True)
    if name.endswith(".csv"):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return MeasuringHateSpeech(dir=str(folder), fractions=[0.8, 0.1, 0.1])


def many(comments: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in no order, one to five a comment; every third text recurs in other letters."""
    draw = np.random.default_rng(seed)
    rows = []
    for comment in range(comments):
        text = f"snorf number {comment // 2}" if comment % 3 else f"Snorf  NUMBER {comment // 2}"
        score = float(draw.normal() * 2)
        for _ in range(draw.integers(1, 6)):
            named = " ".join(draw.permutation(["race_asian", "race_middle_eastern", "age_seniors"])[: draw.integers(0, 3)])
            items = {item: float(draw.integers(0, highest + 1)) for item, highest in ITEMS.items()}
            rows.append(row(comment, text, score, named, **items))
    return [rows[i] for i in draw.permutation(len(rows))]


def labels(posts: Posts, name: str) -> list[Any]:
    column = posts.columns[name]
    if column.space.kind == "multilabel":
        return [[column.space.names[i] for i in np.flatnonzero(row)] for row in column.values]
    return [column.space.names[i] for i in column.values]


def test_a_comment_is_one_post(tmp_path: Path) -> None:
    posts = write(tmp_path, ROWS).load()
    assert posts.ids == ["10", "20", "30"]
    assert posts.texts == ["what a fine day", "we stand by snorfs", "snorfs must go"]


def test_the_score_and_what_the_authors_read_from_it(tmp_path: Path) -> None:
    posts = write(tmp_path, ROWS).load()
    score = posts.columns["score"]
    assert (score.space.kind, score.space.names) == ("score", ("hate_speech_score",))
    assert score.values == pytest.approx([-0.2, -1.5, 0.6]) and score.values.dtype == np.float32
    assert posts.columns["hate"].space.names == ("hate", "neutral", "supportive")
    assert labels(posts, "hate") == ["neutral", "supportive", "hate"]
    edges = write(tmp_path, [row(1, "a", 0.5), row(2, "b", -1.0), row(3, "c", 0.51), row(4, "d", -1.01)]).load()
    assert labels(edges, "hate") == ["neutral", "neutral", "hate", "supportive"]


def test_groups_are_read_from_the_columns_and_count_from_half_of_the_annotators(tmp_path: Path) -> None:
    posts = write(tmp_path, ROWS).load()
    assert posts.columns["target"].space.names == ("race", "age")
    assert posts.columns["subgroup"].space.names == ("race_asian", "race_middle_eastern", "age_seniors")
    assert labels(posts, "target") == [[], ["age"], ["race"]]
    assert labels(posts, "subgroup") == [[], ["age_seniors"], ["race_asian"]]


def test_an_item_is_the_mean_rounded_with_a_half_up_and_without_gaps(tmp_path: Path) -> None:
    posts = write(tmp_path, ROWS).load()
    sentiment = posts.columns["sentiment"]
    assert (sentiment.space.kind, sentiment.space.names) == ("ordinal", ("0", "1", "2", "3", "4"))
    assert labels(posts, "sentiment") == ["0", "1", "3"]  # (4 + 3 + 1) / 3
    assert posts.columns["hatespeech"].space.names == ("0", "1", "2")
    assert labels(posts, "hatespeech") == ["1", "1", "1"]
    halves = [row(1, "a", 0, insult=x) for x in (2, 3)] + [row(2, "b", 0, insult=x) for x in (1, 2)]
    assert labels(write(tmp_path, halves).load(), "insult") == ["3", "2"]
    gap = write(tmp_path, [row(1, "a", 0, insult=None), row(2, "b", 0)]).load().columns["insult"]
    assert gap.has.tolist() == [False, True] and gap.values[0] == 0


def test_ten_items_and_four_more_columns(tmp_path: Path) -> None:
    columns = write(tmp_path, ROWS).load().columns
    assert set(columns) == {"score", "hate", "target", "subgroup", *ITEMS} and len(ITEMS) == 10


def test_means_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    rows = many(60)
    posts = replace(write(tmp_path, rows), fractions=[1, 0, 0]).load()
    for i, own in enumerate(posts.ids):
        mine = [r for r in rows if str(r["comment_id"]) == own]
        for flag, share in zip(posts.columns["subgroup"].space.names, posts.columns["subgroup"].shares[i], strict=True):
            assert share == pytest.approx(np.mean([r[f"target_{flag}"] for r in mine]))
        assert posts.columns["violence"].values[i] == int(np.mean([r["violence"] for r in mine]) + 0.5)


def test_groups_are_those_of_half_of_the_shares(tmp_path: Path) -> None:
    posts = write(tmp_path, many(200)).load()
    for name in ("target", "subgroup"):
        flags, shares = posts.columns[name].values, posts.columns[name].shares
        assert set(np.unique(flags)) == {0, 1}
        assert ((shares > 0) & (shares < 1)).any()
        assert np.array_equal(flags, shares >= 0.5)


def test_no_comment_and_no_text_stands_in_two_splits(tmp_path: Path) -> None:
    posts = write(tmp_path, many(400)).load()
    keys = [" ".join(text.lower().split()) for text in posts.texts]
    assert len(set(zip(keys, posts.splits.tolist(), strict=True))) == len(set(keys)) < len(keys)
    assert len(set(posts.ids)) == 400
    hate = posts.columns["hate"].values
    for label in range(3):
        assert abs((posts.splits[hate == label] == "train").mean() - 0.8) < 0.08


def test_parquet_and_the_hub_give_the_same_posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many(50)
    text = write(tmp_path / "csv", rows).load()
    assert write(tmp_path / "parquet", rows, "measuring-hate-speech.parquet").load().fingerprint() == text.fingerprint()
    folder = on_hub(tmp_path, "ucberkeley-dlab/measuring-hate-speech", "default", {"train": rows})
    monkeypatch.setattr("hatemtl.corpora.files.fetch", lambda repo, **how: folder)
    hub = MeasuringHateSpeech(dir=str(tmp_path / "nothing"), fractions=[0.8, 0.1, 0.1])
    assert hub.load().fingerprint() == text.fingerprint()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"insult": 5}, "line 3, column 'insult': '5', expected a number from 0 to 4"),
        ({"hatespeech": 3}, "line 3, column 'hatespeech': '3', expected a number from 0 to 2"),
        ({"comment_id": ""}, "line 3, column 'comment_id': '', expected a number"),
        ({"target_age": "perhaps"}, "line 3, column 'target_age': 'perhaps', expected true or false"),
        ({"text": ""}, "line 3, column 'text': '', expected a text"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, damage: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"{expected}.*; download measuring-hate-speech.csv again from huggingface.co"):
        write(tmp_path, [ROWS[0], {**ROWS[1], **damage}, *ROWS[2:]]).load()


def test_a_file_without_targets_is_refused(tmp_path: Path) -> None:
    rows = [{name: cell for name, cell in r.items() if not name.startswith("target_")} for r in ROWS]
    with pytest.raises(UserError, match="has no columns target_GROUP and target_GROUP_SUBGROUP"):
        write(tmp_path, rows).load()


def test_shares_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="summing to 1"):
        MeasuringHateSpeech(dir=".", fractions=[0.8, 0.1])


def test_tasks_of_two_corpora_train_together_with_labels_missing_everywhere(
    cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    write(tmp_path / "measuring_hate_speech", many(120))
    other = [f"corpus@tasks.{task}.corpus=sample" for task in ("label", "target", "rationale")]
    small = [f"tasks.{task}.corpus.size=150" for task in ("label", "target", "rationale")]
    run = tmp_path / "run"
    outcome = cli(
        *("tasks=[label,target,rationale,mhs_score,mhs_target]", "encoder=tiny", f"data.dir={tmp_path}", *other, *small),
        *("action=[train,test]", "optimization.epochs=1", f"save_path={run}"),
    )
    assert outcome.code == 0, outcome.err
    rows = SavedRun(run).results
    primaries = ("label_macro_f1", "target_macro_f1", "rationale_f1", "mhs_score_pearson", "mhs_target_macro_f1")
    assert all(np.isfinite(rows[f"test_{row}"]) for row in primaries)
    parts = {task: space.names for task, space in SavedRun(run).labels.items()}
    assert parts["mhs_target"] == ("race", "age") and parts["mhs_score"] == ("hate_speech_score",)
