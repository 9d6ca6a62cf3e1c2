"""One row a way to put parts together: what it kept, over seeds, by hand numbers."""

import json
from pathlib import Path

import pytest
import yaml
from retention_table import COLUMNS, interval, main, read_study, row

# true positives, false positives, false negatives: F1 of .8 and .5 for the parts, .4 and .5 for the merge
COUNTS = {"a": (4, 1, 1), "b": (1, 1, 1)}
MERGED = {"a": (2, 3, 3), "b": (1, 1, 1)}


def save(folder: Path, counts: dict[str, tuple[int, int, int]], *, pattern: str | None, steps: int) -> None:
    folder.mkdir(parents=True)
    rows = {}
    for label, triple in counts.items():
        rows |= {f"test_target_{kind}_{label}": n for kind, n in zip(("tp", "fp", "fn"), triple, strict=True)}
        rows[f"test_target_f1_{label}"] = 2 * triple[0] / (2 * triple[0] + triple[1] + triple[2])
    rows["test_target_micro_f1"] = 0.5
    (folder / "results.csv").write_text("metric,value\n" + "".join(f"{k},{float(v)}\n" for k, v in rows.items()))
    (folder / "config.yaml").write_text(yaml.safe_dump({"tasks": {"target": {"mask_pattern": pattern}}}))
    (folder / "labels.json").write_text(json.dumps({"target": {"kind": "multilabel", "names": list(counts)}}))
    record = {
        "trained_parameters": 2000,
        "steps": steps,
        "seconds": 1.0,
        "preparing_seconds": 2.0,
        "data": {"target": "x"},
        "sources": {},
    }
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for seed, merged in (("0", MERGED), ("1", COUNTS)):
        for i, label in enumerate("ab", 1):
            save(tmp_path / seed / f"target_part_{i}", {label: COUNTS[label]}, pattern=f"{i} 2", steps=10)
        save(tmp_path / seed / "target_single", COUNTS, pattern=None, steps=20)
        save(tmp_path / seed / "merge", merged, pattern=None, steps=0)
    return tmp_path


def test_the_rows_are_those_of_hand(study: Path) -> None:
    found = read_study(study, "target_part_*", "target_single", ["*"], "test")
    assert found.keys() == {"parts", "target_single", "merge"}
    assert found["parts"][0] == pytest.approx([65.0, 100.0, None, 4.0, 20, 6.0])
    assert found["target_single"][0] == pytest.approx([65.0, 100.0, 100.0, 2.0, 20, 3.0])
    assert found["merge"][0] == pytest.approx([45.0, 100 * 45 / 65, 100 * 45 / 65, 2.0, 0, 3.0])
    assert found["merge"][1][:2] == pytest.approx([65.0, 100.0])
    assert row(found["merge"])[:1] == [2]
    assert row(found["merge"])[1] == pytest.approx(55.0)
    assert len(row(found["merge"])) == len(COLUMNS)
    assert read_study(study, "target_part_*", "target_single", ["nothing"], "test").keys() == {"parts", "target_single"}


def test_the_interval_is_students() -> None:
    assert interval([1.0]) == (None, None)
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)


def test_table_and_plot_are_written(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study), "--format", "csv", "--plot", str(study / "kept.png")]) == 0
    assert capsys.readouterr().out.startswith("run,seeds,macro-F1 %,retention %,from,to")
    assert (study / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_wide_has_a_row_a_merge_and_a_column_a_training(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study), "--wide"]) == 2
    assert "no run is named MERGE-TRAINING" in capsys.readouterr().err
    for seed, merged in (("0", MERGED), ("1", COUNTS)):
        save(study / seed / "mean-joint", COUNTS, pattern=None, steps=7)
        save(study / seed / "mean-none", merged, pattern=None, steps=0)
        save(study / seed / "of-two-none", MERGED, pattern=None, steps=0)
    assert main([str(study), "--wide", "--format", "csv", "--digits", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "retention %,none,joint,none sd,joint sd"
    first, second = 100 * 45 / 65, 100.0
    spread = f"{12.706 * (second - first) / 2:.2f}"
    assert lines[1] == f"mean,{(first + second) / 2:.2f},100.00,{spread},0.00"
    assert lines[2] == f"of-two,{first:.2f},,0.00,"


def test_what_is_no_study_is_told(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(study / "0")]) == 2
    assert "no folder in it holds runs named target_part_*" in capsys.readouterr().err
    for i, label in enumerate("ab", 1):
        save(study / "2" / f"target_part_{i}", {label: (0, 1, 1)}, pattern=f"{i} 2", steps=1)
    assert main([str(study)]) == 2
    assert "macro-F1 is 0" in capsys.readouterr().err
