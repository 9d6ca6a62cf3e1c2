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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, again, read_delimited, ways_out
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import check_fractions, divide, keys, text_key
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

HATE = ("not_hate", "hate")
LABELS = (
    *("violence", "directed_vs_generalized", "gender", "race"),
    *("national_origin", "disability", "religion", "sexual_orientation"),
)
FILES = ("Ethos_Dataset_Binary.csv", "Ethos_Dataset_Multi_Label.csv")
HUB = "iamollas/ethos"


@dataclass(frozen=True, kw_only=True)
class Ethos(Corpus):
    """ETHOS with the columns hate (not_hate, hate) and label (eight aspects of the hateful comments).

    hate: at least half of the annotators said so. label: the other comments have none.

    dir: the folder with both official files; with neither there, the hub is asked.
    fractions: the shares of posts for training, validation and test, of hate and other comments alike.
    soft: whether a *training* post's aspects are the shares of annotators, or 1 from a half on. Validation and test posts
        always carry the latter.
    """

    dir: str
    fractions: Sequence[float]
    soft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)

    def read(self) -> Posts:
        hate, aspects = self._rows(Path(self.dir).expanduser())
        text, said = ("comment", "isHate") if "comment" in hate.columns else ("text", "label")
        texts = hate.texts(text)
        label = (hate.array(said, 0, 1) >= 0.5).astype(np.int64)
        splits = divide(keys(texts), self.fractions, self.seed, label)
        shares, has = _match(texts, aspects.texts(text), np.stack([aspects.array(name, 0, 1) for name in LABELS], axis=1))
        soft = self.soft & (splits == "train")
        columns = {
            "hate": Column(LabelSpace("multiclass", HATE), label, np.ones(len(texts), bool)),
            "label": Column(
                LabelSpace("multilabel", LABELS), np.where(soft[:, None], shares, shares >= 0.5).astype(np.float32), has
            ),
        }
        return Posts([f"ethos_{i}" for i in range(len(texts))], texts, splits, columns)

    def _rows(self, folder: Path) -> list[Rows]:
        missing = [name for name in FILES if not (folder / name).is_file()]
        home = "github.com/intelligence-csd-auth-gr/Ethos-Hate-Speech-Dataset"
        if len(missing) == 1:
            raise UserError(
                f"{folder} has no {missing[0]}, but needs both {' and '.join(FILES)}; {again(folder / missing[0], home)}"
            )
        if not missing:
            return [read_delimited(folder / name, again=again(folder / name, home), delimiter=";") for name in FILES]
        if self.soft:
            raise UserError(
                f"soft=true: the hub has no shares, only yes and no; {again(folder / FILES[1], home)} to {folder}"
            )
        return [
            rows
            for config in ("binary", "multilabel")
            for _, rows in Hub(HUB, config).splits(["train"], ways_out(folder, FILES[0]))
        ]


def _match(texts: list[str], others: list[str], shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 8) shares of the texts that are among the others, and (N,) which are."""
    places = {text_key(other): i for i, other in enumerate(others)}
    found = np.array([places.get(text_key(text), -1) for text in texts])
    has = found >= 0
    return np.where(has[:, None], shares[found], 0.0), has
