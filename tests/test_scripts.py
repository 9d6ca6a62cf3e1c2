"""Scripts that end in a verdict or a table, on invented posts: what is planted is found, what is not is not."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

SMALL = "encoder=tiny corpus@tasks.label.corpus=sample tasks.label.corpus.size=600 tasks.label.corpus.label_noise=0"
CASES = [("snorfs", "hateful"), ("soup", "non-hateful"), ("dronks", "hateful"), ("mud", "non-hateful")]
LEARNS = "optimization.epochs=6 method.learning_rate=5e-3 optimization.head_lr=2e-2"


def script(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script of scripts/ with these parameters."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([str(ROOT / "scripts" / name)], env=environment, capture_output=True, text=True, check=False)


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if re.search(rf"[|│] {row} ", line))
    return [cell.strip() for cell in re.split(r"[|│]", line)[2:-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ("optimization.epochs=1 method.learning_rate=1e-7 optimization.head_lr=1e-7", True),
        (f"{LEARNS} method.dropout=0.06", False),
    ],
)
def test_a_planted_difference_of_models_is_found_and_none_is_not(other: str, differs: bool, tmp_path: Path) -> None:
    out = tmp_path / "models"
    given = {"MODELS": f"good: {LEARNS}; other: {other}", "TASK": "label", "SEEDS": "0 1 2", "OUT": str(out), "EXTRA": SMALL}
    ended = script("model_comparison.sh", **given)
    table = (out / "table.org").read_text()
    means = [[float(cell.split(" ± ")[0]) for cell in cells(table, f"test_label_{of}")] for of in ("accuracy", "macro_f1")]
    assert all((good - bad > 0.1) == differs for good, bad in means)
    assert sorted(path.name for path in out.glob("*/*")) == sorted("012012")
    if not (ROOT / "analysis/compare.py").exists():
        pytest.skip("analysis/compare.py is not here")
    assert ended.returncode == 0, ended.stderr
    told = re.search(r"higher mean test_label_macro_f1: (\w+) \(.*best run by val_label_macro_f1: (\S+)", ended.stdout)
    assert told and Path(told[2]).parent == out / told[1]
    assert told[1] == "good" or not differs


@pytest.mark.slow
def test_corpora_are_tested_on_one_another(tmp_path: Path) -> None:
    """A run of the sample, tested on its own posts and on a HateCheck of four cases, in which it is right in some."""
    out, cases = tmp_path / "transfer", tmp_path / "hatecheck/test_suite_cases.csv"
    cases.parent.mkdir()
    lines = [f"{i},soup_{i % 2},{i},I can't stand {what}.,{gold},," for i, (what, gold) in enumerate(CASES)]
    cases.write_text("\n".join([",functionality,case_id,test_case,label_gold,target_ident,direction", *lines]) + "\n")
    labels = {"LABELS_sample": "{not_hateful:[normal],hateful:[hatespeech,offensive]}"}
    small = {"EXTRA": f"{SMALL} {LEARNS} data.dir={tmp_path}", "OUT": str(out), "SEEDS": "0", "TRAIN": "sample"}
    ended = script("transfer.sh", TEST="sample hatecheck", **small, **labels)
    assert ended.returncode == 0, ended.stderr
    table = (out / "table.org").read_text()
    assert float(cells(table, "test_hatecheck_accuracy")[0]) in (0, 0.25, 0.5, 0.75, 1)
    assert float(cells(table, "test_sample_accuracy")[0]) > 0.6
    wrong = script("transfer.sh", TEST="sample imdb", **small, **labels)
    assert wrong.returncode == 2 and "LABELS_imdb" in wrong.stderr


@pytest.mark.slow
def test_a_learning_curve_has_a_column_a_share(tmp_path: Path) -> None:
    given = {"FRACTIONS": "0.2 1.0", "SEEDS": "0 1", "OUT": str(tmp_path), "EXTRA": f"{SMALL} optimization.epochs=1"}
    ended = script("learning_curve.sh", **given)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "table.csv").read_text().startswith("metric,0.2,1.0,0.2 sd,1.0 sd\n")
    assert len(cells((tmp_path / "table.org").read_text(), "test_label_macro_f1")) == 2
