import pytest
import torch

from hatemtl.batch import Batch


def batch() -> Batch:
    return Batch(
        input_ids=torch.arange(6).reshape(2, 3),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        targets={"label": torch.tensor([0, 1]), "rationale": torch.rand(2, 3)},
        has={"label": torch.tensor([True, False]), "rationale": torch.tensor([False, True])},
        posts=torch.tensor([7, 9]),
    )


def tensors(some: Batch) -> list[torch.Tensor]:
    return [some.input_ids, some.attention_mask, some.posts, *some.targets.values(), *some.has.values()]


def test_a_batch_is_as_long_as_it_has_posts() -> None:
    assert len(batch()) == 2


def test_a_batch_moves_whole_and_leaves_the_old_one_where_it_was() -> None:
    old = batch()
    moved = old.to("meta")
    assert len(tensors(moved)) == 7
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors(old))
    assert (set(moved.targets), set(moved.has)) == (set(old.targets), set(old.has))


def test_moving_changes_no_value() -> None:
    old = batch()
    for a, b in zip(tensors(old.to("cpu")), tensors(old), strict=True):
        assert torch.equal(a, b)


def test_lightning_moves_it_by_its_own_to() -> None:
    from lightning.fabric.utilities.apply_func import move_data_to_device

    assert all(tensor.device.type == "meta" for tensor in tensors(move_data_to_device(batch(), torch.device("meta"))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinning_pins_every_tensor_and_changes_no_value() -> None:
    old = batch()
    pinned = old.pin_memory()
    assert all(tensor.is_pinned() for tensor in tensors(pinned))
    for a, b in zip(tensors(pinned.to("cuda", non_blocking=True).to("cpu")), tensors(old), strict=True):
        assert torch.equal(a, b)
