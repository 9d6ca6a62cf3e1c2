from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hatemtl.corpora.base import Split
from hatemtl.corpora.labelled import Section, codes, gather, whole
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

SPACE = LabelSpace("multiclass", ("no", "yes"))
ROWS = Rows(Path("a.tsv"), {"x": ["a ", "b", "", "d"], "y": ["e", None, "g", "h"]}, [2, 3, 4, 5], "download it again")


def section(
    name: str, split: Split, texts: Sequence[str], values: Sequence[float | None], second: Sequence[str] = ()
) -> Section:
    columns = {"text": list(texts), **({"second": list(second)} if second else {})}
    return Section(name, split, Rows(Path(name), columns, range(len(texts)), ""), [*columns], values)


def test_ids_tell_the_file_and_the_place() -> None:
    posts = gather([section("train", "train", ["a", "b"], [0, 1]), section("dev", "test", ["c"], [1])], SPACE)
    assert posts.ids == ["train-0", "train-1", "dev-0"]
    assert posts.splits.tolist() == ["train", "train", "test"]
    assert posts.columns["label"].values.tolist() == [0, 1, 1] and posts.columns["label"].has.all()
    assert posts.pairs is None


def test_validation_takes_its_share_of_every_label_and_leaves_the_test_alone() -> None:
    texts, labels = [f"post {i}" for i in range(400)], [int(i % 4 == 0) for i in range(400)]
    parts = [section("train", "train", texts, labels), section("dev", "test", ["t"], [1])]
    posts = gather(parts, SPACE, validation=0.1, seed=0)
    val = posts.splits == "val"
    assert val.sum() == 40 and posts.columns["label"].values[val].sum() == 10
    assert posts.splits[-1] == "test"
    assert not np.array_equal(posts.splits, gather(parts, SPACE, validation=0.1, seed=1).splits)


def test_posts_that_share_a_text_stay_together() -> None:
    texts = [f"post {i % 50}" for i in range(200)]
    second = [f"other {i}" if i % 3 else "The  Same" for i in range(200)]
    posts = gather([section("train", "train", texts, [0, 1] * 100, second)], SPACE, validation=0.3)
    split_of: dict[str, str] = {}
    for text, (other,), split in zip(posts.texts, posts.pairs or [], posts.splits, strict=True):
        for one in (text, other):
            assert split_of.setdefault(one, split) == split


def test_posts_without_label_stay_in_training_unless_their_text_validates() -> None:
    texts = [f"post {i}" for i in range(100)]
    parts = [section("l", "train", texts, [0, 1] * 50), section("u", "train", ["x", *texts], [None] * 101)]
    posts = gather(parts, SPACE, validation=0.2)
    labelled, free = posts.splits[:100], posts.splits[101:]
    assert (labelled == "val").sum() == 20 and posts.splits[100] == "train"
    assert labelled.tolist() == free.tolist()
    assert posts.columns["label"].has.tolist() == [True] * 100 + [False] * 101


def test_a_score_is_a_number() -> None:
    label = gather([section("train", "train", ["a", "b"], [0.5, 4.25])], LabelSpace("score", ("s",)), validation=0.5).columns
    assert label["label"].values.tolist() == [0.5, 4.25] and label["label"].values.dtype == np.float32


def test_pairs_and_whole_rows() -> None:
    rows = whole(ROWS, ("x", "y"))
    assert rows.lines == [2, 5]
    posts = gather([Section("a", "train", rows, ("x", "y"), [0, 1])], SPACE)
    assert (posts.texts, posts.pairs) == (["a", "d"], [("e",), ("h",)])
    with pytest.raises(UserError, match=r"a.tsv, line 4, column 'x': '', expected a text; download it again"):
        gather([Section("a", "train", ROWS, ("x", "y"), [0, 1])], SPACE)


def test_a_label_is_its_name_or_its_place() -> None:
    assert ROWS.positions("x", {"a": 0, "b": 1, "": 2, "d": 3}) == [0, 1, 2, 3]
    assert codes(("no", "yes")) == {"no": 0, "0": 0, "yes": 1, "1": 1}
