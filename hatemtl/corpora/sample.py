"""Writes posts by code, annotated as HateXplain's are: a corpus that needs no data."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts
from hatemtl.corpora.hatexplain import ABUSIVE, COMMUNITIES, LABELS
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.seeds import derive

# How often a community is attacked or mentioned, about as unevenly as in HateXplain.
GROUPS: dict[str, tuple[float, tuple[str, ...]]] = {
    "african": (0.17, ("africans", "kenyans", "ghanaians", "nigerian families")),
    "arab": (0.06, ("arabs", "jordanians", "lebanese people")),
    "asian": (0.05, ("asians", "koreans", "vietnamese families")),
    "caucasian": (0.06, ("caucasians", "white people", "white folks")),
    "hispanic": (0.05, ("hispanics", "mexicans", "latinos")),
    "homosexual": (0.12, ("gay people", "lesbians", "gays")),
    "islam": (0.13, ("muslims", "muslim families", "mosque visitors")),
    "jewish": (0.12, ("jews", "jewish people", "synagogue visitors")),
    "other": (0.07, ("cyclists", "vegans", "jugglers")),
    "refugee": (0.08, ("refugees", "asylum seekers", "newcomers")),
    "women": (0.09, ("women", "girls", "mothers")),
}

# Abuse is invented, and mild: no word here is a slur.
WORDS: dict[str, list[str]] = {
    "insult": [
        "snorfs",
        "grumblefolk",
        "fizzlewits",
        "mumblepots",
        "dronks",
        "puddleheads",
        "blatherers",
        "wobblenoses",
        "soggy biscuits",
        "glumpish twaddlers",
        "bumbling snorfs",
        "grumpy dronks",
    ],
    "rude": ["snorf", "fizzlewit", "mumblepot", "dronk", "puddlehead", "blatherer", "twaddler", "soggy biscuit"],
    "demand": [
        "must leave our town",
        "should be sent away",
        "do not belong here",
        "have to be kept out",
        "ought to be banned",
        "must be barred from every school",
        "should never be let in",
        "have no place among us",
    ],
    "praise": ["kind neighbours", "honest people", "good company", "wonderful cooks", "great colleagues", "brave folk"],
    "thing": ["soup", "choir", "football match", "bus ride", "market", "cake", "film", "garden party"],
    "place": ["library", "station", "bakery", "village hall", "school gate", "swimming pool"],
    "when": ["yesterday", "last week", "this morning", "on sunday", "all summer"],
    "speaker": ["uncle", "teacher", "barber", "neighbour", "boss", "cousin"],
    "opening": 2 * [""]
    + [
        "honestly",
        "well",
        "so",
        "look",
        "hear me out",
        "i was on the bus and",
        "no joke",
        "long day but",
        "after the news today",
        "just saying",
        "to be fair",
        "everyone at work knows",
    ],
    "closing": 4 * [""]
    + [
        "and that is that",
        "good night",
        "what do you think",
        "just my opinion",
        "read it twice",
        "lol",
        "i said it before",
        "ask my {speaker}",
        "see you at the {place}",
        "now back to the {thing}",
    ],
}

# "!" marks what an annotator would: the abuse, and the group it is aimed at. Many posts have a twin of another label
# with the very same words in another order, so that counting words cannot tell them apart.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "hatespeech": (
        "all {group!} {demand!}",
        "all those {group!} at the {place} {demand!}",
        "{group!} and {group!} {demand!} before it is too late",
        "{group!} are {insult!} and {demand!}",
        "unlike {group} those {group!} {demand!}",
        "those {group!} {demand!} unlike {group}",
        "{group} can stay but {group!} {demand!}",
        "i would never say they are {insult} but {group!} {demand!}",
        "my {speaker} says that is cruel and i disagree because {group!} {demand!}",
        "it is not true that they are {praise} and {group!} {demand!}",
    ),
    "offensive": (
        "{group!} are nothing but {insult!}",
        "what a bunch of {insult!} those {group!} at the {place} are",
        "you are such a {rude!} and your {thing} was awful",
        "only a {rude!} would talk like that about the {thing} {when}",
        "unlike {group} those {group!} are {insult!}",
        "those {group!} are {insult!} unlike {group}",
        "i would never say {group!} {demand} but they are {insult!}",
        "my {speaker} said that is nonsense but i think {group!} are {insult!}",
        "{group!} are {insult!} and certainly not {praise}",
        "not {group} but {group!} are {insult!}",
    ),
    "normal": (
        "{group} are {praise} and i am glad they live here",
        "we met some {group} at the {place} {when} and shared a {thing}",
        "the {thing} at the {place} was lovely {when}",
        "i missed the {thing} {when} because my {speaker} kept talking about {group}",
        "my {speaker} says {group} {demand} and i disagree because that is cruel",
        "it is not true that {group} {demand} and they are {praise}",
        "my {speaker} said {group} are {insult} but i think that is nonsense",
        "{group} are {praise} and certainly not {insult}",
        "nobody who met {group} and {group} would ever call them {insult}",
        "whoever shouts that {group} {demand} at the {place} has never met them",
    ),
}
SHARES = {"hatespeech": 0.31, "normal": 0.41, "offensive": 0.28}


@dataclass(frozen=True, kw_only=True)
class Sample(Corpus):
    """Posts about eleven communities with HateXplain's columns, the same for the same arguments on every machine.

    hatespeech demands to keep a group out, offensive calls names, normal is friendly or rejects the abuse it quotes.
    Only a group under attack is a target, and the rationale marks it and the abuse. Which is which often depends on the
    order of the words alone: a classifier that counts words stays well below one that reads.

    size: posts in all, at least 100; 80 % train, 10 % val, 10 % test.
    seed: another seed writes other posts, too.
    label_noise: the share of posts, in every split, whose label is swapped for another; no classifier can know them.
    """

    size: int = 3000
    label_noise: float = 0.03

    def __post_init__(self) -> None:
        if self.size < 100:
            raise UserError(f"size={self.size}: expected at least 100 posts, so that every split has ten")
        if not 0 <= self.label_noise <= 0.5:
            raise UserError(f"label_noise={self.label_noise}: expected a share of posts between 0 and 0.5")

    def read(self) -> Posts:
        """Writes the posts; takes a fraction of a second."""
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
        target = np.array([[i in targets for i in range(len(COMMUNITIES))] for _, _, targets in posts], np.float32)
        marks = np.fromiter((np.array(marks, np.float32) for _, marks, _ in posts), object, self.size)
        everywhere = np.ones(self.size, bool)
        columns = {
            "label": Column(LabelSpace("multiclass", LABELS), label.astype(np.int64), everywhere),
            "target": Column(LabelSpace("multilabel", COMMUNITIES), target, everywhere),
            "rationale": Column(LabelSpace("tokens", ("rationale",)), marks, abusive & marked),
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
    words: list[str] = []
    marks: list[bool] = []
    for piece in template.split():
        slot = piece.strip("{!}")
        if piece == slot:
            filler = piece
        elif slot != "group":
            filler = _pick(draw, WORDS[slot])
        else:
            community = left.popleft() if piece.endswith("!}") else _bystander(draw, mentioned)
            mentioned.add(community)
            filler = _pick(draw, GROUPS[COMMUNITIES[community]][1])
        words += filler.split()
        marks += [piece.endswith("!}")] * len(filler.split())
    return words, marks, set(targets)


def _bystander(draw: np.random.Generator, mentioned: set[int]) -> int:
    while (community := int(draw.choice(len(GROUPS), p=[share for share, _ in GROUPS.values()]))) in mentioned:
        pass
    return community
