"""Scores per group of posts: what is counted, how groups and posts are joined, and what is refused."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import functional_tests
import pyarrow as pa
import pytest
from pyarrow import parquet

from hatemtl.corpora.hatecheck import HateCheck

Run = Callable[..., tuple[int, str, str]]
NAMES = ["", "functionality", "case_id", "test_case", "label_gold", "target_ident", "direction", "focus_words"]
CASES = [
    ["0", "derog_h", "11", "I can't stand snorfs, at all.", "hateful", "gay people", "general", "stand"],
    ["1", "derog_h", "12", "I can't stand dronks.", "hateful", "women", "general", "stand"],
    ["2", "spell_h", "20", "I c4n't stand dronks.", "hateful", "women", "general", "stand"],
    ["3", "ident_nh", "30", "I am a snorf.", "non-hateful", "gay people", "", ""],
    ["4", "target_obj_nh", "40", "I can't stand soup.", "non-hateful", "", "", ""],
]
ONE = ("hatecheck", "--posts", "cases.csv")
RIGHT = [0.4, 0.6]  # the scores of a hateful case that is called so
WRONG = [0.6, 0.4]


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """The script, called beside HateCheck's file and `hatecheck`, a run that misses the misspelt case and one more."""
    write(tmp_path / "cases.csv")
    save(tmp_path / "hatecheck", {"11": RIGHT, "12": RIGHT, "20": WRONG, "30": WRONG, "40": RIGHT})
    return run


def write(path: Path, cases: Sequence[Sequence[str]] = CASES, names: Sequence[str] = NAMES, mark: str = "") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        csv.writer(file).writerows([names, *cases])


def save(folder: Path, scores: Mapping[str, list[float]], *, accuracy: float | None = None, task: str = "hateval") -> None:
    """A run tested on cases, hateful if their id is below 30, by `scores`, which are turned round for those that are not."""
    rows: list[dict[str, Any]] = []
    for case, given in scores.items():
        gold = float(int(case) < 30)
        rows.append({"post_id": case, "task": task, "gold": [gold], "scores": given if gold else given[::-1]})
    folder.mkdir(exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    share = sum(given == RIGHT for given in scores.values()) / len(scores) if accuracy is None else accuracy
    (folder / "results.csv").write_text(f"metric,value\ntest_{task}_accuracy,{share!r}\n")


def read(out: str) -> dict[str, float]:
    """The rows of `--format csv` with one run."""
    return {name: float(value) for name, value in list(csv.reader(out.splitlines()))[1:]}


def test_hand_numbers(run: Run) -> None:
    code, out, err = run(*ONE)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "| group                           | hatecheck |",
        "|---------------------------------+-----------|",
        "| every post (5)                  |     0.600 |",
        "| functionality=derog_h (2)       |     1.000 |",
        "| functionality=spell_h (1)       |     0.000 |",
        "| functionality=ident_nh (1)      |     0.000 |",
        "| functionality=target_obj_nh (1) |     1.000 |",
        "| target_ident=gay people (2)     |     0.500 |",
        "| target_ident=women (2)          |     0.500 |",
        "| label_gold=hateful (3)          |     0.667 |",
        "| label_gold=non-hateful (2)      |     0.500 |",
    ]


def test_the_mean_over_a_columns_groups_by_their_size_is_the_accuracy(run: Run) -> None:
    rows = read(run(*ONE, "--by", "functionality", "--format", "csv")[1])
    sizes = {name: int(name.rpartition("(")[2].removesuffix(")")) for name in rows}
    whole = rows.pop("every post (5)")
    assert sum(value * sizes[name] for name, value in rows.items()) / 5 == pytest.approx(whole)


def test_ids_are_those_that_the_corpus_gives_its_posts(tmp_path: Path) -> None:
    write(tmp_path / "test_suite_cases.csv")
    posts = HateCheck(dir=str(tmp_path)).load()
    groups = functional_tests.read_groups(tmp_path / "test_suite_cases.csv", "case_id", ["functionality", "target_ident"])
    for column, name in (("functionality", "functionality"), ("target", "target_ident")):
        labels = posts.columns[column]
        for i, label in enumerate(labels.space.names):
            of = [post for post, value, has in zip(posts.ids, labels.values, labels.has, strict=True) if has and value == i]
            assert groups[f"{name}={label.replace('_', ' ') if name == 'target_ident' else label}"] == of


def test_seeds_become_a_mean(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "again", {"11": RIGHT, "12": WRONG, "20": WRONG, "30": RIGHT, "40": RIGHT})
    code, out, err = run("again", *ONE, "--name", "tiny", "tiny", "--mean", "--by", "functionality", "--digits", "2")
    assert (code, err) == (0, "")
    assert "| functionality=derog_h (2)       | 0.75 ± 0.35 |" in out.splitlines()
    assert "| every post (5)                  | 0.60 ± 0.00 |" in out.splitlines()
    beside = run("again", *ONE, "--by", "functionality", "--format", "csv")[1].splitlines()
    assert beside[0] == "group,again,hatecheck"
    assert beside[2] == "functionality=derog_h (2),0.5,1.0"


def test_any_file_with_ids_has_groups(run: Run, tmp_path: Path) -> None:
    """The author's name would be taken for a count of misses, were it a metric."""
    write(tmp_path / "mine.csv", [["11", "an_fn_reader"], ["12", " "], ["20", "an_fn_reader"]], ["id", "author"], "\ufeff")
    code, out, err = run("hatecheck", "--posts", "mine.csv", "--id", "id", "--by", "author")
    assert code == 0
    assert out.splitlines()[2:] == [
        "| every post (5)          |     0.600 |",
        "| author=an_fn_reader (2) |     0.500 |",
    ]
    assert err == "note: 3 of 5 posts are in no group, as 12\n"


def test_cases_that_were_not_tested_are_in_no_group(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "few", {"11": RIGHT, "20": WRONG})
    rows = read(run("few", "--posts", "cases.csv", "--by", "functionality", "--format", "csv")[1])
    assert rows == {"every post (2)": 0.5, "functionality=derog_h (1)": 1, "functionality=spell_h (1)": 0}


def test_one_of_several_tasks_is_chosen(run: Run, tmp_path: Path) -> None:
    tables = []
    for task, scores in (("hateval", {"11": RIGHT}), ("davidson", {"11": WRONG})):
        save(tmp_path / "both", scores, task=task)
        tables.append(parquet.read_table(tmp_path / "both/predictions.parquet"))
    parquet.write_table(pa.concat_tables(tables), tmp_path / "both/predictions.parquet")
    assert "--task: one of several is needed; known: hateval, davidson" in run("both", "--posts", "cases.csv")[2]
    code, out, _ = run("both", "--posts", "cases.csv", "--task", "davidson", "--format", "csv")
    assert code == 0
    assert set(read(out).values()) == {0}


def test_the_table_is_written(run: Run, tmp_path: Path) -> None:
    assert run(*ONE, "--output", "new/table.csv") == (0, "", "")
    assert (tmp_path / "new/table.csv").read_text() == run(*ONE, "--format", "csv")[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none", *ONE[1:]], "'none' matches nothing"),
        (["untested", *ONE[1:]], "untested: no predictions.parquet in it; test it: the command with action=test"),
        (["hatecheck", "--posts", "nowhere.csv"], "--posts nowhere.csv: there is no such file; expected the CSV"),
        (
            [*ONE, "--by", "functionalty"],
            "cases.csv has no column 'functionalty'; type --by with one of functionality, case_id,",
        ),
        ([*ONE, "--id", "post"], "cases.csv has no column 'post'; type --id with"),
        ([*ONE, "--id", "templ_id"], "has no column 'templ_id'"),
        ([*ONE, "--id", "label_gold"], "cases.csv:3: a row above has label_gold 'hateful' too; expected one a post"),
        ([*ONE, "--id", "test_case"], "expected some of 11, 12, 20, ...; type the CSV that the posts came from, and --id"),
        (["hatecheck", "--posts", "torn.csv"], "torn.csv:2: expected 8 cells"),
        (["hatecheck", "--posts", "quote.csv"], "quote.csv:2: unexpected end of data; expected a CSV file"),
        (["hatecheck", "--posts", "latin.csv"], "expected a CSV file in UTF-8"),
        (["broken", *ONE[1:]], "broken/predictions.parquet cannot be read"),
        (
            ["numbers", *ONE[1:]],
            "numbers/results.csv: task 'hateval' has no likeliest label a post; expected one with head=multiclass",
        ),
        (["levels", *ONE[1:]], "levels/results.csv: task 'hateval' has no likeliest label a post"),
        (["other", *ONE[1:]], "the likeliest label is right for 0.0000 of the posts, but test_hateval_accuracy in other/"),
        (["few", *ONE], "few/results.csv and hatecheck/results.csv saw different posts"),
        ([*ONE, "--name", "a", "b"], "--name: 2 names for 1 runs"),
        ([*ONE, "--task", "hate"], "--task: 'hate' is none of them; known: hateval"),
        ([*ONE, "--output", "cases.csv"], "is one of the results read"),
        ([*ONE, "--output", "hatecheck/results.csv"], "is one of the results read"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, arguments: list[str], told: str) -> None:
    for name in ("untested", "broken", "numbers", "levels", "few"):
        save(tmp_path / name, {"11": RIGHT})
    save(tmp_path / "other", {"11": WRONG}, accuracy=1.0)
    (tmp_path / "untested/predictions.parquet").unlink()
    (tmp_path / "broken/predictions.parquet").write_bytes(b"nothing")
    (tmp_path / "numbers/results.csv").write_text("metric,value\ntest_hateval_pearson,0.5\n")
    with (tmp_path / "levels/results.csv").open("a") as file:
        file.write("test_hateval_quadratic_kappa,1.0\n")
    write(tmp_path / "torn.csv", [CASES[0][:4]])
    (tmp_path / "quote.csv").write_text(",".join(NAMES) + '\n0,a,1,"never closed,hateful\n')
    (tmp_path / "latin.csv").write_bytes((",".join(NAMES) + "\n0,a,1,caf\xe9,hateful,,,\n").encode("latin-1"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("functional_tests.py: ")
    assert told in err


# Runs of any corpus that were asked HateCheck's cases


def judge(folder: Path, *, right: float = 0.5, cases: int = 3728, tasks: Sequence[str] = ("toxic",)) -> None:
    """The rows that evaluations=[functional] leaves, some of them, of so many cases."""
    folder.mkdir()
    sizes = {"": cases, "_label": 2563, "_functionality": 140, "_target": 7}
    labels = {"": "", "_label": "_hateful", "_functionality": "_derog_h", "_target": "_women"}
    lines = ["metric,value"]
    for task in tasks:
        start = f"test_{task}_functional"
        lines += [f"{start}_macro_f1,{right / 2}", f"{start}_macro_f1__posts,{cases}.0", f"test_{task}_macro_f1,0.9"]
        lines += [f"{start}_label_accuracy_non_hateful,0.25", f"{start}_label_accuracy_non_hateful__posts,1165.0"]
        for kind, label in labels.items():
            name = f"{start}{kind}_accuracy"
            lines += [f"{name}{label},{right}", f"{name}{label}__posts,{sizes[kind]}.0"]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")


def test_runs_that_were_asked_its_cases_are_shown_beside_what_is_published(run: Run, tmp_path: Path) -> None:
    judge(tmp_path / "mine")
    code, out, err = run("mine", "--published", "--format", "csv")
    assert code == 0 and "doi:10.18653/v1/2021.acl-long.4" in err
    assert out.splitlines() == [
        "group,mine,BERT on Davidson,BERT on Founta,Perspective",
        "macro-F1 (3728),0.25,0.559,0.563,0.702",
        "label=non_hateful (1165),0.25,0.36,0.485,0.482",
        "every post (3728),0.5,0.632,0.602,0.766",
        "label=hateful (2563),0.5,0.755,0.655,0.895",
        "functionality=derog_h (140),0.5,,,",
        "target=women (7),0.5,,,",
    ]


def test_the_mean_of_seeds_stands_beside_what_is_published_too(run: Run, tmp_path: Path) -> None:
    judge(tmp_path / "seed_0", right=0.4)
    judge(tmp_path / "seed_1", right=0.6)
    _, out, _ = run("seed_?", "--name", "mine", "mine", "--mean", "--published", "--digits", "2")
    assert re.search(r"\| every post \(3728\) +\| 0.50 ± 0.14 \| +0.63 \| +0.60 \| +0.77 \|", out)


def test_intervals_are_those_of_a_share(run: Run, tmp_path: Path) -> None:
    """Of 50 of 100, as Wilson's formula gives them by hand: (.5 + .0192) / 1.0384 -+ 1.96 / 1.0384 · .0510."""
    judge(tmp_path / "mine", cases=100)
    _, out, _ = run("mine", "--interval")
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in out.splitlines()}
    assert rows["group"] == ["mine", "from", "to"]
    assert rows["every post (100)"] == ["0.500", "0.404", "0.596"]
    assert rows["macro-F1 (100)"] == ["0.250", "", ""]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hatecheck"], "was not asked HateCheck's cases; type uv run main.py action=test load_path=hatecheck eval"),
        (["mine", "few"], "mine/results.csv and few/results.csv were asked other cases"),
        (
            ["few", "--published"],
            "--published: these rows are of all 3728 cases, of every label; expected them, not every post 10",
        ),
        (["hatecheck", "--posts", "cases.csv", "--published"], "not every post 5, label=hateful 3, label=non_hateful 2"),
        (["mine", "--interval", "--mean"], "--interval is of one run's posts"),
        (["two"], "--task: one of several is needed; known: label, toxic"),
        (["two", "--task", "hate"], "--task: 'hate' is none of them"),
    ],
)
def test_what_cannot_be_shown_beside_it_is_refused(run: Run, tmp_path: Path, arguments: list[str], told: str) -> None:
    judge(tmp_path / "mine")
    judge(tmp_path / "few", cases=10)
    judge(tmp_path / "two", tasks=("label", "toxic"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert told in err
