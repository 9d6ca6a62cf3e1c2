"""What is printed names everything that takes part."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from invented import minilm
from rich.control import Control

from hatemtl.batches.batching import LengthBuckets
from hatemtl.batches.datamodule import DataModule
from hatemtl.command import console as report
from hatemtl.command.console import Console
from hatemtl.corpora.base import Column, Posts
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Row
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.methods.base import Component
from hatemtl.tasks import Task


def printed(write: Callable[[Console], None], width: int = 200) -> str:
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=width, file=nowhere)
        write(console)
    return console.export_text()


def row(text: str, name: str) -> list[str]:
    """The cells of the table row that begins with `name`."""
    (found,) = [cells for line in text.splitlines() if (cells := re.split(r"\s*[│┃]\s*", line)[1:-1]) and cells[0] == name]
    return found


def test_the_network_is_told_part_by_part() -> None:
    parts = [
        Component("encoder", "body", 1_000_000, 0, True),
        Component("source", "adapter", 40_000, 0, False),
        Component("merged", "adapter", 200_000, 200_000, True),
        Component("label", "head", 10_000, 5_000, True),
        Component("empty", "head", 0, 0, True),
    ]
    text = printed(lambda console: report.network(console, parts))
    assert "loaded, active and trained" in text
    assert row(text, "part") == ["part", "kind", "active", "parameters", "% of all", "trained", "% trained"]
    assert row(text, "encoder") == ["encoder", "body", "yes", "1,000,000", "80.00", "0", "0.00"]
    assert row(text, "source") == ["source", "adapter", "no", "40,000", "3.20", "0", "0.00"]
    assert row(text, "merged") == ["merged", "adapter", "yes", "200,000", "16.00", "200,000", "100.00"]
    assert row(text, "label") == ["label", "head", "yes", "10,000", "0.80", "5,000", "50.00"]
    assert row(text, "empty") == ["empty", "head", "yes", "0", "0.00", "0", ""]
    assert row(text, "all") == ["all", "", "", "1,250,000", "100.00", "205,000", "16.40"]


def test_a_long_name_is_folded_not_cut() -> None:
    name = "target_part_1_of_4_with_a_name_that_goes_on_and_on"
    text = printed(lambda console: report.network(console, [Component(name, "adapter", 1, 1, True)]), width=80)
    assert "…" not in text
    first = "".join(cells[0] for line in text.splitlines() if len(cells := re.split(r"\s*[│┃]\s*", line)[1:-1]) == 7)
    assert name in first


@dataclass(frozen=True)
class Few:
    """Six posts; `odd` is in train only, test has no target at all."""

    labels: tuple[str, ...] = ("good", "odd")

    def load(self) -> Posts:
        names, every = [f"p{i}" for i in range(6)], np.ones(6, bool)
        marks = np.fromiter((np.zeros(1, np.float32) for _ in names), object, 6)
        columns = {
            "target": Column(
                LabelSpace("multilabel", self.labels),
                np.array([[1, 0], [0, 1], [1, 1], [1, 0.2], [0.5, 0], [1, 1]], np.float32),
                np.array([1, 1, 1, 1, 1, 0], bool),
            ),
            "label": Column(LabelSpace("multiclass", self.labels), np.array([0, 1, 0, 0, 0, 0]), every),
            "rationale": Column(LabelSpace("tokens", ("rationale",)), marks, np.array([1, 0, 1, 0, 1, 1], bool)),
            "anger": Column(LabelSpace("score", ("anger",)), np.array([0, 1, 2, 3, 3, 5], np.float32), every),
        }
        return Posts(names, ["word"] * 6, np.array(["train"] * 3 + ["val"] * 2 + ["test"]), columns)


def data(*columns: str, corpus: Few | None = None) -> DataModule:
    head = partial(MultilabelHead, pooling="mean", layers=1, dropout=0.0, threshold=0.5, balance=0.0)
    tasks = {f"my_{c}": Task(corpus=corpus or Few(), column=c, head=head, mask_pattern=None, weight=1.0) for c in columns}
    made = DataModule(tasks, batching=LengthBuckets(batch_size=2, window=1, eval_batch_size=2), seed=0)
    made.tokenize(minilm(), 128)
    return made


def test_annotations_are_counted_and_absent_labels_are_told() -> None:
    text = printed(lambda console: report.annotations(console, data("target", "label", "rationale", "anger")))
    assert row(text, "task and label") == ["task and label", "train", "val", "test"]
    assert row(text, "posts") == ["posts", "3", "2", "1"]
    assert row(text, "tokens") == ["tokens", "9", "6", "3"]  # [CLS] word [SEP]
    assert row(text, "my_target (multilabel)") == ["my_target (multilabel)", "3", "2", "0"]
    assert row(text, "my_label (multiclass)") == ["my_label (multiclass)", "3", "2", "1"]
    counts = [line.split("│")[1:-1] for line in text.splitlines() if "  good" in line or "  odd" in line]
    assert [[cell.strip() for cell in cells] for cells in counts] == [
        *(["good", "2", "2", "0"], ["odd", "2", "0", "0"]),  # of target: a fifth of the annotators is not a half
        *(["good", "2", "2", "1"], ["odd", "1", "0", "0"]),
    ]
    assert row(text, "my_rationale (tokens)") == ["my_rationale (tokens)", "2", "1", "1"]
    assert row(text, "my_anger (score)") == ["my_anger (score)", "3", "2", "1"]
    assert "1.00 ± 0.82" in text and "5.00 ± 0.00" in text  # 0, 1, 2 and the last post's 5
    assert [line for line in text.splitlines() if line.startswith("warning:")] == [
        "warning: my_target: no post of the val split carries odd",
        "warning: my_label: no post of the val split carries odd",
        "warning: my_label: no post of the test split carries odd",
    ]


def test_of_many_labels_the_most_and_the_least_frequent_are_told() -> None:
    labels = tuple(f"label {i}" for i in range(20))
    text = printed(lambda console: report.annotations(console, data("label", corpus=Few(labels))))
    shown = [line.split("│")[1].strip() for line in text.splitlines() if "  label" in line]
    assert shown == ["label 0", "label 19"]
    assert "of 20" in text
    (train,) = [line for line in text.splitlines() if "of the train split" in line]
    assert train.endswith(", ".join(f"label {i}" for i in range(2, 14)) + " and 6 more")


def test_leaks_are_told_as_they_are() -> None:
    text = printed(lambda console: report.annotations(console, data("label"), ["p1 = p2 [red]"]), width=30)
    assert "warning: p1 = p2 [red]" in text


def test_results_leave_out_the_counts_and_nothing_else() -> None:
    values = {"f1": 2 / 3, "tp": 7.0, "fp": 1.0, "fn": 3.0, "score": float("nan")}
    rows = [Row("test", "target", name, "a", value) for name, value in values.items()]
    text = printed(lambda console: report.results(console, rows, "adapters/run: test"))
    assert "adapters/run: test" in text
    assert row(text, "test_target_f1_a") == ["test_target_f1_a", "0.667"]
    assert row(text, "test_target_score_a") == ["test_target_score_a", "nan"]
    assert not re.search(r"_(tp|fp|fn)_", text)


def test_a_label_may_be_named_like_a_count() -> None:
    labels = ("my_fp_label", "my_tp_label", "my_fn_label")
    text = printed(lambda console: report.results(console, [Row("test", "target", "f1", x, 0.5) for x in labels], "run"))
    for label in labels:
        assert row(text, f"test_target_f1_{label}") == [f"test_target_f1_{label}", "0.500"]


def test_brackets_in_names_are_printed() -> None:
    text = printed(lambda console: report.results(console, [Row("test", "[red]", "f1", None, 0.5)], "adapters/run[bold]"))
    assert "adapters/run[bold]" in text
    assert row(text, "test_[red]_f1")
    text = printed(lambda console: report.annotations(console, data("label", corpus=Few(("good", "odd [red]")))))
    assert "carries odd [red]" in text


def test_names_are_shown_and_move_no_terminal() -> None:
    hostile, seen = "od\x1b[2Jd\u202e\nwarning: [red]", r"od\x1b[2Jd\u202e\nwarning: [red]"
    labels = ("хорошо", hostile, "جيد")

    def everything(console: Console) -> None:
        report.network(console, [Component(f"part {hostile}", "adapter", 1, 1, True)])
        report.annotations(console, data("label", corpus=Few(labels[:2])), [hostile])
        report.results(console, [Row("test", "x", "f1", label, 0.5) for label in labels], hostile)
        console.print(f"note: {hostile}", markup=False, highlight=False, soft_wrap=True)

    text = printed(everything, width=300)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
    for name in (f"part {seen}", seen, f"test_x_f1_{seen}", "test_x_f1_جيد", "test_x_f1_хорошо"):
        assert row(text, name)
    assert seen in text.splitlines()  # the title
    for said in (f"carries {seen}", f"warning: {seen}", f"note: {seen}"):
        assert said in text


def test_what_is_printed_is_kept_behind_what_was_there(tmp_path: Path) -> None:
    at, moved = tmp_path / "console.txt", tmp_path / "moved.txt"
    for word in ("first", "second"):
        with open("/dev/null", "w") as nowhere:
            console = Console(file=nowhere, force_terminal=True, width=40)
            console.print(f"[red]{word}[/] \x1b[2J", soft_wrap=True)  # before there is a folder
            console.print(Control.home())
            console.keep(at)
            report.results(console, [Row("test", "x" * 60, "f1", None, 0.5)], word)
            at.rename(moved)
            console.keep(moved)  # as a finished run's folder is
            console.failed(UserError("no room"))
            console.failed(None)
        moved.rename(at)
    lines = at.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("first", "second", "error"))] == [
        *("first \\x1b[2J", "first", "error: no room"),
        *("second \\x1b[2J", "second", "error: no room"),
    ]
    assert sum("pytest" in line or "-c" in line for line in lines) == 2  # the words of the command, once for each
    assert any(f"test_{'x' * 60}_f1" in line for line in lines)  # wider than the terminal
    assert "\x1b" not in at.read_text(encoding="utf-8")


def test_what_is_printed_goes_through_no_link(tmp_path: Path) -> None:
    own = tmp_path / "profile"
    own.write_text("mine\n")
    (tmp_path / "console.txt").symlink_to(own)  # as in an archive that somebody gave away
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere)
        console.keep(tmp_path / "console.txt")
        console.print("$(a command)")
    assert own.read_text() == "mine\n"


def test_where_nobody_reads_any_longer_it_goes_on_and_keeps_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, begin = os.pipe()
    os.close(end)  # as `| head -1` does
    with os.fdopen(begin, "w") as nobody:
        monkeypatch.setattr("sys.stdout", nobody)
        console = Console(file=nobody)
        console.keep(tmp_path / "console.txt")
        for line in "first", "second":
            console.print(line)
        print("of another", file=nobody, flush=True)
    assert (tmp_path / "console.txt").read_text().splitlines()[1:] == ["first", "second"]
