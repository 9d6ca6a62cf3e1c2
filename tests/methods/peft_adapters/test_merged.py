"""The merge of LoRAs kept as one LoRA in PEFT's format: the update that a merge gives, whatever the sources' library."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.peft_adapters.test_train_and_load import factors, hub_lora, load, lora
from methods.test_base import KINDS, RATES, encoder, hidden, record, save, saved, trained

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge
from hatemtl.merging.mean import Mean, TaskArithmetic
from hatemtl.methods import lora_formats
from hatemtl.methods.merged import MergedWeights
from hatemtl.methods.peft_adapters.library import PEFTAdapter
from hatemtl.methods.peft_adapters.merged import MergedLoRA
from hatemtl.saved_runs.saved_run import SavedRun

MEAN: Any = Mean(weights=None)


def merge(folder: Path, how: Merge = MEAN, rank: int | None = None) -> MergedLoRA:
    return MergedLoRA(sources=str(folder / "part_*"), merge=how, rank=rank, **RATES)  # type: ignore[arg-type]


def unlike(folder: Path, kind: str = "bert") -> None:
    """Three LoRAs of other ranks and scales, one of which leaves a layer alone."""
    saved(lora(), folder / "part_1", kind, change=1)
    saved(lora(rank=2, alpha=3), folder / "part_2", kind, change=2)
    saved(lora(leave_out=[0]), folder / "part_3", kind, change=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [MEAN, TaskArithmetic(scale=0.7, weights=None)], ids=["mean", "task_arithmetic"])
def test_uncut_it_says_what_the_merge_in_the_weights_says(kind: str, how: Any, tmp_path: Path) -> None:
    unlike(tmp_path, kind)
    dense = MergedWeights(sources=str(tmp_path / "part_*"), merge=how, **RATES)  # type: ignore[arg-type]
    attached = merge(tmp_path, how).attach(encoder(kind), name="merged", seed=9)
    said = hidden(dense.attach(encoder(kind), name="merged", seed=9).model)
    torch.testing.assert_close(hidden(attached.model), said, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(said, hidden(encoder(kind)), atol=1e-2)
    assert len(attached.notes) == 1 and "part_3 does not adapt" in attached.notes[0]


def test_it_is_cut_to_the_best_of_a_rank(tmp_path: Path) -> None:
    """The reference: an SVD of the dense mean (Eckart & Young 1936)."""
    unlike(tmp_path)
    attached = merge(tmp_path, rank=3).attach(encoder(), name="merged", seed=0)
    parts = [lora_formats.read(SavedRun(tmp_path / f"part_{i}"), encoder()) for i in (1, 2, 3)]
    for path, (A, B) in factors(attached.model).items():
        whole: Any = sum(part[path].dense() for part in parts if path in part) / 3
        U, S, Vt = torch.linalg.svd(whole)
        torch.testing.assert_close((B @ A).double(), U[:, :3] * S[:3] @ Vt[:3], atol=1e-6, rtol=1e-4)
        assert A.shape[0] == 3
        assert attached.lost[path] == pytest.approx(float(S[3:].square().sum() / S.square().sum()), rel=1e-3)


def test_where_ranks_differ_the_further_rows_add_nothing_and_can_learn(tmp_path: Path) -> None:
    unlike(tmp_path)
    model = merge(tmp_path).attach(encoder(), name="merged", seed=0).model
    A, B = factors(model)["encoder.layer.0.intermediate.dense"]  # which two of the three adapt: rank 6 of 10
    assert A.shape[0] == 10 and B[:, :6].any() and not B[:, 6:].any() and A[6:].any(dim=1).all()
    assert {*trained(model)} == {key for key, _ in model.named_parameters() if "lora_" in key}


@pytest.mark.parametrize("still", [0, None])
def test_layers_that_no_source_changed_can_learn_once_they_are_merged(still: int | None, tmp_path: Path) -> None:
    """Such as those below the ones that learnt in the sources; or all, of sources that only trained heads."""
    for i in (1, 2):
        model: Any = lora().attach(encoder(), name="run", seed=0).model
        with torch.no_grad():
            for path, (_, B) in factors(model).items():
                if still is not None and f"layer.{still}." not in path:
                    B.normal_(generator=torch.Generator().manual_seed(i))
        record(tmp_path / f"part_{i}", "peft")
        lora().library.save(model, "run", tmp_path / f"part_{i}")
    model = merge(tmp_path, rank=4).attach(encoder(), name="merged", seed=0).model
    hidden_states = model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state
    hidden_states[..., :5].square().sum().backward()
    assert all(A.any() and B.grad.any() for A, B in factors(model).values())


def test_it_is_saved_and_loaded_to_the_last_bit(tmp_path: Path) -> None:
    unlike(tmp_path)
    said = hidden(save(merge(tmp_path, rank=4), tmp_path / "merged"))
    assert torch.equal(hidden(load(tmp_path / "merged").attach(encoder(), name="x", seed=5).model), said)
    described = json.loads((tmp_path / "merged" / "adapter" / "adapter_config.json").read_text())
    assert described["r"] == described["lora_alpha"] == 4 and len(described["target_modules"]) == 10
    again = merge(tmp_path / "again")  # what became of a merge is a source as any other
    (tmp_path / "again").mkdir()
    (tmp_path / "merged").rename(tmp_path / "again" / "part_1")
    torch.testing.assert_close(hidden(again.attach(encoder(), name="y", seed=0).model), said, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "deberta"])
def test_it_is_the_merge_that_adapterhub_keeps(kind: str, tmp_path: Path) -> None:
    """But on ModernBERT, where AdapterHub has a LoRA, and so a cut, for each of q, k and v, and PEFT one for the three."""
    from hatemtl.methods.adapterhub.merged import MergedAdapters

    saved(hub_lora(), tmp_path / "part_1", kind, change=1)
    saved(lora(rank=2), tmp_path / "part_2", kind, change=2)
    theirs = MergedAdapters(sources=str(tmp_path / "part_*"), merge=MEAN, rank=4, **RATES)  # type: ignore[arg-type]
    said = hidden(theirs.attach(encoder(kind), name="merged", seed=0).model)
    ours = merge(tmp_path, rank=4).attach(encoder(kind), name="merged", seed=0).model
    torch.testing.assert_close(hidden(ours), said, atol=1e-6, rtol=1e-5)


def test_what_is_no_lora_is_refused(tmp_path: Path) -> None:
    saved(lora(), tmp_path / "part_1")
    ia3: Any = PEFTAdapter(kind="IA3Config", options=None, targets=None, leave_out=[], **RATES)  # type: ignore[arg-type]
    saved(ia3, tmp_path / "part_2")
    with pytest.raises(UserError, match=r"part_2: its adapter is no LoRA \(IA3\).*train it with method=peft"):
        merge(tmp_path).attach(encoder(), name="merged", seed=0)
    with pytest.raises(UserError, match=r"method\.rank=0: expected a whole number from 1, or null"):
        merge(tmp_path, rank=0)
