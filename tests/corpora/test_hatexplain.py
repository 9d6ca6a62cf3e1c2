import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hatemtl.corpora.base import SPLITS, Posts
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.hatexplain import COMMUNITIES, LABELS, MISFIT, HateXplain
from hatemtl.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "hatexplain"


def entry(text: str, labels: str, targets: list[list[str]], *masks: str) -> dict[str, Any]:
    """An official post: `labels` is one of h, n, o an annotator, each of `masks` one digit a word."""
    names = {"h": "hatespeech", "n": "normal", "o": "offensive"}
    return {
        "annotators": [
            {"label": names[label], "annotator_id": i, "target": target}
            for i, (label, target) in enumerate(zip(labels, targets, strict=True))
        ],
        "rationales": [[int(digit) for digit in mask] for mask in masks],
        "post_tokens": text.split(" "),
    }


NOBODY = [["None"]] * 3
DATASET = {
    "1_gab": entry("snorfs must go now", "hho", [["Women", "Arab"], ["Women"], ["Arab"]], "1110", "0110", "0010"),
    "2_twitter": entry("what a fine day", "nnn", NOBODY),
    "3_gab": entry("you old dronk", "ooh", [["Men", "Other"], ["Other"], ["None"]], "011", "001"),
    "4_gab": entry("grumblefolk again", "oon", [["Jewish", "Jewish"], ["None"], ["Islam"]]),
    "5_gab": entry("hm hm snorf", "noo", [["Refugee"], ["Refugee"], ["Refugee"]], "001", "011"),
    "6_twitter": entry("all puddleheads leave", "hhh", [["Asian"], ["Asian"], ["Asian"]], "100", "110", "111"),
    "7_gab": entry("in no split", "hno", NOBODY, "111", "000"),
}
DIVISIONS = {"train": ["1_gab", "2_twitter", "3_gab", "4_gab"], "val": ["5_gab"], "test": ["6_twitter"]}


def write(folder: Path, dataset: Any = DATASET, divisions: Any = DIVISIONS) -> HateXplain:
    folder.mkdir(exist_ok=True)
    whole = {post_id: {"post_id": post_id, **post} for post_id, post in dataset.items()}
    (folder / "dataset.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "post_id_divisions.json").write_text(json.dumps(divisions), encoding="utf-8")
    return HateXplain(dir=str(folder))


def write_hub(cache: Path, dataset: Any = DATASET, divisions: Any = DIVISIONS) -> Path:
    """The hub's parquet branch as snapshot_download leaves it in its cache, features declared as the hub does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, words = {"dtype": "int32", "_type": "Value"}, {"dtype": "string", "_type": "Value"}
    features = {
        "id": words,
        "annotators": {
            "feature": {
                "label": {"names": list(LABELS), "_type": "ClassLabel"},
                "annotator_id": ids,
                "target": {"feature": words, "_type": "Sequence"},
            },
            "_type": "Sequence",
        },
        "rationales": {"feature": {"feature": ids, "_type": "Sequence"}, "_type": "Sequence"},
        "post_tokens": {"feature": words, "_type": "Sequence"},
    }
    annotators = {"label": pa.int64(), "annotator_id": pa.int32(), "target": pa.list_(pa.string())}
    schema = pa.schema(
        {
            "id": pa.string(),
            "annotators": pa.struct({name: pa.list_(kind) for name, kind in annotators.items()}),
            "rationales": pa.list_(pa.list_(pa.int32())),
            "post_tokens": pa.list_(pa.string()),
        },
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    repository = cache / "datasets--Hate-speech-CNERG--hatexplain"
    snapshot = repository / "snapshots" / ("c" * 40)
    reference = repository / "refs" / "refs" / "convert" / "parquet"
    reference.parent.mkdir(parents=True)
    reference.write_text("c" * 40)
    for split, folder in {"train": "train", "val": "validation", "test": "test"}.items():
        rows = [
            {
                "id": post_id,
                "annotators": {
                    "label": [LABELS.index(a["label"]) for a in dataset[post_id]["annotators"]],
                    "annotator_id": [a["annotator_id"] for a in dataset[post_id]["annotators"]],
                    "target": [a["target"] for a in dataset[post_id]["annotators"]],
                },
                "rationales": dataset[post_id]["rationales"],
                "post_tokens": dataset[post_id]["post_tokens"],
            }
            for post_id in divisions[split]
        ]
        path = snapshot / "plain_text" / folder / "0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return snapshot


def rationales(posts: Posts) -> dict[str, list[float]]:
    column = posts.columns["rationale"]
    return {posts.ids[i]: column.values[i].tolist() for i in np.flatnonzero(column.has)}


def targets(posts: Posts) -> dict[str, list[str]]:
    column = posts.columns["target"]
    return {
        post_id: [column.space.names[i] for i in np.flatnonzero(row)]
        for post_id, row in zip(posts.ids, column.values, strict=True)
    }


def test_posts_come_by_split_in_the_order_of_the_divisions(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    assert posts.ids == ["1_gab", "2_twitter", "3_gab", "4_gab", "5_gab", "6_twitter"]
    assert posts.splits.tolist() == ["train"] * 4 + ["val", "test"]
    assert posts.texts[0] == "snorfs must go now"


def test_the_label_is_the_majority(tmp_path: Path) -> None:
    label = write(tmp_path).load().columns["label"]
    assert label.space.names == ("hatespeech", "normal", "offensive")
    assert label.values.tolist() == [0, 1, 2, 2, 2, 0]
    assert label.values.dtype == np.int64
    assert label.has.all()


def test_toxic_is_hateful_or_offensive(tmp_path: Path) -> None:
    toxic = write(tmp_path).load().columns["toxic"]
    assert toxic.space.names == ("normal", "toxic")
    assert toxic.values.tolist() == [1, 0, 1, 1, 1, 1] and toxic.has.all()
    assert not write(tmp_path, divisions={**DIVISIONS, "train": ["7_gab"]}).load().columns["toxic"].has[0]


def test_a_tie_has_neither_label_nor_rationale(tmp_path: Path) -> None:
    posts = write(tmp_path, divisions={**DIVISIONS, "train": ["7_gab", "1_gab"]}).load()
    assert not posts.columns["label"].has[0] and not posts.columns["rationale"].has[0]
    assert posts.columns["label"].has[1:].all()
    assert posts.columns["target"].has.all()


def test_a_community_counts_when_two_annotators_name_it(tmp_path: Path) -> None:
    corpus = write(tmp_path)
    posts = corpus.load()
    expected = {
        "1_gab": ["arab", "women"],
        "2_twitter": [],
        "3_gab": ["other"],  # "men" is none of the eleven either way
        "4_gab": [],  # one annotator who names it twice is still one
        "5_gab": ["refugee"],
        "6_twitter": ["asian"],
    }
    assert targets(posts) == expected
    assert posts.columns["target"].space.names == COMMUNITIES and len(COMMUNITIES) == 11
    assert posts.columns["target"].has.all() and posts.columns["target"].values.dtype == np.float32
    ten = replace(corpus, targets=10).load()
    assert ten.columns["target"].space.names == tuple(name for name in COMMUNITIES if name != "other")
    assert targets(ten) == {**expected, "3_gab": []}


@pytest.mark.parametrize(
    ("how", "first", "third"),
    [
        ("union", [1, 1, 1, 0], [0, 1, 1]),
        ("majority", [0, 1, 1, 0], [0, 1, 1]),
        ("soft", [1 / 3, 2 / 3, 1, 0], [0, 1 / 2, 1]),
    ],
)
def test_masks_become_one_in_training_posts_only(tmp_path: Path, how: Any, first: list[float], third: list[float]) -> None:
    found = rationales(replace(write(tmp_path), rationale=how).load())
    assert set(found) == {"1_gab", "3_gab", "5_gab", "6_twitter"}  # 2 is normal, 4 carries no mask
    assert found["1_gab"] == pytest.approx(first)
    assert found["3_gab"] == pytest.approx(third)
    assert found["5_gab"] == [0, 1, 1]
    assert found["6_twitter"] == [1, 1, 1]


@pytest.mark.parametrize("how", ["majority", "soft"])
def test_of_masks_that_are_the_union_nothing_else_is_made(tmp_path: Path, how: Any) -> None:
    corpus = write(
        tmp_path, {**DATASET, **{name: entry("you must go", "hhh", NOBODY, *["011"] * 3) for name in DIVISIONS["train"]}}
    )
    assert rationales(corpus.load())["1_gab"] == [0, 1, 1]
    with pytest.raises(UserError, match=rf"in all 4 training posts .* rationale={how} would be that too; type"):
        replace(corpus, rationale=how).load()


@pytest.mark.parametrize("how", ["union", "majority", "soft"])
@pytest.mark.parametrize("fold", [1, 2])
def test_the_posts_of_a_fold_that_is_tested_carry_the_union(tmp_path: Path, how: Any, fold: int) -> None:
    corpus = replace(write(tmp_path), rationale=how)
    whole, mine = corpus.load(), Folds(number=2, fold=fold).of_run(corpus.load())
    tested = {name for name, split in zip(mine.ids, mine.splits, strict=True) if split == "test"}
    union, trained, found = rationales(write(tmp_path).load()), rationales(whole), rationales(mine)
    assert tested and found == {name: (union if name in tested else trained)[name] for name in found}


def test_a_rationale_has_one_value_a_word_even_where_there_is_none(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    for text, values in zip(posts.texts, posts.columns["rationale"].values, strict=True):
        assert len(values) == len(text.split(" ")) and values.dtype == np.float32


def test_words_with_spaces_or_nothing_in_them_stay_one_word(tmp_path: Path) -> None:
    odd = {**entry("a b c d", "hhh", NOBODY, "0101"), "post_tokens": ["a b", "", "\tc\n", " "]}
    posts = write(tmp_path, {**DATASET, "1_gab": odd}).load()
    assert posts.texts[0] == "a_b _ c _"
    assert rationales(posts)["1_gab"] == [0, 1, 0, 1]


def test_limit_is_a_split(tmp_path: Path) -> None:
    posts = replace(write(tmp_path), limit=2).load()
    assert posts.splits.tolist() == ["train", "train", "val", "test"] and posts.ids[2:] == ["5_gab", "6_twitter"]


def test_the_known_misfit_loses_its_odd_mask_and_nothing_else(tmp_path: Path) -> None:
    misfit = entry("you and your snorfs", "hhh", NOBODY, "0001", "00011", "0011")
    posts = write(tmp_path, {**DATASET, MISFIT: misfit}, {**DIVISIONS, "train": [MISFIT]}).load()
    assert rationales(posts)[MISFIT] == [0, 0, 1, 1]


def test_the_hub_gives_the_same_posts(tmp_path: Path, hub: Path) -> None:
    from_files = write(tmp_path / "official").load()
    write_hub(hub)
    from_hub = HateXplain(dir=str(tmp_path / "nothing")).load()
    assert from_hub.fingerprint() == from_files.fingerprint()
    assert {name: c.space for name, c in from_hub.columns.items()} == {
        name: c.space for name, c in from_files.columns.items()
    }


def test_official_files_are_read_before_the_hub(tmp_path: Path, hub: Path) -> None:
    write_hub(hub, divisions={**DIVISIONS, "train": []})
    assert len(write(tmp_path / "official").load()) == 6


def test_with_neither_files_nor_hub_the_error_says_what_was_sought_and_two_ways_out(tmp_path: Path, hub: Path) -> None:
    with pytest.raises(UserError) as error:
        HateXplain(dir=str(tmp_path / "nothing" / "hatexplain")).load()
    for part in (
        str(tmp_path / "nothing" / "hatexplain"),
        "dataset.json and post_id_divisions.json",
        "Hate-speech-CNERG/hatexplain",
        "data.dir=FOLDER with hatexplain/dataset.json",
        "corpus@tasks.TASK.corpus=sample",
    ):
        assert part in str(error.value)


def test_a_hub_cache_that_lacks_a_split_is_named(tmp_path: Path, hub: Path) -> None:
    snapshot = write_hub(hub)
    (snapshot / "plain_text" / "test" / "0000.parquet").unlink()
    with pytest.raises(UserError, match=r"plain_text/test/\*\.parquet; delete .* and run again"):
        HateXplain(dir=str(tmp_path / "nothing")).load()


def test_a_cut_off_parquet_file_is_named(tmp_path: Path, hub: Path) -> None:
    path = write_hub(hub) / "plain_text" / "train" / "0000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"plain_text/train/0000.parquet cannot be read \(.*\); delete"):
        HateXplain(dir=str(tmp_path / "nothing")).load()


@pytest.mark.parametrize("name", ["dataset.json", "post_id_divisions.json"])
def test_one_file_without_the_other_is_refused(tmp_path: Path, name: str) -> None:
    corpus = write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{tmp_path} has no {name}.*download {name} again from the HateXplain"):
        corpus.load()


@pytest.mark.parametrize("name", ["dataset.json", "post_id_divisions.json"])
@pytest.mark.parametrize("content", [b'{"1_gab": {"annot', b"", b"\xff\xfe{}", b"[]"])
def test_a_garbled_file_is_named_with_the_way_out(tmp_path: Path, name: str, content: bytes) -> None:
    corpus = write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path / name} .*; download {name} again from the HateXplain"):
        corpus.load()


@pytest.mark.parametrize(
    ("divisions", "expected"),
    [
        ({**DIVISIONS, "val": ["9_gab"]}, "dataset.json, post '9_gab'.*not there or listed twice"),
        ({**DIVISIONS, "val": ["1_gab"]}, "dataset.json, post '1_gab'.*not there or listed twice"),
        ({"train": ["1_gab"], "val": []}, "post_id_divisions.json lists no 'test' posts"),
        ({**DIVISIONS, "val": "5_gab"}, "post_id_divisions.json lists no 'val' posts"),
    ],
)
def test_divisions_that_do_not_fit_are_refused(tmp_path: Path, divisions: Any, expected: str) -> None:
    with pytest.raises(UserError, match=rf"{expected}.*; download .* again"):
        write(tmp_path, divisions=divisions).load()


SOUND = DATASET["1_gab"]
ONE, TWO, THREE = SOUND["annotators"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"annotators": [ONE, TWO]}, "expected three annotators"),
        ({"annotators": [ONE, TWO, {"label": "normal"}]}, "expected three annotators"),
        ({"annotators": [ONE, TWO, {**THREE, "target": "Women"}]}, "expected three annotators"),
        ({"annotators": [ONE, TWO, "normal"]}, "expected three annotators"),
        ({"annotators": [ONE, TWO, {**THREE, "label": None}]}, "expected three annotators"),
        ({"annotators": [ONE, TWO, {**THREE, "label": "offensiv"}]}, "'offensiv': did you mean 'offensive'"),
        ({"rationales": None}, "expected three annotators .* rationales"),
        ({"post_tokens": []}, "expected three annotators .* words"),
        ({"post_tokens": ["a", 1, "b", "c"]}, "expected three annotators .* words"),
        ({"rationales": [[1, 0, 0]]}, "one 0 or 1 for each of the 4 words"),
        ({"rationales": [[1, 0, 0, 2]]}, "one 0 or 1 for each of the 4 words"),
        ({"rationales": [1, 0, 0, 0]}, "one 0 or 1 for each of the 4 words"),
    ],
)
def test_a_damaged_post_is_named_with_the_file_and_the_way_out(tmp_path: Path, damage: Any, expected: str) -> None:
    corpus = write(tmp_path, {**DATASET, "1_gab": {**SOUND, **damage}})
    with pytest.raises(UserError, match=rf"{tmp_path}/dataset.json, post '1_gab': .*{expected}.*; download dataset.json"):
        corpus.load()


def test_equal_corpora_are_one() -> None:
    assert len({HateXplain(dir="a"), HateXplain(dir="a"), HateXplain(dir="b")}) == 2


real = pytest.mark.skipif(not (REAL / "dataset.json").is_file(), reason=f"no HateXplain in {REAL}")


@pytest.fixture(scope="module")
def hatexplain() -> Posts:
    return HateXplain(dir=str(REAL)).load()


@real
def test_the_official_splits_have_their_published_sizes(hatexplain: Posts) -> None:
    assert [int((hatexplain.splits == split).sum()) for split in SPLITS] == [15383, 1922, 1924]
    assert hatexplain.columns["label"].has.all()


@real
def test_labels_by_platform_are_those_of_the_papers_table(hatexplain: Posts) -> None:
    """Mathew et al. 2021, arXiv:2012.10289, the statistics of the dataset; ids of a few tweets go on behind `_twitter`."""
    values, gab = hatexplain.columns["label"].values, np.array([post.endswith("_gab") for post in hatexplain.ids])
    counts = {name: [int((values[of] == i).sum()) for of in (~gab, gab)] for i, name in enumerate(LABELS)}
    assert counts == {"hatespeech": [708, 5227], "offensive": [2328, 3152], "normal": [5770, 2044]}
    assert sum(map(sum, counts.values())) == 20148 - 919  # the undecided ones are in no split


@real
def test_test_posts_by_community(hatexplain: Posts) -> None:
    counts = hatexplain.columns["target"].values[hatexplain.splits == "test"].sum(axis=0).astype(int)
    assert dict(zip(COMMUNITIES, counts.tolist(), strict=True)) == {
        "african": 315,
        "arab": 67,
        "asian": 36,
        "caucasian": 52,
        "hispanic": 35,
        "homosexual": 182,
        "islam": 194,
        "jewish": 188,
        "other": 72,
        "refugee": 85,
        "women": 147,
    }


@real
def test_all_abusive_test_posts_have_a_rationale(hatexplain: Posts) -> None:
    test = hatexplain.splits == "test"
    has = hatexplain.columns["rationale"].has
    assert int(has[test].sum()) == 1142
    assert np.array_equal(has[test], hatexplain.columns["label"].values[test] != LABELS.index("normal"))


@real
def test_every_word_of_the_real_posts_has_its_value(hatexplain: Posts) -> None:
    lengths = [len(text.split(" ")) for text in hatexplain.texts]
    assert lengths == [len(values) for values in hatexplain.columns["rationale"].values]


def test_shares_are_those_of_the_three_annotators(tmp_path: Path) -> None:
    posts = write(tmp_path).load()
    label, toxic, target = (posts.columns[name] for name in ("label", "toxic", "target"))
    assert label.space.names == LABELS == ("hatespeech", "normal", "offensive")
    np.testing.assert_allclose(label.shares[[0, 2, 3]] * 3, [[2, 0, 1], [1, 0, 2], [0, 1, 2]], rtol=1e-6)
    np.testing.assert_allclose(toxic.shares[[0, 1, 3]] * 3, [[0, 3], [3, 0], [1, 2]], rtol=1e-6, atol=1e-6)
    at = [COMMUNITIES.index(name) for name in ("arab", "islam", "jewish", "women")]
    np.testing.assert_allclose(target.shares[[0, 3]][:, at] * 3, [[2, 0, 0, 2], [0, 1, 1, 0]], rtol=1e-6)
    for column in (label, toxic):
        assert (column.shares.argmax(axis=1) == column.values)[column.has].all()
    assert ((target.shares > 0.5) == target.values).all()
