"""Every choice that is measured is one that the command line knows."""

import os

import pytest

from benchmarks.choices import CHOICES, ENVIRONMENTS, Build
from benchmarks.ours import Source, composed
from benchmarks.workers import ArmFailed, Worker


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_composes(name: str) -> None:
    source = Source(name="sample", train=80, evaluation=10)
    assert composed(source, ("label",), CHOICES[name]).tasks.label.corpus.train == 80


def test_a_choice_of_the_environment_is_made_there_or_left_out() -> None:
    assert ENVIRONMENTS.keys() <= CHOICES.keys()
    with pytest.raises(ArmFailed, match=r"libnone\.so is not installed"):
        Build("sample", 80, 10, [], preloaded="libnone.so")()


class Asked:
    """An arm that can only say what its process has in its environment."""

    def __call__(self) -> "Asked":
        return self

    def warm_up(self) -> dict[str, str]:
        return {"ALLOCATOR": os.environ.get("ALLOCATOR", "")}


@pytest.mark.slow  # two processes
def test_a_worker_has_an_environment_of_its_own() -> None:
    for environment, found in (({"ALLOCATOR": "ours"}, "ours"), (None, "")):
        worker = Worker("asked", Asked(), threads=1, environment=environment)  # type: ignore[arg-type]
        worker.close()
        assert worker.notes == {"ALLOCATOR": found}
    assert "ALLOCATOR" not in os.environ
