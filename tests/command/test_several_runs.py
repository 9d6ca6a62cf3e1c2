"""A sweep ends only with its last run: what fails is told, what is left runs, and a table says how each ended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Outcome

from hatemtl.command.request import Request, Result
from hatemtl.errors import Diverged, UserError
from hatemtl.saved_runs.saved_run import SavedRun

Cli = Callable[..., Outcome]


def told(outcome: Outcome) -> dict[str, list[str]]:
    """The closing table, by what sets a run apart: its other cells."""
    lines = outcome.out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("runs of this sweep")) :]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    return {run: rest for run, *rest in rows}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # nothing is folded


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the runs that were begun; each ends as its seed says: 1 wrongly, 2 by a bug, 3 by Ctrl-C, else well."""
    seeds: list[int] = []

    def train(request: Request, *, then_test: bool) -> Result:
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


def test_one_run_alone_fails_as_it_did(cli: Cli, tmp_path: Path, trained: list[int]) -> None:
    alone = [word for word in sweep(tmp_path) if word != "-m"]
    wrong = cli(*alone, "seed=1")
    assert (wrong.code, wrong.out) == (2, "")
    assert "error: seed=1: expected" in wrong.err
    with pytest.raises(RuntimeError, match="a bug"):
        cli(*alone, "seed=2")
    fine = cli(*alone, "seed=5")
    assert (fine.code, fine.out) == (0, "")


def test_each_run_has_a_folder_that_says_what_sets_it_apart(cli: Cli, tmp_path: Path, trained: list[int]) -> None:
    rates = "optimization.encoder_lr=0.0003,3e-4,1e-3"
    shared = cli(*sweep(tmp_path, "seed=5,6", rates, f"save_path={tmp_path}/shared"))
    assert trained == [5, 5, 6, 6]  # 0.0003 is 3e-4
    names = [f"seed={seed},encoder_lr={rate}" for seed in (5, 6) for rate in ("3e-4", "1e-3")]
    assert {name: where for name, (_, where) in told(shared).items()} == {n: f"{tmp_path}/shared/{n}" for n in names}
    free = [word for word in sweep(tmp_path, "seed=5,6") if not word.startswith("save_path")]
    places = [next(iter(told(cli(*free, *more)).values()))[1] for more in ([], ["seed=5,6,7"], ["method.rank=4"])]
    assert places[0] == places[1] != places[2]  # a further seed belongs to the same sweep, another rank to another


def test_a_failure_is_kept_until_the_run_ends_well(
    cli: Cli, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sweep(tmp_path, "seed=1,5")
    record = tmp_path / ".1.failed.json"
    cli(*runs)
    assert json.loads(record.read_text())["message"] == "seed=1: expected [another]; type seed=0"
    cli(*runs)
    assert trained == [1, 5, 1, 5]  # the disk may have been full
    monkeypatch.setattr("hatemtl.run.train", lambda request, then_test: diverges())
    cli(*runs)
    monkeypatch.setattr("hatemtl.run.train", lambda request, then_test: Result(request.save_path, {}, 1, 0.0))
    assert [state for state, _ in told(cli(*runs)).values()] == ["failed before", "failed before"]
    assert [state for state, _ in told(cli(*runs, "optimization.epochs=9")).values()] == ["finished", "finished"]
    assert not record.exists()


def diverges() -> Result:
    raise Diverged("the training loss is nan")


def test_a_saved_run_is_no_folder_of_a_sweep(cli: Cli, tmp_path: Path, trained: list[int]) -> None:
    (tmp_path / "config.yaml").touch()
    outcome = cli(*sweep(tmp_path, "seed=5,6", f"save_path={tmp_path}"))
    assert (outcome.code, trained) == (2, [])
    assert "is a saved run itself" in outcome.err
