"""Runs side by side: which rows and columns there are, and the four formats."""

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from results import read_results
from scipy import stats
from table import Table

Run = Callable[..., tuple[int, str, str]]


def save(path: Path, rows: Mapping[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{metric},{value}\n" for metric, value in {"metric": "value", **rows}.items()))


@pytest.fixture
def runs(tmp_path: Path) -> None:
    """The published numbers of a partitioned, a single and a merged run, the first as a pooled CSV."""
    save(tmp_path / "partitioned.csv", {"test_target_macro_f1": 0.647, "test_target_micro_f1": 0.680})
    for name, macro, micro in (("single", 0.585, 0.609), ("merge", 0.621, 0.666)):
        rows = {"val_target_macro_f1": 0.7, "test_target_tp_arab": 12.0, "test_target_f1_arab": 0.5}
        save(tmp_path / name / "results.csv", {**rows, "test_target_macro_f1": macro, "test_target_micro_f1": micro})


def test_partitioned_single_and_merged_side_by_side(run: Run, runs: None) -> None:
    code, out, err = run("partitioned.csv", "single", "merge/results.csv", "--best")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "| metric               | partitioned |  single |   merge |",
        "|----------------------+-------------+---------+---------|",
        "| test_target_f1_arab  |             | *0.500* | *0.500* |",
        "| test_target_macro_f1 |     *0.647* |   0.585 |   0.621 |",
        "| test_target_micro_f1 |     *0.680* |   0.609 |   0.666 |",
    ]


def test_markdown(run: Run, runs: None) -> None:
    _, out, _ = run("partitioned.csv", "single", "--format", "markdown", "--best")
    assert out.splitlines() == [
        "| metric               | partitioned | single |",
        "|----------------------|------------:|-------:|",
        "| test_target_f1_arab  |             |  0.500 |",
        "| test_target_macro_f1 |   **0.647** |  0.585 |",
        "| test_target_micro_f1 |   **0.680** |  0.609 |",
    ]


def test_latex(run: Run, runs: None) -> None:
    _, out, _ = run("partitioned.csv", "single", "--format", "latex", "--best")
    assert out.splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"metric & partitioned & single \\",
        r"\midrule",
        r"test\_target\_f1\_arab &  & 0.500 \\",
        r"test\_target\_macro\_f1 & \textbf{0.647} & 0.585 \\",
        r"test\_target\_micro\_f1 & \textbf{0.680} & 0.609 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_csv_keeps_every_digit_unless_told(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "a" / "results.csv", {"test_x": 1 / 3, "test_y": 0.5})
    save(tmp_path / "b" / "results.csv", {"test_y": 0.1 + 0.2})
    _, out, _ = run("a", "b", "--format", "csv")
    header, x, y = csv.reader(out.splitlines())
    assert (header, x[0], x[2]) == (["metric", "a", "b"], "test_x", "")
    assert [float(x[1]), float(y[2])] == [1 / 3, 0.1 + 0.2]
    assert run("a", "b", "--format", "csv", "--digits", "2")[1] == "metric,a,b\ntest_x,0.33,\ntest_y,0.50,0.30\n"


def test_names_that_a_format_would_read_as_markup(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "r" / "results.csv", {"test_a|b*_[50%]": 0.5})

    def table(format: str) -> str:
        return run("r", "--name", r"R&D_{1}^2~\x", "--format", format)[1]

    assert r"test\_a|b*\_[50\%]" in table("latex")
    assert r"R\&D\_\{1\}\textasciicircum{}2\textasciitilde{}\textbackslash{}x" in table("latex")
    assert r"test_a\|b\*_\[50%\]" in table("markdown")
    assert r"test_a\vert{}b*_[50%]" in table("org")


HOSTILE = "od\x1b[2Jd\u202e"
SEEN = r"od\x1b[2Jd\u202e"


def test_names_that_a_spreadsheet_would_compute_are_guarded(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "r" / "results.csv", {"test_x": -0.5})
    _, out, _ = run("r", "--name", "=r", "--format", "csv", "--digits", "1")
    assert out == "metric,'=r\ntest_x,-0.5\n"
    save(tmp_path / "parts.csv", {"'=test_x": 1.0, "test_y": 1.0})
    assert read_results(tmp_path / "parts.csv").rows == {"=test_x": 1.0, "test_y": 1.0}


@pytest.mark.parametrize("format", ["org", "markdown"])
def test_names_in_a_table_move_no_terminal(run: Run, tmp_path: Path, format: str) -> None:
    save(tmp_path / "r" / "results.csv", {f"test_{HOSTILE}": 0.5, "test_женщины": 0.5, "test_النساء": 0.5})
    _, out, _ = run("r", "--name", HOSTILE, "--format", format)
    assert (out.replace(r"\\", "\\").replace(r"\[", "[").count(SEEN)) == 2
    assert "test_женщины" in out and "test_النساء" in out and HOSTILE not in out
    for arguments in (["r", "--metric", HOSTILE], [HOSTILE], ["r", "--stage", "val"]):
        _, out, err = run(*arguments)
        assert err and not re.search("[\x00-\x09\x0b-\x1f\u202e]", out + err)


def test_the_terminal_shows_names_as_they_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "r[bold]" / "results.csv", {"test_target_f1_[red]": 0.5, "test_b": 1, f"test_{HOSTILE}": 0.5})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run("r[bold]")
    assert "test_target_f1_[red]" in out
    assert "r[bold]" in out
    assert SEEN in out and HOSTILE not in out
    assert "0.500" in out
    assert "┃" in out


def test_counts_are_hidden_until_asked_for(run: Run, runs: None) -> None:
    assert "tp" not in run("single")[1]
    assert "| test_target_tp_arab  |     12 |" in run("single", "--counts")[1]
    assert "*12*" not in run("single", "merge", "--counts", "--best")[1]


def test_what_stands_behind_a_figure_of_bias_is_hidden_as_counts_are(run: Run, tmp_path: Path) -> None:
    for name, rate in (("a", 0.25), ("b", 0.5)):
        row, rest = "test_label_subgroup_false_negative_rate", f"test_label_temperature,{rate}\ntest_label_f1_low,{rate}\n"
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(
            f"metric,value\n{row}_arab,{rate}\n{row}_arab__low,0.2\n{row}_arab__high,{rate}\n{row}_arab__posts,12\n{rest}"
        )
    assert run("a", "b", "--best")[1].splitlines()[2:] == [
        "| test_label_f1_low                            |   0.250 | *0.500* |",  # of a label of that name
        "| test_label_subgroup_false_negative_rate_arab | *0.250* |   0.500 |",
        "| test_label_temperature                       |   0.250 |   0.500 |",
    ]
    every = run("a", "b", "--best", "--counts", "--metric", "*rate_*")[1].splitlines()
    assert every[3:] == [
        "| test_label_subgroup_false_negative_rate_arab__high  |   0.250 | 0.500 |",
        "| test_label_subgroup_false_negative_rate_arab__low   |   0.200 | 0.200 |",
        "| test_label_subgroup_false_negative_rate_arab__posts |      12 |    12 |",
    ]


def test_the_validation_stage(run: Run, runs: None) -> None:
    code, out, err = run("single", "partitioned.csv", "--stage", "val", "--format", "csv")
    assert (code, out) == (0, "metric,single,partitioned\nval_target_macro_f1,0.7,\n")
    assert err == "note: partitioned.csv has no val rows: its column stays blank\n"


@pytest.mark.parametrize("low", ["loss", "false_positive_difference", "false_positive_rate_women"])
def test_best_is_the_lowest_of_losses_and_all_that_read_the_same(run: Run, tmp_path: Path, low: str) -> None:
    for name, loss, f1, nan in (("a", 0.2, 0.6001, "nan"), ("b", 0.3, 0.6002, 0.1), ("c", 0.4, 0.5, 0.2)):
        save(tmp_path / name / "results.csv", {f"test_target_{low}": loss, "test_target_f1": f1, "test_x": nan})  # type: ignore[dict-item]
    _, out, _ = run("a", "b", "c", "--best", "--format", "org")
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in out.splitlines()[2:]]
    assert cells == [["*0.600*", "*0.600*", "0.500"], ["*0.200*", "0.300", "0.400"], ["nan", "0.100", "*0.200*"]]


@pytest.mark.parametrize(
    ("better", "names"),
    [
        ("less", "mae rmse loss perplexity ece ece_scaled brier nll_scaled mae_fold_mean sufficiency_attention_joined"),
        ("less", "false_positive_difference false_positive_rate_women subgroup_false_negative_rate_women"),
        ("less", "aopc_sufficiency_outside_joined explaining_seconds_attention_plausibility"),
        ("more", "accuracy macro_f1 f1_women f1_fold_mean_women matthews quadratic_kappa spearman pearson em auroc"),
        ("more", "likelihood precision recall gmb_subgroup_auc functional_accuracy subgroup_macro_f1_women"),
        ("more", "iou_f1_attention_joined comprehensiveness_attention_official auprc_rationale_joined"),
        ("neither", "temperature macro_f1_fold_sd f1_fold_sd_women mae_fold_sd tp_women words_cut answers_cut"),
        ("neither", "subgroup_auc_women__low subgroup_auc_women__posts gmb_subgroup_auc__communities"),
        ("neither", "explaining_seconds_attention_plausibility__posts"),
    ],
)
def test_which_way_a_row_of_a_test_is_better(better: str, names: str) -> None:
    marked = {"less": [True, False], "more": [False, True], "neither": [False, False]}[better]
    for name in names.split():
        cells = Table(["a", "b"], {f"test_x_{name}": [1.0, 9.0]}, best=True).cells(f"test_x_{name}", "*{}*".format)
        assert [cell.startswith("*") for cell in cells] == marked, name


def test_metrics_are_chosen_by_globs_in_their_order(run: Run, runs: None) -> None:
    _, out, _ = run("single", "--metric", "*macro*", "*micro*", "--metric", "*arab", "--format", "csv")
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == [
        f"test_target_{name}" for name in ("macro_f1", "micro_f1", "f1_arab")
    ]
    _, out, _ = run("single", "--metric", "*macro*", "--format", "csv")
    assert out == "metric,single\ntest_target_macro_f1,0.585\n"


def test_columns_are_named_by_their_folders_with_parents_where_equal(run: Run, tmp_path: Path) -> None:
    for folder in ("lora16/single", "lora32/single", "merge"):
        save(tmp_path / folder / "results.csv", {"test_x": 0.5})
    save(tmp_path / "merge.csv", {"test_x": 0.5})
    _, out, _ = run("lora*/single", "merge", "--format", "csv")
    assert out.splitlines()[0] == "metric,lora16/single,lora32/single,merge"
    _, out, _ = run("merge", "merge.csv", "--format", "csv")
    assert out.splitlines()[0] == "metric,merge,merge.csv"
    _, out, _ = run("merge", "./merge/results.csv", "--format", "csv")
    assert out.splitlines()[0] == "metric,merge"  # one run, named twice


def test_columns_may_be_named(run: Run, runs: None) -> None:
    _, out, _ = run("single", "merge", "--name", "one model", "--name", "merged", "--format", "csv")
    assert out.splitlines()[0] == "metric,one model,merged"


def test_runs_of_one_name_become_one_column(run: Run, tmp_path: Path) -> None:
    for name, x, y in (("a1", 0.1, 0.5), ("a2", 0.2, 0.5), ("a3", 0.6, 0.5), ("b1", 0.4, 0.25)):
        save(tmp_path / name / "results.csv", {"test_x": x, "test_y": y, "test_x_tp": 10 * x})
    save(tmp_path / "b2" / "results.csv", {"test_y": 0.75})
    given = ("a?", "b?", "--name", "a", "a", "a", "b", "b", "--mean")
    code, out, err = run(*given, "--best")
    assert code == 0
    assert out.splitlines() == [
        "| metric |               a |               b |",
        "|--------+-----------------+-----------------|",
        "| test_x |   0.300 ± 0.265 |         *0.400* |",  # (0.04 + 0.01 + 0.09) / 2, its root
        "| test_y | *0.500 ± 0.000* | *0.500 ± 0.354* |",
    ]
    assert err.splitlines()[0] == "note: test_x: means of unlike numbers of runs, 3 of a, 1 of b"
    header, x, y = csv.reader(run(*given, "--format", "csv")[1].splitlines())
    assert header == ["metric", "a", "b", "a sd", "b sd"] and x[4] == ""
    assert [float(cell) for cell in (*x[1:4], *y[1:])] == pytest.approx([0.3, 0.4, 0.07**0.5, 0.5, 0.5, 0, 0.125**0.5])
    assert run(*given, "--counts", "--metric", "*_tp", "--digits", "1", "--format", "csv")[1].splitlines()[1] == (
        "test_x_tp,3.0,4.0,2.6,"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sinlge"],
            "'sinlge' matches nothing; expected runs or their results.csv; . holds merge, partitioned.csv, single",
        ),
        (["single", "merge", "--name", "one"], "--name: 1 names for 2 runs"),
        (["single", "--metric", "*accuracy"], "--metric '*accuracy' matches no row; the rows are test_target_f1_arab"),
        (["partitioned.csv", "--stage", "val"], "no val rows in any run"),
        (["single", "--best", "--format", "csv"], "--best: CSV has no bold"),
        (["single", "--output", "table.doc"], "--output table.doc: expected one of .org, .md, .tex, .csv"),
        (["single", "--output", "single/results.csv"], "is one of the results read"),
    ],
)
def test_what_is_refused(run: Run, runs: None, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("arguments", [[], ["single", "--digits", "many"], ["single", "--format", "pdf"]])
def test_a_wrong_command_line_ends_with_2(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)


@pytest.mark.parametrize(("name", "first"), [("t.org", "| metric"), ("t.md", "| metric"), ("t.tex", r"\begin{tabular}")])
def test_output_takes_its_format_from_the_name(run: Run, runs: None, tmp_path: Path, name: str, first: str) -> None:
    code, out, _ = run("single", "--output", f"new/{name}")
    assert (code, out) == (0, "")
    assert (tmp_path / "new" / name).read_text().startswith(first)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_cells_of_text_and_sentences_below() -> None:
    table = Table(["p|q", "verdict"], {"a": [0.5, "50 % [b]"]}, below=["a is b_c."])
    assert table.org().splitlines()[-3:] == ["| a      |     0.500 | 50 % [b] |", "", "- a is b_c."]
    assert table.markdown().splitlines()[-1] == "- a is b_c." and r"50 % \[b\]" in table.markdown()
    assert table.latex().splitlines()[-1] == r"a is b\_c." and r"50 \% [b]" in table.latex()
    assert table.csv() == "metric,p|q,verdict\na,0.5,50 % [b]"
    assert json.loads(table.json()) == [{"metric": "a", "p|q": 0.5, "verdict": "50 % [b]"}]
    assert json.loads(Table(["x"], {"a": [float("nan")]}).json()) == [{"metric": "a", "x": None}]


# Means over seeds


@pytest.fixture
def seeds(tmp_path: Path) -> None:
    """Three systems of five seeds: two that one cannot tell apart, and one that is far below, with their settings."""
    for name, centre, method in (("a", 0.70, "ah_lora16"), ("b", 0.71, "full"), ("c", 0.50, "full")):
        for seed, off in enumerate((-0.02, -0.01, 0.0, 0.01, 0.02)):
            save(tmp_path / f"{name}_{seed}" / "results.csv", {"test_x_f1": centre + off, "test_x_loss": 1 - centre + off})
            config = {"choices": {"method": method}, "seed": seed, "save_path": f"{name}_{seed}", "weighting": {"k": 1}}
            config |= {"method": {"rank": 16 if method != "full" else None}, "optimization": {"epochs": 4 + (name == "c")}}
            (tmp_path / f"{name}_{seed}" / "config.yaml").write_text(json.dumps(config))


THREE = ("a_?", "b_?", "c_?", "--name", "a", "b", "c")


def test_a_mean_stands_with_its_interval_and_what_is_within_noise_of_the_best(run: Run, seeds: None) -> None:
    code, out, _ = run(*THREE, "--interval", "--letters", "--best")
    half = stats.t.ppf(0.975, 4) * stats.sem([-0.02, -0.01, 0.0, 0.01, 0.02])
    assert code == 0 and f"{half:.3f}" == "0.020"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    assert cells[2] == ["test_x_f1", "*0.700 ± 0.020 a*", "*0.710 ± 0.020 a*", "0.500 ± 0.020 b"]
    assert [cell[0] == "*" for cell in cells[3][1:]] == [True, True, False]  # less of a loss is better


def test_one_seed_differs_from_nothing(run: Run, seeds: None) -> None:
    _, out, _ = run("a_0", "c_0", "--letters", "--metric", "test_x_f1")
    assert out.splitlines()[2] == "| test_x_f1 | 0.680 a | 0.480 a |"


def test_settings_that_differ_are_columns(run: Run, seeds: None) -> None:
    _, out, _ = run(*THREE, "--mean", "--settings", "--transpose", "--metric", "test_x_f1")
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if "-+-" not in line] == [
        ["metric", "method", "optimization.epochs", "test_x_f1"],
        ["a", "ah_lora16", "4", "0.700 ± 0.016"],
        ["b", "full", "4", "0.710 ± 0.016"],
        ["c", "full", "5", "0.500 ± 0.016"],
    ]
    _, out, _ = run("a_0", "c_0", "--settings", "--transpose", "--metric", "test_x_f1", "--format", "csv")
    assert out.splitlines()[:2] == ["metric,method,optimization.epochs,test_x_f1", "a_0,ah_lora16,4,0.6799999999999999"]


def test_what_stands_in_a_cell_is_apart_in_json_and_csv(run: Run, seeds: None) -> None:
    (row,) = json.loads(run(*THREE, "--interval", "--letters", "--metric", "test_x_f1", "--format", "json")[1])
    assert row["a"] == pytest.approx(0.7) and row["a ± 95 %"] == pytest.approx(0.0196, abs=1e-4)
    assert [row[f"{name} letters"] for name in "abc"] == ["a", "a", "b"]
    head = run(*THREE, "--interval", "--letters", "--format", "csv")[1].splitlines()[0]
    assert head == "metric,a,b,c,a ± 95 %,b ± 95 %,c ± 95 %,a letters,b letters,c letters"
