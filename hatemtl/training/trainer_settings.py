"""Sets up the Lightning trainer, and the number format that this machine computes fastest."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn

from hatemtl.encoders.fast import is_fast
from hatemtl.errors import UserError
from hatemtl.machine.accelerator import read_accelerator
from hatemtl.machine.crew import ALONE, called
from hatemtl.machine.startup import bound_memory, free_cores
from hatemtl.objective.optimization import Optimization

# Tokens times hidden size from which compiling saves more time than it takes on a CPU: benchmarks/throughput.py once found
# 47 s for MiniLM's own layers and a gain of 6 % of 130 µs a token. Both grow with the layers. hatemtl's own are as fast as
# compiled code. On a GPU, where nothing was measured, it must be asked for.
COMPILE_FROM = 2.5e9
_threads_before: list[int] = []  # torch's own number, while a run in this process has another


def fastest_precision(accelerator: str) -> Literal["bf16", "32"]:
    """Chooses bf16 where the hardware multiplies bf16, else float32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # oneDNN takes bf16 on any AVX-512 processor, but only these two multiply it in hardware
        hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        has_bf16 = accelerator != "mps" and hardware
    return "bf16" if has_bf16 else "32"


def exact_onednn() -> None:
    """Multiplies float32 on the CPU through oneDNN where that is exact: on AMD twice as fast as MKL.

    oneDNN may round to bf16 inside, and does where the processor has AMX; there MKL stays.
    """
    torch.set_float32_matmul_precision("medium" if _onednn_is_exact() else "highest")


@cache
def _onednn_is_exact() -> bool:  # once a process: to look takes milliseconds, and the reading of one post little more
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    x, y = torch.linspace(-1, 1, 256 * 256).reshape(256, 256), torch.linspace(1, -2, 256 * 256).reshape(256, 256)
    exact = torch.allclose(x.sin() @ y.cos(), (x.double().sin() @ y.double().cos()).float(), rtol=1e-4, atol=1e-4)
    torch.set_float32_matmul_precision(before)
    return exact


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def _not_a_number(devices: int | str | Sequence[int]) -> str:
    """Says what to type in place of devices that are no number of processes, as other programs have them."""
    typed = devices if isinstance(devices, int | str) else f"[{','.join(map(str, devices))}]"
    numbers = re.findall(r"\d+", str(typed)) if not isinstance(devices, int) else []
    there = max(1, torch.cuda.device_count())
    if len(numbers) > 1:
        again = f"""trainer.devices={len(numbers)} 'trainer.accelerator="gpu:{",".join(numbers)}"'"""
    else:
        again = f"trainer.accelerator=cuda:{numbers[0]}" if numbers else f"trainer.devices={there}"
    return (
        f"trainer.devices={typed}: expected a whole number from 1, how many processes train; which GPUs they have, "
        f"trainer.accelerator says; type {again}"
    )


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Says where and in which number format a run computes.

    accelerator: see `read_accelerator`. precision: the type of the frozen weights and of the encoder's arithmetic; int8 is
    for a saved run's, see `using.int8`. What is trained, its optimizer state and the heads stay float32. devices: processes
    that train on a machine, each on a GPU of its own where there are any; of another form it is refused. nodes: machines.
    strategy: what each process holds: "ddp" the whole network, "fsdp" its part of the encoder, as `machine.sharding` has it;
    "auto" is ddp. fast: whether hatemtl's own layers compute what they can, once they agree with the libraries', auto on a
    GPU only where they are faster; never where the encoder is split. memory: whether a CPU's compiled code is kept for each
    shape of a batch. threads: of a CPU, by which sums are rounded otherwise; auto is one a core that others leave free as
    the run begins, None what torch takes.
    """

    accelerator: str
    precision: Literal["auto", "32", "bf16", "int8", 32]
    compile: bool | Literal["auto"]
    fast: bool | Literal["auto"]
    progress: bool | None
    devices: int | str | Sequence[int] = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    memory: Literal["fast", "lean"] = "fast"
    threads: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        if self.compile is True and not _compiler():
            raise UserError("trainer.compile=true needs g++, or the C++ compiler that CXX names; type trainer.compile=false")
        if self.compile is True and self.splits:
            raise UserError("trainer.compile=true: what trainer.strategy=fsdp splits is not compiled; leave one of them out")
        if not isinstance(self.devices, int) or self.devices < 1:
            raise UserError(_not_a_number(self.devices))
        if self.nodes < 1:
            raise UserError(f"trainer.nodes={self.nodes}: expected a whole number from 1")
        most = os.cpu_count() or 1
        if self.threads not in (None, "auto") and not (isinstance(self.threads, int) and 1 <= self.threads <= most):
            raise UserError(
                f"trainer.threads={self.threads}: expected a whole number from 1 to {most} (one a core) or auto (one a free "
                f"core); type trainer.threads=auto"
            )
        read_accelerator(self.accelerator).check(self.accelerator, self.devices)
        if self.int8 and self.device.type != "cpu":
            raise UserError("trainer.precision=int8 is computed by a CPU alone; type trainer.accelerator=cpu as well")
        if self.int8 and not torch.backends.mkldnn.is_available():
            raise UserError("trainer.precision=int8 is computed by oneDNN, which torch lacks here; leave it out")

    @property
    def splits(self) -> bool:
        """Tells whether each process holds a part of the encoder alone."""
        return self.strategy == "fsdp"

    @property
    def int8(self) -> bool:
        """Tells whether the encoder's linear layers are computed in int8, with what was trained in them."""
        return self.precision == "int8"

    @property
    def dtype(self) -> torch.dtype:
        """Names the type of the frozen weights and of the encoder's arithmetic; with int8 of all but its linear layers'."""
        chosen = fastest_precision(self.accelerator) if self.precision in ("auto", "int8") else str(self.precision)
        return torch.bfloat16 if chosen == "bf16" else torch.float32

    @property
    def told(self) -> str:
        """Names the number format as `precision` would be typed for it."""
        return "int8" if self.int8 else "bf16" if self.dtype is torch.bfloat16 else "32"

    @property
    def device(self) -> torch.device:
        """Names the device that this process of the run computes on."""
        return read_accelerator(self.accelerator).device((called() or ALONE).local)

    def take(self) -> None:
        """Bounds memory and threads where asked for, and makes its GPU, if not the first, that of whoever asks for any."""
        if self.memory == "lean":
            bound_memory()
        if _threads_before:
            torch.set_num_threads(_threads_before.pop())
        if self.threads is not None:
            _threads_before.append(most := torch.get_num_threads())
            torch.set_num_threads(min(most, free_cores()) if self.threads == "auto" else self.threads)
        device = self.device
        if device.type == "cuda" and (device.index or torch.cuda.is_initialized()):
            torch.cuda.set_device(device)

    def compiled(self, encoder: nn.Module, *, tokens: int, cache: Path | None) -> Callable[..., Any] | None:
        """Compiles the encoder as training is to call it, for any length; None where compiling would not pay.

        tokens: that training will read. cache: where compiled code is kept for the next run; None leaves that to torch.
        """
        on_gpu = self.device.type != "cpu"
        work = tokens * encoder.config.hidden_size  # type: ignore[union-attr, operator]
        pays = work >= COMPILE_FROM and not on_gpu and _compiler() and not is_fast(encoder)
        if self.compile is False or self.splits or (self.compile == "auto" and not pays):
            return None
        with suppress(OSError):  # a folder that cannot be written is no cache
            if cache is not None:
                (cache / "compiled").mkdir(parents=True, exist_ok=True)
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
        torch._dynamo.config.suppress_errors = self.compile == "auto"  # what was not asked for must not end the run
        torch._functorch.config.donated_buffer = False  # a weighting by gradients goes back through a batch once a task
        # it would else turn the attention into one fused call, whose gradient takes three times as long on a CPU
        options: Any = None if on_gpu else {"pattern_matcher": False}
        return torch.compile(encoder.forward, dynamic=True, options=options)

    def bar(self, terminal: bool) -> bool:
        """Tells whether a progress bar is drawn, by whether there is a terminal to draw it on."""
        return terminal if self.progress is None else self.progress

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Inside, float32 is multiplied as in training."""
        before = torch.get_float32_matmul_precision()
        if self.device.type == "cpu":
            exact_onednn()  # on a GPU the same switch would round float32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def trainer(
        self, optimization: Optimization, callbacks: Sequence[Callback], *, root: Path, logger: Logger | bool, bar: bool
    ) -> L.Trainer:
        """Makes the trainer of one run, whose folder at work is `root`."""
        if self.device.type == "cpu":
            exact_onednn()  # on a GPU the same switch would round float32
            # lightning has every step of AdamW look for NVIDIA's driver on the disk; torch's own look takes no time
            os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        shown, device = self.bar(bar), self.device
        return L.Trainer(
            default_root_dir=root,
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision="bf16-mixed" if self.dtype is torch.bfloat16 else "32-true",
            max_epochs=optimization.total_epochs,
            accumulate_grad_batches=optimization.accumulate,
            logger=logger,
            callbacks=[*callbacks, *([RichProgressBar(leave=False)] if shown else [])],
            enable_progress_bar=shown,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=not self.splits,  # weights that were gathered in it could not be trained with
            reload_dataloaders_every_n_epochs=1,  # under a token budget an epoch has its own number of batches
        )
