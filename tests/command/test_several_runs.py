"""A sweep ends only with its last run: what fails is told, what is left runs, and a table says how each ended."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome
from omegaconf import OmegaConf
from tables import told

from hatemtl.command.request import Request, Result
from hatemtl.command.several_runs import Turn, apart
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun, write_config

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # nothing is folded


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the runs that were begun; each ends as its seed says: 1 wrongly, 2 by a bug, 3 by Ctrl-C, else well."""
    seeds: list[int] = []

    def train(request: Request, *, then_test: bool, command: Any) -> Result:
        assert request.save_path is not None
        seeds.append(request.seed)
        ends: dict[int, BaseException] = {
            1: UserError("seed=1: expected [another]; type seed=0\nand a second line"),
            2: RuntimeError("a bug"),
            3: KeyboardInterrupt(),
        }
        if request.seed in ends:
            raise ends[request.seed]
        return Result(request.save_path, {}, 1, 0.0, trained=request.seed != 4)

    monkeypatch.setattr("hatemtl.run.train", train)
    return seeds


def sweep(tmp_path: Path, *overrides: str) -> list[str]:
    return ["-m", "encoder=tiny", f"hydra.sweep.dir={tmp_path}/sweep", f"save_path='{tmp_path}/${{seed}}'", *overrides]


@pytest.mark.slow
def test_what_is_left_of_a_sweep_is_trained_and_what_was_trained_is_not_trained_again(
    cli: Cli, sample: list[str], tmp_path: Path
) -> None:
    ranks = sweep(tmp_path, *sample, "tasks.target.corpus.size=150", f"save_path='{tmp_path}/${{method.rank}}'")
    first = cli(*ranks, "method.rank=0,4,8")
    assert first.code == 1
    assert "error: method.rank=0: expected a whole number" in first.err
    assert "Traceback" not in first.err
    assert [SavedRun(tmp_path / rank).config["method"]["rank"] for rank in "48"] == [4, 8]
    table = told(first)
    assert list(table) == ["rank=0", "rank=4", "rank=8"]
    assert [state for state, _ in table.values()] == ["failed", "finished", "finished"]
    assert table["rank=0"][1].startswith("method.rank=0: expected a whole number")
    assert [where for _, where in table.values()][1:] == [f"{tmp_path}/4", f"{tmp_path}/8"]
    again = cli(*ranks, "method.rank=4,8")
    assert again.code == 0
    assert {state for state, _ in told(again).values()} == {"was finished before"}


@pytest.mark.slow
def test_each_end_is_told_and_only_a_failure_fails_the_sweep(cli: Cli, tmp_path: Path, trained: list[int]) -> None:
    outcome = cli(*sweep(tmp_path, "seed=1,2,4,5"))
    assert trained == [1, 2, 4, 5]
    assert outcome.code == 1
    assert told(outcome) == {
        "seed=1": ["failed", "seed=1: expected [another]; type seed=0"],
        "seed=2": ["failed", "RuntimeError: a bug"],
        "seed=4": ["was finished before", f"{tmp_path}/4"],
        "seed=5": ["finished", f"{tmp_path}/5"],
    }
    assert "error: seed=1: expected [another]; type seed=0\nand a second line" in outcome.err
    assert outcome.err.count("Traceback") == 1  # of the bug alone
    assert 'RuntimeError("a bug")' in outcome.err or "RuntimeError: a bug" in outcome.err
    fine = cli(*sweep(tmp_path, "seed=4,5"))
    assert (fine.code, list(told(fine))) == (0, ["seed=4", "seed=5"])  # a sweep of the same process has a table of its own


@pytest.mark.slow
def test_what_refers_to_nothing_and_what_no_action_takes_fails_its_run_alone(
    cli: Cli, tmp_path: Path, trained: list[int]
) -> None:
    outcome = cli(*sweep(tmp_path, "action=tset,train"))
    assert (outcome.code, trained) == (1, [0])
    assert {run: state for run, (state, _) in told(outcome).items()} == {"action=tset": "failed", "action=train": "finished"}
    nothing = cli(*sweep(tmp_path, "load_path='${nope}'", "seed=5,6"))
    assert (nothing.code, trained) == (1, [0])
    assert [state for state, _ in told(nothing).values()] == ["failed", "failed"]
    assert "Traceback" not in outcome.err + nothing.err


def test_a_sweep_of_which_a_run_cannot_be_composed_is_refused_as_a_whole(
    cli: Cli, tmp_path: Path, trained: list[int]
) -> None:
    outcome = cli(*sweep(tmp_path, "method=full,fulll"))
    assert (outcome.code, outcome.out, trained) == (2, "", [])
    assert "method=fulll: no such option; did you mean 'full'" in outcome.err


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_with_the_table_of_what_it_did(
    capsys: Any, cli: Cli, tmp_path: Path, trained: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        cli(*sweep(tmp_path, "seed=4,3,5"))
    assert trained == [4, 3]
    assert told(Outcome(130, capsys.readouterr().out, "")) == {
        "seed=4": ["was finished before", f"{tmp_path}/4"],
        "seed=3": ["interrupted", "the same command goes on with it"],
        "seed=5": ["not begun", ""],
    }


@pytest.mark.parametrize("before", [None, "0"])
def test_what_a_run_on_a_processor_hides_is_found_by_what_comes_after_its_sweep(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    found: list[str | None] = []

    def train(request: Request, **_: Any) -> Result:
        found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return Result(tmp_path, {}, 1, 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr("hatemtl.run.train", train)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    assert cli(*sweep(tmp_path, "trainer.accelerator=cpu")).code == 0
    assert found == [""] and os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.accelerator=cpu,auto"], "trainer.accelerator=auto,cpu: a process finds the same GPUs, or none, for all"),
        (["launcher=serial,local"], "one launcher starts all runs of a sweep; type one"),
        (["seed=5,6", "trainer.nodes=2"], "-m trainer.nodes=2: a launcher starts each run on one machine"),
        (["seed=5,6", "launcher=slurm", "folds=3"], "folds are several; type folds.fold=1,2,3 as well"),
        (
            ["seed=5,6", "launcher=slurm", "launcher.gpus=2"],
            "launcher.gpus=2 trainer.devices=1: a run has a process",
        ),
    ],
)
def test_what_no_sweep_can_be_done_with_is_refused_before_its_first_run(
    cli: Cli, tmp_path: Path, trained: list[int], words: list[str], said: str
) -> None:
    outcome = cli(*sweep(tmp_path, *words))
    assert (outcome.code, trained) == (2, [])
    assert said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # of Hydra's


def test_a_sweep_is_not_for_the_processes_of_one_run(
    cli: Cli, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = cli(*sweep(tmp_path, "seed=5,6", "trainer.devices=2"))
    assert (outcome.code, trained) == (2, [])
    assert "2 processes were started to train one run, as torchrun does, and -m asks for several" in outcome.err


def test_one_run_alone_fails_as_it_did(cli: Cli, tmp_path: Path, trained: list[int]) -> None:
    alone = [word for word in sweep(tmp_path) if word != "-m"]
    wrong = cli(*alone, "seed=1")
    assert (wrong.code, wrong.out) == (2, "")
    assert "error: seed=1: expected" in wrong.err
    with pytest.raises(RuntimeError, match="a bug"):
        cli(*alone, "seed=2")
    fine = cli(*alone, "seed=5")
    assert (fine.code, fine.out) == (0, "")


def turns(*settings: dict[str, Any], save_path: str | None, **common: Any) -> list[Turn]:
    """Runs as Hydra composed them: what is swept, beside what all have in common."""
    whole = {"tasks": {"label": {}}, "method": {"rank": 8}, "choices": {"method": "full", "encoder": "tiny"}, **common}
    return [
        Turn([f"{k}={v}" for k, v in of.items()], OmegaConf.create({"save_path": save_path}), None, {**whole, **of}, of)
        for of in settings
    ]


def places(runs: list[Turn]) -> list[str | None]:
    return [turn.save_path for turn in apart(runs)]


def test_each_run_has_a_folder_that_says_what_sets_it_apart(tmp_path: Path) -> None:
    grid = [{"rate": rate, "seed": seed} for seed in (5, 6) for rate in (0.0003, 3e-4, 0.001)]
    names = [f"rate={rate},seed={seed}" for seed in (5, 6) for rate in ("3e-4", "1e-3")]
    assert places(turns(*grid, save_path=str(tmp_path))) == [f"{tmp_path}/{name}" for name in names]
    assert turns(*grid, save_path="x")[0].command() == ("rate=0.0003", "seed=5")
    moved = apart(turns(*grid, save_path="x"))[0]
    assert moved.command() == ("rate=0.0003", "seed=5", 'save_path="x/rate=3e-4,seed=5"')
    assert places(turns({"seed": 5}, save_path="x")) == ["x"]  # one alone needs no folder of its own


def test_a_sweep_without_a_folder_has_one_after_what_its_runs_have_in_common() -> None:
    few, more = [{"seed": 1}, {"seed": 2}], [{"seed": 1}, {"seed": 2}, {"seed": 3}]
    first, second, other = (
        places(turns(*few, save_path=None)),
        places(turns(*more, save_path=None)),
        places(turns(*few, save_path=None, method={"rank": 4})),
    )
    assert first == second[:2] and first[0] is not None
    assert re.fullmatch(r"adapters/label-full-tiny-[0-9a-f]{8}/seed=1", first[0])
    assert first != other


def test_a_run_that_stands_there_under_another_name_is_found(tmp_path: Path) -> None:
    runs = apart(turns({"seed": 1}, {"seed": 2}, save_path=str(tmp_path), rate=0.001))
    for turn, name in zip(runs, ("seed=1", ".seed=2.unfinished"), strict=True):
        assert turn.config
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, turn.config)
    grid = [{"rate": rate, "seed": seed} for rate in (0.001, 0.003) for seed in (1, 2)]
    names = ["seed=1", "seed=2", "rate=3e-3,seed=1", "rate=3e-3,seed=2"]
    assert places(turns(*grid, save_path=str(tmp_path))) == [f"{tmp_path}/{name}" for name in names]


def test_null_and_zero_are_two_runs_however_often_their_sweep_is_typed(tmp_path: Path) -> None:
    swept: list[dict[str, Any]] = [{"start": None}, {"start": 0}]
    named = [f"{tmp_path}/start={value}" for value in ("null", "0")]
    for _ in range(2):
        runs = apart(turns(*swept, save_path=str(tmp_path)))
        assert [turn.save_path for turn in runs] == named
        for turn in runs:
            assert turn.config and turn.save_path
            write_config(Path(turn.save_path), turn.config)


def test_a_saved_run_is_no_folder_of_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is a saved run itself"):
        apart(turns({"seed": 1}, {"seed": 2}, save_path=str(tmp_path)))
