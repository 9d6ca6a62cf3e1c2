"""Measuring Hate Speech (Kennedy et al. 2020; Sachdeva et al., NLPerspectives 2022): 39,565 comments of three platforms.

Annotators answered ten ordinal items about each comment, from sentiment to genocide, and named the groups it is aimed at;
a Rasch model made one score of the items, freed from how severe an annotator is.

Layout: measuring-hate-speech.parquet (or .csv), a row a comment and annotator, 135,556 of them: comment_id, the ten items,
hate_speech_score, text, target_GROUP and target_GROUP_SUBGROUP (true or false), and columns about the annotator and the
model, which are not read. The hub: ucberkeley-dlab/measuring-hate-speech.
Splits: none official; cut here by comment, so that no text stands in two of them.
Licence: CC BY 4.0. Cite Kennedy, Bacon, Sahn and von Vacano (2020), "Constructing interval variables via faceted Rasch
measurement and multitask deep learning: a hate speech application" (arxiv.org/abs/2009.10277), and Sachdeva, Barreto,
Bacon, Sahn, von Vacano and Kennedy (2022), "The Measuring Hate Speech Corpus: Leveraging Rasch Measurement Theory for Data
Perspectivism" (aclanthology.org/2022.nlperspectives-1.11).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import Hub, again, read_delimited, read_parquet, ways_out
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import check_fractions, divide, keys
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

# The highest level of each item; the lowest is 0.
ITEMS = {
    **dict.fromkeys(("sentiment", "respect", "insult", "humiliate", "status"), 4),
    **dict.fromkeys(("dehumanize", "violence", "genocide", "attack_defend"), 4),
    "hatespeech": 2,
}
SCORE, TARGET = "hate_speech_score", "target_"
HATE = ("hate", "neutral", "supportive")
FILES = ("measuring-hate-speech.parquet", "measuring-hate-speech.csv")
HUB = Hub("ucberkeley-dlab/measuring-hate-speech", "default")


@dataclass(frozen=True, kw_only=True)
class MeasuringHateSpeech(Corpus):
    """Measuring Hate Speech, a post a comment, with the columns score, hate, target, subgroup and the ten items.

    score: the Rasch model's, from about -8 (supportive) to 6 (hateful). hate: hate above .5, supportive below -1, neutral
        between, as the authors read it.
    target, subgroup: the groups, and the parts of groups, that at least half of a comment's annotators named.
    sentiment, respect, insult, humiliate, status, dehumanize, violence, genocide, attack_defend, hatespeech: the mean
        answer, rounded to the nearest level, a half up. Higher is more hateful, in every item.

    dir: the folder with one of the official files; where neither is there, the hub is asked.
    fractions: the shares of comments for training, validation and test, hate, neutral and supportive alike.
    soft_targets: whether a *training* post's groups are the shares of annotators who named them. Validation and test posts
        always carry what at least half of them named.
    """

    dir: str
    fractions: Sequence[float]
    soft_targets: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)

    def read(self) -> Posts:
        rows = _rows(Path(self.dir).expanduser())
        comments, first, of = np.unique(rows.array("comment_id").astype(np.int64), return_index=True, return_inverse=True)
        said = rows.texts("text")
        texts = [said[i] for i in first]
        score, scored = _mean(rows.array(SCORE, gaps=True), of, len(comments))
        hate = np.where(score > 0.5, 0, np.where(score < -1, 2, 1))
        splits = divide(keys(texts), self.fractions, self.seed, hate)
        columns = {
            "hate": Column(LabelSpace("multiclass", HATE), hate, scored),
            "score": Column(LabelSpace("score", (SCORE,)), score.astype(np.float32), scored),
        }
        groups, subgroups = _targets(rows)
        for name, flags in {"target": groups, "subgroup": subgroups}.items():
            shares, asked = zip(*(_mean(rows.flags(flag, gaps=True), of, len(comments)) for flag in flags), strict=True)
            share = np.stack(shares, axis=1)
            values = np.where((self.soft_targets & (splits == "train"))[:, None], share, share >= 0.5).astype(np.float32)
            space = LabelSpace("multilabel", tuple(flag.removeprefix(TARGET) for flag in flags))
            columns[name] = Column(space, values, np.all(asked, axis=0))
        for item, highest in ITEMS.items():
            mean, answered = _mean(rows.array(item, 0, highest, gaps=True), of, len(comments))
            space = LabelSpace("ordinal", tuple(map(str, range(highest + 1))))
            columns[item] = Column(space, np.floor(mean + 0.5).astype(np.int64), answered)
        return Posts([str(comment) for comment in comments], texts, splits, columns)


def _rows(folder: Path) -> Rows:
    home = "huggingface.co/datasets/ucberkeley-dlab/measuring-hate-speech"
    parquet, delimited = (folder / name for name in FILES)
    if parquet.is_file():
        return read_parquet([parquet], again=again(parquet, home), only=_is_read)
    if delimited.is_file():
        return read_delimited(delimited, again=again(delimited, home), only=_is_read)
    ((_, rows),) = HUB.splits(["train"], ways_out(folder, FILES[0]), _is_read)
    return rows


def _is_read(column: str) -> bool:
    return column in ("comment_id", "text", SCORE, *ITEMS) or column.startswith(TARGET)


def _targets(rows: Rows) -> tuple[list[str], list[str]]:
    """The columns of groups, target_X where there is some target_X_Y, and of their subgroups, target_X_Y."""
    flags = [name for name in rows.columns if name.startswith(TARGET)]
    groups = [name for name in flags if any(other.startswith(f"{name}_") for other in flags)]
    subgroups = [name for name in flags if name not in groups and name.startswith(tuple(f"{group}_" for group in groups))]
    if not groups:
        raise UserError(f"{rows.path} has no columns target_GROUP and target_GROUP_SUBGROUP; {rows.again}")
    return groups, subgroups


def _mean(values: np.ndarray, of: np.ndarray, comments: int) -> tuple[np.ndarray, np.ndarray]:
    """(comments,) means of the values, NaN aside, of each comment's rows, 0 where it has none; and (comments,) which has."""
    given = ~np.isnan(values)
    count = np.bincount(of[given], minlength=comments)
    total = np.bincount(of[given], weights=values[given], minlength=comments)
    return total / np.maximum(count, 1), count > 0
