"""The blocks of docs/architecture.org run as they stand there, from a folder of their own."""

import csv
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Outcome
from hydra.core.hydra_config import HydraConfig
from test_floors import FLOORS, PACKAGE

from hatemtl.errors import UserError
from hatemtl.objective.weighting import Step
from hatemtl.saved_runs.saved_run import SavedRun

TEXT = (ROOT / "docs" / "architecture.org").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^#\+name: (\S+)\n#\+begin_src \w+\n(.*?)#\+end_src$", TEXT, flags=re.DOTALL | re.MULTILINE))
MINE = ("my_corpus", "my_weighting", "my_regulariser", "my_merge", "my_evaluation")
FOLDER = {"my_evaluation": "evaluations"}  # of the others, the name itself


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with all blocks, from which Python imports, beside which commands run."""
    folder = tmp_path / "mine"
    for name, block in BLOCKS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def commands(name: str) -> list[list[str]]:
    """What follows main.py on each line of a block."""
    lines = [shlex.split(line) for line in BLOCKS[name].replace("\\\n", "").splitlines()]
    assert all(words[:4] == ["PYTHONPATH=mine", "uv", "run", "main.py"] for words in lines)
    return [words[4:] for words in lines]


def test_every_block_has_a_name_and_stays_small() -> None:
    assert TEXT.count("#+begin_src") == len(BLOCKS)
    for name, block in BLOCKS.items():
        assert len(block.splitlines()) < 40, name
        assert max(map(len, block.splitlines())) <= 125, name
        assert name.endswith(".sh") or block[0] in '"#', f"{name} does not say what it is"
    assert {f"{name}.py" for name in MINE} < BLOCKS.keys()
    assert {f"{FOLDER.get(name, name.removeprefix('my_'))}/{name}.yaml" for name in MINE} < BLOCKS.keys()


def test_every_room_is_told() -> None:
    told = set(re.findall(r"^\| =(\w+)(?:/|\.py)= ", TEXT, flags=re.MULTILINE))
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert told <= set().union(*FLOORS)
    assert not folders - told, "docs/architecture.org has no line for these rooms"


def test_every_file_named_is_there() -> None:
    for name in re.findall(r"=((?:hatemtl|tests|docs)/[\w./]+\.\w+)=|file:([\w./]+)\]", TEXT):
        assert (ROOT / name[0]).is_file() if name[0] else (ROOT / "docs" / name[1]).is_file(), name


def test_the_formulas_are_those_that_they_say(mine: Path) -> None:
    weighting = importlib.import_module("my_weighting").Noise(tasks={"label": 2.0, "target": 1.0}, start=2.0)
    losses = {"label": torch.tensor(3.0), "target": torch.tensor(0.0)}
    present = {"label": torch.tensor(1.0), "target": torch.tensor(0.0)}
    total = weighting(losses, Step(0, present))
    torch.testing.assert_close(total, torch.tensor(2 * 3 / 8) + torch.tensor(5.0).log())
    total.backward()
    assert weighting.noise["label"].grad != 0 and weighting.noise["target"].grad == 0
    merge: Any = importlib.import_module("my_merge").Agreed
    sources = [torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[3.0, -4.0, -1.0]])]
    assert merge(agreement=1.0)(sources, layer="").tolist() == [[2.0, -3.0, 0.0]]
    assert merge(agreement=0.0)(sources, layer="").tolist() == [[2.0, -3.0, 1.0]]
    for wrong in (lambda: merge(agreement=2), lambda: type(weighting)(tasks={}, start=0)):
        with pytest.raises(UserError, match="type "):
            wrong()


@pytest.mark.slow
def test_a_corpus_a_weighting_a_regulariser_a_merge_and_an_evaluation_of_ones_own(
    cli: Callable[..., Outcome], mine: Path
) -> None:
    (mine / "lines").mkdir()
    for label, said in (("kind", "was lovely"), ("rude", "was a snorf")):
        posts = [f"the {thing} of my {who} {said}" for thing in ("soup", "choir", "cake", "film", "hat", "song")
                 for who in ("uncle", "teacher", "barber", "cousin", "boss", "aunt", "friend", "mother")]  # fmt: skip
        (mine / "lines" / f"{label}.txt").write_text("\n".join(posts))
    for words in commands("at_work.sh"):
        small = ["encoder=tiny", *(["optimization.epochs=1"] if "optimization.epochs=0" not in words else [])]
        outcome = cli(*words, *(small if "action=test" not in words else []))
        assert outcome.code == 0, outcome.err
    for seed in (1, 2):
        run = SavedRun(f"adapters/mine_{seed}")
        choices = run.config["choices"]
        assert (choices["corpus@tasks.label.corpus"], choices["weighting"]) == ("my_corpus", "my_weighting")
        assert run.config["regulariser"] == {
            "my_regulariser": {"_target_": "my_regulariser.Steady", "weight": 1.0, "size": 0.1}
        }
        assert run.labels["label"].names == ("kind", "rude")
        with (run.folder / "logs" / "metrics.csv").open() as file:
            figures = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
        assert figures["train_my_regulariser_label"] > 0
        summed = figures["train_label_loss"] + figures["train_my_regulariser_label"]
        assert abs(figures["train_loss"] - summed) > 0.1  # it is no sum
        assert "test_label_macro_f1" in run.results
    merged = SavedRun("adapters/merged")
    assert merged.config["choices"]["merge"] == "my_merge"
    assert set(merged.record["sources"]) == {"adapters/mine_1", "adapters/mine_2"}
    assert "test_label_macro_f1" in merged.results
    assert 0.5 <= merged.results["test_label_confidence"] <= 1


@pytest.mark.slow
def test_a_saved_run_scores_texts(cli: Callable[..., Outcome], mine: Path) -> None:
    small = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150"]
    assert cli(*small, "optimization.epochs=1", "save_path=adapters/demo").code == 0
    said = runpy.run_path(str(mine / "my_predictor.py"))["said"]
    assert [set(one["label"].scores) for one in said] == [{"hatespeech", "normal", "offensive"}] * 2


@pytest.mark.slow
def test_requests_train_twice_in_one_process(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    made = runpy.run_path(str(mine / "my_request.py"), run_name="__main__")
    assert not HydraConfig.initialized()
    assert [result.folder.name for result in made["results"]] == ["seed_1", "seed_2"]
    assert all(SavedRun(result.folder).rows == [*result.rows] for result in made["results"])


def test_forward_in_two_steps_and_at_once(mine: Path) -> None:
    made = runpy.run_path(str(mine / "my_forward.py"))
    hidden, logits = made["hidden"], made["logits"]["label"]
    assert (hidden.ndim, hidden.shape[0], hidden.shape[2], logits.shape) == (3, 8, 64, (8, 3))
    assert made["moved"].shape == hidden.shape and not torch.allclose(made["moved"], hidden)
    torch.testing.assert_close(made["same"]["label"], logits, atol=1e-4, rtol=1e-4)
    assert hidden.requires_grad and not made["same"]["label"].requires_grad
