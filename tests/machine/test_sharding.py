"""An encoder that two processes split learns what it learns whole, and what is written is whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hatemtl.errors import UserError
from hatemtl.machine.sharding import clip, mine, part_of, whole
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.refusals import check_splits

ROOT = Path(__file__).parents[2]
BOTH = """
import os
import sys
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from hatemtl.command.in_python import request
from hatemtl.training.callbacks import Throughput
from hatemtl.training.train import train

WORDS = [
    *("tasks=[label,target]", "seed=5", "encoder=tiny", "trainer.accelerator=cpu", "trainer.precision=32"),
    *("corpus@tasks.label.corpus=sample", "corpus@tasks.target.corpus=sample", "trainer.devices=2"),
    *("tasks.label.corpus.size=100", "tasks.target.corpus.size=120", "method=full", "method.body_dropout=false"),
    *("tasks.label.head.dropout=0", "tasks.target.head.dropout=0", "optimization.heads_first=1", "optimization.epochs=2"),
    *("optimization.encoder_lr=2e-3", "optimization.head_lr=1e-2", "optimization.clip=0.5", "optimization.accumulate=2"),
]


class Look(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        state = [v for p, of in trainer.optimizers[0].state.items() if isinstance(p, DTensor) for v in of.values() if v.ndim]
        for name, those in {"weights": list(pl_module.encoder.parameters()), "state": state}.items():
            assert all(isinstance(one, DTensor) for one in those)
            held, all_of_it = sum(one.to_local().numel() for one in those), sum(one.numel() for one in those)
            assert 0.5 * all_of_it <= held <= 0.52 * all_of_it, (name, held, all_of_it)


def broken(self, trainer, pl_module):
    if trainer.current_epoch == 2:
        raise ConnectionError("lost, as it were")
    begun(self, trainer, pl_module)


begun = Throughput.on_train_epoch_start
into, *ports = sys.argv[1:]
for name, starts, port in zip(["ddp", "fsdp", "fsdp"], [begun, broken, begun], ports, strict=True):
    Throughput.on_train_epoch_start, os.environ["MASTER_PORT"] = starts, port
    with suppress(SystemExit, ConnectionError):
        train(request(*WORDS, f"trainer.strategy={name}", save_path=f"{into}/{name}"), [Look()] * (name == "fsdp"))
"""


@pytest.mark.slow
def test_two_processes_that_split_the_encoder_make_what_two_whole_ones_make(tmp_path: Path) -> None:
    """Also over a stage of heads alone, accumulated batches, clipped gradients, and an interruption after two epochs."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for free in (one, two, three):  # a port of its own for each training
            free.bind(("127.0.0.1", 0))
        ports = [str(free.getsockname()[1]) for free in (one, two, three)]
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = []
    for rank in "01":
        env = {**os.environ, **place, "PYTHONPATH": str(ROOT), "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-W", "ignore", "-c", BOTH, str(tmp_path), *ports]
        both.append(
            subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        said = [process.communicate(timeout=300)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    assert "an unfinished run goes on after its last whole epoch" in said[0], said
    whole_ones, split_ones = tmp_path / "ddp", tmp_path / "fsdp"
    rows, others = ({row.metric: row.value for row in SavedRun(path).rows} for path in (whole_ones, split_ones))
    assert rows == pytest.approx(others, abs=1e-5)
    for file in ("heads.safetensors", "encoder/model.safetensors"):
        first, second = load_file(whole_ones / file), load_file(split_ones / file)
        assert first.keys() == second.keys()
        assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-5
    bests = [SavedRun(path).record["best_epoch"] for path in (whole_ones, split_ones)]
    assert bests == [3, 3]  # after the interruption


def test_of_one_process_all_is_whole() -> None:
    weight = nn.Parameter(torch.ones(4))
    assert whole(weight) is mine(weight) is part_of(weight, weight) is weight
    weight.grad = torch.tensor([3.0, 4.0, 0.0, 0.0])
    clip([weight], 2.5)
    assert torch.allclose(weight.grad, torch.tensor([1.5, 2.0, 0.0, 0.0]))


def test_what_needs_the_encoder_whole_is_refused() -> None:
    def said(**given: Any) -> str:
        settings = SimpleNamespace(splits=True, devices=given.pop("devices", 2), nodes=1)
        weighting = SimpleNamespace(needs=given.pop("needs", "losses"))
        optimization = SimpleNamespace(accumulate=given.pop("accumulate", 1))
        request: Any = SimpleNamespace(
            trainer=settings, optimization=optimization, micro_batches=given.pop("micro", 1),
            choices={"method": "lora_gate"}, cache_prefix=given.pop("prefix", False),
            method=SimpleNamespace(library=SimpleNamespace(name=given.pop("library", "full"))),
            encoder=SimpleNamespace(quantize=given.pop("bits", None)), regularisers=given.pop("regularisers", {}),
        )  # fmt: skip
        head = SimpleNamespace(space=SimpleNamespace(about=given.pop("about", "posts")))
        module: Any = SimpleNamespace(weightings=[weighting], heads={"a": head}, head={"a": head}.get)
        try:
            check_splits(request, module)
        except UserError as error:
            return str(error)
        return ""

    other, passes = SimpleNamespace(by_passes=False), SimpleNamespace(by_passes=True)
    assert said(regularisers={"r_drop": passes}) == said(needs="all losses") == said(accumulate=2, micro=2) == ""
    assert said(devices=1).endswith("type trainer.devices=2, or trainer.strategy=ddp")
    assert said(library="bank").startswith("trainer.strategy=fsdp with method=lora_gate: ")
    assert "type encoder.quantize=null, or" in said(bits="8bit")
    assert "type data.cache_prefix=false, or" in said(prefix=True)
    assert "leave the task out, or" in said(about="masked tokens")
    assert "type weighting=sum, or" in said(needs="gradients")
    for several in ({"accumulate": 2}, {"micro": 2}):
        assert "type optimization.accumulate=1 data.micro_batches=1, or" in said(needs="all losses", **several)
    assert "with regulariser=[ema]: " in said(regularisers={"r_drop": passes, "ema": other})
