"""The trainer computes where and as it is told, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from hatemtl import trainer as trainer_module
from hatemtl.errors import UserError
from hatemtl.optimization import Optimization
from hatemtl.trainer import TrainerSettings, fastest_precision

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*fast_dev_run.*")


def build(*, bar: bool = False, logger: Any = False, callbacks: Any = (), **other: Any) -> L.Trainer:
    settings = TrainerSettings(**{"accelerator": "cpu", "precision": "32", "progress": None, **other})
    optimization = Optimization(
        encoder_lr=1e-3, head_lr=1e-3, weight_decay=0.0, warmup=1.5, epochs=2, schedule="linear", clip=1.0, accumulate=3,
        patience=None,
    )  # fmt: skip
    return settings.trainer(optimization, root=Path("."), logger=logger, callbacks=list(callbacks), bar=bar)


@pytest.mark.parametrize(
    ("given", "expected"), [("32", "32-true"), (32, "32-true"), ("bf16", "bf16-mixed"), ("auto", "the fastest")]
)
def test_precision(given: str | int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("32-true", "bf16-mixed"):
        monkeypatch.setattr(trainer_module, "fastest_precision", lambda accelerator, fastest=fastest: fastest)
        assert build(precision=given).precision == (fastest if expected == "the fastest" else expected)


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
    assert fastest_precision(accelerator) == ("bf16-mixed" if (gpu if on_gpu else cpu) else "32-true")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"precision": "bf61"}, r"trainer.precision=bf61: did you mean 'bf16'\?"),
        ({"precision": 64}, "trainer.precision=64: known: auto, 32, bf16"),
        ({"precision": "16"}, "trainer.precision=16: "),
        ({"accelerator": "gup"}, r"trainer.accelerator=gup: did you mean 'gpu'\?"),
        ({"accelerator": "gpu"}, "torch sees no GPU here; type trainer.accelerator=cpu"),
    ],
    ids=str,
)
def test_what_is_not_known_or_not_there_is_told(
    settings: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=expected):
        build(**settings)


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


def test_training_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build().fit(BoringModel())
    assert list(tmp_path.iterdir()) == []
