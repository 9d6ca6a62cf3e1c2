"""Augmentation by hand: what is drawn for a post depends on nothing but the epoch, and annotations go with their words."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from invented import as_posts, byte_level, minilm

from hatemtl.batches.augmentation import Augmenter, Drop, Mask, Swap, Words
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.labels import IGNORED, LabelSpace

TEXTS = [f"fizzlewits number {i} are dronk and loud today" for i in range(40)] + ["hm", "two words"]
ALL = {"drop": Drop(probability=0.3), "swap": Swap(probability=0.5), "mask": Mask(probability=0.3)}


def pool(some: dict[str, Any], texts: list[str] = TEXTS, pairs: Any = None, tokenizer: Any = minilm) -> TokenizedPosts:
    """Posts whose word i carries the value i / 100, once in each of their tasks."""
    made = TokenizedPosts(tokenizer(), 64, [replace(as_posts(texts), pairs=pairs)])
    marks = np.fromiter((np.arange(len(t.split(" ")), dtype=np.float32) / 100 for t in texts), object, len(texts))
    made.annotate("words", Column(LabelSpace("tokens", ("m",)), marks, np.ones(len(texts), bool)), 0)
    made.augmenter = Augmenter(some, tokenizer(), made.ids)
    return made


def read(made: TokenizedPosts, row: int) -> tuple[list[str], list[float]]:
    """The tokens of a post, and the values of its words as they are read."""
    batch = made[np.array([row])]
    values = batch.targets["words"][0].numpy()
    ids = batch.input_ids[0][batch.attention_mask[0].bool()]
    return minilm().convert_ids_to_tokens(ids), values[values != IGNORED].tolist()


def words(number: int, posts: int = 1) -> Words:
    slots = np.broadcast_to(np.arange(number), (posts, number))
    return Words(np.ones((posts, number), bool), slots, np.zeros((posts, number), bool))


def draw(*drawn: list[float]) -> Any:
    return lambda which: np.array([drawn[which]])


def test_each_by_hand() -> None:
    assert Drop(probability=0.3)(words(3), draw([0.2, 0.5, 0.3])).there.tolist() == [[False, True, True]]
    assert Drop(probability=0.9)(words(3), draw([0.2, 0.5, 0.3])).there.tolist() == [[False, True, False]], "one stays"
    assert Mask(probability=0.3)(words(3), draw([0.2, 0.5, 0.3])).masked.tolist() == [[True, False, False]]
    swapped = Swap(probability=0.5)(words(4), draw([0.1, 0.5, 0.2, 0.3], [0.9, 0.0, 0.5, 0.1]))
    assert swapped.slots.tolist() == [[3, 1, 2, 0]], "of the words 0, 2 and 3 the last drawn comes to stand first"


def test_nothing_is_changed_but_in_a_drawn_epoch_and_special_tokens_never_are() -> None:
    made = pool(ALL)
    plain, drawn = made[np.arange(42)], made.drawn(0, 0)[np.arange(42)]
    assert plain.input_ids.tolist() == TokenizedPosts(minilm(), 64, [as_posts(TEXTS)])[np.arange(42)].input_ids.tolist()
    assert drawn.input_ids.shape != plain.input_ids.shape or (drawn.input_ids != plain.input_ids).any()
    ids, mask = drawn.input_ids.numpy(), drawn.attention_mask.numpy()
    assert (ids[:, 0] == minilm().cls_token_id).all()
    assert (ids[np.arange(42), mask.sum(axis=1) - 1] == minilm().sep_token_id).all()
    assert ((ids == minilm().sep_token_id).sum(axis=1) == 1).all()
    assert (ids[mask == 0] == minilm().pad_token_id).all()
    assert drawn.tokens == mask.sum()
    assert (mask.sum(axis=1) > 2).all(), "a word of each post stays"


def test_posts_without_a_word_stay_as_they_are() -> None:
    made, rows = pool(ALL, ["", " "]), np.arange(2)
    assert made.drawn(0, 0)[rows].input_ids.tolist() == made[rows].input_ids.tolist()


def test_annotations_go_with_their_words_and_words_stay_whole() -> None:
    plain, drawn = pool({}), pool({k: ALL[k] for k in ("drop", "swap")}).drawn(3, 1)
    moved = 0
    for row in range(len(TEXTS)):
        whole, pieces = TEXTS[row].split(" "), [minilm().tokenize(word) for word in TEXTS[row].split(" ")]
        tokens, values = read(drawn, row)
        order = [round(100 * value) for value in values]
        assert tokens[1:-1] == [piece for word in order for piece in pieces[word]]
        assert len(set(order)) == len(order) <= len(whole)
        assert read(plain, row)[1] == [pytest.approx(i / 100) for i in range(len(whole))]
        moved += order != sorted(order)
    assert moved > 20


def test_masks_are_of_whole_words_in_place() -> None:
    drawn, plain = pool({"mask": Mask(probability=0.4)}).drawn(0, 0), pool({})
    for row in range(10):
        (tokens, values), (before, _) = read(drawn, row), read(plain, row)
        assert [round(100 * v) for v in values] == [*range(len(values))]
        changed = [i for i, (a, b) in enumerate(zip(tokens, before, strict=True)) if a != b]
        assert all(tokens[i] == "[MASK]" for i in changed)
        begun = [i for i in changed if not before[i].startswith("##")]
        assert set(changed) == {i + k for i in begun for k in range(_pieces(before, i))}


def _pieces(tokens: list[str], at: int) -> int:
    end = at + 1
    while tokens[end].startswith("##"):
        end += 1
    return end - at


def test_what_is_drawn_is_of_seed_epoch_and_post_alone() -> None:
    made = pool(ALL)
    shuffled = np.array([7, 3, 40, 11])
    together = made.drawn(5, 2)[shuffled]
    for place, row in enumerate(shuffled):
        alone = made.drawn(5, 2)[np.array([row])]
        length = int(alone.attention_mask.sum())
        assert alone.input_ids[0, :length].tolist() == together.input_ids[place, :length].tolist()
        assert not together.attention_mask[place, length:].any()
    later = TokenizedPosts(minilm(), 64, [replace(as_posts(["more"]), ids=["other"]), as_posts(TEXTS)])
    later.augmenter = Augmenter(ALL, minilm(), later.ids)
    assert later.drawn(5, 2)[shuffled + 1].input_ids.tolist() == together.input_ids.tolist(), "wherever it stands"
    fewer = pool({"drop": ALL["drop"]})
    assert fewer.augmenter is not None and made.augmenter is not None
    assert fewer.augmenter.drawn(5, 2)["drop"] == made.augmenter.drawn(5, 2)["drop"], "one more moves no other"
    others = {str(made.drawn(seed, epoch)[shuffled].input_ids.tolist()) for seed in (5, 6) for epoch in (1, 2, 3)}
    assert len(others) == 6


@pytest.mark.parametrize("tokenizer", [minilm, byte_level], ids=["wordpiece", "byte-level"])
def test_a_second_text_stays_as_it_is(tokenizer: Any) -> None:
    some = {"drop": Drop(probability=0.9)}
    made = pool(some, TEXTS[:20], [("and these are ok",)] * 20, tokenizer).drawn(0, 0)
    plain = pool({}, TEXTS[:20], [("and these are ok",)] * 20, tokenizer)
    for row in range(20):
        changed, before = made[np.array([row])], plain[np.array([row])]
        second = tokenizer()("and these are ok", add_special_tokens=False)["input_ids"]
        assert changed.input_ids[0].tolist()[-1 - len(second) : -1] == before.input_ids[0].tolist()[-1 - len(second) : -1]
        assert changed.input_ids.shape[1] < before.input_ids.shape[1]
        if changed.token_type_ids is not None and before.token_type_ids is not None:
            assert changed.token_type_ids.sum() == before.token_type_ids.sum()


def test_shares_are_those_that_were_asked_for() -> None:
    from hatemtl.batches.masking import uniform

    places = np.arange(200_000, dtype=np.uint64).reshape(2000, 100) * np.uint64(0x9E3779B97F4A7C15)
    drawn = partial(uniform, places, 11)
    assert 1 - Drop(probability=0.2)(words(100, 2000), drawn).there.mean() == pytest.approx(0.2, abs=0.01)
    slots = Swap(probability=0.2)(words(100, 2000), drawn).slots
    assert (np.sort(slots, axis=1) == np.arange(100)).all()
    assert (slots != np.arange(100)).mean() == pytest.approx(0.19, abs=0.02)  # one in its own place counts as unmoved


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"augmentation\.drop\.probability=1\.0: expected a probability"):
        Drop(probability=1.0)
    with pytest.raises(UserError, match=r"augmentation=\[mask\]: this encoder's tokenizer has no mask token"):
        pool({"mask": ALL["mask"]}, tokenizer=byte_level)
