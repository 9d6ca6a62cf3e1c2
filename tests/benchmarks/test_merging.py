import pytest
import torch

from benchmarks.merging import SIZES, SOURCES, Case, Cost, drawn, measure, report
from benchmarks.readings import Spread


def case(merge: str, size: str = "small") -> Case:
    return Case(merge=merge, size=size, layers=1, rounds=2, threads=1)


def test_a_merge_is_timed_unless_it_takes_statistics() -> None:
    cost = measure(case("ties"))
    assert cost is not None
    assert 0 < cost.seconds.low <= cost.seconds.middle <= cost.seconds.high
    assert cost.processor.high > 0
    assert cost.memory >= 0
    assert measure(case("regmean")) is None


def test_the_sources_adapt_every_layer_and_differ() -> None:
    sources = drawn(SIZES["base"], 2)
    assert len(sources) == SOURCES
    for source in sources:
        assert len(source) == 2 * 5
        assert source["1.intermediate"].shape == (3072, 768)
        assert source["1.output"].shape == (768, 3072)
        assert {update.rank for update in source.values()} == {16}
    seen = [update.A for source in sources for name, update in source.items() if name.endswith("query")]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_report_has_a_row_a_merge() -> None:
    cost = Cost(Spread(1.0, 0.5, 2.0), Spread(1.0, 1.0, 1.0), 3 * 2**20)
    text = report([(case("mean"), cost), (case("mean", "base"), cost), (case("ties"), cost)])
    head, _, mean, ties = text.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["merge", "small, s", "small, MiB", "base, s", "base, MiB"]
    assert [cell.strip() for cell in mean.split("|")[1:-1]] == ["=mean=", "1.00 (0.50–2.00)", "3", "1.00 (0.50–2.00)", "3"]
    assert [cell.strip() for cell in ties.split("|")[1:-1]] == ["=ties=", "1.00 (0.50–2.00)", "3", "", ""]


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--merges", "tise"]])
def test_what_it_cannot_do_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import merging

    monkeypatch.setattr("sys.argv", ["merging.py", *arguments])
    with pytest.raises(SystemExit):
        merging.main()
