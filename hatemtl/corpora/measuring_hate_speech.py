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
from hatemtl.corpora.files import Hub, official, read_delimited
from hatemtl.corpora.parquet import read_parquet
from hatemtl.corpora.rows import Rows
from hatemtl.corpora.splitting import divide, keys
from hatemtl.errors import UserError

# The highest level of each item; the lowest is 0.
ITEMS = {
    **dict.fromkeys(("sentiment", "respect", "insult", "humiliate", "status"), 4),
    **dict.fromkeys(("dehumanize", "violence", "genocide", "attack_defend"), 4),
    "hatespeech": 2,
}
SCORE, TARGET = "hate_speech_score", "target_"
HATE = ("hate", "neutral", "supportive")
FILES = ("measuring-hate-speech.parquet", "measuring-hate-speech.csv")
REPO = "ucberkeley-dlab/measuring-hate-speech"


@dataclass(frozen=True, kw_only=True)
class MeasuringHateSpeech(Corpus):
    """Measuring Hate Speech, a post a comment, with the columns score, hate, target, subgroup and the ten items.

    score: the Rasch model's, from about -8 (supportive) to 6 (hateful). hate: hate above .5, supportive below -1, neutral
        between, as the authors read it. target, subgroup: the groups, and their parts, that at least half of a comment's
        annotators named, with the share who did. Items: the mean answer, rounded to the nearest level, a half up. Higher is
        more hateful, in all.
    """

    dir: str
    fractions: Sequence[float]

    def read(self) -> Posts:
        file = next((name for name in FILES if (Path(self.dir).expanduser() / name).is_file()), FILES[0])
        hub = Hub(REPO, "default", _is_read)
        ((_, rows),) = official(self.dir, [file], f"huggingface.co/datasets/{REPO}", read=_read, hub=hub)
        comments, first, of = np.unique(rows.array("comment_id").astype(np.int64), return_index=True, return_inverse=True)
        said = rows.texts("text")
        texts = [said[i] for i in first]
        score, scored = _mean(rows.array(SCORE, gaps=True), of, len(comments))
        hate = np.where(score > 0.5, 0, np.where(score < -1, 2, 1))
        splits = divide(keys(texts), self.fractions, self.seed, hate)
        columns = {"hate": Column.of("multiclass", HATE, hate, scored), "score": Column.of("score", [SCORE], score, scored)}
        for name, flags in zip(("target", "subgroup"), _targets(rows), strict=True):
            shares, asked = zip(*(_mean(rows.flags(flag, gaps=True), of, len(comments)) for flag in flags), strict=True)
            share = np.stack(shares, axis=1)
            groups = [flag.removeprefix(TARGET) for flag in flags]
            columns[name] = Column.of("multilabel", groups, share >= 0.5, np.all(asked, axis=0), share)
        for item, highest in ITEMS.items():
            mean, answered = _mean(rows.array(item, 0, highest, gaps=True), of, len(comments))
            columns[item] = Column.of("ordinal", [*map(str, range(highest + 1))], np.floor(mean + 0.5), answered)
        return Posts([str(comment) for comment in comments], texts, splits, columns)


def _read(path: Path, *, again: str) -> Rows:
    read = read_parquet if path.suffix == ".parquet" else read_delimited
    return read(path, again=again, only=_is_read)


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
