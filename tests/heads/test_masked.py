import math

import pytest
import torch
from figures import by_key
from torch import Tensor, nn
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.heads.masked import MaskedHead
from hatemtl.labels import IGNORED, LabelSpace

WORDS, E, D = 50, 6, 8


def head(share: float = 0.3, seed: int = 0) -> MaskedHead:
    torch.manual_seed(seed)
    embedding = nn.Embedding(WORDS, E)
    return MaskedHead(hidden_size=D, space=LabelSpace("masked", ("tokens",)), embedding=embedding, share=share)


def posts(seed: int = 0, rows: int = 5, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, what is asked for (one to three tokens a post), and which posts are of the task."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.full((rows, width), int(IGNORED))
    for row in range(rows):
        places = torch.randperm(width, generator=draw)[: 1 + row % 3]
        targets[row, places] = torch.randint(WORDS, (len(places),), generator=draw)
    return torch.randn(rows, width, D, generator=draw), targets, torch.arange(rows) != 2


def test_the_loss_is_the_mean_cross_entropy_at_masked_tokens_through_the_embedding() -> None:
    some, (hidden, targets, has) = head(), posts()
    asked = (targets >= 0) & has[:, None]
    logits = some.transform(hidden[asked]) @ some.tied[0].weight.T + some.bias
    torch.testing.assert_close(some.loss(some(hidden, asked.long()), targets, has), F.cross_entropy(logits, targets[asked]))


def test_the_embedding_learns_where_it_is_trained_and_is_never_the_heads() -> None:
    some, (hidden, targets, has) = head(), posts()
    assert sum(p.numel() for p in some.parameters()) == D * E + E + 2 * E + WORDS
    assert set(some.state_dict()) == {f"transform.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")} | {"bias"}
    some.loss(hidden, targets, has).backward()
    assert some.tied[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in some.parameters())


def test_where_no_post_is_masked_the_loss_is_a_zero_with_a_gradient_of_zeros() -> None:
    some, (hidden, targets, has) = head(), posts()
    hidden.requires_grad_()
    loss = some.loss(hidden, targets, torch.zeros_like(has))
    (1e6 * loss).backward()  # of whatever weight
    assert loss.item() == 0
    for value in (*some.parameters(), hidden):
        assert torch.equal(value.grad, torch.zeros_like(value))


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 0.99])
def test_all_that_may_be_masked_is_read_and_the_number_of_places_is_fixed(share: float) -> None:
    some = head(share)
    for width in (1, 2, 7, 40):
        most = min(width, max(1, round(share * width)))
        targets = torch.full((2, width), int(IGNORED))
        targets[0, torch.randperm(width)[:most]] = 7
        words, truth = some.guesses(torch.randn(2, width, D), targets, torch.tensor([True, True]))
        assert (truth == 7).sum() == most
        assert len(words) == len(truth) == 2 * min(width, math.ceil(share * width) + 1)


def test_rows_are_of_all_masked_tokens_however_they_are_batched() -> None:
    some, (hidden, targets, has) = head(), posts()
    asked = (targets >= 0) & has[:, None]
    with torch.no_grad():
        logits = some.transform(hidden[asked]) @ some.tied[0].weight.T + some.bias
        targets[0] = torch.where(targets[0] >= 0, 0, targets[0])
        logits_right = (logits.argmax(dim=1) == targets[asked]).float().mean()
        loss = F.cross_entropy(logits, targets[asked]).item()
        for sizes in ([5], [1, 1, 1, 1, 1], [2, 3]):
            metric = some.metric()
            for part in zip(*(x.split(sizes) for x in (hidden, targets, has)), strict=True):
                metric.update(some.scores(part[0]), *part[1:])
            rows = by_key(some.rows(metric.compute()))
            assert rows["loss"] == pytest.approx(loss, rel=1e-5)
            assert rows["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
            assert rows["likelihood"] == pytest.approx(math.exp(-loss), rel=1e-4)
            assert rows["accuracy"] == pytest.approx(logits_right.item())
    assert some.primary in rows
    assert set(by_key(some.rows(torch.zeros(3))).values()) == {0.0}


def test_an_embedding_in_bf16_gives_logits_in_float32() -> None:
    some, (hidden, targets, has) = head(), posts()
    exact = some.loss(hidden, targets, has)
    some.tied[0].to(torch.bfloat16)
    loss = some.loss(hidden, targets, has)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_out_of_range_is_named(share: float) -> None:
    with pytest.raises(UserError, match=f"share={share}.*0.15"):
        head(share)
