"""Reads answers off a text, between two of its tokens, and says what one is worth beside the right ones, as SQuAD does."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from torch import Tensor

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Passage:
    """The text that a question is asked of, as the tokens of its sequence show it.

    where: (T, 2), of each token the first character and one past the last in the text; 0 and 0 of those that are not of it.
    right: (A, 2), the same of the right answers; none where they are not known.
    """

    text: str
    where: np.ndarray
    right: np.ndarray

    def between(self, first: int, last: int) -> tuple[int, int]:
        """Gives the characters from one token to another, from the first to one past the last, without space around."""
        begin, end = int(self.where[first, 0]), int(self.where[last, 1])
        said = self.text[begin:end]  # some tokenizers count the space before a word into its first piece
        begin += len(said) - len(said.lstrip())
        return begin, begin + len(said.strip())

    def whole(self, *, full: bool) -> tuple[int, int] | None:
        """Finds the first and the last token of the first right answer that was not cut off; None where there is none.

        full: whether the sequence has as many tokens as it may, so that some of the text may be cut off.
        """
        first, last = self.where.T
        there = last > first
        for begin, end in self.right.tolist():
            over = np.flatnonzero(there & (first < end) & (last > begin))
            if len(over) and (not full or last[over[-1]] >= end or there[over[-1] + 1 :].any()):
                return int(over[0]), int(over[-1])
        return None

    @property
    def answers(self) -> list[str]:
        return [self.text[begin:end] for begin, end in self.right.tolist()]


@dataclass(frozen=True)
class Answers:
    """The answers to B questions: what a span head learns, and what it is judged by.

    places: (B, 2) int64, the first and the last token of the answer that is learned; `IGNORED` of one that was cut off.
    passages: of each question the text that holds them.
    """

    places: Tensor
    passages: Sequence[Passage]

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, rows: slice | Tensor) -> "Answers":
        """Takes those of a slice, or where a mask (B,) says so."""
        some = self.passages[rows] if isinstance(rows, slice) else [*compress(self.passages, rows.tolist())]
        return Answers(self.places[rows], some)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Answers":
        """Changes the tensor in it, as to move it to another device."""
        return replace(self, places=change(self.places))

    def cpu(self) -> "Answers":
        return self.each(Tensor.cpu)


def normalised(answer: str) -> str:
    """Writes an answer as SQuAD's official script for version 1.1 compares it (Rajpurkar et al. 2016, arXiv:1606.05250).

    Letters are made small, ASCII punctuation and then the English articles go, and space is collapsed. Nothing else is done:
    «» and — stay, as Russian figures by that script have them.

    >>> normalised("The  U.S. Army"), normalised("«Заря», в 1961-м!"), normalised("A")
    ('us army', '«заря» в 1961м', '')
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def worth(answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Computes exact match and F1 over words of an answer, each the best beside any right one, as the same script does.

    An answer of no word, as "the", has F1 0 whatever is right.

    >>> worth("the red cat", ["red cat", "a cat"]), worth("big red cat", ["red cat", "dog"])
    ((1.0, 1.0), (0.0, 0.8))
    """
    said, matches, f1s = normalised(answer), [0.0], [0.0]
    for true in map(normalised, right):
        same = (Counter(said.split()) & Counter(true.split())).total()
        matches.append(float(said == true))
        f1s.append(2 * same / (len(said.split()) + len(true.split())) if same else 0.0)
    return max(matches), max(f1s)
