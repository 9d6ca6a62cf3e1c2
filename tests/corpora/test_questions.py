"""Questions in SQuAD's layout: as a JSON file, as tables with its columns, and what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from laid_out import on_hub

from hatemtl.corpora.base import SPLITS, Column, Posts
from hatemtl.corpora.cells import as_column
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.questions import padded, places
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError

CONTEXT = "The  choir sings\nin the garden, and the soup is warm. "  # not as a post has it
ASKED: dict[str, Any] = {"text": "question", "pair": "context", "id": "id", "group_by": "context"}


def squad(contexts: dict[str, list[Any]]) -> dict[str, Any]:
    """A file's content: questions by context, each as the list of its answers."""
    paragraphs = []
    for c, (context, questions) in enumerate(contexts.items()):
        qas = [{"id": f"{c}-{q}", "question": f"what is {q}?", "answers": given} for q, given in enumerate(questions)]
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": "invented", "paragraphs": paragraphs}]}


def answer(text: str, start: int | None = None) -> dict[str, Any]:
    return {"text": text, "answer_start": CONTEXT.index(text) if start is None else start}


def laid(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(path: Path | str, **keys: Any) -> tuple[Posts, Column]:
    posts = Table(path=str(path), **{**ASKED, **keys}).read()
    return posts, as_column(posts, "answers", "span")


def said(posts: Posts, column: Column) -> list[list[str]]:
    """The answers of each post, read off its context."""
    assert posts.pairs is not None
    of_posts = zip(posts.pairs, column.values, strict=True)
    return [[context[begin:end] for begin, end in values if begin >= 0] for (context,), values in of_posts]


def test_answers_stand_where_the_context_has_them_whatever_its_space(tmp_path: Path) -> None:
    given = [[answer("choir sings\nin")], [answer("soup"), answer(" is warm. ")], None]
    posts, column = read(laid(tmp_path / "q.json", squad({CONTEXT: given})))
    assert posts.pairs == [("The choir sings in the garden, and the soup is warm.",)] * 3
    assert posts.texts == ["what is 0?", "what is 1?", "what is 2?"] and posts.ids == ["0-0", "0-1", "0-2"]
    assert said(posts, column) == [["choir sings in"], ["soup", "is warm."], []]
    assert column.has.tolist() == [True, True, False] and column.values.shape == (3, 2, 2)
    assert column.space.names == ("answers",)


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet", ".csv", "hub"])
def test_every_form_says_the_same(tmp_path: Path, hub: Path, ending: str) -> None:
    contexts = {f"{CONTEXT}{i}": [[answer("garden"), answer("soup")], [answer("choir")]] for i in range(20)}
    whole, column = read(laid(tmp_path / "q.json", squad(contexts)))
    rows = []
    for paragraph in squad(contexts)["data"][0]["paragraphs"]:
        for asked in paragraph["qas"]:
            given = {key: [one[key] for one in asked["answers"]] for key in ("text", "answer_start")}
            rows.append({**asked, "answers": given, "title": "invented", "context": paragraph["context"]})
    path: Any = tmp_path / f"q{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif ending == ".csv":
        pd.DataFrame([{**row, "answers": json.dumps(row["answers"])} for row in rows]).to_csv(path, index=False)
    elif ending == "hub":
        path = "some/questions"
        on_hub(hub, path, "plain_text", {"train": rows})
    posts, again = read(path, config="plain_text")
    assert (posts.ids, posts.texts, posts.pairs) == (whole.ids, whole.texts, whole.pairs)
    np.testing.assert_array_equal(posts.splits, whole.splits)
    np.testing.assert_array_equal(again.values, column.values)


def test_questions_about_one_text_stand_in_one_split_and_the_same_may_be_asked_in_all(tmp_path: Path) -> None:
    posts, _ = read(laid(tmp_path / "q.json", squad({f"{CONTEXT}{i}": [[answer("soup")]] * 2 for i in range(50)})))
    of = {split: {posts.pairs[i] for i in np.flatnonzero(posts.splits == split)} for split in SPLITS}  # type: ignore[index]
    assert [len(of[split]) for split in SPLITS] == [40, 5, 5]
    assert not of["train"] & of["test"] and not of["train"] & of["val"]


def test_questions_about_one_text_stand_in_one_fold(tmp_path: Path) -> None:
    contexts = {f"{CONTEXT}{i}": [[answer("soup")]] * 2 for i in range(20)}
    posts, _ = read(laid(tmp_path / "q.json", squad(contexts)), fractions=[1, 0, 0])
    of = Folds(number=4, group_by="context").dealt(posts, "train")
    pairs: Any = posts.pairs
    assert [len({pairs[i] for i in np.flatnonzero(of == fold)}) for fold in range(1, 5)] == [5] * 4


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "dev", "test")):
        laid(tmp_path / f"{split}.json", squad({f"{CONTEXT}{split}": [[answer("soup")]] * (i + 1)}))
    posts, _ = read(tmp_path, id=None)
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [1, 2, 3]
    assert sorted(posts.ids)[:2] == ["test:1", "test:2"]
    laid(tmp_path / "test.json", squad({f"{CONTEXT}train": [[answer("soup")]]}))
    with pytest.raises(UserError, match=r"question 1, column 'context': .* stands in train, but in test .*group_by=null"):
        read(tmp_path, id=None)


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    laid(tmp_path / "heldout.json", squad({CONTEXT: [[answer("soup")]]}))
    with pytest.raises(UserError, match="expected one file for each split, such as train.csv; found none"):
        read(tmp_path)
    rows = [{"id": "1", "context": CONTEXT, "question": "what?", "answers": None, "part": "heldout"}]
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="column 'part': heldout, expected train, val or test"):
        read(tmp_path / "q.jsonl", split="part")


QUESTION = {"id": "0", "question": "what?", "answers": [answer("soup")]}
WRONG = {
    "no JSON": ("{", "line 1: not valid JSON"),
    "a list": ([QUESTION], "q.json: expected an object with a list 'data', as SQuAD's"),
    "no paragraphs": ({"data": [{"title": "a"}]}, r"q.json, data\[0\]: expected an object with a list 'paragraphs'"),
    "no qas": ({"data": [{"paragraphs": [{"context": "a"}]}]}, r"data\[0\].paragraphs\[0\]: expected .* 'qas'"),
    "no object": ({"data": [{"paragraphs": [{"qas": ["a"]}]}]}, r"paragraphs\[0\].qas\[0\]: 'a', expected an object"),
    "no questions": ({"data": []}, "holds no questions"),
    "an empty context": (squad({" ": [None]}), "question 1, column 'context': ' ', expected a text"),
    "no context": ({"data": [{"paragraphs": [{"qas": [QUESTION]}]}]}, "column 'context': None, expected a text"),
    "no answers": (squad({CONTEXT: [[answer("soup")], []]}), r"question 2, column 'answers': \[\], .*SQuAD 2.0's"),
    "an empty answer": (squad({CONTEXT: [[answer(" ", 3)]]}), "question 1, column 'answers': .*with a word in them"),
    "another place": (squad({CONTEXT: [[answer("soup", 5)]]}), "answer_start=5 to be .* 'soup' begins, where 'choi' stands"),
    "beyond the end": (squad({CONTEXT: [[answer("soup", 999)]]}), "answer_start=999 to be .* where 'soup' begins; mend"),
    "before the start": (squad({CONTEXT: [[answer("soup", -1)]]}), "answer_start=-1 to be .* where 'soup' begins; mend"),
    "no place": (squad({CONTEXT: [[{"text": "soup"}]]}), "answer_start=None to be"),
    "a bare text": (squad({CONTEXT: ["soup"]}), "'soup', expected answers as SQuAD has them"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    content, expected = WRONG[name]
    with pytest.raises(UserError, match=expected):
        read(laid(tmp_path / "q.json", content), group_by=None)


def test_a_span_needs_one_second_text(tmp_path: Path) -> None:
    path = laid(tmp_path / "q.json", squad({CONTEXT: [[answer("soup")]]}))
    with pytest.raises(UserError, match="column='answers': a span task needs .*corpus.pair=COLUMN, or corpus=squad"):
        read(path, pair=None, group_by=None)


def test_places_count_characters_of_the_post() -> None:
    assert places({"text": ["b  c"], "answer_start": [3]}, "a  b  c") == [(2, 5)]
    assert places('[{"text": "c", "answer_start": 6}]', "a  b  c") == [(4, 5)]
    assert padded([[], [(2, 5)], [(0, 1), (4, 5)]]).tolist() == [[[-1, -1]] * 2, [[2, 5], [-1, -1]], [[0, 1], [4, 5]]]
    assert padded([[]]).shape == (1, 1, 2)
