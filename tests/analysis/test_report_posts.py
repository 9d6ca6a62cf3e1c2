"""The wrong posts of a report: which are shown, how many, and where their highlights come from."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from report_posts import MOST, SHOWN, Wrong, wrong
from report_sections import Asked, tasks_of
from systems import find_systems
from tested_runs import classes, listed, save

GOLD, SCORES = classes(12, 0.5, np.random.default_rng(0))


def found(*runs: Path, texts: Mapping[str, str] | None = None) -> list[Wrong]:
    systems = find_systems([*map(str, runs)], [str(i) for i in range(len(runs))], least=1)
    return wrong(Asked(systems, tasks_of(systems), [], argparse.Namespace(leaked=False), [], ""), texts)


def run(folder: Path, **more: float) -> Path:
    return save(folder, GOLD, SCORES, rows={"test_label_accuracy": float((SCORES.argmax(1) == GOLD[:, 0]).mean()), **more})


def test_without_a_list_of_errors_and_without_texts_there_are_none(tmp_path: Path) -> None:
    assert found(run(tmp_path / "a")) == []


def test_errors_are_found_in_predictions_where_texts_are_given(tmp_path: Path) -> None:
    texts = {f"p{i}": f"post {i}" for i in range(12)}
    (of,) = found(run(tmp_path / "a"), texts=texts)
    mistaken = {f"p{i}" for i in range(12) if SCORES[i].argmax() != GOLD[i, 0]}
    for told in ("given", "missed"):
        assert {post.post for post in of.posts if post.error.endswith(told)} == mistaken
    given = [float(post.score) for post in of.posts if post.error == "rude given"]
    assert given == sorted(given, reverse=True)
    assert all(" ".join(word.text for word in post.words) == texts[post.post] for post in of.posts)


def test_words_of_one_task_take_no_place_of_anothers(tmp_path: Path) -> None:
    run(tmp_path / "a")
    listed(tmp_path / "a", ["a group"] * 12)
    path = tmp_path / "a" / "error_words.csv"
    head, *rows = path.read_text().splitlines()
    others = [row.replace("label,", "other,", 1) for row in rows] * (3 * MOST)
    alone = found(tmp_path / "a")[0].words
    path.write_text("\n".join([head, *others, *rows]) + "\n")
    assert alone is not None and found(tmp_path / "a")[0].words == alone


def test_there_are_fewer_of_each_label_where_there_are_many(tmp_path: Path) -> None:
    groups = [f"group {i // 30}" for i in range(1200)]
    runs = [run(tmp_path / str(i)) for i in range(3)]
    for folder in runs:
        listed(folder, groups)
    (alone,), together = found(runs[0]), found(*runs)
    counts = [sum(post.groups == "group 7" for post in of.posts) for of in (alone, *together)]
    assert counts == [2 * (SHOWN // 82), *[2] * 3] and counts[0] <= 2 * MOST


def test_highlights_come_from_the_runs_task_of_words_where_errors_have_none(tmp_path: Path) -> None:
    run(tmp_path / "a", test_rationale_f1=1.0)
    save(tmp_path / "b", [[0, 1]] * 12, [[0.1, 0.9]] * 12, task="rationale", kind="tokens", names=["marked"])
    both = [parquet.read_table(tmp_path / name / "predictions.parquet") for name in "ab"]
    parquet.write_table(pa.concat_tables(both), tmp_path / "a" / "predictions.parquet")
    spaces = {of: json.loads((tmp_path / of / "labels.json").read_text()) for of in "ab"}
    (tmp_path / "a" / "labels.json").write_text(json.dumps(spaces["a"] | spaces["b"]))
    (of,) = found(tmp_path / "a", texts={f"p{i}": "two words" for i in range(12)})
    assert [(word.text, word.level, word.marked) for word in of.posts[0].words] == [("two", 0, False), ("words", 4, True)]
    listed(tmp_path / "a", text="two words", marked="1 0", explained="-1 0.5")  # which come first
    (of,) = found(tmp_path / "a")
    assert [(word.level, word.marked) for word in of.posts[0].words] == [(-4, True), (2, False)]


@pytest.mark.parametrize("cell", ["1 x", "1 2 3", "nan 1", ""])
def test_marks_that_do_not_fit_the_text_are_left_out(cell: str, tmp_path: Path) -> None:
    listed(run(tmp_path / "a"), text="two words", explained=cell)
    assert {word.level for post in found(tmp_path / "a")[0].posts for word in post.words} == {0}
