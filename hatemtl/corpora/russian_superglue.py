"""Russian SuperGLUE (Shavrina et al., EMNLP 2020): three of its nine tasks, each about a text read with others.

task     folder   what is asked                                            training / test posts  label
danetqa  DaNetQA  does the passage answer the question with yes?              1,749 / 821          no, yes
terra    TERRa    does the premise entail the hypothesis?                     2,616 / 307          (not_)entailment
parus    PARus    which of two sentences is the premise's cause, or effect?     400 / 100          choice1, choice2

The official test labels are kept by the benchmark's server. So `test` here is the official validation set, and `val` is
cut from the training set. Every task's metric is accuracy.

Files: DaNetQA/{train,val}.jsonl with passage, question and label (true or false); TERRa/{train,val}.jsonl with premise,
hypothesis and label; PARus/{train,val}.jsonl with premise, question (cause or effect), choice1, choice2 and label (0 or
1). On the hub: RussianNLP/russian_super_glue.

Licence: MIT. Cite Shavrina, Fenogenova, Emelyanov, Shevelev, Artemova, Malykh, Mikhailov, Tikhonova, Chertok and
Evlampiev (2020), "RussianSuperGLUE: A Russian Language Understanding Evaluation Benchmark".
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hatemtl.corpora.base import Corpus, Posts
from hatemtl.corpora.files import Hub, official, read_jsonl
from hatemtl.corpora.rows import Rows, Section, codes, gather
from hatemtl.labels import LabelSpace

HOME = "russiansuperglue.com/datasets"
# The premise's question in words that a Russian encoder has read: what was its cause, what came of it?
QUESTIONS = {"cause": "Что было причиной этого?", "effect": "Что случилось в результате?"}
BOOLEAN = {"False": 0, "True": 1, "0": 0, "1": 1}
ENTAILMENT = LabelSpace("multiclass", ("entailment", "not_entailment"))
CHOICES = LabelSpace("choice", ("choice1", "choice2"))
# Of each task: its folder, its columns of texts, and its labels with their codes.
LAYOUTS: dict[str, tuple[str, tuple[str, ...], LabelSpace, Mapping[str, int]]] = {
    "danetqa": ("DaNetQA", ("passage", "question"), LabelSpace("multiclass", ("no", "yes")), BOOLEAN),
    "terra": ("TERRa", ("premise", "hypothesis"), ENTAILMENT, codes(ENTAILMENT.names)),
    "parus": ("PARus", ("premise", *CHOICES.names), CHOICES, {"0": 0, "1": 1}),
}


@dataclass(frozen=True, kw_only=True)
class RussianSuperGlue(Corpus):
    """One task with the column label. task: of parus, the text is the premise and its question, and the choices are two."""

    dir: str
    task: Literal["danetqa", "terra", "parus"]
    validation: float

    def read(self) -> Posts:
        (folder, texts, space, known), hub = LAYOUTS[self.task], Hub("RussianNLP/russian_super_glue", self.task)
        files = [f"{folder}/{name}.jsonl" for name in ("train", "val")]
        found = official(self.dir, files, HOME, read=read_jsonl, hub=hub, splits=("train", "validation"))
        train, test = (_asked(rows) if self.task == "parus" else rows for _, rows in found)
        sections = [
            Section("train", "train", train, texts, train.positions("label", known)),
            Section("val", "test", test, texts, test.positions("label", known)),
        ]
        return gather(sections, space, validation=self.validation, seed=self.seed)


def _asked(rows: Rows) -> Rows:
    """The same rows, whose premises end with their questions."""
    asked = [list(QUESTIONS.values())[i] for i in rows.positions("question", list(QUESTIONS))]
    premises = [f"{premise} {question}" for premise, question in zip(rows.texts("premise"), asked, strict=True)]
    return replace(rows, columns={**rows.columns, "premise": premises})
