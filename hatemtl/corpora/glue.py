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

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts, Split
from hatemtl.corpora.files import Hub, read_delimited, ways_out
from hatemtl.corpora.labelled import Part, check_validation, complete, gather, paired, whole
from hatemtl.corpora.rows import Rows
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

HUB = "nyu-mll/glue"
ENTAILMENT = ("entailment", "not_entailment")
TRAIN, DEV = "train.tsv", "dev.tsv"


class Layout(NamedTuple):
    """The layout of one task's files.

    texts, label: columns of the official files; hub: the texts' on the hub, where they differ, whose label is `label`.
    names: the labels, in the hub's order; official files have the name or its place. One name: a number from 0 to 5.
    train, tests: the official files; hub_train, hub_tests: the hub's splits. gaps: whether training rows may be torn.
    """

    folder: str
    texts: tuple[str, ...]
    names: tuple[str, ...]
    label: str = "label"
    hub: tuple[str, ...] = ()
    train: str = TRAIN
    tests: tuple[str, ...] = (DEV,)
    hub_train: tuple[str, ...] = ("train",)
    hub_tests: tuple[str, ...] = ("validation",)
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
        train="msr_paraphrase_train.txt",
        tests=("msr_paraphrase_test.txt",),
        hub_train=("train", "validation"),
        hub_tests=("test",),
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
        tests=("dev_matched.tsv", "dev_mismatched.tsv"),
        hub_tests=("validation_matched", "validation_mismatched"),
        gaps=True,
    ),
    "stsb": Layout("STS-B", SENTENCES, ("similarity",), label="score"),
}


@dataclass(frozen=True, kw_only=True)
class Glue(Corpus):
    """One task of GLUE, as the head of this file describes it, with the column label.

    mnli has two columns more, matched and mismatched: of the test posts, one has those of the training posts' genres,
    the other those of other genres; their training and validation posts are all.

    dir: the folder with the tasks' folders; where the task's files are not there, the hub is asked.
    task: cola, sst2, mrpc, qqp, qnli, rte, wnli, mnli or stsb.
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
        layout = LAYOUTS[self.task]
        score = len(layout.names) == 1
        codes = {name: i for i, name in enumerate(layout.names)} | {str(i): i for i in range(len(layout.names))}
        parts = []
        for name, split, rows, columns, label in self._files(layout):
            rows = whole(rows, columns) if layout.gaps and split == "train" else rows
            texts, pairs = paired(rows, *columns) if len(columns) == 2 else (rows.texts(*columns), None)
            values = rows.numbers(label, 0, 5) if score else rows.positions(label, codes)
            parts.append(Part(name, split, texts, values, pairs))
        space = LabelSpace("score" if score else "multiclass", layout.names)
        posts = gather(parts, space, validation=self.validation, seed=self.seed)
        return _by_genre(posts) if self.task == "mnli" else posts

    def _files(self, layout: Layout) -> Iterator[tuple[str, Split, Rows, tuple[str, ...], str]]:
        """Each file's name in ids, split, rows, and its columns with texts and label."""
        folder = Path(self.dir).expanduser()
        files = [f"{layout.folder}/{name}" for name in (layout.train, *layout.tests)]
        again = "download it again from gluebenchmark.com/tasks"
        if complete(folder, files, again):
            wanted = {*layout.texts, layout.label}
            for name in files:
                path, train = folder / name, name == files[0]
                torn = layout.gaps and train
                rows = read_delimited(
                    path, again=again, delimiter="\t", names=layout.header, quoted=False, only=wanted.__contains__, torn=torn
                )
                yield "train" if train else path.stem, "train" if train else "test", rows, layout.texts, layout.label
            return
        hub = Hub(HUB, self.task)
        for split, rows in hub.splits((*layout.hub_train, *layout.hub_tests), ways_out(folder, files[0])):
            train = split in layout.hub_train
            name = split if train else Path(layout.tests[layout.hub_tests.index(split)]).stem
            yield name, "train" if train else "test", rows, layout.hub or layout.texts, "label"


def _by_genre(posts: Posts) -> Posts:
    """The same posts with the columns matched and mismatched."""
    label = posts.columns["label"]
    columns: dict[str, Column] = {"label": label}
    for name, other in (("matched", "dev_mismatched-"), ("mismatched", "dev_matched-")):
        mine = np.array([not post.startswith(other) for post in posts.ids], bool)
        columns[name] = replace(label, has=label.has & mine)
    return replace(posts, columns=columns)
