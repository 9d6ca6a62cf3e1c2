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
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, again, read_delimited, ways_out
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import check_fractions, divide, keys
from hatemtl.labels import LabelSpace

LABELS = ("hate", "offensive", "neither")  # in the order of their numbers
VOTES = ("hate_speech", "offensive_language", "neither")
FILE = "labeled_data.csv"
HUB = Hub("tdavidson/hate_speech_offensive", "default")


@dataclass(frozen=True, kw_only=True)
class Davidson(Corpus):
    """Davidson's tweets with the columns label (hate, offensive, neither) and votes (what share of annotators said each).

    dir: the folder with the official labeled_data.csv; where it is not there, the hub is asked.
    fractions: the shares of posts for training, validation and test, of every label alike.
    """

    dir: str
    fractions: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        if (path := folder / FILE).is_file():
            rows = read_delimited(path, again=again(path, "github.com/t-davidson/hate-speech-and-offensive-language"))
        else:
            ((_, rows),) = HUB.splits(["train"], ways_out(folder, FILE))
        texts = rows.texts("tweet")
        label = np.array(rows.positions("class", {str(i): i for i in range(len(LABELS))}), np.int64)
        everywhere = np.ones(len(rows), bool)
        columns = {
            "label": Column(LabelSpace("multiclass", LABELS), label, everywhere),
            "votes": Column(LabelSpace("multilabel", LABELS), _shares(rows), everywhere),
        }
        splits = divide(keys(texts), self.fractions, self.seed, label)
        return Posts(_ids(rows), texts, splits, columns)


def _ids(rows: Rows) -> list[str]:
    own = [str(index) for index in rows.columns.get("", ())]
    return own if len(set(own)) == len(rows) else [f"davidson_{i}" for i in range(len(rows))]


def _shares(rows: Rows) -> np.ndarray:
    suffix = "_count" if "hate_speech_count" in rows.columns else ""
    votes = np.stack([rows.array(name + suffix, low=0) for name in VOTES], axis=1)
    total = votes.sum(axis=1, keepdims=True)
    if not total.all():
        raise rows.wrong(int(np.argmin(total)), VOTES[0] + suffix, "a vote for one of the three labels at least")
    return (votes / total).astype(np.float32)
