"""The device that is typed is the one that computes, or it is said what to type; nothing here needs the hardware."""

import pytest
import torch

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
