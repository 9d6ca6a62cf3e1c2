"""What is compared is the same work, and the ratio is that of each round."""

import pytest
from omegaconf import OmegaConf

from benchmarks.cohort import COHORTS, Cost, report
from benchmarks.ours import Source, composed
from hatemtl.command.configuration import cohort_of, plain
from hatemtl.saved_runs.claiming import differences


@pytest.mark.parametrize("name", COHORTS)
def test_both_sides_train_the_same_runs(name: str) -> None:
    together, apart = COHORTS[name]
    source = Source(name="sample", train=80, evaluation=10)
    cohort = cohort_of(composed(source, ("target",), [together]), ["train"])
    assert len(cohort) == len(apart)
    for run, alone in zip(cohort.values(), apart, strict=True):
        other = composed(source, ("target",), [alone])
        OmegaConf.resolve(other)
        assert not differences(plain(run), plain(other))


def test_the_report_has_the_ratio_of_every_round() -> None:
    apart, together = [Cost(6.0, 4.0), Cost(9.0, 4.0), Cost(8.0, 4.0)], [Cost(3.0, 4.0), Cost(3.0, 2.0), Cost(4.0, 2.0)]
    line = report({("2 parts", "together"): together, ("2 parts", "apart"): apart}).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["2 parts", "2.00 (2.00–3.00)", "2.00 (1.00–2.00)"]
