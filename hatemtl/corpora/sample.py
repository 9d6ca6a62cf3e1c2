"""Writes posts by code, annotated as HateXplain's are: a corpus that needs no data.

Licence: MIT, as hatemtl's. Source: made up by hatemtl; no person wrote them, and they say nothing of real posts.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts
from hatemtl.corpora.hatexplain import ABUSIVE, COMMUNITIES, LABELS
from hatemtl.errors import UserError
from hatemtl.seeds import derive

# groups: how often a community is attacked or mentioned, about as unevenly as in HateXplain, and its words. words: of the
# other slots; abuse is invented, and mild: no word here is a slur. templates, of a label: "!" marks what an annotator would,
# the abuse and the group it is aimed at. Many posts have a twin of another label with the same words in another order.
SPOKEN: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
GROUPS, WORDS, TEMPLATES, SHARES = (SPOKEN[part] for part in ("groups", "words", "templates", "shares"))


@dataclass(frozen=True, kw_only=True)
class Sample(Corpus):
    """Posts about eleven communities with HateXplain's columns, the same for the same arguments on every machine.

    hatespeech demands to keep a group out, offensive calls names, normal is friendly or rejects the abuse it quotes.
    Only a group under attack is a target, and the rationale marks it and the abuse. Counting words is not enough to tell.
    """

    size: int = 3000
    label_noise: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 100:
            raise UserError(f"size={self.size}: expected at least 100 posts, so that every split has ten")
        if not 0 <= self.label_noise <= 0.5:
            raise UserError(f"label_noise={self.label_noise}: expected a share of posts between 0 and 0.5")

    def read(self) -> Posts:
        draw = np.random.default_rng(derive(self.seed, "sample"))
        tenth = self.size // 10
        splits = np.repeat(SPLITS, [self.size - 2 * tenth, tenth, tenth])
        labels, posts = [], []
        for split in SPLITS:
            dealt = _deal(draw, int((splits == split).sum()), [SHARES[label] for label in LABELS])
            templates = [_pick(draw, TEMPLATES[LABELS[label]]) for label in dealt]
            attacks = sum(template.count("{group!}") for template in templates)
            attacked = deque(_deal(draw, attacks, [share for share, _ in GROUPS.values()]).tolist())
            posts += [_write(draw, template, attacked) for template in templates]
            labels += dealt.tolist()
        swapped = draw.random(self.size) < self.label_noise
        shift = draw.integers(1, len(LABELS), self.size)
        label = np.where(swapped, (np.array(labels) + shift) % len(LABELS), labels)
        abusive = np.isin(label, [LABELS.index(name) for name in ABUSIVE])
        marked = np.array([any(marks) for _, marks, _ in posts])
        marks = np.fromiter((np.array(marks, np.float32) for _, marks, _ in posts), object, self.size)
        attacked_in = [[i in targets for i in range(len(COMMUNITIES))] for _, _, targets in posts]
        columns = {
            "label": Column.of("multiclass", LABELS, label),
            "target": Column.of("multilabel", COMMUNITIES, attacked_in),
            "rationale": Column.of("tokens", ["rationale"], marks, abusive & marked),
        }
        ids = [f"sample_{i:05d}" for i in range(self.size)]
        return Posts(ids, [" ".join(words) for words, _, _ in posts], splits, columns)


def _deal(draw: np.random.Generator, n: int, shares: Sequence[float]) -> np.ndarray:
    """(n,) positions in `shares`, shuffled: each once, as far as n goes, and the rest by its share."""
    rest = draw.choice(len(shares), max(0, n - len(shares)), p=np.divide(shares, sum(shares)))
    return draw.permutation(np.concatenate([np.arange(len(shares)), rest]))[:n]


def _pick(draw: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(draw.integers(len(choices)))]


def _write(draw: np.random.Generator, template: str, attacked: deque[int]) -> tuple[list[str], list[bool], set[int]]:
    """The words of one post, which of them are marked, and the communities it attacks, the next of `attacked`."""
    template = f"{_pick(draw, WORDS['opening'])} {template} {_pick(draw, WORDS['closing'])}"
    targets = [attacked.popleft() for _ in range(template.count("{group!}"))]
    left, mentioned = deque(targets), set(targets)
    marked: list[tuple[str, bool]] = []
    for piece in template.split():
        slot, filler, mark = piece.strip("{!}"), piece, piece.endswith("!}")
        if slot == "group":
            community = left.popleft() if mark else _bystander(draw, mentioned)
            mentioned.add(community)
            filler = _pick(draw, GROUPS[COMMUNITIES[community]][1])
        elif slot != piece:
            filler = _pick(draw, WORDS[slot])
        marked += [(word, mark) for word in filler.split()]
    return [word for word, _ in marked], [mark for _, mark in marked], set(targets)


def _bystander(draw: np.random.Generator, mentioned: set[int]) -> int:
    while (community := int(draw.choice(len(GROUPS), p=[share for share, _ in GROUPS.values()]))) in mentioned:
        pass
    return community
