"""RuTweetCorp (Rubtsova 2013): Russian tweets, positive or negative by the smileys that they held.

114,911 positive and 111,923 negative tweets, gathered in 2013 and 2014. The labels are the smileys, and some are still in
the texts, so that scores say little about sentiment itself. There are no official splits: they are drawn by seed, with
equal texts in one split; a tweet there twice, by its id, is taken once. The field reports macro-averaged F1 or accuracy.

Files: positive.csv and negative.csv, without header, cells between semicolons and in quotes: id, tdate, tname, ttext,
ttype, trep, trtw, tfav, tstcount, tfol, tfrien, listcount. They are on study.mokoron.com, and on no hub.

Licence: none stated, for research. Cite Rubtsova (2013), "A method for development and analysis of short text corpus for
the review classification task".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import official, read_delimited
from hatemtl.corpora.splitting import divide, keys

LABELS = ("negative", "positive")
CELLS = (
    *("id", "tdate", "tname", "ttext", "ttype", "trep"),
    *("trtw", "tfav", "tstcount", "tfol", "tfrien", "listcount"),
)
READ = partial(read_delimited, delimiter=";", names=CELLS)


@dataclass(frozen=True, kw_only=True)
class TwitterRu(Corpus):
    dir: str
    fractions: Sequence[float]

    def read(self) -> Posts:
        found = official(self.dir, [f"{label}.csv" for label in LABELS], "study.mokoron.com", read=READ)
        tweets: dict[str, tuple[str, int]] = {}  # text and label, by id
        for label, (_, rows) in enumerate(found):
            for tweet, said in zip(rows.texts("id"), rows.texts("ttext"), strict=True):
                tweets.setdefault(f"{LABELS[label]}-{tweet}", (" ".join(said.split()), label))
        texts, labels = map(list, zip(*tweets.values(), strict=True))
        column = Column.of("multiclass", LABELS, labels)
        splits = divide(keys(texts), self.fractions, self.seed, column.values)
        return Posts([*tweets], texts, splits, {"label": column})
