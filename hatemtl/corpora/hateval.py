"""HatEval (Basile et al., SemEval-2019 task 5): tweets about immigrants and women, in English and Spanish.

Layout: hateval2019_LANGUAGE_SPLIT.csv with the columns id, text, HS (hate speech), TR (target range: 1 an individual, 0 a
group), AG (aggressive). TR and AG are judged where HS is 1 and are 0 elsewhere.
Splits: official; English 9,000 / 1,000 / 3,000, Spanish 4,500 / 500 / 1,600 tweets. In English, 225 texts of the test
split stand in the training split too, up to case and space.
Licence: CC BY-NC 4.0, handed out on request; there is no copy of known layout on the hub.
Source: hatespeech.di.unito.it/hateval.html.
Cite Basile, Bosco, Fersini, Nozza, Patti, Rangel Pardo, Rosso and Sanguinetti (2019), "SemEval-2019 Task 5: Multilingual
Detection of Hate Speech Against Immigrants and Women in Twitter".
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts
from hatemtl.corpora.files import again, by_hand, read_delimited
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

LANGUAGES = ("en", "es")
COLUMNS = {
    "hate": ("HS", ("not_hate", "hate")),
    "target_range": ("TR", ("generic", "individual")),
    "aggressive": ("AG", ("not_aggressive", "aggressive")),
}
OFFICIAL = {"train": "train", "val": "dev", "test": "test"}
HOME = "hatespeech.di.unito.it/hateval.html"


@dataclass(frozen=True, kw_only=True)
class HatEval(Corpus):
    """HatEval's three official splits with the columns hate, target_range and aggressive, the last two of hateful tweets.

    dir: the folder with hateval2019_LANGUAGE_{train,dev,test}.csv. language: en or es.
    """

    dir: str
    language: str = "en"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language not in LANGUAGES:
            raise UserError(f"language={self.language}: {did_you_mean(self.language, LANGUAGES)}")

    def read(self) -> Posts:
        read = [self._rows(split) for split in SPLITS]
        texts = [text for rows in read for text in rows.texts("text")]
        splits = np.repeat(SPLITS, [len(rows) for rows in read])
        ids = [str(own) for rows in read for own in rows["id"]]
        if len(set(ids)) != len(ids):
            ids = [f"hateval_{i}" for i in range(len(ids))]
        values = {name: _flags(read, source) for name, (source, _) in COLUMNS.items()}
        hateful = values["hate"] == 1
        columns = {
            name: Column(
                LabelSpace("multiclass", labels),
                np.where(hateful, values[name], 0),
                np.ones(len(texts), bool) if name == "hate" else hateful,
            )
            for name, (_, labels) in COLUMNS.items()
        }
        return Posts(ids, texts, splits, columns)

    def _rows(self, split: str) -> Rows:
        path = Path(self.dir).expanduser() / f"hateval2019_{self.language}_{OFFICIAL[split]}.csv"
        if not path.is_file():
            raise by_hand(path.parent, path.name, HOME)
        return read_delimited(path, again=again(path, HOME))


def _flags(read: list[Rows], column: str) -> np.ndarray:
    return np.concatenate([rows.flags(column) for rows in read]).astype(np.int64)
