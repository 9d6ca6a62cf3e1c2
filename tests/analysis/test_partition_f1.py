"""Pooling the runs of a partition: the arithmetic against scikit-learn, and everything that is refused."""

import ast
import csv
import doctest
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from sklearn.metrics import f1_score

ANALYSIS = Path(__file__).parents[2] / "analysis"
COMMUNITIES = [
    "african",
    "arab",
    "asian",
    "caucasian",
    "hispanic",
    "homosexual",
    "islam",
    "jewish",
    "other",
    "refugee",
    "women",
]
Run = Callable[..., tuple[int, str, str]]


def f1(tp: int, fp: int, fn: int) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def save(
    folder: Path,
    counts: Mapping[str, Sequence[int]],
    part: str | None = None,
    *,
    data: Mapping[str, str] | None = None,
    stage: str = "test",
    without: Sequence[str] = (),
) -> Path:
    """A saved run of the task `target`, as far as analysis reads it; `without` names files that are not written."""
    folder.mkdir(parents=True)
    rows = {f"f1_{label}": f1(*triple) for label, triple in counts.items()}
    rows |= {"macro_f1": sum(rows.values()) / len(rows), "micro_f1": f1(*map(sum, zip(*counts.values(), strict=True)))}
    for label, triple in counts.items():
        rows |= {f"{kind}_{label}": float(value) for kind, value in zip(("tp", "fp", "fn"), triple, strict=True)}
    pattern = "null" if part is None else f"'{part}'"
    files = {
        "results.csv": "\n".join(["metric,value", *(f"{stage}_target_{name},{value!r}" for name, value in rows.items())]),
        "config.yaml": f"tasks:\n  target:\n    _target_: hatemtl.tasks.Task\n    mask_pattern: {pattern}\nseed: 0\n",
        "labels.json": json.dumps({"target": {"kind": "multilabel", "names": list(counts)}}),
        "run.json": json.dumps({"library": "adapterhub", "data": data or {"target": "0123456789abcdef"}}),
    }
    for name, text in files.items():
        if name not in without:
            (folder / name).write_text(text + "\n", encoding="utf-8")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def quarters(tmp_path: Path) -> list[Path]:
    """Four parts of the eleven communities; label k has tp=k, fp=2, fn=1."""
    return [
        save(
            tmp_path / f"part_{i}",
            {name: (COMMUNITIES.index(name), 2, 1) for name in COMMUNITIES[i - 1 :: 4]},
            f"{i} 4",
        )
        for i in range(1, 5)
    ]


@pytest.fixture
def halves(tmp_path: Path) -> list[Path]:
    """Two parts of three labels: F1 of a, b, c are 1/2, 2/3 and 0."""
    return [
        save(tmp_path / "part_1", {"a": (1, 1, 1), "c": (0, 3, 0)}, "1 2"),
        save(tmp_path / "part_2", {"b": (2, 0, 2)}, "2 2"),
    ]


def read(text: str) -> dict[str, float]:
    header, *rows = csv.reader(text.splitlines())
    assert header == ["metric", "value"]
    return {metric: float(value) for metric, value in rows}


def test_the_examples_in_the_docstrings(script: ModuleType) -> None:
    for module in (script, sys.modules["results"]):
        done = doctest.testmod(module)
        assert done.attempted
        assert not done.failed


def test_hand_numbers(run: Run, halves: list[Path]) -> None:
    code, out, err = run("part_*/results.csv", "--format", "csv")
    assert (code, err) == (0, "")
    assert read(out) == pytest.approx(
        {
            "test_target_f1_a": 1 / 2,
            "test_target_f1_b": 2 / 3,
            "test_target_f1_c": 0,
            "test_target_macro_f1": 7 / 18,
            "test_target_micro_f1": 6 / 13,  # tp 3, fp 4, fn 3
        },
        abs=1e-15,
    )


def test_the_row_names_and_their_order_are_the_published_ones(run: Run, quarters: list[Path]) -> None:
    _, out, _ = run("part_*", "--format", "csv")
    expected = [f"test_target_f1_{name}" for name in COMMUNITIES] + ["test_target_macro_f1", "test_target_micro_f1"]
    assert list(read(out)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn_on_the_undivided_task(run: Run, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    labels, parts, posts = draw.randint(2, 12), draw.randint(1, 2), draw.randint(1, 60)
    names = [f"label{i:02}" for i in range(labels)]
    # the last label is never there and never predicted: an F1 of 0, as scikit-learn's zero_division=0
    rates = [*(draw.random() for _ in names[1:]), 0.0]
    truth, guess = ([[int(draw.random() < rate) for rate in rates] for _ in range(posts)] for _ in range(2))
    for i in range(1, parts + 1):
        counts = {}
        for k in range(i - 1, labels, parts):
            pairs = [(t[k], g[k]) for t, g in zip(truth, guess, strict=True)]
            counts[names[k]] = (pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0)))
        save(tmp_path / f"part_{i}", counts, f"{i} {parts}")
    code, out, _ = run("part_*", "--format", "csv")
    rows = read(out)
    assert code == 0
    each = f1_score(truth, guess, average=None, zero_division=0)
    assert [rows[f"test_target_f1_{name}"] for name in names] == pytest.approx(list(each), abs=1e-12)
    for kind in ("macro", "micro"):
        assert rows[f"test_target_{kind}_f1"] == pytest.approx(
            f1_score(truth, guess, average=kind, zero_division=0), abs=1e-12
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["part_*"],
        ["part_*/results.csv"],
        ["part_1", "part_2"],
        ["part_1/results.csv", "part_*"],
        ["./part_2/", "part_1"],
    ],
)
def test_globs_folders_and_files_mean_the_same_runs(run: Run, halves: list[Path], arguments: list[str]) -> None:
    assert run(*arguments, "--format", "csv") == run("part_*", "--format", "csv")


def test_the_validation_stage(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "whole", {"a": (1, 1, 1)}, stage="val")
    code, out, _ = run("whole", "--stage", "val", "--format", "csv")
    assert code == 0
    assert read(out) == {f"val_target_{name}": 0.5 for name in ("f1_a", "macro_f1", "micro_f1")}


def test_other_kinds_of_task_are_left_out(run: Run, halves: list[Path]) -> None:
    plain = run("part_*", "--format", "csv")
    for folder in halves:
        with (folder / "results.csv").open("a") as file:
            file.write(
                "test_label_f1_normal,0.5\ntest_label_macro_f1,0.5\ntest_label_accuracy,0.5\ntest_label_tp_normal,3\n"
            )
            file.write("test_rationale_f1,0.5\ntest_rationale_tp_rationale,3\n")
    assert run("part_*", "--format", "csv") == plain


def test_rows_over_folds_of_the_test_posts_are_of_no_label(run: Run, halves: list[Path]) -> None:
    plain = run("part_*", "--format", "csv")
    for folder, label in zip(halves, "ab", strict=True):
        with (folder / "results.csv").open("a") as file:
            file.write(f"test_target_f1_fold_mean_{label},0.5\ntest_target_f1_fold_sd_{label},0.1\n")
            file.write("test_target_micro_f1_fold_mean,0.5\ntest_target_micro_f1_fold_sd,0.1\n")
    assert run("part_*", "--format", "csv") == plain


def test_labels_with_underscores(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part", {"old_people": (1, 1, 1), "f1_drivers": (1, 0, 0)})
    _, out, _ = run("part", "--format", "csv")
    assert read(out)["test_target_f1_old_people"] == 0.5
    assert read(out)["test_target_f1_f1_drivers"] == 1


def test_overlapping_labels_are_named_with_their_runs(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1), "b": (1, 1, 1)}, "1 2")
    save(tmp_path / "part_2", {"b": (1, 1, 1), "c": (1, 1, 1)}, "2 2")
    code, out, err = run("part_*")
    assert (code, out) == (2, "")
    assert "overlapping labels of 'target': b in part_1/results.csv and part_2/results.csv" in err


def test_a_missing_part_is_named_with_what_to_type(run: Run, quarters: list[Path]) -> None:
    (quarters[2] / "results.csv").rename(quarters[2] / "results.old")
    code, out, err = run("part_*/results.csv")
    assert (code, out) == (2, "")
    assert 'part 3 of 4 is missing: train and test it with tasks.target.mask_pattern="3 4"' in err
    (quarters[0] / "results.csv").unlink()
    code, _, err = run("part_*/results.csv")
    assert code == 2
    assert "part 1 of 4 is missing" in err
    assert "part 3 of 4 is missing" in err


def test_parts_of_different_cuts_are_refused(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 2")
    save(tmp_path / "part_2", {"b": (1, 1, 1)}, "2 3")
    code, _, err = run("part_*")
    assert code == 2
    assert "part_1/results.csv is part 1 of 2" in err
    assert "part_2/results.csv is part 2 of 3" in err


def test_a_whole_run_among_parts_is_refused(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 2")
    save(tmp_path / "whole", {"b": (1, 1, 1)})
    code, _, err = run("part_1", "whole")
    assert code == 2
    assert "cut in different ways" in err


def test_runs_on_different_posts_are_refused(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 2", data={"target": "aa", "label": "cc"})
    save(tmp_path / "part_2", {"b": (1, 1, 1)}, "2 2", data={"target": "bb"})
    code, _, err = run("part_*")
    assert code == 2
    assert "part_1/results.csv and part_2/results.csv saw different posts: the fingerprints of target" in err


def test_other_corpora_of_a_run_do_not_matter(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 2", data={"target": "aa", "label": "cc"})
    save(tmp_path / "part_2", {"b": (1, 1, 1)}, "2 2", data={"target": "aa"})
    assert run("part_*")[0] == 0


def test_fingerprints_by_corpus_are_compared_all(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 2", data={"hatexplain": "aa", "ethos": "cc"})
    save(tmp_path / "part_2", {"b": (1, 1, 1)}, "2 2", data={"hatexplain": "aa", "ethos": "dd"})
    code, _, err = run("part_*")
    assert code == 2
    assert "the fingerprints of ethos" in err


@pytest.mark.parametrize(("library", "method"), [("adapterhub", "ah_load"), ("peft", "peft_load"), ("full", "full")])
def test_untested_runs_are_named_with_the_line_that_tests_them(run: Run, tmp_path: Path, library: str, method: str) -> None:
    for i in (1, 2):
        folder = save(tmp_path / f"part_{i}", {"ab"[i - 1]: (1, 1, 1)}, f"{i} 2", stage="val")
        edit(folder / "run.json", "adapterhub", library)
    code, out, err = run("part_*")
    assert (code, out) == (2, "")
    for i in (1, 2):
        assert f"part_{i}/results.csv has no test rows; test it: uv run main.py tasks=[target] action=test" in err
        assert f'tasks.target.mask_pattern="{i} 2" method={method} heads.load=true load_path=part_{i}' in err


def test_a_glob_that_matches_nothing_shows_what_there_is(run: Run, halves: list[Path]) -> None:
    code, _, err = run("parts_*/results.csv")
    assert code == 2
    assert "'parts_*/results.csv' matches nothing" in err
    assert "part_1, part_2" in err


def test_a_folder_without_results_is_named(run: Run, halves: list[Path]) -> None:
    (halves[1] / "results.csv").unlink()
    code, _, err = run("part_*")
    assert code == 2
    assert "part_2: no results.csv" in err


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name,value\n", ":1: 'name,value'"),
        ("", ":1: ''"),
        ("metric,value\ntest_target_f1_a,0.5,0.6\n", ":2: 'test_target_f1_a,0.5,0.6'"),
        ("metric,value\ntest_target_f1_a\n", ":2: 'test_target_f1_a'"),
        ("metric,value\n\ntest_target_f1_a,high\n", ":3: 'test_target_f1_a,high'; expected a number"),
        ("metric,value\na,1\na,1\n", ":3: 'a,1'; expected one row for each metric"),
        ('metric,value\n"a,1\n', ":2: unexpected end of data"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(run: Run, tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    code, _, err = run("results.csv")
    assert code == 2
    assert f"results.csv{where}" in err


def test_a_file_that_is_no_text_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_bytes(b"PK\xff\xfe\x00")
    code, _, err = run("results.csv")
    assert code == 2
    assert "expected a CSV file in UTF-8" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("test_target_fn_a,1.0\n", "", "part_1/results.csv has no row test_target_fn_a"),
        ("test_target_tp_a,1.0", "test_target_tp_a,0.5", "test_target_tp_a is 0.5; expected a number of posts"),
        ("test_target_tp_a,1.0", "test_target_tp_a,-1", "test_target_tp_a is -1.0"),
        ("test_target_tp_a,1.0", "test_target_tp_a,nan", "test_target_tp_a is nan"),
        ("test_target_f1_a,0.5", "test_target_f1_a,0.6", "test_target_f1_a is 0.6, but its counts give 0.5"),
        ("_a,", "_d,", "a, d: in labels.json or among the test rows"),
        ("_micro_f1", "_minimal_f1", "no row test_target_tp_b"),
    ],
)
def test_rows_that_cannot_be_pooled_exactly_are_refused(
    run: Run, halves: list[Path], old: str, new: str, message: str
) -> None:
    edit(halves[0] / "results.csv", old, new)
    if "minimal" in new:
        for kind in ("tp", "fp", "fn"):
            edit(halves[1] / "results.csv", f"_{kind}_b", f"_{kind}s_b")
    code, out, err = run("part_*")
    assert (code, out) == (2, "")
    assert message in err


def test_runs_without_a_multilabel_task_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("metric,value\ntest_label_accuracy,0.5\n")
    code, _, err = run("results.csv")
    assert code == 2
    assert "no multilabel task" in err


def test_without_a_config_it_pools_and_says_what_it_did_not_check(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "part_1", {"a": (1, 1, 1)}, "1 4", without=["config.yaml"])
    save(tmp_path / "part_2", {"b": (1, 1, 1)}, "2 4", without=["config.yaml", "labels.json", "run.json"])
    code, out, err = run("part_*", "--format", "csv")
    assert code == 0
    assert read(out)["test_target_micro_f1"] == 0.5
    assert "note: completeness was not checked" in err
    assert "part_1/results.csv, part_2/results.csv" in err
    assert "no data fingerprints in run.json beside part_2/results.csv" in err


@pytest.mark.parametrize(("name", "text"), [("config.yaml", "a: [1"), ("labels.json", "{"), ("run.json", "[]")])
def test_a_damaged_neighbour_is_named(run: Run, halves: list[Path], name: str, text: str) -> None:
    (halves[0] / name).write_text(text)
    code, _, err = run("part_*")
    assert code == 2
    assert f"part_1/{name}" in err


def test_a_damaged_mask_pattern_is_named(run: Run, halves: list[Path]) -> None:
    edit(halves[0] / "config.yaml", "1 2", "first half")
    code, _, err = run("part_*")
    assert code == 2
    assert "part_1/config.yaml: tasks.target.mask_pattern='first half'" in err


def test_output_is_whole_and_reads_back(run: Run, halves: list[Path], tmp_path: Path) -> None:
    code, out, _ = run("part_*", "--output", "tables/parts.csv")
    assert (code, out) == (0, "")
    assert read((tmp_path / "tables" / "parts.csv").read_text()) == read(run("part_*", "--format", "csv")[1])
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["parts.csv"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("part_1/results.csv", "is one of the results read"),
        ("parts.txt", "expected one of .org, .md, .tex, .csv"),
        ("part_1", "expected one of"),
    ],
)
def test_outputs_that_are_refused(run: Run, halves: list[Path], output: str, message: str) -> None:
    before = (halves[0] / "results.csv").read_bytes()
    code, _, err = run("part_*", "--output", output)
    assert code == 2
    assert message in err
    assert (halves[0] / "results.csv").read_bytes() == before


def test_an_output_that_cannot_be_written_leaves_nothing(run: Run, halves: list[Path], tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    code, _, err = run("part_*", "--output", "folder.csv")
    assert code == 2
    assert "folder.csv" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_formats(run: Run, halves: list[Path]) -> None:
    org, markdown, latex = (run("part_*", "--format", name)[1] for name in ("org", "markdown", "latex"))
    assert "| test_target_macro_f1 | 0.389 |" in org
    assert "|----------------------+-------|" in org
    assert "| test_target_micro_f1 | 0.462 |" in markdown
    assert "|----------------------|------:|" in markdown
    assert r"test\_target\_micro\_f1 & 0.462 \\" in latex
    assert run("part_*")[1] == org  # not a terminal


def test_the_command_line_works_as_published_and_prints_no_stack(halves: list[Path], tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ANALYSIS / "partition_f1.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert "test_target_micro_f1 | 0.462" in call("part_*/results.csv").stdout
    failed = call("nothing_*")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr
    shown = call("--help")
    assert shown.returncode == 0
    assert 'partition_f1.py "adapters/small' in shown.stdout


@pytest.mark.parametrize("name", ["partition_f1", "table"])
def test_no_script_needs_torch(name: str, tmp_path: Path) -> None:
    for path in ANALYSIS.glob("*.py"):  # copied away from the repository, they still run
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = f"import sys, {name}; print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(shown.stdout)
    assert not {module.partition(".")[0] for module in loaded} & {"torch", "transformers", "lightning", "pandas"}
    ours = {"hatemtl", "hatemtl.errors", "hatemtl.harmless", "hatemtl.machine", "hatemtl.machine.json_object"}
    assert {module for module in loaded if module.startswith("hatemtl")} == ours
