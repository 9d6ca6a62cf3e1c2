"""SQuAD's official normalisation, exact match and F1, by hand; and the texts between two tokens."""

import numpy as np
import pytest
import torch

from hatemtl.answers import Answers, Passage, normalised, worth

# By the rules of evaluate-v1.1.py: lower, then no ASCII punctuation, then no word a, an or the, then single spaces.
NORMALISED = {
    "The Eiffel Tower.": "eiffel tower",
    "U.S.A.": "usa",
    "a cat and an ox": "cat and ox",
    "theatre": "theatre",  # an article is a word
    "the-end": "theend",  # punctuation goes first, and joins what it parted
    "  two\n  lines ": "two lines",
    "$1,000": "1000",
    "Москва, 1961 г.": "москва 1961 г",
    "«Восток-1»": "«восток1»",  # guillemets are no ASCII punctuation
    "а также": "а также",  # Cyrillic а is no article
    "Ёлка": "ёлка",
    "The": "",
    "…": "…",
}


@pytest.mark.parametrize("given", NORMALISED)
def test_answers_are_normalised_as_the_official_script_does(given: str) -> None:
    assert normalised(given) == NORMALISED[given]


@pytest.mark.parametrize(
    ("said", "right", "em", "f1"),
    [
        ("the Eiffel Tower", ["Eiffel Tower"], 1, 1),
        ("tower", ["the Eiffel Tower"], 0, 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
        ("big red red cat", ["red red hat"], 0, 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),  # words as often as both have them
        ("в 1961 году", ["1961 году", "апрель 1961 года"], 0, 0.8),  # the best of 4/5 and 1/3
        ("cat", ["dog", "Cat!"], 1, 1),
        ("cat", ["dog"], 0, 0),
        ("the", ["an"], 1, 0),  # the script's own quirk: both are nothing, and share no word
        ("cat", [], 0, 0),
    ],
)
def test_what_an_answer_is_worth_by_hand(said: str, right: list[str], em: float, f1: float) -> None:
    assert worth(said, right) == pytest.approx((em, f1))


def test_an_answer_has_no_space_around() -> None:
    where = np.array([[0, 0], [0, 3], [3, 8], [8, 9], [0, 0]])  # a piece that takes the space before it
    passage = Passage("the small cat", where, np.array([[4, 9], [10, 13]]))
    assert passage.between(2, 2) == (4, 8) and passage.between(1, 2) == (0, 8)
    assert passage.answers == ["small", "cat"]


def test_some_answers_are_taken_by_a_slice_or_a_mask() -> None:
    passages = [Passage(text, np.zeros((1, 2)), np.zeros((0, 2))) for text in "abc"]
    answers = Answers(torch.arange(6).view(3, 2), passages)
    for some, texts in ((answers[1:], "bc"), (answers[torch.tensor([True, False, True])], "ac")):
        assert "".join(passage.text for passage in some.passages) == texts and len(some) == 2
        assert some.places[:, 0].tolist() == [2 * "abc".index(text) for text in texts]
