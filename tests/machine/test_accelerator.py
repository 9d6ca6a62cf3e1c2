"""The device that is typed is the one that computes, or it is said what to type; nothing here needs the hardware."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Outcome
from gpu_stand_in import as_on_apples

from hatemtl.encoders.fast import attention
from hatemtl.errors import UserError
from hatemtl.machine.accelerator import read_accelerator


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many GPUs, as torch would tell of them; none of Apple's."""
    number: int = getattr(request, "param", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return number


@pytest.mark.parametrize(
    ("gpus", "typed", "devices"),
    [
        (0, "auto", ["cpu"]),
        (1, "auto", ["cuda:0"]),
        (2, "auto", ["cuda:0", "cuda:1"]),
        (2, "cpu", ["cpu", "cpu"]),
        (1, "gpu", ["cuda:0"]),
        (1, "cuda", ["cuda:0"]),
        (2, "cuda:1", ["cuda:1"]),
        (4, "gpu:2,3", ["cuda:2", "cuda:3"]),
    ],
    indirect=["gpus"],
)
def test_each_process_has_the_device_that_was_typed(gpus: int, typed: str, devices: list[str]) -> None:
    read = read_accelerator(typed)
    read.check(typed, len(devices))
    assert [str(read.device(local)) for local in range(len(devices))] == devices


@pytest.mark.parametrize(
    ("gpus", "typed", "processes", "says"),
    [
        (0, "gpu", 1, "torch sees no GPU here; type trainer.accelerator=cpu"),
        (0, "cuda:1", 1, "trainer.accelerator=cuda:1: torch sees no GPU here; type trainer.accelerator=cpu"),
        (1, "cuda:1", 1, "torch sees cuda:0 here, and no cuda:1; type trainer.accelerator=cuda:0"),
        (2, "gpu:0,2", 2, "torch sees cuda:0 to cuda:1 here, and no cuda:2"),
        (2, "gpu:0,1", 1, "names 2 GPUs, and trainer.devices=1 asks for .*; type trainer.devices=2"),
        (2, "cuda:1", 2, "names a GPU, and trainer.devices=2 asks for .*; type trainer.devices=1"),
        (2, "auto", 3, "trainer.devices=3: torch sees 2 here; type trainer.devices=2"),
        (0, "auto", 4096, "trainer.devices=4096: this machine has .* cores, and no GPU .*; type trainer.devices=1"),
        (0, "mps", 1, "torch sees no GPU of Apple's here; type trainer.accelerator=cpu"),
        (0, "tpu", 1, "batches here have the shapes of their posts; type trainer.accelerator=gpu or cpu"),
        (0, "gpu:", 1, "expected auto, .*; type trainer.accelerator=gpu:0"),
        (0, "cpu:0", 1, "expected auto, .*; type trainer.accelerator=cpu"),
        (2, "gpu:1,1", 2, "names a GPU twice"),
        (0, "GPU", 1, "did you mean 'gpu' or 'cpu'"),
        (0, "rocm", 1, "expected auto, cpu, gpu, mps .*; known: auto, cpu, gpu, mps, cuda"),
    ],
    indirect=["gpus"],
)
def test_what_is_not_there_or_means_nothing_is_told(gpus: int, typed: str, processes: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_accelerator(typed).check(typed, processes)


@pytest.mark.usefixtures("gpus")
def test_an_apple_gpu_is_asked_for_and_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    read_accelerator("mps").check("mps", 1)
    assert str(read_accelerator("mps").device(0)) == "mps"
    assert str(read_accelerator("auto").device(0)) == "cpu"
    with pytest.raises(UserError, match=r"an Apple GPU is for one process; type trainer\.devices=1"):
        read_accelerator("mps").check("mps", 2)


@pytest.mark.parametrize("method", ["peft_lora16", pytest.param("full method.body_dropout=false", marks=pytest.mark.slow)])
def test_a_run_as_on_a_gpu_says_what_one_on_the_cpu_says(
    method: str, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, tested and asked."""
    posts = tmp_path / "posts.txt"
    posts.write_text("those people are fine\none\none more post of several words in a row\n")
    typed = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=120", "optimization.epochs=1"]
    for device in ("cpu", "mps"):
        with monkeypatch.context() as patch:
            if device == "mps":
                as_on_apples(patch)
                patch.setattr(attention, "attend_only", None)  # which a GPU would wait for
            where = f"trainer.accelerator={device}", "trainer.precision=32"
            run = tmp_path / device
            assert cli(*typed, f"method={method.split()[0]}", *method.split()[1:], *where, f"save_path={run}").code == 0
            assert cli("action=test", f"load_path={run}", *where).code == 0
            asked = "action=predict", f"load_path={run}", f"predict.input={posts}", f"predict.output={run}.csv"
            assert cli(*asked, *where).code == 0
    tested = [pd.read_parquet(tmp_path / device / "predictions.parquet") for device in ("cpu", "mps")]
    assert [*tested[0]["post_id"]] == [*tested[1]["post_id"]]
    np.testing.assert_allclose(*(np.stack([*of["scores"]]) for of in tested), atol=1e-3)  # AdamW enlarges what is rounded
    said = [pd.read_csv(tmp_path / f"{device}.csv").filter(like="pred_target_") for device in ("cpu", "mps")]
    assert said[0].shape[1] > 1
    np.testing.assert_allclose(said[0], said[1], atol=1e-3)
