"""Counts the words of a word list in posts."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hatemtl.corpora.files import DELIMITERS, read_delimited
from hatemtl.errors import UserError

# A word, with what may stand within one, or a mark or an emoji alone.
_WORD = re.compile(r"[^\W_]+(?:['’*-][^\W_]+)*|\S")
ALONE = "words"  # the category of a list that names none
RIGHT = "expected a word list: .txt with a word a line, .csv or .tsv with a column word and, if any, weight and category"


def words_of(text: str) -> tuple[str, ...]:
    """Parts a text into words as they are compared: small letters, without the marks around them.

    >>> words_of("Don't, #Snorf!")
    ("don't", ',', '#', 'snorf', '!')
    """
    return tuple(_WORD.findall(text.casefold()))


@dataclass(frozen=True)
class Lexicon:
    """Words, or phrases, with a weight in each of C categories: entries[words_of(word)][category] = weight."""

    entries: Mapping[tuple[str, ...], Mapping[str, float]]

    @classmethod
    def read(cls, path: str | Path) -> "Lexicon":
        """Reads a word a line of a .txt, or the columns word, weight (1 if there is none) and category of a .csv or .tsv.

        Raises UserError, with the line, where it is no such file in UTF-8, holds no word, or one twice in a category.
        """
        file = Path(path).expanduser()
        given = f"head lexicon={path}"
        if not file.is_file():
            raise UserError(f"{given}: {'this is a folder' if file.is_dir() else 'no such file'}; {RIGHT}")
        again = "mend the file, which is read as UTF-8"
        if file.suffix == ".txt":  # no list of words holds this delimiter
            rows = read_delimited(file, again=again, delimiter="\x1f", names=["word"], quoted=False)
        elif file.suffix in DELIMITERS:
            rows = read_delimited(file, again=f"{again}; {RIGHT}", delimiter=DELIMITERS[file.suffix], quoted=None)
        else:
            raise UserError(f"{given}: {RIGHT}")
        weights = rows.array("weight") if "weight" in rows.columns else np.ones(len(rows))
        categories = rows.texts("category") if "category" in rows.columns else [ALONE] * len(rows)
        entries: dict[tuple[str, ...], dict[str, float]] = {}
        lines: dict[tuple[tuple[str, ...], str], int] = {}
        for i, (text, weight, category) in enumerate(zip(rows.texts("word"), weights.tolist(), categories, strict=True)):
            key = words_of(text), category
            if key in lines:
                raise UserError(f"{rows.where(i)}: {text!r} stands in line {lines[key]} already; leave one of them out")
            lines[key] = rows.lines[i]
            entries.setdefault(key[0], {})[category] = weight
        return cls(entries)

    @cached_property
    def categories(self) -> list[str]:
        """Names the C categories, in the order of the alphabet."""
        return sorted({category for of_word in self.entries.values() for category in of_word})

    @property
    def text(self) -> str:
        """Writes it as a CSV file that `read` reads as the same."""
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["word", "weight", "category"])
        for words, of_word in sorted(self.entries.items()):
            writer.writerows([" ".join(words), repr(weight), category] for category, weight in sorted(of_word.items()))
        return file.getvalue()

    @property
    def digest(self) -> str:
        """Gives sixteen hex digits that change with any word, weight or category, and with nothing else of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def counts(self, texts: Iterable[str]) -> np.ndarray:
        """Adds up the weights of the words that stand in each of N texts, over its number of words: (N, C) float32."""
        place, rows = {category: i for i, category in enumerate(self.categories)}, []
        longest = max(map(len, self.entries))
        for text in texts:
            words, row = words_of(text), np.zeros(len(place))
            for i in range(len(words)):
                for length in range(1, min(longest, len(words) - i) + 1):
                    for category, weight in self.entries.get(words[i : i + length], {}).items():
                        row[place[category]] += weight
            rows.append(row / max(1, len(text.split())))
        return np.array(rows, np.float32).reshape(-1, len(place))
