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
from pathlib import Path

from hatemtl.corpora.base import SPLITS, Corpus, Posts
from hatemtl.corpora.files import Hub, read_jsonl, ways_out
from hatemtl.corpora.labelled import Part, complete, gather, paired
from hatemtl.errors import UserError, did_you_mean
from hatemtl.labels import LabelSpace

HUB = "IlyaGusev/headline_cause"
LABELS = {
    "simple": ("not_cause", "left_right", "right_left"),
    "full": (
        *("bad", "same", "rel"),
        *("left_right_cause", "right_left_cause", "left_right_refute", "right_left_refute"),
    ),
}
CONFIGS = tuple(f"{language}_{kind}" for language in ("en", "ru") for kind in LABELS)


@dataclass(frozen=True, kw_only=True)
class HeadlineCause(Corpus):
    """HeadlineCause: left headline, right headline and the column label.

    dir: the folder with en and ru; where the configuration's files are not there, the hub is asked.
    config: en_simple, en_full, ru_simple or ru_full.
    """

    dir: str
    config: str

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise UserError(f"config={self.config}: {did_you_mean(self.config, CONFIGS)}")

    def read(self) -> Posts:
        """Reads the official files or the hub. Raises UserError with the file, the line and the way out."""
        folder, names = Path(self.dir).expanduser(), LABELS[self.config.split("_")[1]]
        files = [f"{self.config.replace('_', '/')}/{split}.jsonl" for split in SPLITS]
        again = "download it again from github.com/IlyaGusev/HeadlineCause/releases"
        if complete(folder, files, again):
            found = [read_jsonl(folder / name, again=again) for name in files]
        else:
            hub = Hub(HUB, self.config).splits(("train", "validation", "test"), ways_out(folder, files[0]))
            found = [rows for _, rows in hub]
        parts = []
        for split, rows in zip(SPLITS, found, strict=True):
            texts, pairs = paired(rows, "left_title", "right_title")
            values = rows.positions("label", {str(i): i for i in range(len(names))})
            parts.append(Part(split, split, texts, values, pairs))
        return gather(parts, LabelSpace("multiclass", names))
