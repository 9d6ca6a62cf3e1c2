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

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hatemtl.corpora.base import Corpus, Posts
from hatemtl.corpora.files import Hub, read_jsonl, ways_out
from hatemtl.corpora.labelled import Part, check_validation, complete, gather, paired
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

HUB = "RussianNLP/russian_super_glue"
# The premise's question in words that a Russian encoder has read: what was its cause, what came of it?
QUESTIONS = {"cause": "Что было причиной этого?", "effect": "Что случилось в результате?"}


class Layout(NamedTuple):
    """One task's folder, its two columns of texts (the second: of the first choice), and its labels with their codes."""

    folder: str
    texts: tuple[str, str]
    space: LabelSpace
    codes: dict[str, int]


LAYOUTS = {
    "danetqa": Layout(
        "DaNetQA",
        ("passage", "question"),
        LabelSpace("multiclass", ("no", "yes")),
        {"False": 0, "True": 1, "0": 0, "1": 1},
    ),
    "terra": Layout(
        "TERRa",
        ("premise", "hypothesis"),
        LabelSpace("multiclass", ("entailment", "not_entailment")),
        {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1},
    ),
    "parus": Layout("PARus", ("premise", "choice1"), LabelSpace("choice", ("choice1", "choice2")), {"0": 0, "1": 1}),
}


@dataclass(frozen=True, kw_only=True)
class RussianSuperGlue(Corpus):
    """One task of Russian SuperGLUE, as the head of this file describes it, with the column label.

    dir: the folder with the tasks' folders; where the task's files are not there, the hub is asked.
    task: danetqa, terra or parus, whose text is the premise and its question, and whose choices are two.
    validation: the share of the official training posts that validates.
    """

    dir: str
    task: str
    validation: float

    def __post_init__(self) -> None:
        if self.task not in LAYOUTS:
            raise UserError(f"task={self.task}: {did_you_mean(self.task, LAYOUTS)}")
        check_validation(self.validation)

    def read(self) -> Posts:
        """Reads the official files or the hub. Raises UserError with the file, the line and the way out."""
        layout, folder = LAYOUTS[self.task], Path(self.dir).expanduser()
        files = [f"{layout.folder}/{name}.jsonl" for name in ("train", "val")]
        again = "download it again from russiansuperglue.com/datasets"
        if complete(folder, files, again):
            train, test = (read_jsonl(folder / name, again=again) for name in files)
        else:
            hub = Hub(HUB, self.task).splits(("train", "validation"), ways_out(folder, files[0]))
            train, test = (rows for _, rows in hub)
        parts = []
        for rows in (train, test):
            texts, pairs = _choices(rows) if self.task == "parus" else paired(rows, *layout.texts)
            first = rows is train
            values = rows.positions("label", layout.codes)
            parts.append(Part("train" if first else "val", "train" if first else "test", texts, values, pairs))
        return gather(parts, layout.space, validation=self.validation, seed=self.seed)


def _choices(rows: Rows) -> tuple[list[str], list[tuple[str, ...]]]:
    kinds = {kind: i for i, kind in enumerate(QUESTIONS)}
    asked = [list(QUESTIONS.values())[i] for i in rows.positions("question", kinds)]
    texts = [f"{premise} {question}" for premise, question in zip(rows.texts("premise"), asked, strict=True)]
    return texts, list(zip(rows.texts("choice1"), rows.texts("choice2"), strict=True))
