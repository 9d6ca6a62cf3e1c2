import numpy as np
import pytest
from outcomes import label_f1s
from resampling import bootstrap

from benchmarks.comparisons import LABELS, SEEDS, SYSTEMS, by_loop, by_products, drawn, report
from benchmarks.readings import Spread


def test_both_ways_resample_the_same_metric() -> None:
    gold, said = drawn(300)
    assert said.shape == (SYSTEMS * SEEDS, 300, LABELS)
    assert len(by_products(gold, said, 100)) == 3
    measures = [label_f1s(given, gold, [str(i) for i in range(LABELS)])["macro_f1"] for given in said]
    products, loop = bootstrap(measures, 40, 0), by_loop(gold, said, 40)  # one stream of posts, if in other chunks
    np.testing.assert_allclose(products, loop, atol=1e-12)


def test_the_report_has_a_row_a_way() -> None:
    text = report(Spread(1.0, 0.5, 2.0), Spread(100.0, 90.0, 110.0), Spread(100.0, 50.0, 180.0), 1924, 10_000)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["products", "loop", "ratio"]


@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--rounds", "many"]])
def test_what_it_cannot_do_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import comparisons

    monkeypatch.setattr("sys.argv", ["comparisons.py", *arguments])
    with pytest.raises(SystemExit):
        comparisons.main()
