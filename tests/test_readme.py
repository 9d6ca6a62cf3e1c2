"""The commands of README.org and docs/*.org run, or compose, as they stand there; what the pages point at is there."""

import ast
import io
import re
import runpy
import shlex
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from composed import composed
from conftest import ROOT, Outcome
from omegaconf import OmegaConf

PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.org", *sorted((ROOT / "docs").glob("*.org")))}
README = PAGES[ROOT / "README.org"]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LINKING = PAGES | {CONTRIBUTING: CONTRIBUTING.read_text(encoding="utf-8")}
BLOCK = re.compile(r"(?:#\+name: (\w+)\n)?#\+begin_src sh\n(.*?)#\+end_src", flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of every command of a block, as a shell would split them."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def block(name: str) -> list[list[str]]:
    """The commands of README's block of this name."""
    return commands(next(text for label, text in BLOCK.findall(README) if label == name))


PYTHON = re.compile(r"#\+name: (\w+)\n#\+begin_src python\n(.*?)#\+end_src", flags=re.DOTALL)
COMMANDS = [
    (path.name, words) for path, page in PAGES.items() for _, text in BLOCK.findall(page) for words in commands(text)
]


def named(case: object) -> str:
    return " ".join(case)[:60] if isinstance(case, list) else str(case)


@pytest.mark.slow
def test_the_partition_experiment_runs_as_it_stands(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, with ` encoder=tiny corpus@tasks.target.corpus=sample` and few posts appended to the `main.py` lines."""
    monkeypatch.chdir(tmp_path)
    small = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=150"]
    assert len(block("partition")) == 13
    for uv, run, script, *arguments in block("partition"):
        assert (uv, run) == ("uv", "run")
        if script == "main.py":
            outcome = cli(*arguments, *small)
            assert outcome.code == 0, outcome.err
        else:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            monkeypatch.syspath_prepend(str(ROOT / "analysis"))
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            assert not ended.value.code
            table = capsys.readouterr().out
            for row in ("test_target_f1_african", "test_target_f1_women", "test_target_macro_f1", "test_target_micro_f1"):
                assert row in table
    saved = tmp_path / "adapters" / "small" / "lora16"
    names = [*(f"target_part_{i}" for i in range(1, 5)), "target_merge", "target_single"]
    assert sorted(path.name for path in saved.iterdir()) == sorted(names)
    for name in names:
        inside = {path.name for path in (saved / name).iterdir()}
        assert {"config.yaml", "run.json", "adapter", "heads.safetensors", "labels.json", "results.csv"} <= inside
        assert len(pd.read_parquet(saved / name / "predictions.parquet")) == 15


@pytest.mark.slow
def test_ones_own_posts_run_as_they_stand(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ` encoder=tiny` appended to the line that trains; the one that predicts knows it from the saved run."""
    monkeypatch.chdir(tmp_path)
    said = Random(0)
    words = ["soup", "mud", "tea", "song", "road", "lamp", "moss", "kite", "drum", "fern", "rope", "bell", "sand", "plum"]
    days = [(" ".join(said.choices(words, k=9)), said.choice(["sunny", "rainy"])) for _ in range(60)]
    rows = [{"text": f"{day} {text}", "label": day} for text, day in days]
    pd.DataFrame(rows).to_csv("posts.csv", index=False)
    pd.DataFrame({"text": ["what a sunny day", "what a rainy day", "neither"]}).to_csv("new.csv", index=False)
    train, report, predict = block("own")
    for words in ([*train, "encoder=tiny"], predict):
        assert words[:3] == ["uv", "run", "main.py"]
        outcome = cli(*words[3:])
        assert outcome.code == 0, outcome.err
    assert subprocess.run([sys.executable, ROOT / report[2], *report[3:]], check=False).returncode == 0
    assert Path("report.html").stat().st_size > 10_000
    scored = pd.read_csv("new.scored.csv")
    assert list(scored.columns) == ["text", "pred_table", "pred_table_rainy", "pred_table_sunny"]
    assert set(scored["pred_table"]) <= {"rainy", "sunny"}
    assert scored.filter(like="pred_table_").sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("page", "arguments"),
    [(page, words[3:]) for page, words in COMMANDS if words[:3] == ["uv", "run", "main.py"]],
    ids=named,
)
def test_every_command_composes(page: str, arguments: list[str]) -> None:
    overrides = [word for word in arguments if word not in ("-m", "--help", "--cfg", "job")]
    if "-m" in arguments:  # the first of several values
        overrides = [re.sub(r"^([\w.]+=)([^\[,]+),.*$", r"\1\2", word) for word in overrides]
    assert OmegaConf.to_container(composed(*overrides), resolve=True)


@pytest.mark.parametrize(
    ("page", "words"), [case for case in COMMANDS if case[1][:3] != ["uv", "run", "main.py"]], ids=named
)
def test_every_other_command_is_one_that_there_is(page: str, words: list[str]) -> None:
    """A script of ours with options that it has, or variables that it reads; or one of few lines that install and test."""
    given = []
    while re.match(r"[A-Z_]+=", words[0]):
        given.append(words.pop(0).partition("=")[0])
    words = words[2:] if words[:2] == ["uv", "run"] else words
    if words[0] in ("curl", "pytest", "tensorboard") or words[:2] in (["uv", "sync"], ["uv", "build"], ["uvx", "--from"]):
        return
    if page == "architecture.org":  # which tests/test_architecture.py runs
        return
    script = ROOT / words[0]
    assert script.is_file()
    source = script.read_text(encoding="utf-8")
    if script.suffix == ".sh":
        assert all(f"${{{variable}:" in source for variable in given)
        return
    shared = ["results.py", "table.py"] if script.parent.name == "analysis" else ["command_line.py"]
    source += "".join(path.read_text(encoding="utf-8") for path in map(script.with_name, shared) if path.exists())
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in source, f"{words[0]} knows no {word}"


def test_every_option_of_every_group_is_in_the_tables() -> None:
    pages = "\n".join(PAGES.values())
    for path in (ROOT / "conf").glob("*/*.yaml"):
        if path.parent.name not in ("data",):
            assert f"={path.stem}=" in pages or f"experiment={path.stem}" in pages, f"{path} is on no page"


def test_the_front_door_names_the_test_command() -> None:
    assert ["uv", "run", "main.py", "experiment=demo"] in block("start")
    assert ["uv", "run", "pytest"] in block("start")
    assert "uv run pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "uv run main.py experiment=demo" in (ROOT / ".ci" / "run").read_text()


def test_the_promises_are_run_by_the_command_that_their_page_names() -> None:
    page, make = PAGES[ROOT / "docs" / "trust.org"], (ROOT / "Makefile").read_text(encoding="utf-8")
    run = {word for words in re.findall(r"pytest ((?:.*\\\n)*.*)", make) for word in words.split()}
    named = {name for name in re.findall(r"=(tests/[\w/]+(?:\.py)?)=", page) if Path(name).name.startswith("test_")}
    assert len(named) > 20 and "tests/test_dependencies.py" in run
    assert [name for name in named if not {name, *map(str, Path(name).parents)} & run] == []
    counts = [int(cell) for cell in re.findall(r"^\|.*\|\s+(\d+) \| (?:=tests/|the same)", page, flags=re.MULTILINE)]
    assert re.findall(r"That makes ([\d,]+)\.|among the ([\d,]+) above", page) == [
        (f"{sum(counts):,}", ""),
        ("", f"{sum(counts):,}"),
    ]


def test_the_front_door_is_read_in_three_minutes() -> None:
    assert len(README.splitlines()) <= 160


def code(source: str) -> set[int]:
    """The lines that are neither blank nor a comment nor a docstring."""
    bare = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {n for t in tokens if t.string.strip() and t.type != tokenize.COMMENT for n in range(t.start[0], t.end[0] + 1)}
    return found - {n for docstring in bare for n in range(docstring.lineno, (docstring.end_lineno or 0) + 1)}


def test_the_fast_layers_are_as_short_as_their_page_says() -> None:
    assert code('"""Says.\n\nMore."""\n\n# why\nx = [\n    1,  # so\n]\n') == {6, 7, 8}
    lines = sum(len(code(file.read_text(encoding="utf-8"))) for file in (ROOT / "hatemtl/encoders/fast").glob("*.py"))
    (most,) = re.findall(r"=hatemtl/encoders/fast/=, fewer than ([\d,]+) lines of code", PAGES[ROOT / "docs/fast.org"])
    assert most == "1,200" and 600 < lines < 1200


def prose(page: str) -> str:
    """A page without its blocks, in which brackets are no links."""
    return re.sub(r"^#\+begin_.*?^#\+end_\w+", "", page, flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """Every link of a page to a file of ours: the file, and the heading or nothing."""
    found = (
        re.findall(r"\]\(([^)\s]+)\)", LINKING[path])
        if path.suffix == ".md"
        else re.findall(r"\[\[([^]]+)\](?:\[[^]]*\])?\]", prose(LINKING[path]))
    )
    for target in found:
        if not target.startswith(("http://", "https://", "#")):
            file, _, heading = target.removeprefix("file:").partition("::*")
            if file.startswith("*"):
                file, heading = path.name, file[1:]
            yield (path.parent / file).resolve(), heading


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for file, heading in links(path):
        assert file.exists(), f"{path.name} links to {file.relative_to(ROOT)}, which is not there"
        if heading:
            assert re.search(rf"^\*+ {re.escape(heading)}$", LINKING[file], re.MULTILINE), f"{file.name} has no {heading!r}"


def test_every_page_is_found_from_the_front_door() -> None:
    found, new = set(), {ROOT / "README.org"}
    while new:
        found |= new
        new = {file for path in new for file, _ in links(path) if file in LINKING} - found
    assert set(LINKING) <= found


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.name)
def test_every_file_named_is_there(path: Path) -> None:
    """But for those to be made, which have NAME or mine in the place of a name."""
    for name in re.findall(
        r"(?<![\w./~-])(?:hatemtl|conf|tests|scripts|analysis|benchmarks|docs)/[\w./-]*\w/?", LINKING[path]
    ):
        file = Path(name)
        if file.stem in ("NAME", "mine"):
            file = file.parent
        assert (ROOT / file).exists(), f"{path.name} names {name}, which is not there"


@pytest.mark.slow
def test_tasks_written_in_python_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a smaller encoder and one epoch."""
    monkeypatch.chdir(tmp_path)
    moods = [("fine", "good", "soup;mud"), ("poor", "bad", "soup")]
    lines = [f"a {word} post {i},{mood},{topics}\n" for i in range(30) for word, mood, topics in moods]
    Path("posts.csv").write_text("text,mood,topics\n" + "".join(lines))
    (code,) = [text for name, text in PYTHON.findall(PAGES[ROOT / "docs/using.org"]) if name == "in_python"]
    small = code.replace("encoder=minilm", "encoder=tiny").replace("epochs=3", "epochs=1")
    assert small != code
    exec(compile(small, "docs/using.org", "exec"), {})
    assert Path("adapters/mine/heads.safetensors").exists()
