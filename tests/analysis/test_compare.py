"""Comparisons as a user asks for them: the table, the verdicts, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tested_runs import classes, save, system

Run = Callable[..., tuple[int, str, str]]
MACRO = ("--metric", "test_label_macro_f1", "--resamples", "500")
ACCURACY = ("--metric", "test_label_accuracy", "--resamples", "500")


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The script, called beside three seeds each of `full`, `lora`, which is better, and `head`, which is as good."""
    system(tmp_path, "full", [0.5, 0.5, 0.5])
    system(tmp_path, "lora", [0.9, 0.9, 0.9])
    system(tmp_path, "head", [0.5, 0.5, 0.5])
    return run


def rows(out: str) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in json.loads(out)}


def test_a_difference_is_found_and_told_in_words(run: Run) -> None:
    code, out, err = run("full_?", "lora_?", "head_?", *MACRO)
    assert (code, err) == (0, "")
    head, _, full, lora, third, _, first, second = out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "system", "mean", "95 % interval", "difference", "its 95 % interval", "p", "smallest p", "effect", "detectable",
        "runs needed", "verdict",
    ]  # fmt: skip
    assert full.startswith("| full ")
    assert lora.split("|")[-2].strip() == "better"
    assert third.split("|")[-2].strip() == "no difference shown"
    assert first.startswith("- lora is better than full by .")
    assert "after Holm over 2, hierarchical bootstrap of 3 seeds × 200 posts, paired by seed)." in first
    assert second.startswith("- head against full: no difference was shown")
    assert "would be found with a power of 80 %; for the one seen, " in second


def test_metrics_that_cannot_be_recomputed_are_over_seeds_and_less_may_be_better(run: Run) -> None:
    _, out, _ = run("full_?", "lora_?", "--metric", "test_label_ece", "--format", "json")
    lora = rows(out)["lora"]
    assert lora["verdict"] == "better" and lora["difference"] < 0 and lora["test"] == "Welch's t of 3 seeds"
    assert "test_label_ece is no sum over posts, so seeds alone tell." in lora["sentence"]


def test_three_seeds_cannot_decide_by_ranks(run: Run) -> None:
    for test, floor in (("wilcoxon", 0.25), ("mann_whitney", 0.1), ("aso", 0.1)):
        _, out, _ = run("full_?", "lora_?", *ACCURACY, "--test", test, "--format", "json")
        lora = rows(out)["lora"]
        assert lora["smallest_p"] == lora["p"] == pytest.approx(floor)
        assert lora["verdict"] == "cannot be decided"
        assert "lora against full cannot be decided with 3 seeds" in lora["sentence"]
        assert lora["detectable"] is None and "would be found" not in lora["sentence"]
        assert f"To find the one seen with a power of 80 % takes {lora['runs_needed']:.0f} runs a side." in lora["sentence"]
        assert " none |" in run("full_?", "lora_?", *ACCURACY, "--test", test)[1]


def test_holm_can_put_a_floor_out_of_reach(run: Run, tmp_path: Path) -> None:
    """Mann and Whitney's floor at four a side, 2/70, is below α once, but not for the smallest of two."""
    for name, accuracy in (("full", 0.5), ("lora", 0.9), ("head", 0.5)):
        system(tmp_path, name, [accuracy], start=3)
    ask = (*ACCURACY, "--test", "mann_whitney", "--format", "json")
    assert rows(run("full_?", "lora_?", *ask)[1])["lora"]["verdict"] == "better"
    assert rows(run("full_?", "lora_?", "head_?", *ask)[1])["lora"]["verdict"] == "cannot be decided"


def test_one_run_each_is_over_posts_and_says_nothing_of_seeds(run: Run) -> None:
    _, out, _ = run("full_0", "lora_0", *ACCURACY, "--format", "json")
    lora = rows(out)["lora"]
    assert lora["test"] == "paired bootstrap of 200 posts, one run each: other seeds may differ"
    assert lora["runs_needed"] is None
    _, out, _ = run("full_0", "lora_0", *ACCURACY, "--test", "mcnemar", "--format", "json")
    assert "posts right in lora alone" in rows(out)["lora"]["sentence"]


def test_letters_are_of_all_pairs(run: Run, tmp_path: Path) -> None:
    for name, accuracy in (("full", 0.5), ("lora", 0.9), ("head", 0.5)):
        system(tmp_path, name, [accuracy - 0.02, accuracy, accuracy + 0.01], start=3)
    _, out, _ = run("full_?", "lora_?", "head_?", *ACCURACY, "--letters", "--format", "json")
    assert {name: row["letters"] for name, row in rows(out).items()} == {"full": "b", "lora": "a", "head": "b"}
    assert "after Holm over 3" in rows(out)["lora"]["sentence"]


def test_best_of_n_is_named(run: Run) -> None:
    _, out, err = run("full_?", "lora_1", *ACCURACY)
    assert "note: lora_1: the one given, ." in err and "is the best of 3; mean of 3: ." in err
    assert "is the best of 3" in out
    assert run("full_?", "lora_?", *ACCURACY)[2] == ""


def test_groups_of_posts_are_drawn_whole(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "posts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "author"], *([f"p{i}", i // 10] for i in range(200))])
    ask = ("full_0", "lora_0", *ACCURACY, "--group", "author")
    code, out, _ = run(*ask, "--posts", "posts.csv", "--id", "id", "--format", "json")
    assert code == 0
    assert rows(out)["lora"]["test"].startswith("cluster bootstrap of 20 groups of author")
    assert rows(out)["lora"]["df"] == 19
    assert "--posts FILE.csv" in run(*ask)[2]
    assert "has no column 'case_id'; type --id with one of id, author" in run(*ask, "--posts", "posts.csv")[2]
    wrong = run(*ask[:-1], "writer", "--posts", "posts.csv", "--id", "id")
    assert wrong[0] == 2 and "has no column 'writer'; type --group with one of id, author" in wrong[2]


def multilabel(folder: Path, seed: int, labels: list[int], part: str | None, noise: float) -> None:
    gold = np.random.default_rng(0).random((60, 4)) < 0.4
    scores = np.where(np.random.default_rng([seed, int(1000 * noise)]).random((60, 4)) < noise, ~gold, gold) * 0.8 + 0.1
    save(folder, gold[:, labels], scores[:, labels], seed=seed, kind="multilabel", names=["wxyz"[i] for i in labels],
         task="target", config={"mask_pattern": part})  # fmt: skip


def test_parts_of_a_seed_are_joined_into_one_run(run: Run, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        multilabel(tmp_path / f"whole_{seed}", seed, [0, 1, 2, 3], None, 0.3)
        multilabel(tmp_path / f"same_{seed}", seed, [0, 1, 2, 3], None, 0.1)
        multilabel(tmp_path / f"part_1_{seed}", seed, [0, 2], "1 2", 0.1)
        multilabel(tmp_path / f"part_2_{seed}", seed, [1, 3], "2 2", 0.1)
    ask = ("--metric", "test_target_macro_f1", "test_target_micro_f1", "--resamples", "300", "--format", "json")
    parts = rows(run("whole_?", "part_?_?", *ask, "--name", "whole", "parts")[1])["parts, test_target_macro_f1"]
    same = rows(run("whole_?", "same_?", *ask, "--name", "whole", "parts")[1])["parts, test_target_macro_f1"]
    assert parts == same
    assert "identical predictions" in run("same_?", "part_?_?", *ask, "--name", "whole", "parts")[2]
    code, _, err = run("whole_?", "part_1_?", *ask, "--name", "whole", "parts")
    assert code == 2 and "part 2 of 2 is missing" in err
    shutil.copytree(tmp_path / "part_1_0", tmp_path / "part_3_0")
    assert "disjoint" in run("whole_?", "part_?_?", *ask, "--name", "whole", "parts")[2]


def edit(folder: Path, **record: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **record}))


def test_leaks_and_other_splits_are_refused(run: Run, tmp_path: Path) -> None:
    line = "of the test posts, 3 stand in train word for word, 1 nearly (a = b); 4 train posts are"
    edit(tmp_path / "lora_1", leaks=[f"{line} left out"])
    assert run("full_?", "lora_?", *ACCURACY)[0] == 0
    edit(tmp_path / "lora_1", leaks=[f"{line} copies; data.leaks=drop leaves copies out"])
    code, _, err = run("full_?", "lora_?", *ACCURACY)
    assert code == 2 and "lora_1 (lora) learned from posts that it was tested on" in err and "data.leaks=drop" in err
    code, _, err = run("full_?", "lora_?", *ACCURACY, "--leaked")
    assert code == 0 and err.startswith("note: lora_1 (lora) learned from posts")
    edit(tmp_path / "lora_1", leaks=[], tested_data={"label": "e" * 16})
    assert "saw other splits" in run("full_?", "lora_?", *ACCURACY)[2]


def test_what_a_merge_started_from_may_not_have_learned_from_test_posts_either(run: Run, tmp_path: Path) -> None:
    line = "of the test posts, 3 stand in train word for word, 1 nearly (a = b); 4 train posts are copies"
    for part, mark in (("part", "f" * 16), ("elsewhere", "e" * 16)):
        save(tmp_path / part, *classes(50, 0.7, np.random.default_rng(0)))
        edit(tmp_path / part, leaks=[line], data={"label": mark}, sources={part: "its own digest"})
    edit(tmp_path / "lora_1", sources={"elsewhere": "a digest", "gone": "another"})
    assert run("full_?", "lora_?", *ACCURACY)[0] == 0
    edit(tmp_path / "lora_1", sources={"part": "a digest"})
    code, out, err = run("full_?", "lora_?", *ACCURACY)
    assert (code, out) == (2, "")
    assert "part, which lora_1 started from, (lora) learned from posts that it was tested on" in err


def test_validation_rows_are_of_the_same_splits_no_copies_and_no_test(run: Run, tmp_path: Path) -> None:
    for i, name in enumerate(("full_0", "full_1", "full_2", "lora_0", "lora_1", "lora_2")):
        with (tmp_path / name / "results.csv").open("a") as file:
            file.write(f"val_label_macro_f1,{0.5 + 0.03 * i + 0.01 * i % 2}\n")
    ask = ("--metric", "val_label_macro_f1")
    code, out, err = run("full_?", "lora_?", *ask)
    assert (code, err) == (0, "") and "validation posts chose the epochs of these runs, so this is no test" in out
    for seed in "012":
        shutil.copytree(tmp_path / f"full_{seed}", tmp_path / f"copy_{seed}")
    assert "full_0 (full) and copy_0 (copy) have identical val_label rows" in run("full_?", "copy_?", *ask)[2]
    edit(
        tmp_path / "lora_1",
        leaks=["of the val posts, 3 stand in train word for word, 0 nearly (a = b); 3 train posts are copies"],
    )
    code, out, err = run("full_?", "lora_?", *ask)
    assert (code, out) == (2, "") and "lora_1 (lora) learned from posts that it was validated on" in err
    edit(tmp_path / "lora_1", leaks=[], data={"label": "e" * 16})
    assert "full_0 and lora_1 saw other splits" in run("full_?", "lora_?", *ask)[2]


def test_results_of_int8_are_noted(run: Run, tmp_path: Path) -> None:
    assert "int8" not in run("full_?", "lora_?", *ACCURACY)[2]
    edit(tmp_path / "lora_1", tested_precision={"label": "int8"})
    code, _, err = run("full_?", "lora_?", *ACCURACY)
    assert code == 0 and "note: lora_1/results.csv was made in int8 (trainer.precision)" in err and "for label" in err


def test_other_posts_and_copies_are_refused(run: Run, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    save(tmp_path / "fewer", *classes(100, 0.7, draw))
    assert "different posts: 200 and 100, 100 in one alone" in run("full_0", "fewer", *ACCURACY)[2]
    save(tmp_path / "other", *classes(200, 0.7, draw, gold_seed=1))
    assert "different annotations" in run("full_0", "other", *ACCURACY)[2]
    shutil.copytree(tmp_path / "full_0", tmp_path / "copy")
    assert "identical predictions" in run("full_0", "copy", *ACCURACY)[2]
    assert "not compared with itself" in run("full_0", "full_?", *ACCURACY)[2]
    shutil.copytree(tmp_path / "full_0", tmp_path / "full_9")
    assert "all of seed 0" in run("full_?", "lora_?", *ACCURACY)[2]
    assert "differ in method.name" in run("full_[01]", "[lh]*_?", *ACCURACY)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["full_?", *ACCURACY], "one system given"),
        (["full_?", "lora_?", *ACCURACY, "--name", "a", "a"], "two systems are called 'a'"),
        (["full_?", "lora_?", *ACCURACY, "--name", "a"], "1 names for 2 systems"),
        (["full_?", "lora_?", *ACCURACY, "--alpha", "5"], "between 0 and 1"),
        (["full_?", "lora_?", *ACCURACY, "--resamples", "5"], "100 or more"),
        (["full_?", "lora_?", *ACCURACY, "--resamples", "1000000000000"], "up to 1000000, as 10000"),
        (["full_?", "lora_?", *ACCURACY, "--rope", "0"], "above 0"),
        (["full_?", "lora_?", *ACCURACY, "--rope", "nan"], "above 0"),
        (["full_?", "lora_?", *ACCURACY, "--seed", "-1"], "expected 0 or more"),
        (["full_?", "lora_?", "--metric", "test_label_makro_f1"], "did you mean test_label_macro_f1?"),
        (["full_?", "lora_?", "--metric", "test_target_f1"], "nor can it be recomputed"),
        (["full_?", "lora_?", "--metric", "test_label_f1_fold_sd_kind"], "neither more nor less of it is better"),
        (["full_0", "lora_?", *ACCURACY, "--test", "wilcoxon"], "one seed says nothing of others"),
        (["full_0", "lora_0", "--metric", "test_label_ece"], "only seeds tell"),
        (["full_[01]", "lora_[12]", *ACCURACY, "--test", "wilcoxon"], "pairs runs of one seed"),
        (["full_?", "lora_?", *ACCURACY, "--test", "mcnemar"], "one run with one run"),
        (["full_[01]", "lora_?", *ACCURACY, "--test", "permutation"], "as many in each"),
        (["full_?", "lora_?", "--metric", "test_label_ece", "--test", "bootstrap"], "cannot be recomputed"),
        (["nothing_?", "lora_?", *ACCURACY], "matches nothing"),
    ],
)
def test_wrong_input_is_told(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("compare.py: ")
    assert message in err


def test_a_row_that_is_no_number_is_refused(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "lora_1" / "results.csv").open("a") as file:
        file.write("test_label_odd,nan\n")
    for name in ("full_0", "full_1", "full_2", "lora_0", "lora_2"):
        with (tmp_path / name / "results.csv").open("a") as file:
            file.write("test_label_odd,0.5\n")
    code, out, err = run("full_?", "lora_?", "--metric", "test_label_odd")
    assert (code, out) == (2, "") and "test_label_odd: nan in lora_1/results.csv, expected a number" in err


def test_evaluations_make_no_other_system_but_are_told_where_their_keys_differ(run: Run, tmp_path: Path) -> None:
    for name, bins in (("full_0", 15), ("lora_0", 15), ("lora_1", 5)):
        path = tmp_path / name / "config.yaml"
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(config | {"evaluations": {"calibration": {"bins": bins}}}))
    code, _, err = run("full_?", "lora_?", *ACCURACY)
    assert (code, err) == (0, "")
    code, _, err = run("full_?", "lora_?", "--metric", "test_label_ece")
    assert code == 0 and "note: evaluations.calibration.bins is 15 in full_0 and 5 in lora_1" in err


def test_formats(run: Run, tmp_path: Path) -> None:
    for name, says in (("t.tex", r"\bottomrule"), ("t.md", "|---"), ("t.org", "- lora is better"), ("t.csv", "sentence")):
        assert run("full_?", "lora_?", *MACRO, "--output", name)[:2] == (0, "")
        assert says in (tmp_path / name).read_text()
    latex = (tmp_path / "t.tex").read_text()
    assert r"95 \% interval" in latex and r"test\_label\_macro\_f1" in latex
    again = run("full_?", "lora_?", *MACRO, "--format", "json")[1]
    assert again == run("full_?", "lora_?", *MACRO, "--format", "json")[1]


def test_a_region_of_practical_equivalence(run: Run) -> None:
    _, out, _ = run("full_?", "lora_?", *ACCURACY, "--rope", "0.01", "--format", "json")
    lora = rows(out)["lora"]
    assert lora["p_worse"] + lora["p_equal"] + lora["p_better"] == pytest.approx(1)
    assert lora["p_better"] > 0.95
    assert "equal within ±0.01" in lora["sentence"]


def test_a_seed_in_a_path_is_no_other_setting_but_a_fraction_there_is_no_seed(run: Run, tmp_path: Path) -> None:
    for seed in range(3):
        path = tmp_path / f"lora_{seed}" / "config.yaml"
        kept = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**kept, "teachers": f"runs/0.1/none/{seed}"}))
    code, _, err = run("full_?", "lora_?", *MACRO)
    assert (code, err) == (0, "")
