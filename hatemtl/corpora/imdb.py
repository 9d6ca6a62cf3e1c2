"""IMDb (Maas et al., ACL 2011): is a film review positive or negative?

25,000 training and 25,000 test reviews, half positive and half negative, those of one film in one split; 50,000 more without
label. Both splits are official; `val` is cut from the training reviews, with equal texts in one split. The metric is
accuracy.

Files, as aclImdb_v1.tar.gz unpacks: {train,test}/{neg,pos}/*.txt and train/unsup/*.txt, a review each. On the hub:
stanfordnlp/imdb. Line breaks, written `<br />`, become spaces.

Licence: none stated, for research. Cite Maas, Daly, Pham, Huang, Ng and Potts (2011), "Learning Word Vectors for
Sentiment Analysis". They are on ai.stanford.edu/~amaas/data/sentiment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hatemtl.corpora.base import Corpus, Posts, Split
from hatemtl.corpora.files import Hub, ways_out
from hatemtl.corpora.labelled import Part, check_validation, gather
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace

HUB = Hub("stanfordnlp/imdb", "plain_text")
LABELS = ("negative", "positive")  # the hub counts them in this order
FOLDERS = ("neg", "pos")
AGAIN = "unpack aclImdb_v1.tar.gz again"


@dataclass(frozen=True, kw_only=True)
class Imdb(Corpus):
    """IMDb with the column label.

    dir: the folder with train and test; where neither is there, the hub is asked.
    validation: the share of the official training posts that validates.
    unlabelled: whether the reviews without label are there as well, as training posts.
    """

    dir: str
    validation: float
    unlabelled: bool

    def __post_init__(self) -> None:
        check_validation(self.validation)

    def read(self) -> Posts:
        """Reads the official files or the hub. Raises UserError with the file and the way out."""
        folder = Path(self.dir).expanduser()
        found = self._from_files(folder) if (folder / "train").is_dir() else self._from_hub(folder)
        return gather([*found], LabelSpace("multiclass", LABELS), validation=self.validation, seed=self.seed)

    def _from_files(self, folder: Path) -> Iterator[Part]:
        for split, name, label in self._kinds():
            paths = sorted((folder / split / name).glob("*.txt"))
            if not paths:
                raise UserError(f"{folder / split / name} holds no *.txt; {AGAIN}")
            yield Part(f"{split}-{name}", split, [_read(path) for path in paths], [label] * len(paths))

    def _from_hub(self, folder: Path) -> Iterator[Part]:
        names: dict[str, Split] = {"train": "train", "test": "test"}
        if self.unlabelled:
            names["unsupervised"] = "train"
        for name, rows in HUB.splits([*names], ways_out(folder, "train/pos")):
            texts, labels = rows.texts("text"), rows.positions("label", {"0": 0, "1": 1, "-1": -1})
            for split, kind, label in self._kinds():
                mine = [i for i, value in enumerate(labels) if value == (-1 if label is None else label)]
                if split == names[name] and mine:
                    yield Part(f"{split}-{kind}", split, [_plain(texts[i]) for i in mine], [label] * len(mine))

    def _kinds(self) -> list[tuple[Split, str, int | None]]:
        """Each folder: its split, name and label."""
        kinds: list[tuple[Split, str, int | None]] = [
            (split, name, label) for split in ("train", "test") for label, name in enumerate(FOLDERS)
        ]
        return [*kinds, ("train", "unsup", None)] if self.unlabelled else kinds


def _read(path: Path) -> str:
    try:
        text = _plain(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); {AGAIN}") from error
    if not text:
        raise UserError(f"{path}: is empty, expected a review; {AGAIN}")
    return text


def _plain(text: str) -> str:
    return " ".join(text.replace("<br />", " ").split())
