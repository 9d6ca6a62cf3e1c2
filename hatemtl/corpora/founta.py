"""Founta et al. (ICWSM 2018), "Large Scale Crowdsourcing and Characterization of Twitter Abusive Behavior": 100,000 tweets.

Layout: hatespeech_text_label_vote.csv (also handed out as hatespeech_text_label_vote_RESTRICTED_100K.csv), no header, tabs
between text, label (abusive, hateful, normal, spam) and votes, how many annotators chose that label.
Splits: none official; cut here, so that no text stands in two of them. Many texts are there more than once, some of them
with other labels.
Licence: handed out for research on request, so there is no copy on the hub.
Source: zenodo.org/records/3706866, linked from github.com/ENCASEH2020/hatespeech-twitter.
Cite Founta, Djouvas, Chatzakou, Leontiadis, Blackburn, Stringhini, Vakali, Sirivianos and Kourtellis (2018), "Large Scale
Crowdsourcing and Characterization of Twitter Abusive Behavior".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import official, read_delimited
from hatemtl.corpora.rows import ids
from hatemtl.corpora.splitting import divide, keys

LABELS = ("abusive", "hateful", "normal", "spam")
FILES = ("hatespeech_text_label_vote.csv", "hatespeech_text_label_vote_RESTRICTED_100K.csv")
READ = partial(read_delimited, delimiter="\t", names=("text", "label", "votes"), quoted=None)


@dataclass(frozen=True, kw_only=True)
class Founta(Corpus):
    dir: str
    fractions: Sequence[float]

    def read(self) -> Posts:
        file = next((name for name in FILES if (Path(self.dir).expanduser() / name).is_file()), FILES[0])
        ((_, rows),) = official(self.dir, [file], "zenodo.org/records/3706866", read=READ)
        texts = rows.texts("text")
        label = Column.of("multiclass", LABELS, rows.positions("label", LABELS))
        splits = divide(keys(texts), self.fractions, self.seed, label.values)
        return Posts(ids((), len(rows), "founta"), texts, splits, {"label": label})
