"""IMDb (Maas et al., ACL 2011): is a film review positive or negative?

25,000 training and 25,000 test reviews, half positive and half negative, those of one film in one split; 50,000 more without
label. Both splits are official; `val` is cut from the training reviews, with equal texts in one split. The metric is
accuracy.

Files, as aclImdb_v1.tar.gz unpacks: {train,test}/{neg,pos}/*.txt and train/unsup/*.txt, a review each. On the hub:
stanfordnlp/imdb. Line breaks, written `<br />`, become spaces.

Licence: none stated, for research. Cite Maas, Daly, Pham, Huang, Ng and Potts (2011), "Learning Word Vectors for
Sentiment Analysis". They are on ai.stanford.edu/~amaas/data/sentiment.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from hatemtl.corpora.base import Corpus, Posts, Split
from hatemtl.corpora.files import Hub, ways_out
from hatemtl.corpora.rows import Rows, Section, gather
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

HUB = Hub("stanfordnlp/imdb", "plain_text")
LABELS = ("negative", "positive")  # the hub counts them in this order
FOLDERS: list[tuple[Split, str, int | None]] = [("train", "neg", 0), ("train", "pos", 1)]
FOLDERS += [("test", "neg", 0), ("test", "pos", 1), ("train", "unsup", None)]
AGAIN = "unpack aclImdb_v1.tar.gz again"


@dataclass(frozen=True, kw_only=True)
class Imdb(Corpus):
    dir: str
    validation: float
    unlabelled: bool

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        there = {}
        if not (folder / "train").is_dir():
            splits = ("train", "test", *(["unsupervised"] if self.unlabelled else []))
            there = dict(HUB.splits(splits, ways_out(folder, ["train/pos"])))
        sections = []
        for split, name, label in FOLDERS if self.unlabelled else FOLDERS[:-1]:
            if there:
                rows = there["unsupervised" if label is None else split]
                labels = rows.positions("label", {"0": 0, "1": 1, "-1": -1})
                rows = rows.at([i for i, value in enumerate(labels) if value == (-1 if label is None else label)])
            else:
                rows = _from_folder(folder / split / name)
            rows = replace(rows, columns={"text": [" ".join(x.replace("<br />", " ").split()) for x in rows.texts("text")]})
            sections.append(Section(f"{split}-{name}", split, rows, ["text"], [label] * len(rows)))
        return gather(sections, LabelSpace("multiclass", LABELS), validation=self.validation, seed=self.seed)


def _from_folder(folder: Path) -> Rows:
    paths, texts = sorted(folder.glob("*.txt")), []
    if not paths:
        raise UserError(f"{folder} holds no *.txt; {AGAIN}")
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); {AGAIN}") from error
        if not texts[-1].strip():
            raise UserError(f"{path}: is empty, expected a review; {AGAIN}")
    return Rows(folder, {"text": texts}, range(len(texts)), AGAIN, "file")
