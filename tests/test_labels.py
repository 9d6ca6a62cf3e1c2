import pytest

from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace, Part

COMMUNITIES = (
    *("african", "arab", "asian", "caucasian", "hispanic", "homosexual"),
    *("islam", "jewish", "other", "refugee", "women"),
)


def test_the_four_parts_of_the_eleven_communities() -> None:
    space = LabelSpace("multilabel", COMMUNITIES)
    assert space.part(Part.parse("1 4")).names == ("african", "hispanic", "other")
    assert space.part(Part.parse("2 4")).names == ("arab", "homosexual", "refugee")
    assert space.part(Part.parse("3 4")).names == ("asian", "islam", "women")
    assert space.part(Part.parse("4 4")).names == ("caucasian", "jewish")


@pytest.mark.parametrize("labels", [1, 2, 10, 11, 28])
def test_parts_are_disjoint_and_together_all_labels(labels: int) -> None:
    for of in range(1, labels + 1):
        parts = [Part(i, of).indices(labels) for i in range(1, of + 1)]
        assert sorted(i for part in parts for i in part) == list(range(labels))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(list(part) == sorted(part) for part in parts)


@pytest.mark.parametrize("text", ["1 4", " 1  4 ", "01 4"])
def test_spaces_and_zeros_in_a_pattern_do_not_matter(text: str) -> None:
    assert Part.parse(text) == Part(1, 4)
    assert str(Part.parse(text)) == "1 4"


@pytest.mark.parametrize("text", ["5 4", "0 4"])
def test_a_part_that_is_not_there_names_those_that_are(text: str) -> None:
    with pytest.raises(UserError, match=r'type one of "1 4", "2 4", "3 4", "4 4"'):
        Part.parse(text)


@pytest.mark.parametrize("text", ["x", "", "4", "1 4 2", "-1 4", "1.5 4", "1/4"])
def test_a_pattern_of_another_form_is_shown_the_right_one(text: str) -> None:
    with pytest.raises(UserError, match="two whole numbers.*mask_pattern="):
        Part.parse(text)


def test_nothing_is_cut_into_no_parts() -> None:
    for text in ("1 0", "0 0"):
        with pytest.raises(UserError, match="0 parts"):
            Part.parse(text)


def test_more_parts_than_labels_are_refused() -> None:
    with pytest.raises(UserError, match="2 labels cannot be cut into 3 parts"):
        LabelSpace("multilabel", ("a", "b")).part(Part(1, 3))


@pytest.mark.parametrize("kind", ["multiclass", "tokens"])
def test_only_multilabel_spaces_have_parts(kind: str) -> None:
    with pytest.raises(UserError, match=f"mask_pattern='1 2'.*{kind}.*leave it null"):
        LabelSpace(kind, ("a", "b")).part(Part(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_label_names_are_distinct_and_at_least_one(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="distinct and at least one"):
        LabelSpace("multiclass", names)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="multiclass, multilabel, tokens"):
        LabelSpace("regression", ("a",))  # type: ignore[arg-type]
