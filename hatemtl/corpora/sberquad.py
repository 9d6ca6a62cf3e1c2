"""SberQuAD (Efimov et al., CLEF 2020): Russian questions about paragraphs of Wikipedia, each answered by a piece of one.

The contest's 50,364 training questions were published in two: 45,328 for training and 5,036 that papers report on. So `test`
here is the latter, which the files call dev and the hub validation, and `val` is cut from the training set; questions about
one paragraph stand in one of the two. The hub's test split, the contest's other 23,936 questions, is not read.
The two official sets may share paragraphs. A question whose answer does not stand where the file says is not annotated: it
counts in no loss and no figure. Judged by exact match and F1 (`answers.worth`); the paper's BERT has .666 and .848.

Files: train-v1.1.json and dev-v1.1.json, in SQuAD's layout (`corpora/questions.py`), as DeepPavlov's archive
sber_squad-v1.1.tar.gz unpacks. On the hub: kuznetsoffandrey/sberquad.

Licence: unknown (the contest's repository is under Apache 2.0). Cite Efimov, Chertok, Boytsov and Braslavski (2020),
"SberQuAD - Russian Reading Comprehension Dataset: Description and Analysis".
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, official, read_questions
from hatemtl.corpora.questions import padded, places
from hatemtl.corpora.rows import Rows, ids
from hatemtl.corpora.splitting import divide, keys

HOME = "files.deeppavlov.ai/datasets/sber_squad-v1.1.tar.gz"
FILES = ("train-v1.1.json", "dev-v1.1.json")


@dataclass(frozen=True, kw_only=True)
class SberQuad(Corpus):
    """The questions as texts, with their paragraphs as second ones, and the column answer."""

    dir: str
    validation: float

    def read(self) -> Posts:
        hub = Hub("kuznetsoffandrey/sberquad", "sberquad")
        found = official(self.dir, FILES, HOME, read=read_questions, hub=hub, splits=("train", "validation"))
        each = [rows for _, rows in found]
        texts = [text for rows in each for text in rows.posts("question")]
        contexts = [text for rows in each for text in rows.posts("context")]
        train = len(each[0])
        drawn = divide(keys(contexts[:train]), (1 - self.validation, self.validation, 0), self.seed)
        splits = np.concatenate([drawn, np.full(len(texts) - train, "test")])
        answers = [answer for rows in each for answer in _answers(rows)]
        column = Column.of("span", ["answer"], padded(answers), np.array([*map(bool, answers)]))
        own = ids([one for rows in each for one in rows["id"]], len(texts), "sberquad")
        return Posts(own, texts, splits, {"answer": column}, [(context,) for context in contexts])


def _answers(rows: Rows) -> list[list[tuple[int, int]]]:
    """Finds each question's answers, none where one is not where it should be."""
    found: list[list[tuple[int, int]]] = [[] for _ in rows.lines]
    for of_post, cell, context in zip(found, rows["answers"], rows["context"], strict=True):
        with suppress(ValueError):
            of_post += places(cell, context)
    return found
