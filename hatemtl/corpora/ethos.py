"""ETHOS (Mollas et al., Complex & Intelligent Systems 2022): 998 comments of YouTube and Reddit, hate speech or not.

The 433 hateful ones are judged again by eight aspects. Every judgement is the share of annotators who said yes.

Layout: two files with ";" between cells. Ethos_Dataset_Binary.csv: comment, isHate. Ethos_Dataset_Multi_Label.csv: comment,
violence, directed_vs_generalized, gender, race, national_origin, disability, religion, sexual_orientation. They share no
id; comments are matched by text. The hub's copy (iamollas/ethos) has the shares from .5 on as 1, others as 0.
Splits: none official; cut here, so that no text stands in two of them.
Licence: GPL-3.0. Source: github.com/intelligence-csd-auth-gr/Ethos-Hate-Speech-Dataset, folder ethos/ethos_data.
Cite Mollas, Chrysopoulou, Karlos and Tsoumakas (2022), "ETHOS: a multi-label hate speech detection dataset".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, again, complete, official, read_delimited
from hatemtl.corpora.rows import ids
from hatemtl.corpora.splitting import divide, keys, reduced
from hatemtl.errors import UserError

HATE = ("not_hate", "hate")
LABELS = (
    *("violence", "directed_vs_generalized", "gender", "race"),
    *("national_origin", "disability", "religion", "sexual_orientation"),
)
FILES = ("Ethos_Dataset_Binary.csv", "Ethos_Dataset_Multi_Label.csv")
HOME = "github.com/intelligence-csd-auth-gr/Ethos-Hate-Speech-Dataset"
READ = partial(read_delimited, delimiter=";")


@dataclass(frozen=True, kw_only=True)
class Ethos(Corpus):
    """Columns: hate, which at least half of the annotators said; label, eight aspects, which other comments lack."""

    dir: str
    fractions: Sequence[float]
    soft: bool = False

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        if not complete(folder, FILES, HOME) and self.soft:
            raise UserError(f"soft=true: the hub has no shares, only yes and no; {again(FILES[1], HOME)} to {folder}")
        ((_, hate),) = official(self.dir, FILES[:1], HOME, read=READ, hub=Hub("iamollas/ethos", "binary"))
        ((_, judged),) = official(self.dir, FILES[1:], HOME, read=READ, hub=Hub("iamollas/ethos", "multilabel"))
        text, said = ("comment", "isHate") if "comment" in hate.columns else ("text", "label")
        texts = hate.texts(text)
        label = Column.of("multiclass", HATE, hate.array(said, 0, 1) >= 0.5)
        splits = divide(keys(texts), self.fractions, self.seed, label.values)
        places = {other: i for i, other in enumerate(reduced(judged.texts(text)))}
        found = np.array([places.get(own, -1) for own in reduced(texts)])
        has = found >= 0
        given = np.stack([judged.array(name, 0, 1) for name in LABELS], axis=1)
        shares = np.where(has[:, None], given[found], 0.0)  # (N, 8)
        aspects = Column.of("multilabel", LABELS, shares >= 0.5, has)
        if self.soft:
            values = np.where((splits == "train")[:, None], shares, aspects.values)
            aspects = replace(Column.of("multilabel", LABELS, values, has), truth=aspects.values)
        columns = {"hate": label, "label": aspects}
        return Posts(ids((), len(texts), "ethos"), texts, splits, columns)
