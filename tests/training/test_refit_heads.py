"""Heads fitted in closed pass: their loss is as low as a named reference finds it, and nothing else moves."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from test_kinds import built
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.score import ScoreHead
from hatemtl.labels import LabelSpace
from hatemtl.training.refit_heads import check_refit, fit, refit

POSTS, WIDTH, PENALTY = 300, 12, 1e-2


def posts(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(POSTS, WIDTH, generator=draw) * torch.linspace(0.1, 2, WIDTH) + 5


def standard(vectors: Tensor) -> Tensor:
    return (vectors - vectors.mean(0)) / vectors.std(0, correction=0)


def test_one_of_several_labels_is_penalised_logistic_regression() -> None:
    vectors = posts()
    labels = (vectors @ torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(1))).argmax(dim=1)
    space = LabelSpace("multiclass", ("x", "y", "z"))
    head = MulticlassHead(
        hidden_size=WIDTH, space=space, pooling="mean", layers=1, dropout=0.3, label_smoothing=0.0, balance=0.0
    )
    fit(head, vectors, labels, PENALTY)
    reference = LogisticRegression(C=1 / (PENALTY * POSTS), tol=1e-8, max_iter=5000).fit(standard(vectors), labels)
    ours = head.scores(head.layers(vectors)).detach()
    assert torch.allclose(ours, torch.from_numpy(reference.predict_proba(standard(vectors))).float(), atol=2e-3)


def test_of_two_labels_scikit_learns_c_is_twice_that_and_balance_is_its_sample_weight() -> None:
    """Softmax over two labels halves what one logistic weight is: two rows of w / 2 cost half of what w does."""
    vectors = posts()
    labels = (standard(vectors)[:, -1] > 0.8).long()
    for balance in (0.0, 1.0):
        head = MulticlassHead(
            hidden_size=WIDTH,
            space=LabelSpace("multiclass", ("x", "y")),
            pooling="mean",
            layers=1,
            dropout=0.0,
            label_smoothing=0.0,
            balance=balance,
        )
        head.observe(labels)
        weights = head.weights[labels].numpy()
        fit(head, vectors, labels, PENALTY)
        reference = LogisticRegression(C=2 / (PENALTY * weights.sum()), tol=1e-8, max_iter=5000)
        expected = reference.fit(standard(vectors), labels, sample_weight=weights).predict_proba(standard(vectors))
        ours = head.scores(head.layers(vectors)).detach()
        assert torch.allclose(ours, torch.from_numpy(expected).float(), atol=2e-3)


def test_any_number_of_labels_is_a_regression_for_each() -> None:
    vectors = posts()
    labels = (standard(vectors)[:, -4:] > torch.tensor([-1.0, 0.0, 0.5, 1.0])).float()
    space = LabelSpace("multilabel", ("a", "b", "c", "d"))
    head = MultilabelHead(hidden_size=WIDTH, space=space, pooling="mean", layers=1, dropout=0.0, threshold=0.5, balance=0.0)
    fit(head, vectors, labels, PENALTY)
    for i in range(4):  # the head's loss is the mean over labels, and so weighs the penalty four times
        reference = LogisticRegression(C=1 / (4 * PENALTY * POSTS), tol=1e-8, max_iter=5000)
        expected = reference.fit(standard(vectors), labels[:, i]).predict_proba(standard(vectors))[:, 1]
        assert torch.allclose(head.layers(vectors).sigmoid()[:, i], torch.from_numpy(expected).float(), atol=2e-3)


def test_a_score_is_ridge_regression() -> None:
    vectors = posts()
    truth = vectors @ torch.linspace(-1, 1, WIDTH) + 7
    head = ScoreHead(hidden_size=WIDTH, space=LabelSpace("score", ("s",)), pooling="cls", layers=1, dropout=0.0, loss="mse")
    head.observe(truth)
    fit(head, vectors, truth, PENALTY)
    scaled = (truth - truth.mean()) / truth.std(correction=0)
    reference = Ridge(alpha=PENALTY * POSTS / 2).fit(standard(vectors), scaled)
    expected = torch.from_numpy(reference.predict(standard(vectors))).float()
    assert torch.allclose(head.layers(vectors)[:, 0].detach(), expected, atol=1e-2)


def test_one_post_is_enough() -> None:
    """Its features have no spread, so that the intercept alone can learn."""
    head = ScoreHead(hidden_size=WIDTH, space=LabelSpace("score", ("s",)), pooling="cls", layers=1, dropout=0.0, loss="mse")
    truth = torch.tensor([0.5])
    fit(head, posts()[:1], truth, PENALTY)
    torch.testing.assert_close(head.layers(posts()[:1])[:, 0].detach(), truth)


@pytest.mark.slow
def test_it_is_the_same_on_any_machine_and_in_any_state_of_the_generator() -> None:
    outcomes = []
    for _ in range(2):
        network, data = built("label", "target", "hate", "level")
        torch.rand(3)
        chosen = refit(network.module, data, device=torch.device("cpu"), seed=0)
        outcomes.append((chosen, {key: value.clone() for key, value in network.module.heads.state_dict().items()}))
    assert outcomes[0][0] == outcomes[1][0]
    assert all(torch.equal(value, outcomes[1][1][key]) for key, value in outcomes[0][1].items())


def test_the_encoder_stays_and_the_loss_falls() -> None:
    network, data = built("label", "target", "hate", "level")
    module = network.module.eval()
    before = {key: value.clone() for key, value in module.encoder.state_dict().items()}
    batch = data.pool[data.rows("train")]
    first = {task: float(loss.detach()) for task, loss in module.losses(batch, module(batch)).items()}
    refit(module, data, device=torch.device("cpu"), seed=0)
    assert all(torch.equal(value, before[key]) for key, value in module.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in module.encoder.parameters())
    for name, loss in module.losses(batch, module(batch)).items():
        assert float(loss.detach()) < first[name]


def test_heads_that_read_more_than_a_vector_a_post_are_refused() -> None:
    encoder = torch.nn.Linear(1, 1)

    def heads(task: str) -> dict[str, Any]:
        return {task: built(task)[0].module.head(task)}

    with pytest.raises(UserError, match="the tokens head of task 'rationale'.*optimization.heads_first=1"):
        check_refit(encoder, heads("rationale"))
    some = heads("label")
    some["label"].pool.query = torch.nn.Linear(3, 1)
    with pytest.raises(UserError, match="learns how to pool.*head.pooling=mean"):
        check_refit(encoder, some)
