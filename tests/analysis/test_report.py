"""The page of saved runs: what it says, that it is sound HTML, that names from files do nothing in it, what is refused."""

import base64
import csv
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from saved_loras import QUERY, draw, peft
from tested_runs import classes, listed, save, system

Run = Callable[..., tuple[int, str, str]]
FEW = ("--resamples", "100")
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '</script><script>alert("2")</script>',
    "$\\frac{ --> ' onload=' url(#x href=\"#y",
)
VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, whether they nest, its text, and its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two systems of three seeds, with curves, what they took, and figures over steps."""
    for name, accuracies in (("full", [0.5] * 3), ("lora", [0.9] * 3)):
        system(tmp_path, name, accuracies, posts=60)
        for seed in range(3):
            folder = tmp_path / f"{name}_{seed}"
            record = json.loads((folder / "run.json").read_text())
            more = {"seconds": 90 + seed, "trained_parameters": 1234, "words": ["tasks=[label]", "save_path=x"]}
            (folder / "run.json").write_text(json.dumps(record | more))
            (folder / "logs").mkdir()
            lines = "epoch,step,val_label_macro_f1,train_loss\n0,1,0.4,\n0,1,,1.5\n1,2,0.6,\n1,2,,1.2\n2,3,0.6,\n"
            (folder / "logs" / "metrics.csv").write_text(lines)
            with (folder / "results.csv").open("a") as file:
                for group, auc in (("women", 0.7), ("arab", 0.6 + seed / 10)):
                    row = f"test_label_subgroup_auc_{group}"
                    file.write(f"{row},{auc}\n{row}__low,{auc - 0.1}\n{row}__high,{auc + 0.1}\n{row}__posts,20\n")
    (tmp_path / "lora_0" / "objective.csv").write_text("step,weight_label,weight_b,cosine_label_b\n1,1,2,-0.5\n2,1,2,0.25\n")
    (tmp_path / "full_0" / "objective.csv").write_text("step,weight_label,weight_b\n1,1,1\n2,1,1\n")  # a sum
    return tmp_path


def test_a_page_says_what_was_asked_and_what_came(run: Run, runs: Path) -> None:
    code, out, err = run("full_?", "lora_?", *FEW)
    assert (code, err) == (0, "") and out.startswith("report.html: 7 figures, 0.")
    html = (runs / "report.html").read_text()
    page, text = Page(html), " ".join(" ".join(Page(html).text).split())
    assert "Is lora better than full, the baseline, by test_label_macro_f1 on the test posts of label?" in text
    assert "lora is better than full by ." in text and "hierarchical bootstrap of 3 seeds × 60 posts" in text
    assert text.index("lora is better than full.") < text.index("How it was tested lora is better than full by .")
    assert text.index("lora is better than full by .") < text.index("Systems by their main metrics")
    for title in (
        "Main metrics",
        "F1 of each label, task label",
        "Subgroup AUC by group, task label",
        "val_label_macro_f1 by epoch",
        "Cost against test_label_macro_f1",
        "Task weights and conflicts, lora",
        "Reliability, task label",
    ):
        assert title in text
    assert re.search(r"epoch full lora 1 0.400 0.400 2 0.600 0.600 uv run", text)  # the best once more is no third epoch
    assert "uv run analysis/compare.py 'full_?' 'lora_?' --metric test_label_macro_f1" in text
    assert "uv run analysis/conflicts.py lora_0" in text and "uv run analysis/report.py 'full_?' 'lora_?'" in text
    assert "1,234" in text
    assert all(f"uv run main.py 'tasks=[label]' save_path={name}_0" in text for name in ("full", "lora"))
    assert not (page.all("img") or page.all("link") or page.all("iframe")) and "Warning" not in text


def test_curves_of_a_resumed_run_go_on_to_its_last_epoch(run: Run, runs: Path) -> None:
    """Epoch 2 was trained a second time, and the tenth and the second resumption come in the order of their numbers."""
    for number, epoch, score in ((1, 1, 0.7), (2, 2, 0.1), (10, 2, 0.8)):
        folder = runs / "full_0" / "logs" / f"resumed_{number}"
        folder.mkdir()
        lines = f"epoch,step,val_label_macro_f1,train_loss\n{epoch},2,{score},\n{epoch},2,,1\n{epoch + 1},3,{score},\n"
        (folder / "metrics.csv").write_text(lines)
    assert run("full_0", *FEW, "--name", "full")[0] == 0
    text = " ".join(" ".join(Page((runs / "report.html").read_text()).text).split())
    assert "epoch full 1 0.400 2 0.700 3 0.800 uv run" in text


def test_a_page_can_be_read_with_a_keyboard_and_aloud_and_runs_no_other_script(run: Run, runs: Path) -> None:
    run("full_?", "lora_?", *FEW)
    html = (runs / "report.html").read_text()
    page = Page(html)
    policy = next(of["content"] for of in page.all("meta") if of.get("http-equiv") == "Content-Security-Policy") or ""
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy
    assert "aria-sort" in script and "prefers-color-scheme: dark" in html and "@media print" in html
    assert page.all("html") == [{"lang": "en"}] and "initial-scale=1" in html
    assert all(of.get("scope") in ("col", "row") for of in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 9 and all(of.get("aria-label") for of in page.all("svg"))
    for of in page.all("svg"):  # no letter is much larger than in another picture
        wide = re.search(r"max-width: min\(36rem, (\d+)px\)", str(of["style"]))
        assert wide and float(wide[1]) / float(str(of["width"]).removesuffix("pt")) == pytest.approx(1.74, rel=0.01)
    boxes = [of for tag, of in page.tags if tag == "div" and of.get("role") == "region"]
    assert len(boxes) == len(page.all("table")) + len(page.all("svg")) and all(of["tabindex"] == "0" for of in boxes)
    ids = [of["id"] for _, of in page.tags if "id" in of]
    assert len(set(ids)) == len(ids)
    uses = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)
    assert uses and {a or b for a, b in uses} <= {*ids}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def hostile(folder: Path) -> None:
    for seed in range(2):
        gold, scores = classes(40, 0.6, np.random.default_rng(seed))
        save(folder / f"a_{seed}", gold, scores, seed=seed, names=HOSTILE, rows={"test_label_accuracy_x": 0.5},
             config={"method": {"name": HOSTILE[0]}}, words=[f"seed={HOSTILE[1]}"])  # fmt: skip


def test_names_from_files_do_nothing(run: Run, tmp_path: Path) -> None:
    hostile(tmp_path)
    with (tmp_path / "posts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([f"p{i}", f"{HOSTILE[i % 3]} {i}"] for i in range(40))])
    code, _, err = run("a_0", "a_1", "--name", HOSTILE[1], HOSTILE[2], *FEW, "--posts", "posts.csv", "--figures", "f")
    assert code == 0, err
    assert all(ElementTree.parse(path) for path in (tmp_path / "f").glob("*.svg"))
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.scripts) == 1 and not page.all("img")
    assert not [name for _, of in page.tags for name in of if name.startswith("on")]
    assert all(any(name in text for text in page.text) for name in HOSTILE)
    assert all(of["href"].startswith("#") for _, of in page.tags if of.get("href"))  # type: ignore[union-attr]


def test_texts_of_posts_are_behind_a_click(run: Run, runs: Path) -> None:
    with (runs / "posts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "words"], *([f"p{i}", f"invented post {i}"] for i in range(60))])
    ask = ("full_?", "lora_?", *FEW)
    assert run(*ask, "--posts", "posts.csv", "--id", "case", "--text", "words")[0] == 0
    html = (runs / "report.html").read_text()
    start = html.index("these are posts and words of the corpus")
    assert html.index("invented post") > html.index('<details class="posts"><summary>', start)
    first, _, second = html[start:].partition('<details class="posts">')[2].partition('<details class="posts">')
    assert 15 <= first.count("invented post") <= 30  # five of each label and side, some of two
    assert 0 < second.count("invented post") <= 30
    code, _, err = run(*ask, "--posts", "posts.csv")
    assert code == 2 and "no column 'id'; type --id with one of case, words" in err


def test_errors_that_a_test_listed_are_shown_with_their_words_shaded(run: Run, runs: Path) -> None:
    listed(runs / "full_0", text=f"{HOSTILE[0]} =1", marked="0 0 1 0", explained="-1 0.5 0 1")
    listed(runs / "lora_0")
    code, _, err = run("full_?", "lora_?", *FEW)
    assert code == 0, err
    html = (runs / "report.html").read_text()
    _, first, second = html.split('<details class="posts">')
    assert "<td>women; arab</td>" in first and "kind given" in first and "kind missed" in first
    assert '<span class="w v4">&lt;img</span> <span class="w w2">src=x</span> <u>onerror' in first
    assert re.search(r"tea</td><td>3 of 4</td><td>1 of 9</td><td>1.250</td><td>2.500", first)
    assert "is not known here" in second and '<td class="long">' not in second and "p2" in second
    assert not Page(html).all("img")


def test_a_garbled_list_of_errors_is_told(run: Run, runs: Path) -> None:
    (runs / "full_0" / "errors.csv").write_text("post_id,score\np1,x\n")
    code, _, err = run("full_?", *FEW)
    assert code == 2 and "full_0/errors.csv cannot be read" in err and "evaluations=[errors]" in err


@pytest.mark.slow
def test_figures_are_written_as_files(run: Run, runs: Path) -> None:
    assert run("lora_?", *FEW, "--figures", "figures")[0] == 0
    names = {path.name for path in (runs / "figures").iterdir()}
    keys = {"main", "labels-label", "groups-label-subgroup_auc", "learning-test_label_macro_f1",
            "cost-test_label_macro_f1", "conflicts-0", "reliability-label-0"}  # fmt: skip
    assert names == {f"{key}.{format}" for key in keys for format in ("svg", "pdf", "png")}
    assert (runs / "figures" / "main.pdf").read_bytes().startswith(b"%PDF")
    assert "There is one system, of 3 seeds, so nothing is compared." in (runs / "report.html").read_text()


def test_a_merge_is_set_against_its_parts(run: Run, tmp_path: Path) -> None:
    gold = np.random.default_rng(0).random((40, 4)) < 0.5
    scores = np.where(np.random.default_rng(1).random((40, 4)) < 0.2, ~gold, gold) * 0.8 + 0.1

    def counts(labels: list[int]) -> dict[str, float]:
        given, true = scores >= 0.5, gold
        cells = {"tp": given & true, "fp": given & ~true, "fn": ~given & true}
        rows = {f"test_target_{of}_{'wxyz'[i]}": float(cell[:, i].sum()) for of, cell in cells.items() for i in labels}
        f1 = {i: 2 * rows[f"test_target_tp_{'wxyz'[i]}"] for i in labels}
        f1 = {i: top / (top + sum(rows[f"test_target_{of}_{'wxyz'[i]}"] for of in ("fp", "fn"))) for i, top in f1.items()}
        tp, fp, fn = (sum(rows[f"test_target_{of}_{'wxyz'[i]}"] for i in labels) for of in ("tp", "fp", "fn"))
        mean, pooled = sum(f1.values()) / len(f1), 2 * tp / (2 * tp + fp + fn)
        return rows | {f"test_target_f1_{'wxyz'[i]}": of for i, of in f1.items()} | {
            "test_target_macro_f1": mean, "test_target_micro_f1": pooled}  # fmt: skip

    for part, labels in (("1 2", [0, 2]), ("2 2", [1, 3])):
        save(tmp_path / f"part_{part[0]}", gold[:, labels], scores[:, labels], kind="multilabel", task="target",
             names=["wxyz"[i] for i in labels], rows=counts(labels), config={"mask_pattern": part})  # fmt: skip
    sources = {str(tmp_path / f"part_{i}"): "0" * 16 for i in (1, 2)}
    every = [0, 1, 2, 3]
    save(
        tmp_path / "merge", gold, scores, kind="multilabel", task="target", names="wxyz", rows=counts(every), sources=sources
    )
    code, _, err = run("merge", *FEW)
    html = (tmp_path / "report.html").read_text()
    assert code == 0 and "What merge kept of its parts" in html and "analysis/retention.py --merged merge --parts" in html
    assert "note: no interference of merge" in err  # there are no adapters
    assert "Retention by steps" not in html  # of one merge there is no curve
    choices, trained = {"choices": {"merge": "mean"}}, scores.copy()
    scores[:] = np.where(gold, 0.9, 0.1)
    for name, steps in (("untrained", 0), ("trained", 40)):
        save(tmp_path / name, gold, scores, kind="multilabel", task="target", names="wxyz", rows=counts(every),
             sources=sources, steps=steps, config=choices)  # fmt: skip
        scores[:] = trained
    code, _, err = run("untrained", "trained", *FEW)
    html = (tmp_path / "report.html").read_text()
    assert code == 0 and "Retention by steps after merging, task target" in html
    rows = re.findall(r'<th scope="row">(\d+)</th>\s*<td[^>]*>([\d.]+)', html[html.index("Retention by steps") :])
    assert [at for at, _ in rows[:2]] == ["0", "40"] and float(rows[0][1]) > 1 and float(rows[1][1]) == 1
    save(tmp_path / "otherwise", gold, scores * 0.9, kind="multilabel", task="target", names="wxyz", rows=counts(every),
         sources=sources, steps=40, config=choices)  # fmt: skip
    code, _, err = run("untrained", "trained", "otherwise", *FEW)
    html = (tmp_path / "report.html").read_text()
    names = re.search(r"steps</th>(.*?)</tr>", html[html.index("Retention by steps") :])
    assert code == 0 and names and re.findall(">(\\w+)<", names[1]) == ["untrained", "trained", "otherwise"]
    code, _, err = run("part_?", *FEW, "--name", "parts")
    assert code == 0 and all(f'<th scope="row">{label}</th>' in (tmp_path / "report.html").read_text() for label in "wxyz")


def test_the_sources_of_a_merge_bear_the_numbers_of_the_columns(run: Run, tmp_path: Path) -> None:
    sources = [peft(tmp_path / name, {QUERY: draw(2, seed=i)}, alpha=2.0) for i, name in enumerate(("tea", "soup"))]
    gold, scores = classes(20, 0.5, np.random.default_rng(0))
    rows = {"test_label_accuracy": float((scores.argmax(axis=1) == np.ravel(gold)).mean())}
    save(tmp_path / "merge", gold, scores, sources={str(of): "0" * 16 for of in sources}, rows=rows)
    code, _, err = run("merge", *FEW)
    assert code == 0, err
    html = (tmp_path / "report.html").read_text()
    assert "Interference in merge" in html and re.search(r">1\s+tea<", html) and re.search(r">2\s+soup<", html)


@pytest.mark.slow
def test_thirty_runs_make_a_small_page(run: Run, tmp_path: Path) -> None:
    for k in range(10):
        system(tmp_path, f"s{k}", [0.5 + k / 30] * 3, posts=60)
        groups, words = [f"group {i % 22 // 2}" for i in range(220)], 60
        weights = {"marked": "1 " * (words - 1) + "1", "explained": "0.5 " * (words - 1) + "1"}
        listed(tmp_path / f"s{k}_0", groups, text=" ".join(["word"] * words), **weights)
    code, _, err = run(*(f"s{k}_?" for k in range(10)), "--letters", *FEW)
    assert code == 0, err
    html = (tmp_path / "report.html").read_text()
    assert len(html.encode()) < 1_000_000 and 100 < html.count('<td class="long">') <= 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no runs given; expected run folders or quoted globs of seeds"),
        (["nothing_?"], "matches nothing"),
        (["begun"], "begun: the run is not finished; train it to its end"),
        (["beg*"], "which has save_path=begun"),
        (["full_?", ".begun.unfinished"], ".begun.unfinished: the run is not finished"),
        (
            ["full_?", "other"],
            "full_0 was tested on label and other on target; a report is of runs of a task that all share",
        ),
        (["full_?", "untested"], "untested: no test rows of any task; test it: uv run main.py"),
        (["full_?", "--output", "folder"], "--output folder: is a folder; expected a file, as folder/report.html"),
        (["full_?", "--output", "report.pdf"], "expected a name that ends in .html"),
        (["full_?", "--figures", "full_0/run.json"], "is a file; expected a folder"),
        (["full_?", "lora_?", "--metric", "test_label_makro_f1"], "did you mean test_label_macro_f1?"),
        (["full_?", "--posts", "none.csv"], "none.csv: No such file or directory; type --posts with the CSV file"),
        (["full_0", "full_0"], "full_0 is given twice: a run is not compared with itself; leave one out"),
        (["full_?", "--resamples", "5"], "100 or more"),
        (["full_?", "--alpha", "5"], "between 0 and 1"),
        (["full_?", "--seed", "-1"], "0 or more"),
        (["full_0", "full_?"], "not compared with itself"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_written(run: Run, runs: Path, arguments: list[str], message: str) -> None:
    gold, scores = classes(20, 0.5, np.random.default_rng(0))
    save(runs / "other", gold, scores, task="target", rows={"test_target_accuracy": 0.5})
    save(runs / "untested", gold, scores, rows={"val_label_accuracy": 0.5})
    for name in ("folder", ".begun.unfinished"):
        (runs / name).mkdir()
    before = set(runs.rglob("*"))
    code, out, err = run(*arguments, *([] if "--resamples" in arguments else FEW))
    assert (code, out) == (2, "") and "report.py: " in err and message in err
    assert set(runs.rglob("*")) == before
