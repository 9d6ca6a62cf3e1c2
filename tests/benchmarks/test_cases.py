"""hatemtl beside the Trainer for encoders and methods of many kinds, with arms that take always as long, and small ones."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cases, encoders, machine
from benchmarks.arms import Build, Measurement, Setting, in_turns, jobs
from benchmarks.cases import ARMS, CASES, HEAD, USUAL, row
from benchmarks.flops import Shape
from benchmarks.ours import Source, composed
from benchmarks.posts import batches
from benchmarks.readings import Reading
from benchmarks.rival_networks import group_as_of_many
from benchmarks.rivals import CHOICES, Recipe, as_found
from benchmarks.throughput import rates
from benchmarks.workers import Worker


class Clockwork:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def measure(self, job: object) -> Reading:
        return Reading(posts=30, seconds=self.seconds, tokens=600, squares=12000, padded=800, peak=1e12)


def measured(**seconds: float) -> list[Measurement]:
    workers: Any = {name: Clockwork(value) for name, value in seconds.items()}
    return in_turns(workers, rounds=2, seed=0, three=False, say=lambda line: None)


@pytest.mark.parametrize("name", CASES)
def test_hatemtl_knows_every_case(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    setting = Setting(
        posts="sample",
        train=8,
        evaluation=8,
        device="cpu",
        encoder=case.encoder,
        folder=tmp_path,
        method=case.method,
    )
    cfg = composed(Source(name="sample", train=80, evaluation=10), ("label",), Build("hatemtl", setting).overrides)
    assert cfg.encoder.source == str(tmp_path)
    assert name == f"{case.encoder},{case.method}"
    assert case.encoder in encoders.ENCODERS


def test_a_row_has_ratios_to_both_trainers_and_shares_of_the_peak() -> None:
    found = rates(measured(trainer_tuned=3.0, trainer_lean=2.0, hatemtl=1.0))
    shape = Shape(layers=6, hidden=384, feed_forward=1536)
    cells = dict(zip(HEAD, row("minilm,full", CASES["minilm,full"], shape, found), strict=False))
    assert cells["training / tuned"] == "3.00 (3.00–3.00)"
    assert cells["evaluation / tuned"] == "3.00 (3.00–3.00)"
    assert cells["/ lean"] == "2.00 (2.00–2.00)"
    assert cells["encoder, method"] == "minilm, full"
    assert len(HEAD) == len(row("minilm,full", CASES["minilm,full"], shape, found))


def test_an_arm_that_was_left_out_leaves_a_gap() -> None:
    cells = row("a,b", CASES["minilm,full"], Shape(layers=1, hidden=8, feed_forward=8), rates(measured(trainer_tuned=1.0)))
    assert cells[:4] == ["a, b", "", "1.6", ""]


def test_one_task_is_measured_where_one_is_asked_for() -> None:
    assert {job.tasks for job in jobs("hatemtl", three=False)} == {job.tasks for job in jobs("trainer", three=False)}
    assert len(jobs("hatemtl", three=False)) == 2


def test_switches_are_taken_over_as_they_were_found() -> None:
    assert USUAL.keys() == CHOICES.keys()
    found = as_found(Recipe(encoder=""), USUAL)
    assert (found.attention, found.in_memory, found.workers, found.eval_batch) == ("eager", True, 0, 32)
    with pytest.raises(StopIteration):
        as_found(Recipe(encoder=""), {**USUAL, "attention": "another"})


def test_few_posts_are_batches_of_like_lengths_of_all_lengths() -> None:
    sizes = np.random.default_rng(0).integers(10, 200, 3200)
    found = batches(np.arange(5, 3205), sizes, 96, seed=0)
    assert len(found) == len({*found}) == 96
    assert (np.diff(found) > 0).all()
    by_size = np.sort(sizes[found - 5]).reshape(3, 32)
    assert (np.ptp(by_size, axis=1) <= 8).all()  # of 190, of which a fiftieth is 4
    assert by_size[0].max() < 60 < by_size[1].min() < by_size[1].max() < 150 < by_size[2].min()
    assert np.array_equal(batches(np.arange(7), sizes[:7], 96, seed=0), np.arange(7))
    assert not np.array_equal(batches(np.arange(5, 3205), sizes, 96, seed=1), found)


def test_the_trainer_groups_few_posts_as_it_does_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer_pt_utils

    monkeypatch.setattr(trainer_pt_utils, "get_length_grouped_indices", trainer_pt_utils.get_length_grouped_indices)
    lengths = np.random.default_rng(0).permutation(96).tolist()
    for twice in range(2):
        group_as_of_many()
        drawn = trainer_pt_utils.LengthGroupedSampler(32, lengths=lengths)
        found = np.array(lengths)[[*drawn]].reshape(3, 32)
        assert (np.ptp(found, axis=1) == 31).all(), twice


class Clocked:
    """An arm that says what its process measures seconds by."""

    def __call__(self) -> "Clocked":
        return self

    def warm_up(self) -> dict[str, str]:
        return {"clock": machine.clock.__name__}


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("own_time", [True, False])
def test_a_worker_measures_by_the_clock_or_by_its_own_time(own_time: bool) -> None:
    worker = Worker("clocked", Clocked(), threads=1, own_time=own_time)  # type: ignore[arg-type]
    worker.close()
    assert worker.notes == {"clock": (time.process_time if own_time else time.perf_counter).__name__}


@pytest.mark.slow  # three processes with libraries in, twice
@pytest.mark.parametrize("name", ["bert_base,ah_lora16"])  # the others go the same way
def test_small_cases_are_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    kind, sizes = encoders.SIZES["bert_base"]
    monkeypatch.setitem(encoders.SIZES, "bert_base", (kind, {**sizes, **small}))
    monkeypatch.setattr("sys.argv", ["cases.py", "--quick", "--own-time", "--cases", name, "--out", str(tmp_path)])
    cases.main()
    line = next(line for line in (tmp_path / "cases.org").read_text().splitlines() if line.startswith("| " + name[:4]))
    ratios = [cell.strip() for cell in line.split("|")[1:-1]]
    assert len(ratios) == len(HEAD)
    assert all(ratios), "some arm was left out"
    encoder, method = name.split(",")
    rows = (tmp_path / f"cases_{encoder}_{method}.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(ARMS)
