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
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import again, by_hand, read_delimited
from hatemtl.corpora.splitting import check_fractions, divide, keys
from hatemtl.labels import LabelSpace

LABELS = ("abusive", "hateful", "normal", "spam")
FILES = ("hatespeech_text_label_vote.csv", "hatespeech_text_label_vote_RESTRICTED_100K.csv")
HOME = "zenodo.org/records/3706866"


@dataclass(frozen=True, kw_only=True)
class Founta(Corpus):
    """Founta's tweets with the column label: abusive, hateful, normal or spam, what most annotators chose.

    dir: the folder with the official file. fractions: the shares of posts for training, validation and test, of every
    label alike.
    """

    dir: str
    fractions: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if path is None:
            raise by_hand(folder, FILES[0], HOME)
        rows = read_delimited(path, again=again(path, HOME), delimiter="\t", names=("text", "label", "votes"), quoted=None)
        texts = rows.texts("text")
        label = np.array(rows.positions("label", {name: i for i, name in enumerate(LABELS)}), np.int64)
        splits = divide(keys(texts), self.fractions, self.seed, label)
        columns = {"label": Column(LabelSpace("multiclass", LABELS), label, np.ones(len(rows), bool))}
        return Posts([f"founta_{i}" for i in range(len(rows))], texts, splits, columns)
