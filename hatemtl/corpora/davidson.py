"""Davidson et al. (ICWSM 2017), "Automated Hate Speech Detection and the Problem of Offensive Language": 24,783 tweets.

The tweets hold words of a lexicon of hate speech. Three or more annotators said of each whether it is hate speech,
offensive language or neither; the class is what most of them said.

Layout: labeled_data.csv with the columns (none, the index), count, hate_speech, offensive_language, neither (votes), class
(0 hate, 1 offensive, 2 neither), tweet. The hub's copy (tdavidson/hate_speech_offensive) has no index and calls the votes
hate_speech_count, offensive_language_count and neither_count.
Splits: none official; cut here, so that no text stands in two of them.
Licence: MIT. Source: github.com/t-davidson/hate-speech-and-offensive-language, folder data.
Cite Davidson, Warmsley, Macy and Weber (2017), "Automated Hate Speech Detection and the Problem of Offensive Language".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, official
from hatemtl.corpora.rows import ids
from hatemtl.corpora.splitting import divide, keys

LABELS = ("hate", "offensive", "neither")  # in the order of their numbers
VOTES = ("hate_speech", "offensive_language", "neither")
HOME = "github.com/t-davidson/hate-speech-and-offensive-language"


@dataclass(frozen=True, kw_only=True)
class Davidson(Corpus):
    dir: str
    fractions: Sequence[float]

    def read(self) -> Posts:
        ((_, rows),) = official(self.dir, ["labeled_data.csv"], HOME, hub=Hub("tdavidson/hate_speech_offensive", "default"))
        suffix = "_count" if "hate_speech_count" in rows.columns else ""
        votes = np.stack([rows.array(name + suffix, low=0) for name in VOTES], axis=1)
        total = votes.sum(axis=1, keepdims=True)
        if not total.all():
            raise rows.wrong(int(np.argmin(total)), VOTES[0] + suffix, "a vote for one of the three labels at least")
        texts = rows.texts("tweet")
        label = Column.of("multiclass", LABELS, rows.positions("class", ("0", "1", "2")))
        columns = {"label": label, "votes": Column.of("multilabel", LABELS, votes / total)}
        splits = divide(keys(texts), self.fractions, self.seed, label.values)
        return Posts(ids(rows.columns.get("", ()), len(rows), "davidson"), texts, splits, columns)
