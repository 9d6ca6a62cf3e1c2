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
from functools import partial
from typing import Literal

from hatemtl.corpora.base import SPLITS, Corpus, Posts
from hatemtl.corpora.files import Hub, official, read_delimited
from hatemtl.corpora.rows import Section, codes, gather, whole
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

LABELS = ("entailment", "neutral", "contradiction")  # the hub counts them in this order
CODES = {**codes(LABELS), "contradictory": 2}
HOME = "the XNLI page, in XNLI-1.0.zip or XNLI-MT-1.0.zip (github.com/facebookresearch/XNLI)"
READ = partial(read_delimited, delimiter="\t", quoted=False)


@dataclass(frozen=True, kw_only=True)
class Xnli(Corpus):
    dir: str
    language: Literal["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]

    def read(self) -> Posts:
        train = f"XNLI-MT-1.0/multinli/multinli.train.{self.language}.tsv"
        files, hub = [train, "XNLI-1.0/xnli.dev.tsv", "XNLI-1.0/xnli.test.tsv"], Hub("facebook/xnli", self.language)
        found = official(self.dir, files, HOME, read=READ, hub=hub, splits=("train", "validation", "test"))
        sections = []
        for split, (name, rows) in zip(SPLITS, found, strict=True):
            texts, label = ("premise", "hypothesis"), "label"
            if name == train:
                texts = ("premise", "hypo")
            elif name in files:
                texts, label = ("sentence1", "sentence2"), "gold_label"
                mine = [i for i, language in enumerate(rows["language"]) if language == self.language]
                if not mine:
                    raise UserError(f"{rows.path} has no row whose language is {self.language!r}; {rows.again}")
                rows = rows.at(mine)
            rows = whole(rows, texts) if split == "train" else rows
            sections.append(Section(split, split, rows, texts, rows.positions(label, CODES)))
        return gather(sections, LabelSpace("multiclass", LABELS))
