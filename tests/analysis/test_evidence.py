"""What is copied of a study says what the study says, in fewer bytes, and is whole or not there."""

import json
from collections.abc import Callable
from pathlib import Path

import compare
import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from tested_runs import system

import evidence

Run = Callable[..., tuple[int, str, str]]


def saved(folder: Path, *, double: bool = False, tested: bool = True) -> None:
    """A run with scores of float32, or of numbers that these do not hold."""
    folder.mkdir(parents=True)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter.safetensors").write_bytes(bytes(1000))
    (folder / "config.yaml").write_text(f"save_path: {folder}\n")
    (folder / "run.json").write_text(
        f'{{"seed": 1, "versions": {{"study": "study"}}, "words": ["method.sources={folder}_*"]}}'
    )
    (folder / "labels.json").write_text('{"target": {"kind": "multilabel", "names": ["a", "b", "c"]}}')
    (folder / "results.csv").write_text("metric,value\ntest_target_macro_f1,0.5\n")
    if tested:
        scores = np.random.default_rng(0).random((90, 3))
        rows = scores if double else scores.astype(np.float32).astype(float)
        ids = [f"{i}_post" for i in range(90)]
        frame = {"post_id": ids, "task": "target", "gold": [*(scores > 0.5).astype(float)], "scores": [*rows]}
        pd.DataFrame(frame).to_parquet(folder / "predictions.parquet")


def test_a_copy_says_the_same_in_fewer_bytes(run: Run, tmp_path: Path) -> None:
    for seed in "01":
        saved(tmp_path / "study" / seed / "single", double=seed == "1")
    saved(tmp_path / "study" / "2" / ".single.unfinished")
    code, out, _ = run(str(tmp_path / "study"), "--to", "evidence/study")
    assert code == 0 and out.startswith("evidence/study: 0.0 MB")
    copied = tmp_path / "evidence" / "study"
    found = sorted(str(path.relative_to(copied)) for path in copied.glob("**/*.*"))
    names = ("config.yaml", "labels.json", "predictions.parquet", "results.csv", "run.json")
    assert found == [f"{seed}/single/{name}" for seed in "01" for name in names]
    for seed, kind in (("0", "float"), ("1", "double")):
        paths = (of / seed / "single" / "predictions.parquet" for of in (tmp_path / "study", copied))
        before, after = map(parquet.read_table, paths)
        assert before.to_pylist() == after.to_pylist()
        assert str(after.schema.field("scores").type) == f"list<element: {kind}>"
    assert (tmp_path / "evidence/study/0/single/config.yaml").read_text() == "save_path: evidence/study/0/single\n"
    said = json.loads((tmp_path / "evidence/study/0/single/run.json").read_text())
    assert said == {"seed": 1, "versions": {"study": "study"}, "words": ["method.sources=evidence/study/0/single_*"]}
    assert (copied / "0/single/results.csv").read_bytes() == (tmp_path / "study/0/single/results.csv").read_bytes()


def test_copies_are_compared_as_the_runs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a metric that is computed anew from predictions, of which the labels are read."""
    system(tmp_path / "study", "a", (0.8, 0.7), posts=60)
    system(tmp_path / "study", "b", (0.6, 0.75), posts=60)
    assert evidence.main([str(tmp_path / "study"), "--to", str(tmp_path / "copy")]) == 0
    said = []
    for place in ("study", "copy"):
        capsys.readouterr()
        both = [str(tmp_path / place / f"{name}_*") for name in "ab"]
        assert compare.main([*both, "--metric", "test_label_macro_f1", "--name", "a", "b"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "macro_f1" in said[0]


def test_a_study_is_copied_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    saved(tmp_path / "study" / "0")
    saved(tmp_path / "study" / "1", tested=False)
    code, _, err = run("study", "--to", "evidence")
    assert code == 2 and "study/1: expected" in err and "action=test" in err
    assert not (tmp_path / "evidence").exists()
    for study, to in ((".", "../other"), ("study", "study"), ("study", "study/evidence")):
        code, _, err = run(study, "--to", to)
        assert code == 2 and "expected a study's own folder" in err
    saved(tmp_path / "broken" / "0")
    (tmp_path / "broken" / "0" / "predictions.parquet").write_bytes(b"PAR1")
    code, _, err = run("broken", "--to", "evidence")
    assert code == 2 and "cannot be read" in err and not (tmp_path / "evidence").exists()
    code, _, err = run("nothing", "--to", "evidence")
    assert code == 2 and "no finished run below it" in err
