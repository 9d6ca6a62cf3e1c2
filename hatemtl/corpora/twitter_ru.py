"""RuTweetCorp (Rubtsova 2013): Russian tweets, positive or negative by the smileys that they held.

114,911 positive and 111,923 negative tweets, gathered in 2013 and 2014. The labels are the smileys, and some are still in
the texts, so that scores say little about sentiment itself. There are no official splits: they are drawn by seed, with
equal texts in one split. The field reports macro-averaged F1 or accuracy.

Files: positive.csv and negative.csv, without header, cells between semicolons and in quotes: id, tdate, tname, ttext,
ttype, trep, trtw, tfav, tstcount, tfol, tfrien, listcount. They are on study.mokoron.com, and on no hub.

Licence: none stated, for research. Cite Rubtsova (2013), "A method for development and analysis of short text corpus for
the review classification task".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import read_delimited, ways_out
from hatemtl.corpora.labelled import complete
from hatemtl.corpora.splitting import check_fractions, divide, keys
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

LABELS = ("negative", "positive")
CELLS = (
    *("id", "tdate", "tname", "ttext", "ttype", "trep"),
    *("trtw", "tfav", "tstcount", "tfol", "tfrien", "listcount"),
)


@dataclass(frozen=True, kw_only=True)
class TwitterRu(Corpus):
    """RuTweetCorp with the column label.

    A tweet that is there twice, by its id, is taken once.

    dir: the folder with positive.csv and negative.csv.
    fractions: the shares of posts for training, validation and test, of both labels alike.
    """

    dir: str
    fractions: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)

    def read(self) -> Posts:
        """Reads the two files. Raises UserError with the file, the line and the way out."""
        folder = Path(self.dir).expanduser()
        files = [f"{label}.csv" for label in LABELS]
        again = "download it again from study.mokoron.com"
        if not complete(folder, files, again):
            raise UserError(f"{again.replace(' again', '')}: {ways_out(folder, files[0])}")
        ids, texts, labels = [], [], []
        for label, name in enumerate(files):
            rows = read_delimited(folder / name, again=again, delimiter=";", names=CELLS)
            tweets = rows.texts("id")
            first = {tweet: i for i, tweet in reversed(list(enumerate(tweets)))}
            said = rows.texts("ttext")
            for tweet, i in sorted(first.items(), key=lambda found: found[1]):
                ids.append(f"{LABELS[label]}-{tweet}")
                texts.append(" ".join(said[i].split()))
                labels.append(label)
        values = np.array(labels, np.int64)
        splits = divide(keys(texts), self.fractions, self.seed, values)
        column = Column(LabelSpace("multiclass", LABELS), values, np.ones(len(texts), bool))
        return Posts(ids, texts, splits, {"label": column})
