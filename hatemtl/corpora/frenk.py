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
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from hatemtl.corpora.base import CALLED, Column, Corpus, Posts, Split
from hatemtl.corpora.files import complete, label_name, official, read_delimited
from hatemtl.corpora.rows import ids
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError, did_you_mean

TOPICS = ("lgbt", "migrants")
NAMES = ("id", "text", "label", "binary", "target", "topic")
BINARY = ("acceptable", "offensive")
LABELS = (
    *("acceptable_speech", "inappropriate", "background_offensive"),
    *("other_offensive", "background_violence", "other_violence"),
)
HOME = "hdl.handle.net/11356/1433"
READ = partial(read_delimited, delimiter="\t", names=NAMES, quoted=None)


@dataclass(frozen=True, kw_only=True)
class Frenk(Corpus):
    """FRENK's comments in one language, in a fixed shuffle. Their targets are in the order of the alphabet."""

    dir: str
    language: Literal["en", "hr", "sl"] = "en"
    topics: Sequence[str] = TOPICS
    val: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for topic in {*self.topics} - {*TOPICS}:
            raise UserError(f"topics={list(self.topics)}: {did_you_mean(topic, TOPICS)}")
        if not self.topics or len(set(self.topics)) != len(self.topics):
            raise UserError(f"topics={list(self.topics)}: expected one or more of {', '.join(TOPICS)}, each once")

    def read(self) -> Posts:
        files = self._files(Path(self.dir).expanduser())
        read = [rows for _, rows in official(self.dir, [*files], HOME, read=READ)]
        texts = [text for rows in read for text in rows.texts("text")]
        splits = np.repeat([*files.values()], [len(rows) for rows in read])
        # Of both topics, so that the runs of either have the same labels.
        targets = sorted({label_name(aim) for rows in read for aim in rows.texts("target")})
        spaces: dict[str, Sequence[str]] = {"binary": BINARY, "label": LABELS, "target": targets, "topic": TOPICS}
        columns = {
            name: Column.of("multiclass", names, [i for rows in read for i in rows.positions(name, names, label_name)])
            for name, names in spaces.items()
        }
        if not (splits == "val").any():
            train, shares = np.flatnonzero(splits == "train"), (1 - self.val, self.val, 0.0)
            splits[train] = divide(keys([texts[i] for i in train]), shares, self.seed, columns["label"].values[train])
        own = ids([one for rows in read for one in rows["id"]], len(texts), f"frenk_{self.language}")
        order = np.random.default_rng(self.seed).permutation(len(texts))  # one topic's order is that of both
        kept = np.isin(columns["topic"].values[order], [TOPICS.index(name) for name in self.topics])
        return Posts(own, texts, splits, columns).at(order[kept])

    def _files(self, folder: Path) -> dict[str, Split]:
        found: dict[str, Split] = {}
        for path in sorted(folder.rglob("*.tsv")):
            name = str(path.relative_to(folder))
            words = re.split(r"[^a-z]+", name.lower())
            splits = {CALLED[word] for word in words if word in CALLED}
            if self.language in words and len(splits) == 1:
                found[name] = splits.pop()
        for split in ("train", "test"):
            if split not in found.values():
                complete(folder, [f"{self.language}/{split}.tsv"], HOME, hub=False)
        return found
