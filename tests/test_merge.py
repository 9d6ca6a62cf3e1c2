"""Merging as a user does it: parts trained, put together with their heads, trained on or not, tested, loaded again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from composed import refused
from conftest import Outcome
from safetensors.torch import load_file

from hatemtl.saved_runs.saved_run import SavedRun

Cli = Callable[..., Outcome]
UNTRAINED = ["optimization.epochs=0", "heads.merge=concat"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs them trains two parts of the target task."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def parts(cli: Cli, sample: list[str], trained: Path, tmp_path: Path) -> Path:
    """A folder with the two trained parts, for this test alone."""
    for i in (1, 2):
        options = (f'tasks.target.mask_pattern="{i} 2"', f"save_path={trained}/part_{i}", "method.learning_rate=1e-2")
        if not (trained / f"part_{i}").exists():
            assert cli(*sample, *options).code == 0
        shutil.copytree(trained / f"part_{i}", tmp_path / f"part_{i}")
    return tmp_path


def merge(cli: Cli, sample: list[str], folder: Path, name: str, *options: str) -> Outcome:
    return cli(*sample, *merging(folder, name), *options)


def merging(folder: Path, name: str) -> list[str]:
    sources = f"method.sources='{folder}/part_*'"
    return ["method=ah_merge16", sources, "action=[train,test]", f"save_path={folder}/{name}"]


@pytest.mark.slow
def test_every_merge_runs_from_the_command_line_without_training(cli: Cli, sample: list[str], parts: Path) -> None:
    known = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "merge").glob("*.yaml"))
    assert len(known) > 10
    for how in known:
        fewer = [
            f"merge.{key}"
            for key in ("posts=16", "steps=2")
            if how == "learned" or (how in ("regmean", "fisher") and "posts" in key)
        ]
        ended = merge(cli, sample, parts, how, f"merge={how}", *UNTRAINED, *fewer)
        assert ended.code == 0, f"{how}: {ended.err}"
        run = SavedRun(parts / how)
        assert run.record["seconds"] == 0
        assert run.record["epochs"] == 0
        assert "test_target_macro_f1" in run.results
        lost = pd.read_csv(parts / how / "merge.csv")
        assert ((lost["lost"] >= 0) & (lost["lost"] < 1)).all()
    searched = pd.read_csv(parts / "learned" / "search.csv")
    assert len(searched) == 2
    assert list(searched) == ["weight_1", "weight_2", "loss"]
    assert searched["weight_1"][0] == 0.5
    assert {"weight_1", "weight_2"} <= set(pd.read_csv(parts / "learned" / "merge.csv"))


def test_without_training_the_heads_are_those_of_the_parts(cli: Cli, sample: list[str], parts: Path) -> None:
    assert merge(cli, sample, parts, "merge", *UNTRAINED).code == 0
    merged, labels = load_file(parts / "merge" / "heads.safetensors"), SavedRun(parts / "merge").labels["target"]
    for i in (1, 2):
        part, own = load_file(parts / f"part_{i}" / "heads.safetensors"), SavedRun(parts / f"part_{i}").labels["target"]
        for row, label in enumerate(own.names):
            place = labels.names.index(label)
            assert torch.equal(merged["target.layers.1.weight"][place], part["target.layers.1.weight"][row])
    before = SavedRun(parts / "merge").results
    loaded = ("action=test", "method=ah_load", "heads.load=true", f"load_path={parts}/merge")
    assert cli(*sample, *loaded).code == 0
    assert SavedRun(parts / "merge").results == before


@pytest.mark.slow
def test_heads_first_moves_heads_alone(cli: Cli, sample: list[str], parts: Path) -> None:
    assert merge(cli, sample, parts, "merge", *UNTRAINED).code == 0
    heads = ("optimization.heads_first=1", "optimization.epochs=0")
    assert merge(cli, sample, parts, "heads", "heads.merge=concat", *heads).code == 0
    assert (
        merge(
            cli,
            sample,
            parts,
            "both",
            "heads.merge=concat",
            *heads[:1],
            "optimization.epochs=4",
            "optimization.patience=null",
            "method.learning_rate=1e-2",
        ).code
        == 0
    )
    still, moved = (load_file(parts / name / "adapter" / "adapter.safetensors") for name in ("merge", "heads"))
    assert all(torch.equal(still[key], moved[key.replace(".merge.", ".heads.")]) for key in still)
    weight = "target.layers.1.weight"
    assert not torch.equal(*(load_file(parts / name / "heads.safetensors")[weight] for name in ("merge", "heads")))
    record = SavedRun(parts / "both").record
    assert (record["epochs"], SavedRun(parts / "heads").record["epochs"]) == (5, 1)
    assert 0 < record["share_of_measured_peak"] < 1
    assert record["steps"] == 5 * SavedRun(parts / "heads").record["steps"] > 0


def test_heads_are_refitted_to_the_merged_encoder(cli: Cli, sample: list[str], parts: Path) -> None:
    assert merge(cli, sample, parts, "concat", *UNTRAINED).code == 0
    assert merge(cli, sample, parts, "refit", "optimization.epochs=0", "heads.merge=refit").code == 0
    fresh, joined = (SavedRun(parts / name).results["val_target_macro_f1"] for name in ("refit", "concat"))
    assert fresh >= joined


@pytest.mark.slow
def test_loras_and_full_encoders_are_merged_into_the_weights(cli: Cli, sample: list[str], parts: Path) -> None:
    lossless = ("method.rank=null", "trainer.precision=32")
    assert merge(cli, sample, parts, "lora", *UNTRAINED, *lossless).code == 0
    assert merge(cli, sample, parts, "dense", *UNTRAINED, "method=full_merge", "trainer.precision=32").code == 0
    lora, dense = (pd.read_parquet(parts / name / "predictions.parquet") for name in ("lora", "dense"))
    for a, b in zip(lora["scores"], dense["scores"], strict=True):
        assert abs(a - b).max() < 1e-5
    assert cli(*sample, "action=test", "method=full", "heads.load=true", f"load_path={parts}/dense").code == 0
    folder = parts / "full"
    for i in (1, 2):
        pattern = f'tasks.target.mask_pattern="{i} 2"'
        assert cli(*sample, "method=full", pattern, f"save_path={folder}/part_{i}").code == 0
    assert merge(cli, sample, folder, "mean", *UNTRAINED, "method=full_merge", "merge=ties").code == 0
    assert merge(cli, sample, folder, "wrong", *UNTRAINED).code == 2


@pytest.mark.slow
def test_bottlenecks_are_merged_by_what_posts_tell_of_them(cli: Cli, sample: list[str], tmp_path: Path) -> None:
    for i in (1, 2):
        part = (f'tasks.target.mask_pattern="{i} 2"', f"save_path={tmp_path}/part_{i}", "method.learning_rate=1e-2")
        assert cli(*sample, "method=ah_seq_bn", *part).code == 0
        assert cli(*sample, "method=ah_ia3", *part[:1], f"save_path={tmp_path}/ia3/part_{i}").code == 0
    found = {}
    for how, more in (("mean", []), ("linear", []), ("fisher", ["merge.posts=16"]), ("regmean", ["merge.posts=16"])):
        assert merge(cli, sample, tmp_path, how, f"merge={how}", *UNTRAINED, *more).code == 0
        weights = load_file(tmp_path / how / "adapter" / "adapter.safetensors")
        found[how] = torch.cat([weights[key].flatten() for key in sorted(weights)])
    assert torch.equal(found["linear"], found["mean"])
    assert not any(torch.allclose(found[how], found["mean"], atol=1e-4) for how in ("fisher", "regmean"))
    assert cli(*sample, "action=test", "method=ah_load", "heads.load=true", f"load_path={tmp_path}/fisher").code == 0
    assert merge(cli, sample, tmp_path / "ia3", "fisher", "merge=fisher", "merge.posts=16", *UNTRAINED).code == 0
    told = merge(cli, sample, tmp_path / "ia3", "regmean", "merge=regmean", *UNTRAINED)
    assert told.code == 2
    assert all(word in told.err for word in ("merge=regmean", "part_1 (ah_ia3) has ia3", "merge=fisher", "merge=mean"))
    assert not (tmp_path / "ia3" / "regmean").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["heads.merge=concta"], ["heads.merge=concta", "did you mean 'concat'"]),
        (["optimization.epochs=0"], ["optimization.epochs=0", "fresh heads untrained", "heads.merge=concat"]),
        (["heads.merge=mean"], ["heads.merge=mean", "knows", "heads.merge=concat for parts"]),
        (["heads.merge=concat", "tasks.target.head.pooling=cls"], ["pooling=mean", "tasks.target.head.pooling=mean"]),
        (["heads.merge=refit", "tasks.target.head.pooling=attention"], ["learns how to pool"]),
        (["merge=learned"], ["merge=learned", "heads.merge=concat"]),
        (["merge=ties", "merge.density=0"], ["merge.density=0"]),
        (["merge.weights=[1,2,3]"], ["merge.weights holds 3 numbers for 2 sources"]),
        (["method.rank=0"], ["method.rank=0", "whole number from 1"]),
        (
            ["heads.merge=concat", "tasks=[label]", "corpus@tasks.label.corpus=sample"],
            ["no source has a head for task 'label'", "they have target"],
        ),
        (["encoder.random.num_hidden_layers=1"], ["another encoder"]),
    ],
)
def test_what_cannot_be_merged_is_told(sample: list[str], parts: Path, options: list[str], said: list[str]) -> None:
    given = [option for option in sample if "tasks=[label]" not in options or "tasks.target" not in option]
    error = refused(*given, *merging(parts, "merge"), *options)
    assert all(word in error for word in said), error
    assert not (parts / "merge").exists()


@pytest.mark.usefixtures("adapterhub")
def test_damaged_sources_are_named(cli: Cli, sample: list[str], parts: Path) -> None:
    weights = parts / "part_2" / "adapter" / "adapter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    ended = merge(cli, sample, parts, "merge", *UNTRAINED)
    assert (ended.code, "part_2" in ended.err) == (2, True)
    from safetensors.torch import save_file

    weights.write_bytes(whole)
    tensors = load_file(weights)
    key = next(key for key in tensors if key.endswith("lora_B"))
    save_file({**tensors, key: torch.full_like(tensors[key], torch.nan)}, weights)
    ended = merge(cli, sample, parts, "merge", *UNTRAINED)
    assert ended.code == 2
    assert "no finite number" in ended.err
    assert "diverged" in ended.err
    ended = merge(cli, sample, parts, "merge", *UNTRAINED, "merge=fisher", "merge.posts=16")  # which first reads posts by it
    assert (ended.code, f"part_2/adapter/adapter.safetensors: {key} holds" in ended.err.replace("\n", " ")) == (2, True)
    record = json.loads((parts / "part_2" / "run.json").read_text())
    (parts / "part_2" / "run.json").write_text(json.dumps(record | {"tokenizer": "0123456789abcdef"}))
    weights.write_bytes(whole)
    ended = merge(cli, sample, parts, "merge", *UNTRAINED)
    assert ended.code == 2
    assert "part_2 was trained with another tokenizer" in ended.err
    (parts / "part_2" / "run.json").write_text(json.dumps(record)[:-1])
    assert merge(cli, sample, parts, "merge", *UNTRAINED).code == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fisher", "learned"])
def test_a_merge_that_must_know_posts_reads_all_choices_of_a_post(cli: Cli, tmp_path: Path, how: str) -> None:
    rows = [f"someone waits {i},soup {i % 7},rain {i % 5},{i % 2}" for i in range(120)]
    (tmp_path / "choices.csv").write_text("\n".join(["text,first,second,right", *rows]) + "\n", encoding="utf-8")
    common = [
        *("encoder=tiny", "tasks=[table]", "head@tasks.table.head=choice", "tasks.table.column=right"),
        *(f"tasks.table.corpus.path={tmp_path}/choices.csv", "tasks.table.corpus.pair=[first,second]"),
        "optimization.epochs=1",
    ]
    for i in (1, 2):
        trained = cli(*common, f"save_path={tmp_path}/source_{i}", f"tasks.table.corpus.seed={i}")
        assert trained.code == 0, trained.err
    heads = ["heads.merge=mean"] if how == "learned" else []
    merged = cli(
        *(*common, "method=ah_merge16", f"merge={how}", f"method.sources='{tmp_path}/source_*'"),
        *(*heads, "merge.posts=40", f"save_path={tmp_path}/merged"),
        *(["merge.steps=2", "merge.entropy=0", "merge.loss=1"] if how == "learned" else []),
    )
    assert merged.code == 0, merged.err
    assert "val_table_accuracy" in SavedRun(tmp_path / "merged").results
