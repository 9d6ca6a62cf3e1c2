"""HateXplain (Mathew et al., AAAI 2021): posts of Twitter and Gab, each judged by three annotators.

Every annotator gave a label, the communities that the post is aimed at and, where it is abusive, a mask over its words.

Layout: dataset.json, by post id: post_tokens, annotators (label, annotator_id, target) and rationales (a 0 or 1 a token, for
each annotator who marked some); post_id_divisions.json, the ids of train, val and test. The hub:
Hate-speech-CNERG/hatexplain.
Splits: official, 15,383 / 1,922 / 1,924 posts; the 919 on which all three disagree are in none.
Licence: MIT. Source: github.com/hate-alert/HateXplain, folder Data.
Cite Mathew, Saha, Yimam, Biemann, Goyal and Mukherjee (2021), "HateXplain: A Benchmark Dataset for Explainable Hate Speech
Detection".
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hatemtl.corpora.base import SPLITS, Column, Corpus, Posts, Split
from hatemtl.corpora.files import Hub, again, complete, ways_out
from hatemtl.errors import UserError, did_you_mean, unreadable

ABUSIVE = ("hatespeech", "offensive")
LABELS = ("hatespeech", "normal", "offensive")  # the hub counts them in this order
TOXIC = ("normal", "toxic")
COMMUNITIES = (
    *("african", "arab", "asian", "caucasian", "hispanic", "homosexual"),
    *("islam", "jewish", "other", "refugee", "women"),
)
HUB = Hub("Hate-speech-CNERG/hatexplain", "plain_text")
HOME = "the HateXplain repository (github.com/hate-alert/HateXplain, folder Data)"
FILES = ("dataset.json", "post_id_divisions.json")
# The one post of the official file with a mask that is not as long as the post; that mask is left out.
MISFIT = "24439295_gab"


@dataclass(frozen=True, kw_only=True)
class HateXplain(Corpus):
    """HateXplain's three official splits with the columns label, toxic, target and rationale.

    label: the majority of three; none where a divisions file of one's own lists a post on which all three disagree.
    toxic: that majority as two classes, as in the paper's study of bias: toxic is hatespeech or offensive, else normal.
    target: the communities that more than one annotator named; a post may have none.
    rationale: one value a word, for posts whose majority is hatespeech or offensive and which carry a mask.
    The first three also tell the share of the three annotators for each label.
    """

    dir: str
    targets: Literal[11, 10] = 11
    rationale: Literal["union", "majority", "soft"] = "union"

    def read(self) -> Posts:
        folder = Path(self.dir).expanduser()
        posts = [*(_from_files(folder) if complete(folder, FILES, HOME) else _from_hub(folder))]
        self._check_masks(posts, folder)
        voted = np.array([post.label is not None for post in posts], bool)
        abusive = np.array([post.label in ABUSIVE for post in posts], bool)
        communities = [name for name in COMMUNITIES if self.targets == 11 or name != "other"]
        by_each = [[[name in of for name in communities] for of in post.communities] for post in posts]
        named = np.array(by_each, bool).reshape(len(posts), 3, len(communities))
        votes = np.array([[post.labels.count(name) / 3 for name in LABELS] for post in posts]).reshape(
            len(posts), len(LABELS)
        )
        toxic = votes[:, [LABELS.index(name) for name in ABUSIVE]].sum(axis=1)
        how = [self.rationale if post.split == "train" else "union" for post in posts]
        masks = np.fromiter(map(_rationale, posts, how), object, len(posts))
        truth = np.fromiter(map(_rationale, posts, repeat("union")), object, len(posts)) if {*how} != {"union"} else None
        marked = abusive & np.array([bool(post.masks) for post in posts], bool)
        columns = {
            "label": Column.of("multiclass", LABELS, votes.argmax(axis=1), voted, votes),
            "toxic": Column.of("multiclass", TOXIC, abusive, voted, np.stack([1 - toxic, toxic], axis=1)),
            "target": Column.of("multilabel", communities, named.sum(axis=1) > 1, shares=named.mean(axis=1)),
            "rationale": replace(Column.of("tokens", ["rationale"], masks, marked), truth=truth),
        }
        texts = [" ".join(post.words) for post in posts]
        splits = np.array([post.split for post in posts])
        return Posts([post.id for post in posts], texts, splits, columns)

    def _check_masks(self, posts: Iterable["_Post"], folder: Path) -> None:
        """Raises UserError where majority or shares are asked for of copies that hold the annotators' union three times."""
        masks = [post.masks for post in posts if post.split == "train" and post.masks]
        if self.rationale != "union" and masks and all(one == of[0] for of in masks for one in of):
            raise UserError(
                f"{folder / FILES[0]}: in all {len(masks):,} training posts the annotators mark the same words: it holds "
                f"their union, and rationale={self.rationale} would be that too; type tasks.TASK.corpus.rationale=union, or "
                f"{again(FILES[0], HOME)}"
            )


class _Post(NamedTuple):
    id: str
    split: Split
    words: list[str]
    labels: tuple[str, str, str]  # of the three annotators
    communities: tuple[set[str], set[str], set[str]]
    masks: list[list[int]]

    @property
    def label(self) -> str | None:
        """Gives the label of most annotators; None where they tie."""
        (label, votes), *_ = Counter(self.labels).most_common(1)
        return label if votes > 1 else None


def _rationale(post: _Post, how: str) -> np.ndarray:
    if not post.masks:
        return np.zeros(len(post.words), np.float32)
    share = np.array(post.masks, np.float32).mean(axis=0)
    return {"union": share > 0, "majority": share >= 0.5, "soft": share}[how].astype(np.float32)


def _from_files(folder: Path) -> Iterator[_Post]:
    dataset, divisions = (_read(folder / name) for name in FILES)
    for split in SPLITS:
        ids = divisions.get(split)
        if not isinstance(ids, list):
            raise UserError(f"{folder / FILES[1]} lists no {split!r} posts; {again(FILES[1], HOME)}")
        for post_id in map(str, ids):
            where = f"{folder / FILES[0]}, post {post_id!r}"
            if post_id not in dataset:
                raise UserError(f"{where}: listed in {FILES[1]}, but not there or listed twice; {again(FILES[0], HOME)}")
            yield _parse(post_id, split, dataset.pop(post_id), where, again(FILES[0], HOME))


def _from_hub(folder: Path) -> Iterator[_Post]:
    read = HUB.splits(("train", "validation", "test"), ways_out(folder, FILES))
    for split, (_, rows) in zip(SPLITS, read, strict=True):
        for i, (post_id, judged) in enumerate(zip(rows["id"], rows["annotators"], strict=True)):
            annotators = [
                {"label": dict(enumerate(LABELS)).get(label), "target": target}
                for label, target in zip(judged["label"], judged["target"], strict=False)
            ]
            entry = {"annotators": annotators, **{name: rows[name][i] for name in ("rationales", "post_tokens")}}
            yield _parse(post_id, split, entry, f"{rows.path}, post {post_id!r}", rows.again)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, expected a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error, again(path.name, HOME)) from error
    return content


def _parse(post_id: str, split: Split, entry: Any, where: str, way_out: str) -> _Post:
    match entry:
        case {
            "annotators": [
                {"label": str() as x, "target": [*of_x]},
                {"label": str() as y, "target": [*of_y]},
                {"label": str() as z, "target": [*of_z]},
            ],
            "rationales": [*masks],
            "post_tokens": [_, *_] as words,
        } if all(isinstance(word, str) for word in words):
            pass
        case _:
            raise UserError(f"{where}: expected three annotators with label and target, rationales and words; {way_out}")
    for label in (x, y, z):
        if label not in LABELS:
            raise UserError(f"{where}: label {label!r}: {did_you_mean(label, LABELS)}; {way_out}")
    if post_id == MISFIT:
        masks = [mask for mask in masks if len(mask) == len(words)]
    for mask in masks:
        if not isinstance(mask, list) or len(mask) != len(words) or mask.count(0) + mask.count(1) != len(mask):
            raise UserError(f"{where}: a rationale must have one 0 or 1 for each of the {len(words)} words; {way_out}")
    words = ["_".join(word.split()) or "_" for word in words]  # a space inside one, or one of nothing, would shift masks
    a, b, c = ({str(name).lower() for name in names} for names in (of_x, of_y, of_z))
    return _Post(post_id, split, words, (x, y, z), (a, b, c), masks)
