"""What a merge kept of its parts: the arithmetic, the pairing of seeds, and what is refused."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
Counts = Mapping[str, Sequence[int]]


def f1(tp: int, fp: int, fn: int) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def save(
    folder: Path, counts: Counts, part: str | None = None, *, posts: str = "0123", sources: Sequence[Path] = ()
) -> Path:
    """A tested run of the task `target`, as far as analysis reads it."""
    folder.mkdir(parents=True)
    rows = {f"f1_{label}": f1(*triple) for label, triple in counts.items()}
    rows |= {"macro_f1": sum(rows.values()) / len(rows), "micro_f1": f1(*map(sum, zip(*counts.values(), strict=True)))}
    for label, triple in counts.items():
        rows |= {f"{kind}_{label}": float(value) for kind, value in zip(("tp", "fp", "fn"), triple, strict=True)}
    (folder / "results.csv").write_text(
        "\n".join(["metric,value", *(f"test_target_{name},{value!r}" for name, value in rows.items())]) + "\n"
    )
    pattern = "null" if part is None else f"'{part}'"
    (folder / "config.yaml").write_text(f"tasks:\n  target:\n    mask_pattern: {pattern}\n")
    (folder / "labels.json").write_text(json.dumps({"target": {"kind": "multilabel", "names": list(counts)}}))
    record = {"library": "adapterhub", "data": {"target": posts}, "sources": {str(source): "digest" for source in sources}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def seed(folder: Path, merged: Counts) -> Path:
    """Two parts of three labels, whose F1 are a 1/2, b 2/3 and c 0, and their merge."""
    parts = [
        save(folder / "part_1", {"a": (1, 1, 1), "c": (0, 3, 0)}, "1 2"),
        save(folder / "part_2", {"b": (2, 0, 2)}, "2 2"),
    ]
    return save(folder / "merge", merged, sources=parts)


MERGED = {"a": (1, 0, 0), "b": (1, 1, 1), "c": (1, 0, 2)}  # F1 of 1, 1/2 and 1/2
WORSE = {"a": (1, 1, 1), "b": (1, 1, 1), "c": (0, 3, 0)}  # 1/2, 1/2 and 0
ONE = ("--merged", "merge", "--parts", "part_*")
PARTS_MACRO, PARTS_MICRO = 7 / 18, 6 / 13


def read(out: str) -> dict[str, dict[str, float | None]]:
    """The rows of `--format csv`, by metric, by column."""
    return {
        row.pop("metric"): {name: float(value) if value else None for name, value in row.items()}
        for row in csv.DictReader(out.splitlines())
    }


def test_hand_numbers(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, MERGED)
    code, out, err = run(*ONE, "--format", "csv")
    assert (code, err) == (0, "")
    rows = read(out)
    assert list(rows) == [f"test_target_{name}" for name in ("f1_a", "f1_b", "f1_c", "macro_f1", "micro_f1")]
    for label, part, merged in (("a", 1 / 2, 1), ("b", 2 / 3, 1 / 2), ("c", 0, 1 / 2)):
        expected = {"parts": part, "merged": merged, "difference": merged - part, "retention": None}
        assert rows[f"test_target_f1_{label}"] == pytest.approx(expected)
    assert rows["test_target_macro_f1"] == pytest.approx(
        {"parts": PARTS_MACRO, "merged": 2 / 3, "difference": 2 / 3 - PARTS_MACRO, "retention": 2 / 3 / PARTS_MACRO}
    )
    assert rows["test_target_micro_f1"]["retention"] == pytest.approx((6 / 10) / PARTS_MICRO)


def test_the_row_of_macro_f1_has_the_mean_of_the_differences(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, MERGED)
    rows = read(run(*ONE, "--format", "csv")[1])
    differences = [rows[f"test_target_f1_{label}"]["difference"] or 0 for label in "abc"]
    assert rows["test_target_macro_f1"]["difference"] == pytest.approx(sum(differences) / 3)


def test_a_merge_as_good_as_its_parts_keeps_all(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, {"a": (1, 1, 1), "b": (2, 0, 2), "c": (0, 3, 0)})
    rows = read(run(*ONE, "--format", "csv")[1])
    assert all(row["difference"] == 0 for row in rows.values())
    assert rows["test_target_macro_f1"]["retention"] == rows["test_target_micro_f1"]["retention"] == 1


def test_beside_a_single_model(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, MERGED)
    save(tmp_path / "single", {"a": (1, 0, 0), "b": (1, 0, 0), "c": (1, 1, 1)})  # 1, 1 and 1/2
    rows = read(run(*ONE, "--single", "single", "--format", "csv")[1])
    assert rows["test_target_f1_b"] == pytest.approx(
        {"parts": 2 / 3, "merged": 1 / 2, "difference": -1 / 6, "retention": None, "single": 1, "of single": None}
    )
    assert rows["test_target_macro_f1"]["single"] == pytest.approx(5 / 6)
    assert rows["test_target_macro_f1"]["of single"] == pytest.approx((2 / 3) / (5 / 6))


def test_parts_without_any_hit_have_no_ratio(run: Run, tmp_path: Path) -> None:
    part = save(tmp_path / "part_1", {"a": (0, 1, 1)}, "1 1")
    save(tmp_path / "merge", {"a": (1, 0, 0)}, sources=[part])
    rows = read(run(*ONE, "--format", "csv")[1])
    assert rows["test_target_macro_f1"] == {"parts": 0, "merged": 1, "difference": 1, "retention": None}


def test_seeds_are_paired_with_their_parts(run: Run, tmp_path: Path) -> None:
    """The ratio of each seed, then its mean: 12/7 and 6/7 have the mean 9/7 and the spread 6/7/√2."""
    for name, merged in (("s0", MERGED), ("s1", WORSE)):
        seed(tmp_path / name, merged)
    paired = [word for name in ("s0", "s1") for word in ("--merged", f"{name}/merge", "--parts", f"{name}/part_*")]
    code, out, err = run(*paired, "--format", "csv")
    assert (code, err) == (0, "")
    macro = read(out)["test_target_macro_f1"]
    assert (macro["parts"], macro["parts sd"]) == pytest.approx((PARTS_MACRO, 0))
    assert (macro["merged"], macro["merged sd"]) == pytest.approx((1 / 2, 1 / 3 / 2**0.5))
    assert (macro["retention"], macro["retention sd"]) == pytest.approx((9 / 7, 6 / 7 / 2**0.5))
    shown = run(*paired, "--format", "org")[1]
    assert "1.286 ± 0.606" in shown


def test_one_set_of_parts_for_several_merges(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, MERGED)
    save(tmp_path / "again", WORSE)
    code, out, _ = run(*ONE, "--merged", "again", "--single", "again", "--format", "csv")
    assert code == 0
    assert read(out)["test_target_macro_f1"]["single"] == pytest.approx(1 / 3)


def test_the_table_is_printed_or_written(run: Run, tmp_path: Path) -> None:
    seed(tmp_path, MERGED)
    _, out, _ = run(*ONE)
    assert out.startswith("| metric               | parts | merged | difference | retention |\n")
    code, out, _ = run(*ONE, "--output", "new/retention.csv")
    assert (code, out) == (0, "")
    assert (tmp_path / "new/retention.csv").read_text() == run(*ONE, "--format", "csv")[1]


def test_parts_that_were_not_the_sources_are_noted(run: Run, tmp_path: Path) -> None:
    seed(tmp_path / "s0", MERGED)
    seed(tmp_path / "s1", MERGED)
    code, _, err = run("--merged", "s0/merge", "--parts", "s1/part_*")
    assert code == 0
    assert "s0/merge started from" in err
    assert "not from s1/part_1, s1/part_2" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--merged", "none", "--parts", "part_*"], "'none' matches nothing"),
        (["--merged", "part_*", "--parts", "part_*"], "--merged 'part_*' names 2 runs; expected one"),
        (
            ["--merged", "merge", "--parts", "part_1"],
            'part 2 of 2 is missing: train and test it with tasks.target.mask_pattern="2 2"',
        ),
        (
            ["--merged", "part_1", "--parts", "part_*"],
            "labels of 'target': b in part_1/results.csv or in the parts, but not in both",
        ),
        (["--merged", "merge", "--parts", "part_*", "merge"], "overlapping labels"),
        (["--merged", "other_posts", "--parts", "part_*"], "saw different posts"),
        ([*ONE, "--single", "other_posts"], "saw different posts"),
        (
            ["--merged", "untested", "--parts", "part_*"],
            "untested/results.csv has no test rows of 'target'; test it: uv run main.py",
        ),
        (
            ["--merged", "merge", "--merged", "merge", "--merged", "merge", *("--parts", "part_*") * 2],
            "--parts is given 2 times for 3",
        ),
        ([*ONE, "--output", "merge/results.csv"], "is one of the results read"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, arguments: list[str], told: str) -> None:
    seed(tmp_path, MERGED)
    save(tmp_path / "other_posts", MERGED, posts="4567")
    (save(tmp_path / "untested", MERGED) / "results.csv").write_text("metric,value\nval_target_micro_f1,0.5\n")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("retention.py: ")
    assert told in err
