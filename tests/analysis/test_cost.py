"""What runs took: by hand, from ledgers of runs that start from one another."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]


def save(
    name: str, task: str, share: float, seconds: dict[str, float], *, method: str = "ah_par_bn", f1: float | None = None,
    source: str | None = None, factor: int = 2, price: float | None = None, ledger: bool = True, rate: float = 1e-3,
) -> None:  # fmt: skip
    folder = Path(name)
    folder.mkdir()
    settings = {"column": None if task == "mlm" else "label", "corpus": {"fraction": share}}
    keys = {"reduction_factor": factor, "learning_rate": 0.1} if method == "ah_par_bn" else {"path": source}
    config = {"tasks": {task: settings}, "method": keys, "optimization": {"encoder_lr": rate}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record: dict[str, Any] = {"method": method, "encoder_source": "x/tiny", "sources": {source: "d"} if source else {}}
    if ledger:
        record["ledger"] = {"seconds": seconds, "price": price, "joules": 3000.0}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [] if f1 is None else [f"test_{task}_macro_f1,{f1}"]
    (folder / "results.csv").write_text("\n".join(["metric,value", *lines]) + "\n")


def table(out: str) -> dict[str, dict[str, float]]:
    rows = {row.pop(next(iter(row))): row for row in csv.DictReader(out.splitlines())}
    return {name: {key: float(value) for key, value in row.items() if value} for name, row in rows.items()}


@pytest.fixture
def study(run: Run) -> None:
    for factor in (2, 6):
        save(f"text{factor}", "mlm", 0.2, {"loading": 60, "training": 540}, factor=factor, price=5.0)
    save("still", "mlm", 0.2, {"training": 60}, rate=0)
    for seed, f1 in enumerate((0.5, 0.7)):
        save(f"on{seed}", "label", 0.05, {"training": 300 + 600 * seed}, method="ah_load", source="text6", f1=f1)
    save("none", "label", 0.05, {"training": 120, "testing": 60}, f1=0.4)


def test_minutes_prices_and_scores_for_a_price(run: Run, study: None) -> None:
    code, out, _ = run("*", "--per_hour", "6", "--format", "csv")
    assert code == 0
    rows = table(out)
    assert rows["ah_par_bn reduction_factor=2, text 20 %"] == {
        **{"minutes": 10, "minutes a %": 0.5, "price": 1, "price a %": 0.05, "kJ": 3},
        **{"minutes in all": 10, "price in all": 1},
    }
    on = rows["ah_par_bn reduction_factor=6, labels 5 %, text 20 %, goes on"]
    assert {key: value for key, value in on.items() if not key.endswith(" sd")} == {
        **{"minutes": 10, "minutes a %": 2, "price": 1, "price a %": pytest.approx(0.2), "kJ": 3},
        **{"minutes in all": 20, "price in all": 2},  # seeds of 5 and of 15 minutes, each behind 10 minutes of text
        **{"macro_f1": pytest.approx(0.6), "macro_f1 / price": pytest.approx((0.5 / 1.5 + 0.7 / 2.5) / 2)},
    }
    assert on["minutes sd"] == pytest.approx(50**0.5)
    none = rows["ah_par_bn reduction_factor=2, labels 5 %"]
    assert (none["minutes in all"], none["macro_f1 / price"]) == (3, pytest.approx(0.4 / 0.3))
    assert "ah_par_bn reduction_factor=2, text 20 %, encoder as it was" in rows


def test_without_a_price_an_hour_each_ledger_has_its_own_and_none_is_made_up(run: Run, study: None) -> None:
    rows = table(run("*", "--format", "csv")[1])
    assert rows["ah_par_bn reduction_factor=6, text 20 %"]["price"] == 5
    assert "price in all" not in rows["ah_par_bn reduction_factor=6, labels 5 %, text 20 %, goes on"]


def test_sources_are_found_where_they_lie_or_nothing_is_said_of_all(run: Run, study: None) -> None:
    alone = run("on*", "--per_hour", "6", "--format", "csv")[1]
    assert table(alone)["ah_par_bn, labels 5 %, text 20 %, goes on"]["minutes in all"] == 20
    Path("text6").rename("moved")
    rows = table(run("on*", "--per_hour", "6", "--format", "csv")[1])
    assert "minutes in all" not in next(iter(rows.values()))


def test_a_grid_is_estimated_from_samples(run: Run) -> None:
    save("a", "mlm", 0.02, {"loading": 60, "training": 12, "validating": 48})
    save("b", "label", 0.02, {"loading": 30, "training": 6, "testing": 24})
    given = ["--text", "0.2", "1", "--labels", "0.1", "--seeds", "3", "--ways", "2", "--per_hour", "6"]
    code, out, _ = run("a", "b", "--grid", *given, "--format", "csv")
    assert code == 0
    rows = table(out)
    # ten times the training of the sample, and fifty times, beside what does not grow
    assert rows["ah_par_bn, text 20 %"] == {"runs": 3, "minutes each": 3.8, "minutes": pytest.approx(11.4), "price": 1.14}
    assert rows["ah_par_bn, text 100 %"]["minutes each"] == pytest.approx(11.8)
    assert rows["ah_par_bn, labels 10 %"]["runs"] == 3 * (1 + 2 * 2)
    assert rows["ah_par_bn, labels 10 %"]["minutes each"] == pytest.approx(1.4)
    assert rows["all"]["minutes"] == pytest.approx(11.4 + 3 * 11.8 + 15 * 1.4)


def test_what_is_wrong_is_said(run: Run, study: None) -> None:
    save("old", "label", 0.1, {}, ledger=False)
    assert "without a ledger, and left out: old" in run("old", "none")[2]
    for words, says in (
        (["old"], "no ledger in run.json"),
        (["none", "--per_hour", "-1"], "expected a number of at least 0"),
        (["none", "--grid"], "--text 0.25 1"),
        (["nowhere"], "matches nothing"),
    ):
        code, _, err = run(*words)
        assert code == 2 and says in err
