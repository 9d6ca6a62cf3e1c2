"""The study of domain pre-training: which run is which, and what stands in its row."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]


def save(
    name: str, task: str, share: float, rows: Mapping[str, float], *, method: str = "ah_lora16", seconds: float = 1.0,
    source: str | None = None, rate: float = 1e-3, seed: int = 0, steps: int | None = 7,
) -> None:  # fmt: skip
    folder = Path(name)
    folder.mkdir()
    corpus = {"fraction": share}
    settings = {"column": None if task == "masked" else "label", "corpus": corpus}
    (folder / "config.yaml").write_text(yaml.safe_dump({"tasks": {task: settings}, "optimization": {"encoder_lr": rate}}))
    record = {"method": method, "seed": seed, "seconds": seconds, "sources": {source: "digest"} if source else {}}
    if steps is not None:  # a run of long ago
        record |= {"steps": steps, "trained_parameters": 500 * steps}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [f"test_{task}_{metric},{value}" for metric, value in rows.items()]
    (folder / "results.csv").write_text("\n".join(["metric,value", *lines]) + "\n")


@pytest.fixture
def study(run: Run) -> None:
    """Two seeds of one kind and amount; of the second nothing was stacked."""
    for seed in (0, 1):
        save(f"before{seed}", "masked", 0.5, {"loss": 6.0}, rate=0.0, seed=seed)
        save(f"text{seed}", "masked", 0.5, {"loss": 4.0 + seed}, seconds=10, seed=seed, steps=20 + seed)
        save(f"none{seed}", "label", 0.1, {"macro_f1": 0.5}, seconds=2, seed=seed, steps=[8, None][seed])
        save(f"on{seed}", "label", 0.1, {"macro_f1": 0.6 + seed / 10}, method="ah_load", source=f"text{seed}", seed=seed)
    save("stacked0", "label", 0.1, {"macro_f1": 0.55}, method="ah_stack", source="text0", seconds=3)
    save("other", "label", 1.0, {"macro_f1": 0.9})  # of an amount that nothing goes on with


def test_every_value_is_in_its_column(run: Run, study: None) -> None:
    code, out, err = run("*/results.csv", "--format", "csv")
    assert code == 0 and "stacked: the mean of 1 seeds, others are of 2" in err
    rows = {row.pop("trained"): row for row in csv.DictReader(out.splitlines())}
    means = {
        name: {column: float(value) for column, value in row.items() if value and not column.endswith(" sd")}
        for name, row in rows.items()
    }
    labelled = "ah_lora16, labelled 0.1"
    expected = {
        "ah_lora16, text 0.5": {
            "masked loss before": 6,
            "masked loss after": 4.5,
            "thousands": 10.25,
            "steps": 20.5,
            "s": 10,
        },
        f"{labelled}, without": {"macro_f1": 0.5, "thousands": 4, "steps": 8, "s": 2},
        f"{labelled}, text 0.5, goes on": {"macro_f1": 0.65, "thousands": 3.5, "steps": 7, "s": 1},
        f"{labelled}, text 0.5, stacked": {"macro_f1": 0.55, "thousands": 3.5, "steps": 7, "s": 3},
    }
    assert list(means) == list(expected)
    for name, row in expected.items():
        assert means[name] == pytest.approx(row)
    goes_on = rows[f"{labelled}, text 0.5, goes on"]
    assert float(goes_on["macro_f1 sd"]) == pytest.approx(0.1 / 2**0.5)  # half their difference, times the root of 2
    assert rows[f"{labelled}, text 0.5, stacked"]["macro_f1 sd"] == ""


def test_rows_are_sorted_by_amount(run: Run, study: None) -> None:
    save("text_more", "masked", 1.0, {"loss": 3.0})
    save("on_less", "label", 0.1, {"macro_f1": 0.6}, method="ah_load", source="text_more")
    save("on_more", "label", 1.0, {"macro_f1": 0.6}, method="ah_load", source="text0")
    code, out, err = run("*/results.csv", "--format", "csv")
    rows = [row[0] for row in csv.reader(out.splitlines())][1:]
    assert code == 0 and "no run of 1 of the text before" in err
    less = ["without", "text 0.5, goes on", "text 1, goes on", "text 0.5, stacked"]
    more = ["without", "text 0.5, goes on"]
    trained = ["text 0.5", "text 1", *(f"labelled 0.1, {way}" for way in less), *(f"labelled 1, {way}" for way in more)]
    assert rows == [f"ah_lora16, {what}" for what in trained]


def test_what_is_refused(run: Run, study: None) -> None:
    for arguments, message in (
        (["none0"], "no run among these goes on from masked pre-training"),
        (["on0"], "text0, which is not among the runs; name it too"),
        (["*/results.csv", "--metric", "accuracy"], "has no row test_label_accuracy; it has test_label_macro_f1"),
        (["nonesuch*"], "matches nothing"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "") and message in err
    save("odd", "label", 0.1, {"macro_f1": 0.6}, method="ah_fusion", source="text0")
    assert "goes on with method=ah_fusion; expected ah_load or ah_stack" in run("*/results.csv")[2]
