"""Amazon reviews (McAuley et al., SIGIR 2015): did other customers find a review helpful, and how many stars did it give?

A review says how many of the customers who voted found it helpful. It is called helpful where a share of `threshold` did,
and judged at all only with `minimum` votes; the others keep their stars. There are no official splits: they are drawn by
seed, and posts of one product (`group_by`) stand in one, since its reviews speak of the same things. Of reviews with equal
texts only the first is taken.

Files: a category's, one JSON object a line, as the release of 2014 has them (unpack the .gz): asin (the product),
reviewerID, helpful ([found it helpful, voted]), reviewText, overall (stars), summary, unixReviewTime. The release of 2023
is read as well (text, rating, asin, user_id), but it does not count who found a review unhelpful: it has no column helpful.
Reviews without text, and votes of whom more found it helpful than voted, are left out. On no hub in this layout.

Licence: none stated, for research; they are on jmcauley.ucsd.edu/data/amazon. Cite McAuley, Targett, Shi and van den
Hengel (2015), "Image-based Recommendations on Styles and Substitutes".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.corpora.files import official, read_jsonl
from hatemtl.corpora.rows import Rows, whole
from hatemtl.corpora.splitting import divide, text_key
from hatemtl.errors import UserError

HELPFUL = ("not_helpful", "helpful")
STARS = ("one", "two", "three", "four", "five")
OLD, NEW = ("reviewText", "overall"), ("text", "rating")  # where the releases have text and stars
HOME = "jmcauley.ucsd.edu/data/amazon (.gz, to be unpacked)"


@dataclass(frozen=True, kw_only=True)
class Reviews(Corpus):
    dir: str
    file: str
    threshold: float
    minimum: int
    group_by: str
    fractions: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold={self.threshold}: expected a share of voters above 0, up to 1")
        if self.minimum < 1:
            raise UserError(f"minimum={self.minimum}: expected a number of votes, at least 1")

    def read(self) -> Posts:
        ((_, rows),) = official(self.dir, [self.file], HOME, read=read_jsonl)
        text, stars = NEW if NEW[0] in rows.columns else OLD
        rows = whole(rows, [text])
        first = {text_key(said): i for i, said in reversed([*enumerate(rows.texts(text))])}  # of equal texts
        rows = rows.at(sorted(first.values()))
        levels = {f"{number}{end}": number - 1 for number in range(1, 6) for end in ("", ".0")}
        columns = {"helpful": self._helpful(rows)} if "helpful" in rows.columns else {}
        columns["stars"] = Column.of("ordinal", STARS, rows.positions(stars, levels))
        label = next(iter(columns.values()))
        strata = np.where(label.has, label.values, -1)
        splits = divide(rows.texts(self.group_by), self.fractions, self.seed, strata)
        ids = [f"line-{line}" for line in rows.lines]
        return Posts(ids, [" ".join(said.split()) for said in rows.texts(text)], splits, columns)

    def _helpful(self, rows: Rows) -> Column:
        for i, cell in enumerate(rows["helpful"]):
            match cell:
                case [int() as yes, int() as voted] if yes >= 0 and voted >= 0:
                    continue
            raise rows.wrong(i, "helpful", "[how many found it helpful, how many voted]")
        helped, votes = np.array(rows["helpful"], np.int64).reshape(-1, 2).T
        has = (votes >= self.minimum) & (helped <= votes)
        return Column.of("multiclass", HELPFUL, has & (helped >= self.threshold * votes), has)
