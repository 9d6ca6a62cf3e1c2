from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import jsonl

from hatemtl.corpora.base import SPLITS
from hatemtl.corpora.reviews import Reviews
from hatemtl.errors import UserError

FILE = "reviews_Soup_5.json"


def review(i: int, product: str, helpful: Any, stars: float = 5.0) -> dict[str, Any]:
    return {
        "reviewerID": f"A{i}",
        "asin": product,
        "helpful": helpful,
        "reviewText": f"A fine soup, number {i}",
        "overall": stars,
        "summary": "soup",
        "unixReviewTime": 1362355200 + i,
    }


def write(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Reviews:
    jsonl(folder / FILE, rows)
    given = {"threshold": 0.6, "minimum": 5, "group_by": "asin", "fractions": [0.5, 0.25, 0.25], **changes}
    return Reviews(dir=str(folder), file=FILE, **given)


def test_helpful_is_a_share_of_enough_voters(tmp_path: Path) -> None:
    votes = [[3, 5], [2, 5], [5, 5], [0, 0], [4, 4], [6, 5], [0, 9]]
    rows = [review(i, f"B{i}", helpful, 1.0 + i % 5) for i, helpful in enumerate(votes)]
    posts = write(tmp_path, rows).load()
    helpful, stars = posts.columns["helpful"], posts.columns["stars"]
    assert helpful.has.tolist() == [True, True, True, False, False, False, True]
    assert helpful.values.tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert helpful.space.names == ("not_helpful", "helpful")
    assert stars.space.kind == "ordinal" and stars.space.names == ("one", "two", "three", "four", "five")
    assert stars.values.tolist() == [0, 1, 2, 3, 4, 0, 1] and stars.has.all()
    assert write(tmp_path, rows, threshold=0.61).load().columns["helpful"].values.tolist() == [0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("group", ["asin", "reviewerID"])
def test_a_group_stands_in_one_split(tmp_path: Path, group: str) -> None:
    rows = [{**review(i, f"B{i % 20}", [5, 5]), "reviewerID": f"A{i // 10}"} for i in range(200)]
    posts = write(tmp_path, rows, group_by=group).load()
    groups = np.array([row[group] for row in rows])
    for name in np.unique(groups):
        assert len(np.unique(posts.splits[groups == name])) == 1
    assert [int((posts.splits == split).sum()) for split in SPLITS] == [100, 50, 50]


def test_equal_and_empty_texts_go(tmp_path: Path) -> None:
    rows = [review(i, f"B{i}", [5, 5]) for i in range(4)]
    rows[2]["reviewText"], rows[3]["reviewText"] = rows[0]["reviewText"].upper(), " "
    posts = write(tmp_path, rows).load()
    assert posts.ids == ["line-1", "line-2"]


def test_the_newer_release_has_stars_alone(tmp_path: Path) -> None:
    rows = [
        {"rating": 4.0, "title": "soup", "text": f"Soup {i}", "asin": f"B{i}", "user_id": "A", "helpful_vote": 3}
        for i in range(8)
    ]
    posts = write(tmp_path, rows).load()
    assert [*posts.columns] == ["stars"] and posts.columns["stars"].values.tolist() == [3] * 8


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"helpful": 3}, r"column 'helpful': 3, expected \[how many"),
        ({"helpful": [1, -2]}, r"column 'helpful': \[1, -2\], expected"),
        ({"overall": 4.5}, r"column 'overall': 4.5, expected one of 1, 1.0"),
        ({"asin": None}, r"column 'asin': None, expected a text"),
    ],
)
def test_a_damaged_review_is_named_with_the_line(tmp_path: Path, damage: dict[str, Any], expected: str) -> None:
    corpus = write(tmp_path, [review(0, "B0", [5, 5]), {**review(1, "B1", [5, 5]), **damage}])
    with pytest.raises(UserError, match=rf"{FILE}, line 2, {expected}.*; download {FILE} again from"):
        corpus.load()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'product': known: reviewerID, asin"):
        write(tmp_path, [review(0, "B0", [5, 5])], group_by="product").load()
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match=rf"no {FILE}: get it by hand at .*\(.gz, to be unpacked\), then type data.dir="):
        Reviews(dir=str(tmp_path), file=FILE, threshold=0.6, minimum=5, group_by="asin", fractions=(0.8, 0.1, 0.1)).load()
    for changes, expected in (({"threshold": 0}, "threshold=0"), ({"minimum": 0}, "minimum=0")):
        with pytest.raises(UserError, match=f"{expected}: expected"):
            write(tmp_path, [], **changes)
