"""The interference of saved LoRAs: what is printed, what is written, and what is refused."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from loras import LoRA
from overlap import compare, take_apart
from saved_loras import QUERY, VALUE, adapter_hub, draw, peft

Run = Callable[..., tuple[int, str, str]]


def tables(out: str) -> list[dict[str, list[float | None]]]:
    """The tables of `--format csv`: a row's values by its name."""
    found = []
    for text in out.strip().split("\n\n"):
        _, *rows = csv.reader(text.splitlines())
        found.append({name: [float(value) if value else None for value in values] for name, *values in rows})
    return found


def written(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def one_entry(row: int, column: int) -> tuple[Any, Any]:
    """An update that moves one entry, by 1."""
    return np.eye(8, dtype="f4")[[column]], np.eye(12, dtype="f4")[:, [row]]


def test_orthogonal_equal_and_opposite_sources(run: Run, tmp_path: Path) -> None:
    some = draw(2)
    adapter_hub(tmp_path / "a", {QUERY: some}, alpha=2)
    peft(tmp_path / "b", {QUERY: some}, alpha=2)
    adapter_hub(tmp_path / "c", {QUERY: some}, alpha=-6)
    code, out, err = run("a", "b", "c", "--format", "csv")
    assert (code, err) == (0, "")
    pairs, mean = tables(out)
    norm = float(np.linalg.norm(some[1].astype(float) @ some[0].astype(float)))
    assert pairs["a - b"] == pytest.approx([1, 0, 0, 0, 0, norm, norm], abs=1e-5)
    assert pairs["a - c"] == pytest.approx([-1, 0, 0, 1, 1, norm, 3 * norm], abs=1e-5)
    assert pairs["b - c"] == pytest.approx(pairs["a - c"])
    # (1 + 1 - 3)² / 3² of the mean of 1, 1 and 9
    assert mean["energy left in the mean"] == pytest.approx([1 / 33] * 3)

    _, out, _ = run("a", "b", "--format", "csv")
    _, mean = tables(out)
    assert mean["energy left in the mean"] == pytest.approx([1, 1, 1])
    assert mean["of it lost at rank 16"] == [0, 0, 0]

    adapter_hub(tmp_path / "d", {QUERY: one_entry(0, 0)}, alpha=1)
    adapter_hub(tmp_path / "e", {QUERY: one_entry(5, 1)}, alpha=3)
    pairs, mean = tables(run("d", "e", "--format", "csv", "--rank", "1")[1])
    assert pairs["d - e"] == pytest.approx([0, 90, 90, None, None, 1, 3])
    assert mean["energy left in the mean"][0] == pytest.approx(1 / 2)
    assert mean["of it lost at rank 1"][0] == pytest.approx(1 / 10)


def test_layers_count_by_their_norms(run: Run, tmp_path: Path) -> None:
    """A layer of norm 3 on which they agree, and one of norm 1 on which they are opposed: (9 - 1) / 10."""
    agreed, opposed = one_entry(0, 0), one_entry(1, 1)
    adapter_hub(tmp_path / "a", {QUERY: (agreed[0], 3 * agreed[1]), VALUE: opposed}, alpha=1)
    adapter_hub(tmp_path / "b", {QUERY: (agreed[0], 3 * agreed[1]), VALUE: (opposed[0], -opposed[1])}, alpha=1)
    pairs, mean = tables(run("a", "b", "--format", "csv")[1])
    assert pairs["a - b"] == pytest.approx([0.8, 0, 0, 0.1, 0.1, 10**0.5, 10**0.5], abs=1e-6)
    assert mean["energy left in the mean"] == pytest.approx([0.9, 0, 1])


def test_a_layer_of_one_source_alone(run: Run, tmp_path: Path) -> None:
    """It makes the whole updates less alike, and has no angles."""
    same = one_entry(0, 0)
    adapter_hub(tmp_path / "a", {QUERY: same}, alpha=1)
    adapter_hub(tmp_path / "b", {QUERY: same, VALUE: same}, alpha=1)
    pairs, mean = tables(run("a", "b", "--format", "csv", "--output", "out")[1])
    assert pairs["a - b"] == pytest.approx([2**-0.5, 0, 0, 0, 0, 1, 2**0.5])
    assert mean["energy left in the mean"] == pytest.approx([(1 + 1 / 4) / (1 + 1 / 2), 1 / 2, 1])
    value = written(tmp_path / "out" / "pairs.csv")[1]
    assert (value["layer"], value["cosine"], value["norm_first"]) == (VALUE, "", "0.0")
    assert [row["sources"] for row in written(tmp_path / "out" / "layers.csv")] == ["2", "1"]


@pytest.fixture
def three(tmp_path: Path) -> dict[str, dict[str, LoRA]]:
    """Sources of three ranks and both libraries, one without a layer; their updates."""
    layers = {"part_1": {QUERY: draw(2), VALUE: draw(2, seed=1)}, "part_2": {QUERY: draw(3, seed=2)}}
    layers["part_3"] = {VALUE: draw(5, seed=3), QUERY: draw(5, seed=4)}
    adapter_hub(tmp_path / "part_1", layers["part_1"], alpha=2)
    adapter_hub(tmp_path / "part_2", layers["part_2"], alpha=3)
    peft(tmp_path / "part_3", layers["part_3"], alpha=5)
    return {
        name: {layer: LoRA(A.astype(float), B.astype(float)) for layer, (A, B) in of.items()} for name, of in layers.items()
    }


def test_the_csvs_hold_a_row_a_layer_and_pair(run: Run, tmp_path: Path, three: dict[str, dict[str, LoRA]]) -> None:
    assert run("part_*", "--rank", "3", "--output", "new/folder")[0] == 0
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == [
        "interference.png",
        "layers.csv",
        "pairs.csv",
    ]
    rows = written(tmp_path / "new/folder/pairs.csv")
    keys = [(row["layer"], row["first"], row["second"]) for row in rows]
    names = [("part_1", "part_2"), ("part_1", "part_3"), ("part_2", "part_3")]
    assert keys == [(layer, *pair) for layer in (QUERY, VALUE) for pair in names]
    for row in rows:
        a, b = (three[row[side]].get(row["layer"]) for side in ("first", "second"))
        if a is None or b is None:
            assert row["cosine"] == row["row_angle_mean"] == row["conflicts"] == ""
            continue
        expected = compare("", "", "", take_apart(a), take_apart(b))
        assert float(row["cosine"]) == pytest.approx(expected.cosine)
        assert float(row["column_angle_smallest"]) == pytest.approx(expected.columns.smallest)
        assert float(row["row_angle_largest"]) == pytest.approx(expected.rows.largest)
        assert float(row["conflicts"]) == pytest.approx(expected.conflicts)
        assert float(row["conflicts_by_magnitude"]) == pytest.approx(expected.conflicts_by_magnitude)
        assert int(row["rank_second"]) == b.A.shape[0]
    for row in written(tmp_path / "new/folder/layers.csv"):
        deltas = [of[row["layer"]].dense() for of in three.values() if row["layer"] in of]
        energy = sum(float((delta**2).sum()) for delta in deltas) / 3
        S = np.linalg.svd(sum(deltas) / 3, compute_uv=False) ** 2
        assert float(row["energy"]) == pytest.approx(energy)
        assert float(row["left_in_mean"]) == pytest.approx(S.sum() / energy)
        assert int(row["rank_of_mean"]) == min(8, 10 if len(deltas) == 3 else 7)
        for rank in (1, 2, 3, 4):
            assert float(row[f"lost_at_rank_{rank}"]) == pytest.approx(S[rank:].sum() / S.sum())


def test_names_that_a_spreadsheet_would_compute_are_guarded(run: Run, tmp_path: Path, three: object) -> None:
    (tmp_path / "part_1").rename(tmp_path / "=part_1")
    assert run("=part_1", "part_2", "--output", "out")[0] == 0
    rows = written(tmp_path / "out" / "pairs.csv")
    assert {row["first"] for row in rows} == {"'=part_1"}


def test_the_heat_map_shows_sources_and_layers(run: Run, tmp_path: Path, three: object) -> None:
    run("part_*", "--output", "out")
    image = matplotlib.image.imread(tmp_path / "out" / "interference.png")
    red = plt.get_cmap("RdBu_r")(1.0)[:3]
    assert (abs(image[..., :3] - red) < 0.01).all(axis=-1).any()  # a source and itself
    assert (abs(image[..., :3] - 225 / 255) < 0.01).all(axis=-1).any()  # the layer that a source lacks


@pytest.mark.parametrize("format", ["org", "markdown", "latex"])
def test_the_tables_of_a_paper(run: Run, three: object, format: str) -> None:
    code, out, _ = run("part_*", "--format", format)
    assert code == 0
    first, second = out.strip().split("\n\n")
    assert "cosine" in first
    assert "lost at rank 16" in second


def test_the_order_of_the_sources_does_not_matter(run: Run, three: object) -> None:
    pairs, mean = tables(run("part_1", "part_3", "--format", "csv")[1])
    back, same = tables(run("part_3", "part_1", "--format", "csv")[1])
    [(*there, first, second)], [(*again, other_first, other_second)] = pairs.values(), back.values()
    assert there == pytest.approx(again)
    assert (first, second) == pytest.approx((other_second, other_first))
    assert {name: pytest.approx(values) for name, values in mean.items()} == same


def test_layers_are_in_the_order_of_the_encoder(run: Run, tmp_path: Path) -> None:
    layers = {f"encoder.layer.{i}.output.dense": draw(1, seed=i) for i in range(12)}
    for name in ("a", "b"):
        adapter_hub(tmp_path / name, layers, alpha=1)
    run("a", "b", "--output", "out")
    assert [row["layer"] for row in written(tmp_path / "out" / "layers.csv")] == list(layers)


def test_an_untrained_source_has_no_cosine(run: Run, tmp_path: Path) -> None:
    A, B = draw(2)
    adapter_hub(tmp_path / "a", {QUERY: (A, 0 * B)}, alpha=1)
    adapter_hub(tmp_path / "b", {QUERY: (A, 0 * B)}, alpha=1)
    code, out, _ = run("a", "b", "--format", "csv", "--output", "out")
    pairs, mean = tables(out)
    assert code == 0
    assert pairs["a - b"] == [None, None, None, None, None, 0, 0]
    assert mean["energy left in the mean"] == [None, None, None]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none_*"], "'none_*' matches nothing"),
        (["part_1"], "part_1 alone"),
        (["part_*", "--rank", "0"], "--rank 0: expected a whole number from 1"),
        (["part_*", "--output", "part_1/run.json"], "run.json"),
    ],
)
def test_what_is_refused(run: Run, three: object, arguments: list[str], told: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("interference.py: ")
    assert told in err


def test_a_broken_source_is_told_and_nothing_is_written(run: Run, tmp_path: Path, three: object) -> None:
    weights = tmp_path / "part_2" / "adapter" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, out, err = run("part_*", "--output", "out")
    assert (code, out) == (2, "")
    assert "part_2/adapter/adapter.safetensors cannot be read" in err
    assert not (tmp_path / "out").exists()
