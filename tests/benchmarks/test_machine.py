"""What a benchmark asks of the machine is what its hardware does fast: bf16 only where that is multiplied."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import encoders, machine
from benchmarks.cases import USUAL
from benchmarks.posts import Examples
from benchmarks.rivals import Recipe, TrainerArm, as_found
from tests.benchmarks.test_encoders import small  # noqa: F401  (a fixture)


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_peak_is_that_of_the_numbers_which_the_hardware_multiplies(
    bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, whole = set(), torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **rest: Any) -> torch.Tensor:
        said.add(a.dtype)
        return whole(a, b, **rest)

    monkeypatch.setattr(machine, "multiplies_bf16", lambda device: bf16)
    monkeypatch.setattr(machine, "SHAPES", [(8, 8, 8)])
    monkeypatch.setattr(torch, "mm", mm)
    before = torch.get_float32_matmul_precision()
    assert machine.peak_flops("cpu", seconds=0.001) > 0
    assert said == {dtype}
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("bf16", [True, False])
def test_a_tuned_trainer_computes_in_what_the_hardware_multiplies(
    bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 a processor without it takes ten times as long: no rival that anybody would run."""
    monkeypatch.setattr(machine, "multiplies_bf16", lambda device: bf16)
    folder = str(encoders.folder("bert_base", tmp_path))
    posts = Examples([["a", "mild", "day"]] * 3, np.array([0, 1, 2]), np.zeros((3, 1), np.float32), [None] * 3, 3)
    before = torch.get_float32_matmul_precision()
    try:
        arm = TrainerArm(Recipe(encoder=folder, switches=True), posts, posts, device="cpu", tasks=("label",), found=USUAL)
    finally:
        torch.set_float32_matmul_precision(before)
    assert as_found(Recipe(encoder=folder), USUAL).full_bf16
    assert arm.recipe.full_bf16 is bf16
    model = arm.models["label"]
    made = arm._trainer(model.network, model, train_dataset=model.train).args
    assert made.bf16 is bf16
    assert made.bf16_full_eval is bf16
