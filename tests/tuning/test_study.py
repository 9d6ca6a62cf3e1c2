"""A study has as many trials as were asked for, whoever asks and however often it is broken off."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from searches import tuning

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import write_config
from hatemtl.training.launch.base import Ended, Run
from hatemtl.training.sweep import Planned
from hatemtl.tuning import outcome
from hatemtl.tuning.search import Asker, Place
from hatemtl.tuning.study import Study

MARK = {"run": "0"}
GRID = {"sampler": "grid", "trials": None, "space": {"a": [1, 2, 3], "b": ["x", "y", "z"]}}
RANGE = {"sampler": "random", "space": {"a": "uniform(0, 1)"}}


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal waits for the disk at each line; no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def study(folder: Path, *, by: dict[str, bool] | None = None, mark: dict[str, str] = MARK, **given: Any) -> Study:
    return Study(folder, tuning(**given), by or {"f1": False}, mark, seed=0)


def asked(one: Study) -> Iterator[Any]:
    while (trial := one.ask()) is not None:
        yield trial


def test_a_grid_has_its_points_and_no_more_whoever_asks(tmp_path: Path) -> None:
    one, other = study(tmp_path, **GRID), study(tmp_path, **GRID)
    found = []
    for trial in asked(one):
        found.append(trial.params)
        one.tell(trial, [[0.5]], of=1)
        if (also := other.ask()) is not None:
            found.append(also.params)
            other.fail(also, "it diverged", diverged=True)
    assert len(found) == len({repr(params) for params in found}) == len(one.trials()) == 9
    assert other.ask() is None


def test_what_an_ended_process_left_is_asked_again_and_no_one_elses(tmp_path: Path) -> None:
    killed = study(tmp_path, **GRID)
    left = killed.ask()
    assert left is not None
    alive = study(tmp_path, **GRID)
    mine = alive.ask()
    assert mine is not None and mine.params != left.params
    killed.alive.release()  # as the system does for a process that ends
    again = alive.ask()
    assert again is not None and (again.number, again.params) == (left.number, left.params)
    assert len(alive.trials()) == 2


@pytest.mark.parametrize("given", [GRID, {**RANGE, "trials": 9}], ids=["grid", "random"])
def test_what_failed_and_did_not_diverge_is_made_up_for_by_who_goes_on(tmp_path: Path, given: dict[str, Any]) -> None:
    """By the same point of a grid, and by another draw."""
    one = study(tmp_path, **given)
    for trial in asked(one):
        if trial.number in (2, 5):
            one.fail(trial, "no space left on device", diverged=trial.number == 5)
        else:
            one.tell(trial, [[0.5]], of=1)
    assert len(one.trials()) == 9
    one.close()
    [again] = made_up = [*asked(other := study(tmp_path, **given))]
    assert again.number == 9 and len(other.trials()) == 10
    lost = other.trials()[2].params
    assert (again.params == lost) is (given is GRID)
    other.tell(made_up[0], [[0.5]], of=1)
    assert other.ask() is None


def test_who_goes_on_draws_what_would_have_been_drawn(tmp_path: Path) -> None:
    def drawn(folder: Path, *, broken_off: bool) -> list[float]:
        folder.mkdir()
        one, values = study(folder, **RANGE), []
        for _ in range(4):
            trial = one.ask()
            assert trial is not None
            values.append(trial.params["a"])
            one.tell(trial, [[0.5]], of=1)
            if broken_off:
                one.close()
                one = study(folder, **RANGE)
        assert one.ask() is None
        return values

    whole = drawn(tmp_path / "a", broken_off=False)
    assert whole == drawn(tmp_path / "b", broken_off=True)
    assert len({*whole}) == 4  # it is not the same point again


@pytest.mark.parametrize("sampler", ["tpe", "cma", "nsga2"])
def test_each_sampler_asks(tmp_path: Path, sampler: str) -> None:
    one = study(tmp_path, sampler=sampler, space={"a": "uniform(0, 1)", "b": "int(1, 3)"}, trials=5)
    for trial in asked(one):
        one.tell(trial, [[trial.params["a"]]], of=1)
    assert len(one.trials()) == 5
    assert one.best()[0].values == [max(trial.params["a"] for trial in one.trials())]


class Runs:
    """A pickle that makes a folder where it is read."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.at),)


@pytest.mark.parametrize("kept", ["code", "a list", "no pickle"])
def test_a_journal_from_elsewhere_runs_nothing(tmp_path: Path, kept: str) -> None:
    """Optuna keeps the state of CMA-ES as a pickle, and would read whatever stands there."""
    given: dict[str, Any] = {"sampler": "cma", "space": {"a": "uniform(0, 1)", "b": "uniform(0, 1)"}, "trials": 30}
    one = study(tmp_path, **given)
    for trial, _ in zip(asked(one), range(12), strict=False):
        one.tell(trial, [[trial.params["a"]]], of=1)
    keys = [key for of in one.trials() for key in of.system_attrs if "optimizer" in key]
    assert keys  # a state of ours was kept, and read
    hostile = {"code": pickle.dumps(Runs(tmp_path / "ran")).hex(), "a list": pickle.dumps([1]).hex(), "no pickle": "xyz"}
    left = one.trials()[-1]._trial_id
    one.study._storage.set_trial_system_attr(left, keys[0], hostile[kept])
    one.tell(optuna.trial.Trial(one.study, left), [[0.5]], of=1)
    with pytest.raises(UserError, match=r"trial \d+ of journal.log holds no state of a search") as error:
        one.ask()
    assert ("mkdir" in str(error.value)) is (kept == "code")
    assert not (tmp_path / "ran").exists()


def test_a_journal_from_elsewhere_removes_nothing(tmp_path: Path) -> None:
    """A trial names the lock of the process that took it, which goes once that has ended."""
    (folder := tmp_path / "study").mkdir()
    other = study(folder, **GRID)
    trial = other.ask()
    assert trial is not None
    for theirs in (tmp_path / "mine.txt", folder / "trials.csv"):
        theirs.write_text("precious")
        trial.set_user_attr("searcher", os.path.relpath(theirs, folder))
        again = study(folder, **GRID).ask()
        assert again is not None and again.number == trial.number
        assert theirs.read_text() == "precious"


@pytest.mark.parametrize(
    ("pruner", "seeds"), [("median", 2), ("median", 9), ("hyperband", 2), ("hyperband", 9), ("wilcoxon", 5), ("wilcoxon", 9)]
)
def test_what_is_worse_with_every_seed_does_not_have_them_all(tmp_path: Path, pruner: str, seeds: int) -> None:
    """With the fewest seeds that each pruner takes, too."""
    one = study(tmp_path, space={"a": "uniform(0, 1)"}, trials=12, seeds=[*range(seeds)], pruner=pruner)
    seeds_of = []
    for trial in asked(one):
        values: list[list[float]] = []
        over = False
        while not over:
            values.append([1 - trial.number / 20 + len(values) / 1000])
            over = one.tell(trial, values, of=seeds)
        seeds_of.append(len(values))
    assert seeds_of[0] == seeds
    assert min(seeds_of[5:]) < seeds
    assert one.best()[0].number == 0


@pytest.mark.parametrize("pruner", ["median", "wilcoxon"])
def test_what_was_found_on_disk_is_compared_as_what_was_told(tmp_path: Path, pruner: str) -> None:
    values = [[0.1], [0.9], [0.8]]
    one = study(tmp_path, space={"a": "uniform(0, 1)"}, trials=12, seeds=[*range(3)], pruner=pruner)
    trial = one.ask()
    assert trial is not None
    for seeds in range(1, 4):
        assert one.tell(trial, values[:seeds], of=3) is (seeds == 3)
    one.add(trial.params, values)
    told, added = one.trials()
    assert told.intermediate_values == added.intermediate_values and [*told.intermediate_values] == [1, 2, 3]


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    one = study(tmp_path, by={"f1": False, "seconds": True}, **{**GRID, "space": {"a": [1, 2, 3]}})
    worth = {1: [0.5, 10.0], 2: [0.7, 20.0], 3: [0.6, 30.0]}
    for trial in asked(one):
        one.tell(trial, [worth[trial.params["a"]]], of=1)
    assert [best.params["a"] for best in one.best()] == [2, 1]
    rows = outcome.rows_of(one, ["f1", "seconds"])
    assert [(row["a"], row["f1"]) for row in rows] == [(2, 0.7), (3, 0.6), (1, 0.5)]


@pytest.mark.slow
def test_pictures(tmp_path: Path) -> None:
    one = study(tmp_path, by={"f1": False, "seconds": True}, space={"a": "uniform(0, 1)", "b": [1, 2]}, trials=12)
    for trial in asked(one):
        one.tell(trial, [[trial.params["a"], trial.params["b"] * 2.0]], of=1)
    assert outcome.draw(one, ["f1", "seconds"]) == []
    names = {f"{kind}_{of}.svg" for kind in ("history", "importance", "slices") for of in ("f1", "seconds")}
    assert names | {"pareto.svg"} == {path.name for path in tmp_path.glob("*.svg")}
    alike = study(tmp_path / "alike", space={"a": [1, 2], "b": [1, 2]}, trials=2)
    for trial in asked(alike):
        alike.tell(trial, [[0.5]], of=1)
    assert "importances will be equal" in "".join(outcome.draw(alike, ["f1"]))


def test_another_study_is_left_alone(tmp_path: Path) -> None:
    study(tmp_path, **GRID).close()
    before = (tmp_path / "journal.log").read_bytes()
    with pytest.raises(UserError, match=r"holds another study \(run: there 0, given 1\)"):
        study(tmp_path, mark={"run": "1"}, **GRID)
    assert (tmp_path / "journal.log").read_bytes() == before
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    optuna.create_study(storage=storage, study_name="theirs")
    with pytest.raises(UserError, match="holds two studies or more"):
        study(tmp_path, **GRID)
    (tmp_path / "theirs").mkdir()
    optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "theirs/journal.log"))), study_name="theirs"
    )
    with pytest.raises(UserError, match="a study of another program"):
        study(tmp_path / "theirs", **GRID)


def test_a_saved_run_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is a saved run"):
        study(tmp_path, **GRID)


def test_a_trial_of_many_places_has_a_name_that_a_folder_may_have(tmp_path: Path) -> None:
    plan: Any = None
    place = Place(tmp_path, plan, seeds=2)
    long = [place.name({f"merge.weights.{i}": 0.1234 + other for i in range(20)}, 1) for other in (0, 1)]
    assert len({*long}) == 2 and max(map(len, long)) < 150
    assert place.name({"method.rank": 4, "merge.weights.0": 0.5}, 1) == "rank=4,weights.0=0.5,seed=1"


def test_settings_whose_digest_or_name_is_one_lie_apart(tmp_path: Path) -> None:
    def plan(params: Any, seed: int, path: Path | None) -> Planned:
        return Planned(Run("", (), lambda: pytest.fail("planned alone"), path, {"tasks": {}, "seed": seed, **params}))

    place = Place(tmp_path, plan, seeds=1)
    settings = [{"patience": None}, {"patience": 0}, {"rate": 1.00001}, {"rate": 1.00002}]
    paths = [place.planned(params, 1).save_path for params in settings]
    assert len({*paths}) == 4 and paths == [place.planned(params, 1).save_path for params in settings]
    write_config(tmp_path / "moved", {"tasks": {}, "seed": 1, "patience": 0})
    again = Place(tmp_path, plan, seeds=1)
    assert [again.planned(params, 1).save_path for params in settings] == [paths[0], tmp_path / "moved", *paths[2:]]


def test_a_search_by_the_clock_ends_where_every_trial_fails(tmp_path: Path) -> None:
    def plan(params: Any, seed: int, path: Path | None) -> Planned:
        run = Run(path.name if path else "", (), lambda: pytest.fail("planned alone"), path, {"tasks": {}, **params})
        return Planned(run)

    one = study(tmp_path, **{**RANGE, "trials": None, "minutes": 60})
    asker = Asker(one, one.tuning, {"f1": False}, Place(tmp_path, plan, seeds=1), [1])
    for begun, run in enumerate(asker, 1):
        asker.told(run, Ended("failed", "the disk is full", diverged=begun == 3))  # a rate that is too high is no such thing
        assert begun < 50
    assert begun == 3 + 10


def test_luck_is_what_the_best_of_n_has_by_itself() -> None:
    said = outcome.remark("f1", [0.5, 0.6, 0.7], 0.7, [0.1], [0.55, 0.65], seeds=4)
    assert "seeds alone make runs vary by 0.0866 (sd)" in said[1]  # √((0.1² + 0.0707²)/2)
    assert "would lie 0.0376 from their mean; the best lies 0.1000 from it" in said[1]  # Blom: 0.8694 · 0.0866 / 2
    assert "it has 0.6000: of what it had, +0.1000 came with the choice" in said[2]
    assert "type tune.again=3" in outcome.remark("f1", [0.5, 0.6], 0.6, [], [], seeds=1)[1]


def test_an_experiment_holds_options_and_values() -> None:
    words = ["encoder=tiny", "tasks=[label,target]", "corpus@tasks.label.corpus=sample", "optimization.encoder_lr=1e-05",
             "method.rank=8", "experiment=demo", 'tasks.target.mask_pattern="1 4"',
             "optimization.stages=[{learns:heads,steps:3},{epochs:1.5}]"]  # fmt: skip
    text = outcome.as_experiment(words, lambda key: key in ("encoder", "tasks") or "@" in key, "best")
    assert text.splitlines()[:2] == ["# @package _global_", "# best"]
    assert text.splitlines()[2:] == [
        *("defaults:", "- demo", "- override /encoder: tiny", "- override /tasks:", "  - label", "  - target"),
        *("- override /corpus@tasks.label.corpus: sample", "optimization:", "  encoder_lr: 1.0e-05"),
        *("  stages:", "  - learns: heads", "    steps: 3", "  - epochs: 1.5"),
        *("method:", "  rank: 8", "tasks:", "  target:", "    mask_pattern: 1 4"),
    ]
