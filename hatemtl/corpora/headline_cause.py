"""HeadlineCause (Gusev and Tikhonov, LREC 2022): does one news headline cause the other, in English and Russian?

Pairs of headlines, left and right, judged by ten people; those on whom fewer than 70 % agree are in no file.

config     pairs (about)  labels
en_simple  5,420          not_cause, left_right (the left one causes or refutes the right one), right_left
ru_simple  9,550
en_full    2,510          bad (unrelated), same (one event), rel (one topic), left_right_cause, right_left_cause,
ru_full    7,140            left_right_refute, right_left_refute

All three splits are official, by time. The authors report macro-averaged F1.

Files: LANGUAGE/{simple,full}/{train,val,test}.jsonl with left_title, right_title and label, which counts the labels in
the order above, beside URLs, times and votes. On the hub: IlyaGusev/headline_cause.

Licence: CC0 for the annotations; the headlines belong to their publishers. Cite Gusev and Tikhonov (2022),
"HeadlineCause: A Dataset of News Headlines for Detecting Causalities".
"""

from dataclasses import dataclass
from typing import Literal

from hatemtl.corpora.base import SPLITS, Corpus, Posts
from hatemtl.corpora.files import Hub, official, read_jsonl
from hatemtl.corpora.rows import Section, gather
from hatemtl.labels import LabelSpace

LABELS = {
    "simple": ("not_cause", "left_right", "right_left"),
    "full": (
        *("bad", "same", "rel"),
        *("left_right_cause", "right_left_cause", "left_right_refute", "right_left_refute"),
    ),
}
HOME = "github.com/IlyaGusev/HeadlineCause/releases"


@dataclass(frozen=True, kw_only=True)
class HeadlineCause(Corpus):
    dir: str
    config: Literal["en_simple", "en_full", "ru_simple", "ru_full"]

    def read(self) -> Posts:
        folder, hub = self.config.replace("_", "/"), Hub("IlyaGusev/headline_cause", self.config)
        files, splits = [f"{folder}/{split}.jsonl" for split in SPLITS], ("train", "validation", "test")
        found = official(self.dir, files, HOME, read=read_jsonl, hub=hub, splits=splits)
        names = LABELS[self.config.split("_")[1]]
        places = [*map(str, range(len(names)))]
        sections = [
            Section(split, split, rows, ("left_title", "right_title"), rows.positions("label", places))
            for split, (_, rows) in zip(SPLITS, found, strict=True)
        ]
        return gather(sections, LabelSpace("multiclass", names))
