"""XNLI (Conneau et al., EMNLP 2018): does the premise entail the hypothesis, contradict it or neither, in 15 languages?

Training posts are MultiNLI's, translated by machine: 392,702. The 2,490 of `val` and the 5,010 of `test` were translated
by people. All three splits are official. The metric is accuracy.

Files, as XNLI-1.0.zip and XNLI-MT-1.0.zip unpack: XNLI-1.0/xnli.dev.tsv and xnli.test.tsv, of all languages, with the
columns language, gold_label, sentence1, sentence2 and others; XNLI-MT-1.0/multinli/multinli.train.LANGUAGE.tsv with
premise, hypo and label (where "contradictory" is contradiction). Tab-separated, never quoted. Training rows that lack a
text are left out. On the hub: facebook/xnli.

Licence: CC BY-NC 4.0 (the translated MultiNLI: as MultiNLI). Cite Conneau, Rinott, Lample, Williams, Bowman, Schwenk
and Stoyanov (2018), "XNLI: Evaluating Cross-lingual Sentence Representations".
"""

from dataclasses import dataclass
from pathlib import Path

from hatemtl.corpora.base import SPLITS, Corpus, Posts
from hatemtl.corpora.files import Hub, read_delimited, ways_out
from hatemtl.corpora.labelled import Part, complete, gather, paired, whole
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

HUB = "facebook/xnli"
LABELS = ("entailment", "neutral", "contradiction")  # the hub counts them in this order
CODES = {name: i for i, name in enumerate(LABELS)} | {"contradictory": 2, "0": 0, "1": 1, "2": 2}
LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")


@dataclass(frozen=True, kw_only=True)
class Xnli(Corpus):
    """XNLI in one language: premise, hypothesis and the column label.

    dir: the folder with XNLI-1.0 and XNLI-MT-1.0; where their files are not there, the hub is asked.
    language: one of the 15, by two letters.
    """

    dir: str
    language: str

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise UserError(f"language={self.language}: {did_you_mean(self.language, LANGUAGES)}")

    def read(self) -> Posts:
        """Reads the official files or the hub. Raises UserError with the file, the line and the way out."""
        folder = Path(self.dir).expanduser()
        files = [
            f"XNLI-MT-1.0/multinli/multinli.train.{self.language}.tsv",
            "XNLI-1.0/xnli.dev.tsv",
            "XNLI-1.0/xnli.test.tsv",
        ]
        again = "download XNLI-1.0.zip and XNLI-MT-1.0.zip again from the XNLI page (github.com/facebookresearch/XNLI)"
        parts = []
        if complete(folder, files, again):
            for split, name in zip(SPLITS, files, strict=True):
                rows = read_delimited(folder / name, again=again, delimiter="\t", quoted=False)
                if split == "train":
                    rows = whole(rows, ("premise", "hypo"))
                    texts, pairs = paired(rows, "premise", "hypo")
                    values = rows.positions("label", CODES)
                else:
                    rows = self._mine(rows)
                    texts, pairs = paired(rows, "sentence1", "sentence2")
                    values = rows.positions("gold_label", CODES)
                parts.append(Part(split, split, texts, values, pairs))
        else:
            hub = Hub(HUB, self.language).splits(("train", "validation", "test"), ways_out(folder, files[0]))
            for split, (_, rows) in zip(SPLITS, hub, strict=True):
                rows = whole(rows, ("premise", "hypothesis")) if split == "train" else rows
                texts, pairs = paired(rows, "premise", "hypothesis")
                parts.append(Part(split, split, texts, rows.positions("label", CODES), pairs))
        return gather(parts, LabelSpace("multiclass", LABELS))

    def _mine(self, rows: Rows) -> Rows:
        """The rows of this language."""
        mine = [i for i, language in enumerate(rows["language"]) if language == self.language]
        if not mine:
            raise UserError(f"{rows.path} has no row whose language is {self.language!r}; {rows.again}")
        return rows.at(mine)
