"""The nearest name to whatever YAML holds, be it a name or not."""

import pytest

from hatemtl.errors import did_you_mean


@pytest.mark.parametrize("given", [3, 0.5, None, True, ["cola"], {"a": 1}], ids=str)
def test_what_is_no_name_is_near_to_none(given: object) -> None:
    assert did_you_mean(given, ["tiny", "minilm"]) == "known: tiny, minilm"


def test_near_names() -> None:
    assert did_you_mean("Tinny", ["minilm", "tiny"]) == "did you mean 'tiny'?"
    assert did_you_mean("XNLI", ["xnli", "terra"]) == "did you mean 'xnli'?"
    assert did_you_mean("f1_a", ["f1_A", "f1_a"]) == "did you mean 'f1_A' or 'f1_a'?"
    assert did_you_mean(31, [32, 16]) == "known: 32, 16"
    assert did_you_mean("x", []) == "known: none"
