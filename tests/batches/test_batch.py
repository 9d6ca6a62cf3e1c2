import numpy as np
import pytest
import torch

from hatemtl.batches.batch import Batch, padded


def batch() -> Batch:
    return Batch(
        input_ids=torch.arange(6).reshape(2, 3),
        attention_mask=torch.ones(2, 3, dtype=torch.long),
        targets={"label": torch.tensor([0, 1]), "rationale": torch.rand(2, 3)},
        has={"label": torch.tensor([True, False]), "rationale": torch.tensor([False, True])},
        posts=torch.tensor([7, 9]),
    )


def with_choices() -> Batch:
    """Three posts in six sequences: three choices, one text, two choices."""
    return Batch(
        input_ids=torch.arange(12).reshape(6, 2),
        attention_mask=torch.ones(6, 2, dtype=torch.long),
        targets={},
        has={},
        posts=torch.tensor([4, 5, 6]),
        owner=torch.tensor([0, 0, 0, 1, 2, 2]),
        token_type_ids=torch.ones(6, 2, dtype=torch.long),
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


def test_tokens_are_counted_once_and_go_along() -> None:
    old = batch()
    assert old.tokens == 6
    old.attention_mask[0, 2] = 0
    assert old.to("meta").tokens == 6  # not counted anew, which would wait for the device
    assert Batch(old.input_ids, old.attention_mask, {}, {}, old.posts).tokens == 5


def test_lengths_are_padded_to_a_multiple_of_eight() -> None:
    assert padded(np.array([0, 1, 7, 8, 9, 128])).tolist() == [0, 8, 8, 8, 16, 128]


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
    for a, b in zip(tensors(pinned.to("cuda").to("cpu")), tensors(old), strict=True):
        assert torch.equal(a, b)


# Several sequences a post


def test_a_batch_counts_posts_and_moves_all_that_tells_its_sequences_apart() -> None:
    some = with_choices()
    assert len(some) == 3
    moved = some.to("meta")
    assert moved.owner.device.type == moved.token_type_ids.device.type == "meta"


def test_the_encoder_reads_segments_only_where_there_are_any() -> None:
    assert set(batch().inputs) == {"input_ids", "attention_mask"}
    assert set(with_choices().inputs) == {"input_ids", "attention_mask", "token_type_ids"}


def test_of_each_post_the_first_sequence() -> None:
    some, values = with_choices(), torch.arange(6)
    assert some.first(values).tolist() == [0, 3, 4]
    assert some.first(some.input_ids).tolist() == [[0, 1], [6, 7], [8, 9]]
    assert batch().first(values) is values


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (0, 2), (1, 3), (2, 3), (1, 9)])
def test_some_posts_keep_all_their_sequences_and_are_counted_from_the_first(begin: int, end: int) -> None:
    whole, values = with_choices(), torch.arange(6.0)
    some = whole.some(begin, end)
    mine = (whole.owner >= begin) & (whole.owner < end)
    assert torch.equal(some.input_ids, whole.input_ids[mine])
    assert torch.equal(some.owner, whole.owner[mine] - begin)
    assert torch.equal(some.posts, whole.posts[begin:end])
    assert torch.equal(some.by_post(values[mine], 3), whole.by_post(values, 3)[begin:end])


def test_values_of_sequences_by_post() -> None:
    inf = float("-inf")
    values = torch.arange(6.0, requires_grad=True)
    laid = with_choices().by_post(values, 3)
    assert laid.tolist() == [[0, 1, 2], [3, inf, inf], [4, 5, inf]]
    laid.softmax(dim=1)[0, 1].backward()
    assert values.grad.isfinite().all()
    assert (values.grad[3:] == 0).all()
    assert batch().by_post(torch.tensor([1.0, 2.0]), 2).tolist() == [[1, inf], [2, inf]]
