"""The trainer computes where and as it is told, and leaves nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from hatemtl.encoders.fast.stack import Stack
from hatemtl.errors import UserError
from hatemtl.objective.optimization import Optimization
from hatemtl.training import trainer_settings as trainer_module
from hatemtl.training.trainer_settings import (
    COMPILE_FROM,
    TrainerSettings,
    _onednn_is_exact,
    exact_onednn,
    fastest_precision,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*fast_dev_run.*")


def settings(**other: Any) -> TrainerSettings:
    given = {"accelerator": "cpu", "precision": "32", "compile": False, "fast": "auto", "progress": None, **other}
    return TrainerSettings(**given)


def build(*, bar: bool = False, logger: Any = False, callbacks: Any = (), **other: Any) -> L.Trainer:
    optimization = Optimization(
        encoder_lr=1e-3, head_lr=1e-3, weight_decay=0.0, heads_first=0, warmup=1.5, epochs=2, schedule="linear", clip=1.0,
        accumulate=3, patience=None,
    )  # fmt: skip
    return settings(**other).trainer(optimization, callbacks, root=Path("."), logger=logger, bar=bar)


@pytest.mark.parametrize("fastest", ["32", "bf16"])
@pytest.mark.parametrize("given", ["32", 32, "bf16", "auto"])
def test_frozen_weights_and_arithmetic_are_of_the_precision(
    given: str | int, fastest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "fastest_precision", lambda accelerator: fastest)
    chosen = fastest if given == "auto" else str(given)
    assert settings(precision=given).dtype == {"32": torch.float32, "bf16": torch.bfloat16}[chosen]
    assert build(precision=given).precision == {"32": "32-true", "bf16": "bf16-mixed"}[chosen]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    settings().take()
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("asked", "free", "taken"), [(None, 1, 3), (2, 1, 2), (4, 1, 4), ("auto", 2, 2), ("auto", 9, 3)])
def test_a_run_takes_its_threads_and_the_next_one_finds_those_of_before(
    asked: Any, free: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "free_cores", lambda: free)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for _ in range(2):
        settings(threads=asked).take()
        assert torch.get_num_threads() == taken
    settings().take()
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("asked", [0, -1, "all", 1.5, 10**7])
def test_threads_that_no_core_would_have_are_refused(asked: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.threads=.*type trainer\.threads=auto"):
        settings(threads=asked)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cpu"])
@pytest.mark.parametrize("gpu", [None, True, False], ids=["no gpu", "gpu with bf16", "gpu without"])
@pytest.mark.parametrize("cpu", [True, False], ids=["cpu with bf16", "cpu without"])
def test_the_fastest_precision_is_bf16_where_the_hardware_multiplies_it(
    cpu: bool, gpu: bool | None, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bool(gpu) or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    on_gpu = gpu is not None and accelerator != "cpu"
    assert fastest_precision(accelerator) == ("bf16" if (gpu if on_gpu else cpu) else "32")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"compile": True}, "trainer.compile=true needs .* compiler that CXX names; type trainer.compile=false"),
        ({"accelerator": "gpu"}, "torch sees no GPU here; type trainer.accelerator=cpu"),
    ],
    ids=str,
)
def test_what_is_not_there_is_told(wrong: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trainer_module.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=expected):
        settings(**wrong)


# Compiling

ENCODER: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=384), forward=lambda: None, modules=list)
MANY, FEW = int(COMPILE_FROM / 384) + 1, int(COMPILE_FROM / 384) - 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch.compile is asked for; nothing is compiled. There is a compiler, and no GPU."""
    calls: list[dict[str, Any]] = []

    def compiled(forward: Any, **how: Any) -> str:
        assert forward is ENCODER.forward
        calls.append(how)
        return "compiled"

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trainer_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    return calls


@pytest.mark.parametrize(("given", "tokens"), [(True, 1), (True, MANY), ("auto", MANY)])
def test_what_pays_or_is_asked_for_is_compiled(given: bool | str, tokens: int, asked: list[dict[str, Any]]) -> None:
    assert settings(compile=given).compiled(ENCODER, tokens=tokens, cache=None) == "compiled"
    (how,) = asked
    assert how["dynamic"] is True  # batches have many lengths
    assert how["options"] == {"pattern_matcher": False}


@pytest.mark.parametrize(("given", "tokens"), [(False, 1), (False, MANY), ("auto", 1), ("auto", FEW)])
def test_what_does_not_pay_or_is_not_asked_for_is_not(given: bool | str, tokens: int, asked: list[dict[str, Any]]) -> None:
    assert settings(compile=given).compiled(ENCODER, tokens=tokens, cache=None) is None
    assert asked == []


def test_what_is_fused_is_compiled_only_when_asked_for(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SimpleNamespace(forward=Stack(SimpleNamespace(forward=None, modules=list), [], Any, Any, {}))
    monkeypatch.setattr(ENCODER, "modules", lambda: [ENCODER, stack])
    assert settings(compile="auto").compiled(ENCODER, tokens=MANY, cache=None) is None
    assert settings(compile=True).compiled(ENCODER, tokens=1, cache=None) == "compiled"


def test_without_a_compiler_nothing_is_compiled_unasked(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module.shutil, "which", lambda name: None)
    assert settings(compile="auto").compiled(ENCODER, tokens=MANY, cache=None) is None
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(trainer_module.shutil, "which", lambda name: name if name == "my-compiler" else None)
    assert settings(compile="auto").compiled(ENCODER, tokens=MANY, cache=None) == "compiled"
    assert settings(compile=True).compiled(ENCODER, tokens=1, cache=None) == "compiled"


def test_a_compiler_that_torch_would_not_find_counts_for_none(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(trainer_module.shutil, "which", lambda name: name if name == "clang++" else None)
    assert settings(compile="auto").compiled(ENCODER, tokens=MANY, cache=None) is None


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cpu"])
def test_on_a_gpu_only_what_is_asked_for_is_compiled(
    accelerator: str, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpu = accelerator != "cpu"
    unasked = settings(accelerator=accelerator, compile="auto").compiled(ENCODER, tokens=MANY, cache=None)
    assert unasked == (None if on_gpu else "compiled")
    assert settings(accelerator=accelerator, compile=True).compiled(ENCODER, tokens=1, cache=None) == "compiled"
    assert asked[-1]["options"] == (None if on_gpu else {"pattern_matcher": False})


# float32 through oneDNN


@pytest.fixture
def _precision() -> Any:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("shape", [(64, 384, 384), (960, 384, 1536), (7, 1536, 33), (1, 16, 5)], ids=str)
def test_onednn_multiplies_float32_as_exactly_as_mkl(shape: tuple[int, int, int]) -> None:
    """Its error is that of float32 sums in another order, and far from what rounding the factors to bf16 would make."""
    n, k, m = shape
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, k, generator=draw), torch.randn(k, m, generator=draw)
    exact = x.double() @ y.double()
    torch.set_float32_matmul_precision("highest")
    mkl = (x @ y - exact).abs().max()
    rounded = (x.bfloat16().double() @ y.bfloat16().double() - exact).abs().max()
    exact_onednn()
    for product in (x @ y, torch.nn.functional.linear(x, y.T), torch.zeros(n, m).addmm_(x, y)):
        error = (product - exact).abs().max()
        assert error <= 8 * mkl + 1e-6
        assert error <= rounded / 100


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("rounds", [True, False])
def test_where_onednn_rounds_mkl_stays(rounds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def rounding(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        medium = torch.get_float32_matmul_precision() == "medium" and x.dtype is torch.float32
        return product(x.bfloat16(), y.bfloat16()).float() if medium else product(x, y)

    if rounds:
        monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    monkeypatch.setattr("hatemtl.training.trainer_settings._onednn_is_exact", _onednn_is_exact.__wrapped__)
    exact_onednn()
    assert torch.get_float32_matmul_precision() == ("highest" if rounds else "medium")


# The trainer


@pytest.mark.parametrize(
    ("progress", "bar", "shown"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)]
)
def test_a_bar_is_drawn_on_a_terminal_or_as_told(progress: bool | None, bar: bool, shown: bool) -> None:
    built = build(progress=progress, bar=bar)
    assert any(isinstance(callback, RichProgressBar) for callback in built.callbacks) is shown  # type: ignore[attr-defined]
    assert (built.progress_bar_callback is not None) is shown


def test_what_is_given_arrives(tmp_path: Path) -> None:
    timer, logger = Timer(), CSVLogger(tmp_path)
    built = build(callbacks=[timer], logger=logger)
    assert timer in built.callbacks  # type: ignore[attr-defined]
    assert built.logger is logger
    assert built.max_epochs == 3  # two at full rate after one whole epoch of the warm-up of 1.5
    assert built.accumulate_grad_batches == 3
    assert (built.num_devices, built.world_size) == (1, 1)
    assert built.gradient_clip_val is None  # the module clips


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (0, "trainer.devices=0: expected a whole number from 1, how many processes .* type trainer.devices=2$"),
        (-1, "trainer.devices=-1: .* type trainer.devices=2$"),
        ("auto", "trainer.devices=auto: .* type trainer.devices=2$"),
        ("cuda:1", "trainer.devices=cuda:1: .* type trainer.accelerator=cuda:1$"),
        ([1], r"trainer.devices=\[1\]: .* type trainer.accelerator=cuda:1$"),
        ([0, 1], """type trainer.devices=2 'trainer.accelerator="gpu:0,1"'$"""),
    ],
)
def test_devices_of_another_form_are_told_how_to_type(devices: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=says):
        settings(devices=devices)


@pytest.mark.parametrize(
    ("typed", "rank", "asked"),
    [("cuda:1", 0, ("cuda", [1])), ("gpu:2,3", 1, ("cuda", [3])), ("mps", 0, ("mps", 1)), ("cpu", 1, ("cpu", 1))],
)
def test_lightning_is_told_the_very_device(
    typed: str, rank: int, asked: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", typed.count(",") + 1)):
        monkeypatch.setenv(name, str(value))
    given: dict[str, Any] = {}
    monkeypatch.setattr(trainer_module.L, "Trainer", lambda **how: given.update(how))
    build(accelerator=typed, devices=typed.count(",") + 1)
    assert (given["accelerator"], given["devices"]) == asked


def test_training_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build().fit(BoringModel())
    assert list(tmp_path.iterdir()) == []
