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
from typing import Literal

import numpy as np

from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts
from hatemtl.corpora.files import official
from hatemtl.corpora.rows import ids

COLUMNS = {
    "hate": ("HS", ("not_hate", "hate")),
    "target_range": ("TR", ("generic", "individual")),
    "aggressive": ("AG", ("not_aggressive", "aggressive")),
}


@dataclass(frozen=True, kw_only=True)
class HatEval(Corpus):
    dir: str
    language: Literal["en", "es"] = "en"

    def read(self) -> Posts:
        files = [f"hateval2019_{self.language}_{split}.csv" for split in ("train", "dev", "test")]
        read = [rows for _, rows in official(self.dir, files, "hatespeech.di.unito.it/hateval.html")]
        texts = [text for rows in read for text in rows.texts("text")]
        splits = np.repeat(SPLITS, [len(rows) for rows in read])
        values = {name: np.concatenate([rows.flags(flag) for rows in read]) for name, (flag, _) in COLUMNS.items()}
        hateful = values["hate"] == 1
        columns = {
            name: Column.of("multiclass", names, np.where(hateful, values[name], 0), None if name == "hate" else hateful)
            for name, (_, names) in COLUMNS.items()
        }
        return Posts(ids([own for rows in read for own in rows["id"]], len(texts), "hateval"), texts, splits, columns)
