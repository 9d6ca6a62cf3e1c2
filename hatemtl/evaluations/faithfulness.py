"""Tells how far a prediction hangs on the tokens that explain it: without them, and with them alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.evaluations.base import Predicted, Reader, Row, Tokens
from hatemtl.evaluations.eraser import highest
from hatemtl.evaluations.explained import Explained, Post, Protocol

BINS = (1, 5, 10, 20, 50)  # percent of a post's tokens


@dataclass(frozen=True, kw_only=True)
class Faithfulness(Explained):
    """Means over posts of comprehensiveness, p(label | post) - p(label | without the highest tokens), and of sufficiency,
    p(label | post) - p(label | these alone); label is what the whole post gets.

    DeYoung et al. 2020, arXiv:1911.03429, eq. 1 and 2. aopc: also the means over the highest 1, 5, 10, 20 and 50 % of the
    tokens, one at least: eq. 3 without its term of no token and over five, as ERASER's program divides. Token ids are fed
    again, nothing is tokenized anew.
    official, as Mathew et al. 2021, arXiv:2012.10289, ship it: a special token that is chosen is missing without, and there
    twice alone, since the chosen stand between the special tokens. joined: special tokens are never chosen.
    A post of which nothing is left is fed as its special tokens. truth: null for all posts.
    """

    aopc: bool
    called: ClassVar[str] = "faithfulness"

    def _try_out(self, posts: np.ndarray, columns: Mapping[str, Column], reader: Reader | None) -> None:
        """Asks the task's head of one post's tokens alone as well, which one with a lexicon refuses."""
        super()._try_out(posts, columns, reader)
        assert reader is not None
        one, asked = Post(0, reader.tokens(int(posts[self._places(len(posts), columns)[0]])), None), Asked()
        asked.both([one], [np.zeros(len(one.tokens.ids))], self.protocols[0], None, self.top)
        asked.answered(reader, self.task)

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        assert reader is not None
        said, rows = predictions[self.task], []
        judged = self.judged(said, posts.get(self.task, {}), reader)
        whole = said.scores[[post.place for post in judged]].astype(np.float64)
        label = whole.argmax(axis=1)
        sure = np.take_along_axis(whole, label[:, None], axis=1)[:, 0]
        for explainer in self.explainers:
            scores, cost = self.scores(explainer, said, judged, reader)
            asked = Asked()
            # of each protocol, bin and post, which of the questions tells of the post without, and which of the tokens alone
            shares = [None, *(BINS if self.aopc else ())]
            places = np.array([[asked.both(judged, scores, p, share, self.top) for share in shares] for p in self.protocols])
            given = asked.answered(reader, self.task)
            lost = sure - np.moveaxis(given[places, label[:, None]], -1, 0)  # (2, protocols, bins, posts)
            for i, name in enumerate(("comprehensiveness", "sufficiency")):
                for protocol, of in zip(self.protocols, lost[i], strict=True):
                    found = {name: of[0].mean(), **({f"aopc_{name}": of[1:].mean()} if self.aopc else {})}
                    made = [(f"{key}_{explainer}_{protocol}", float(value)) for key, value in found.items()]
                    rows += [Row(said.stage, self.task, key, None, value) for key, value in made]
            rows += cost
        return rows


class Asked:
    """Collects sequences of token ids that the network is to be asked of, each once."""

    def __init__(self) -> None:
        self.places: dict[bytes, int] = {}
        self.ids: list[np.ndarray] = []

    def both(
        self, posts: Sequence[Post], scores: Sequence[np.ndarray], protocol: Protocol, share: int | None, top: int
    ) -> list[tuple[int, int]]:
        """Places each post without its highest tokens, and them alone. share: percent of its tokens; None for `top`."""
        places = []
        for (_, tokens, _), of_tokens in zip(posts, scores, strict=True):
            special = tokens.words < 0
            may = np.ones(len(special), bool) if protocol == "official" else ~special
            chosen = highest(of_tokens, may, top if share is None else max(1, -(-share * int(may.sum()) // 100)))
            places.append((self.place(without(tokens, chosen)), self.place(alone(tokens, chosen))))
        return places

    def place(self, ids: np.ndarray) -> int:
        found = self.places.setdefault(ids.tobytes(), len(self.ids))
        if found == len(self.ids):
            self.ids.append(ids)
        return found

    def answered(self, reader: Reader, task: str) -> np.ndarray:
        """Gives what the task's head says of each, (n, C)."""
        head, found = reader.through.heads[task], np.zeros((len(self.ids), len(reader.through.heads[task].space)))
        with reader.inference():
            for places, batch in reader.batches(self.ids):
                found[places] = head.scores(reader.through(batch, [task])[task]).float().cpu().numpy()
        return found


def without(tokens: Tokens, chosen: np.ndarray) -> np.ndarray:
    """The ids of a post without the chosen tokens (T,)."""
    return tokens.ids[~chosen] if not chosen.all() else alone(tokens, ~chosen)


def alone(tokens: Tokens, chosen: np.ndarray) -> np.ndarray:
    """The ids of the chosen tokens (T,), in the order of the text, between the special ones around it.

    A special one that is chosen itself stands there once more.
    """
    inside = np.flatnonzero(tokens.words >= 0)
    begin, end = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (len(tokens.ids), len(tokens.ids))
    return np.concatenate([tokens.ids[:begin], tokens.ids[chosen], tokens.ids[end:]])
