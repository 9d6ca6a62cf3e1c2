"""GLUE (Wang et al., ICLR 2019): nine English tasks about a sentence or a pair of them.

task   folder  what is asked                                                 training / test posts   primary metric
cola   CoLA    is the sentence acceptable? (Warstadt et al. 2019)              8,551 / 1,043         Matthews
sst2   SST-2   is a film review's phrase positive? (Socher et al. 2013)       67,349 /   872         accuracy
mrpc   MRPC    do two sentences say the same? (Dolan and Brockett 2005)        4,076 / 1,725         F1 of equivalent
qqp    QQP     do two questions ask the same? (Iyer et al. 2017)             363,846 / 40,430        F1 of duplicate
qnli   QNLI    does the sentence answer the question? (from SQuAD)           104,743 / 5,463         accuracy
rte    RTE     does the first sentence entail the second? (RTE 1, 2, 3, 5)     2,490 /   277         accuracy
wnli   WNLI    does it, a pronoun resolved? (Levesque et al. 2012)               635 /    71         accuracy
mnli   MNLI    entailment, neutral or contradiction? (Williams et al. 2018)  392,702 / 19,647        accuracy
stsb   STS-B   how alike are they, 0 to 5? (Cer et al. 2017)                   5,749 / 1,500         Spearman

The official test labels are kept by the benchmark's server. So `test` here is the official development set, on which the
field compares, and `val` is cut from the training set, so that nothing is chosen by what is tested. MRPC's official
test set has its labels, and is the test; its official training set includes what GLUE calls its development set.
SST-2's training phrases are parts of sentences: a phrase in `val` may be part of one in `train`.

Files, as the benchmark's own download lays them out: tab-separated, never quoted, with a header but for CoLA's. On the
hub: nyu-mll/glue. QQP's few rows torn by line breaks, and training rows of QQP and MNLI that lack a text, are left out.

Licence: each task has its own; see gluebenchmark.com/tasks. Cite Wang, Singh, Michael, Hill, Levy and Bowman (2019),
"GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", and the task's own paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hatemtl.corpora.base import Corpus, Posts, Split
from hatemtl.corpora.files import Hub, official, read_delimited
from hatemtl.corpora.rows import Rows, Section, codes, gather, whole
from hatemtl.labels import LabelSpace

HOME = "gluebenchmark.com/tasks"
ENTAILMENT = ("entailment", "not_entailment")
FILES = {"train.tsv": "train", "dev.tsv": "dev"}
SPLITS = {"train": "train", "validation": "dev"}


class Layout(NamedTuple):
    """One task's files. texts, label: their columns; hub: the texts' on the hub, where they differ, whose label is `label`.

    names: the labels, in the hub's order; official files have the name or its place. One name: a number from 0 to 5.
    files, splits: the official files and the hub's splits, with what their posts' ids begin with; train and validation are
    for training, the others for the test. gaps: whether training rows may be torn.
    """

    folder: str
    texts: tuple[str, ...]
    names: tuple[str, ...]
    label: str = "label"
    hub: tuple[str, ...] = ()
    files: Mapping[str, str] = FILES
    splits: Mapping[str, str] = SPLITS
    header: tuple[str, ...] | None = None
    gaps: bool = False


SENTENCES = ("sentence1", "sentence2")
LAYOUTS = {
    "cola": Layout("CoLA", ("sentence",), ("unacceptable", "acceptable"), header=("source", "label", "mark", "sentence")),
    "sst2": Layout("SST-2", ("sentence",), ("negative", "positive")),
    "mrpc": Layout(
        "MRPC",
        ("#1 String", "#2 String"),
        ("not_equivalent", "equivalent"),
        label="Quality",
        hub=SENTENCES,
        files={"msr_paraphrase_train.txt": "train", "msr_paraphrase_test.txt": "msr_paraphrase_test"},
        splits={"train": "train", "validation": "validation", "test": "msr_paraphrase_test"},
    ),
    "qqp": Layout("QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), label="is_duplicate", gaps=True),
    "qnli": Layout("QNLI", ("question", "sentence"), ENTAILMENT),
    "rte": Layout("RTE", SENTENCES, ENTAILMENT),
    "wnli": Layout("WNLI", SENTENCES, ENTAILMENT[::-1]),
    "mnli": Layout(
        "MNLI",
        SENTENCES,
        ("entailment", "neutral", "contradiction"),
        label="gold_label",
        hub=("premise", "hypothesis"),
        files={"train.tsv": "train", "dev_matched.tsv": "dev_matched", "dev_mismatched.tsv": "dev_mismatched"},
        splits={"train": "train", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"},
        gaps=True,
    ),
    "stsb": Layout("STS-B", SENTENCES, ("similarity",), label="score"),
}


@dataclass(frozen=True, kw_only=True)
class Glue(Corpus):
    """One task of GLUE, as the head of this file describes it, with the column label.

    mnli has two columns more, matched and mismatched: of the test posts, one has those of the training posts' genres,
    the other those of other genres; their training and validation posts are all.
    """

    dir: str
    task: Literal["cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli", "mnli", "stsb"]
    validation: float

    def read(self) -> Posts:
        layout, hub = LAYOUTS[self.task], Hub("nyu-mll/glue", self.task)
        files = {f"{layout.folder}/{file}": name for file, name in layout.files.items()}
        space = LabelSpace("multiclass" if len(layout.names) > 1 else "score", layout.names)
        sections = []
        for place, rows in official(self.dir, [*files], HOME, read=partial(_read, layout), hub=hub, splits=[*layout.splits]):
            name = files.get(place) or layout.splits[place]
            split: Split = "train" if name in ("train", "validation") else "test"
            texts, label = (layout.texts, layout.label) if place in files else (layout.hub or layout.texts, "label")
            rows = whole(rows, texts) if layout.gaps and split == "train" else rows
            values = rows.array(label, 0, 5) if space.kind == "score" else rows.positions(label, codes(layout.names))
            sections.append(Section(name, split, rows, texts, values))
        posts = gather(sections, space, validation=self.validation, seed=self.seed)
        if self.task == "mnli":
            for name, other in (("matched", "dev_mismatched-"), ("mismatched", "dev_matched-")):
                mine = np.array([not post.startswith(other) for post in posts.ids], bool)
                posts.columns[name] = replace(posts.columns["label"], has=mine & posts.columns["label"].has)
        return posts


def _read(layout: Layout, path: Path, *, again: str) -> Rows:
    wanted, torn = {*layout.texts, layout.label}, layout.gaps and path.stem == "train"
    read = partial(read_delimited, delimiter="\t", names=layout.header, quoted=False)
    return read(path, again=again, only=wanted.__contains__, torn=torn)
