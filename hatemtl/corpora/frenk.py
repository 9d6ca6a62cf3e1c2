"""FRENK (Ljubešić, Fišer and Erjavec 2019): comments under news on Facebook, about migrants and LGBT, in three languages.

Layout: tab-separated files without header, six columns: id, text, label (six classes of unacceptable speech), binary
(Acceptable, Offensive), target, topic (lgbt, migrants). The releases name their files in more than one way, so a file's
language and split are read from its path below the folder: en/train.tsv, lgbt-en-test.tsv and data/frenk.en.dev.tsv will do.
Splits: official training and test, of separate threads. Where no file is called dev or val, validation posts are cut
from training, so that no text stands in both. In English, migrants: 4,540 / 1,285 comments; LGBT: 4,819 / 1,017.
Licence: CLARIN.SI ACA ID-BY-NC-INF-NORED 1.0, which forbids to hand it on, so it is to be fetched by hand.
Source: hdl.handle.net/11356/1433. Cite Ljubešić, Fišer and Erjavec (2019), "The FRENK Datasets of Socially Unacceptable
Discourse in Slovene and English" (arxiv.org/abs/1906.02045).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts, Split
from hatemtl.corpora.files import again, by_hand, label_name, read_delimited
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

LANGUAGES = ("en", "hr", "sl")
TOPICS = ("lgbt", "migrants")
NAMES = ("id", "text", "label", "binary", "target", "topic")
BINARY = ("acceptable", "offensive")
LABELS = (
    *("acceptable_speech", "inappropriate", "background_offensive"),
    *("other_offensive", "background_violence", "other_violence"),
)
# How a path says which split it holds.
CALLED: dict[str, Split] = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}
HOME = "hdl.handle.net/11356/1433"


@dataclass(frozen=True, kw_only=True)
class Frenk(Corpus):
    """FRENK's comments in one language, in a fixed shuffle, with the columns binary, label, target and topic.

    binary: acceptable or offensive. label: six classes. target: whom a comment is aimed at, as the files have it, in the
    order of the alphabet. topic: lgbt or migrants.

    dir: the folder with the files of the release. language: en, hr or sl. topics: those whose comments are kept.
    val: the share of the training posts that validates, where the files have no validation posts.
    seed: draws the shuffle and these, too.
    """

    dir: str
    language: str = "en"
    topics: Sequence[str] = TOPICS
    val: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language not in LANGUAGES:
            raise UserError(f"language={self.language}: {did_you_mean(self.language, LANGUAGES)}")
        for topic in self.topics:
            if topic not in TOPICS:
                raise UserError(f"topics={list(self.topics)}: {did_you_mean(topic, TOPICS)}")
        if not self.topics or len(set(self.topics)) != len(self.topics):
            raise UserError(f"topics={list(self.topics)}: expected one or more of {', '.join(TOPICS)}, each once")
        if not 0 < self.val < 1:
            raise UserError(f"val={self.val}: expected a share of the training posts between 0 and 1")

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        read = [(split, _rows(path)) for split, path in _files(folder, self.language)]
        texts = [text for _, rows in read for text in rows.texts("text")]
        splits = np.repeat([split for split, _ in read], [len(rows) for _, rows in read])
        # Of both topics, so that the runs of either have the same labels.
        targets = tuple(sorted({label_name(aim) for _, rows in read for aim in rows.texts("target")}))
        spaces = {"binary": BINARY, "label": LABELS, "target": targets, "topic": TOPICS}
        values = {name: _positions(read, name, names) for name, names in spaces.items()}
        if not (splits == "val").any():
            train = np.flatnonzero(splits == "train")
            shares = (1 - self.val, self.val, 0.0)
            splits[train] = divide(keys([texts[i] for i in train]), shares, self.seed, values["label"][train])
        columns = {
            name: Column(LabelSpace("multiclass", names), values[name], np.ones(len(texts), bool))
            for name, names in spaces.items()
        }
        posts = Posts(_ids(read, self.language), texts, splits, columns)
        order = np.random.default_rng(self.seed).permutation(len(posts))  # one topic's order is that of both
        return posts.at(order[np.isin(values["topic"][order], [TOPICS.index(name) for name in self.topics])])


def _files(folder: Path, language: str) -> list[tuple[Split, Path]]:
    """The files of a language, each with its split."""
    found = []
    for path in sorted(folder.rglob("*.tsv")):
        words = re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())
        splits = {CALLED[word] for word in words if word in CALLED}
        if language in words and len(splits) == 1:
            found.append((splits.pop(), path))
    for split in ("train", "test"):
        if split not in {of for of, _ in found}:
            raise by_hand(folder, f"{language}/{split}.tsv", HOME)
    return found


def _rows(path: Path) -> Rows:
    return read_delimited(path, again=again(path, HOME), delimiter="\t", names=NAMES, quoted=None)


def _positions(read: list[tuple[Split, Rows]], column: str, names: Sequence[str]) -> np.ndarray:
    places = {name: i for i, name in enumerate(names)}
    return np.array([i for _, rows in read for i in rows.positions(column, places, label_name)], np.int64)


def _ids(read: list[tuple[Split, Rows]], language: str) -> list[str]:
    own = [str(of) for _, rows in read for of in rows["id"]]
    return own if len(set(own)) == len(own) else [f"frenk_{language}_{i}" for i in range(len(own))]
