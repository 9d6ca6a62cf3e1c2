from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import tsv

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.joint import Joint
from hatemtl.errors import UserError
from hatemtl.labels import Kind, LabelSpace


@dataclass(frozen=True, kw_only=True)
class Few(Corpus):
    """Four posts with the first label and the others in turns."""

    names: tuple[str, ...] = ("bad", "good")
    paired: bool = False
    kind: Kind = "multiclass"

    def read(self) -> Posts:
        values = np.arange(4) % len(self.names)
        label = Column(LabelSpace(self.kind, self.names), values, np.array([True, True, True, False]))
        texts, splits = [f"{self.names[0]} {i}" for i in range(4)], np.array(["train", "train", "val", "test"])
        pairs: list[tuple[str, ...]] | None = [(text,) for text in texts] if self.paired else None
        return Posts([str(i) for i in range(4)], texts, splits, {"label": label}, pairs)


def joint(**corpora: Corpus) -> Joint:
    return Joint(corpora=corpora, column="label")


def test_posts_follow_one_another_under_one_label_space() -> None:
    posts = joint(a=Few(), b=Few(names=("x", "y", "z"), paired=True)).load()
    assert posts.ids == ["a/0", "a/1", "a/2", "a/3", "b/0", "b/1", "b/2", "b/3"]
    assert posts.splits.tolist() == ["train", "train", "val", "test"] * 2
    assert posts.pairs == [()] * 4 + [("x 0",), ("x 1",), ("x 2",), ("x 3",)]
    label = posts.columns["label"]
    assert label.space == LabelSpace("multiclass", ("0", "1", "2"))
    assert label.values.tolist() == [0, 1, 0, 1, 0, 1, 2, 0]
    assert label.has.tolist() == [True, True, True, False] * 2
    assert joint(a=Few()).load().pairs is None


def test_a_corpus_own_column_has_its_posts_alone_and_the_same_labels() -> None:
    posts = joint(a=Few(), b=Few(names=("x", "y", "z"))).load()
    assert [*posts.columns] == ["label", "a", "b"]
    assert posts.columns["a"].has.tolist() == [True, True, True, False, *[False] * 4]
    assert posts.columns["b"].has.tolist() == [*[False] * 4, True, True, True, False]
    for name in "ab":
        assert posts.columns[name].space == posts.columns["label"].space
        assert np.array_equal(posts.columns[name].values, posts.columns["label"].values)


def test_equal_ones_are_one() -> None:
    assert len({joint(a=Few()), joint(a=Few()), joint(a=Few(seed=1)), joint(b=Few())}) == 3


def test_each_corpus_has_its_own_limit() -> None:
    assert joint(a=Few(limit=1), b=Few()).load().ids == ["a/0", "a/2", "a/3", "b/0", "b/1", "b/2", "b/3"]


def test_what_cannot_be_joined() -> None:
    with pytest.raises(UserError, match="expected at least one; add corpus@tasks"):
        joint()
    with pytest.raises(UserError, match="corpora.label: this name is the joint column's"):
        joint(label=Few())
    with pytest.raises(UserError, match="corpora.a has no column 'lable': did you mean 'label'"):
        Joint(corpora={"a": Few()}, column="lable").load()
    with pytest.raises(UserError, match="corpora.b: column 'label' is ordinal, expected multiclass"):
        joint(a=Few(), b=Few(kind="ordinal")).load()


@pytest.mark.slow
def test_one_head_is_tested_on_each_corpus_alone(tmp_path: Path, cli: Callable[..., Any]) -> None:
    for folder, names, header in (
        ("CoLA", ("train.tsv", "dev.tsv"), None),
        ("MRPC", ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"), "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"),
        ("SST-2", ("train.tsv", "dev.tsv"), "sentence\tlabel"),
    ):
        for name, n in zip(names, (20, 4 + len(folder)), strict=True):
            soups = [f"soup {i} of {folder} {name}" for i in range(n)]
            rows: list[list[Any]] = [[header]] if header else []
            for i, soup in enumerate(soups):
                cells = {"CoLA": ["gj", i % 2, "", soup], "MRPC": [i % 2, 1, 2, soup, f"a {soup}"], "SST-2": [soup, i % 2]}
                rows.append(cells[folder])
            tsv(tmp_path / "data" / "glue" / folder / name, rows)
    base = ["tasks=[joint]", "encoder=tiny", f"data.dir={tmp_path / 'data'}", "optimization.epochs=1"]
    assert cli(*base, f"save_path={tmp_path / 'run'}").code == 0
    load = ["action=test", "method=ah_load", "heads.load=true", f"load_path={tmp_path / 'run'}"]
    for corpus, posts in (("cola", 8), ("mrpc", 8), ("sst2", 9)):
        to = tmp_path / corpus
        assert cli(*base, *load, f"tasks.joint.column={corpus}", f"save_path={to}").code == 0
        rows_of = dict(line.split(",") for line in (to / "results.csv").read_text().splitlines())
        assert sum(float(rows_of[f"test_joint_{kind}_{label}"]) for kind in ("tp", "fn") for label in (0, 1)) == posts
