"""What holds for every head, and the layers they share."""

import copy
from collections.abc import Callable

import pytest
import torch
from figures import by_key
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from hatemtl.errors import UserError
from hatemtl.heads.base import grouped, masked_mean
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.figures import count_rows, f1
from hatemtl.heads.layers import Pool, feed_forward
from hatemtl.heads.losses import binary_losses
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import IGNORED, LabelSpace

D, LENGTHS = 6, (7, 2, 5, 3)
LAYERS = {"hidden_size": D, "layers": 2, "dropout": 0.0}
POST = {**LAYERS, "balance": 1.0}
HEADS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"multiclass-{pooling}": lambda pooling=pooling: MulticlassHead(
            space=LabelSpace("multiclass", ("a", "b", "c")), pooling=pooling, label_smoothing=0.1, **POST
        )
        for pooling in ("cls", "mean", "attention")
    },
    **{
        f"multilabel-{pooling}": lambda pooling=pooling: MultilabelHead(
            space=LabelSpace("multilabel", ("a", "b", "c")), pooling=pooling, threshold=0.5, label_smoothing=0.1, **POST
        )
        for pooling in ("cls", "mean", "attention")
    },
    **{
        f"ordinal-{pooling}": lambda pooling=pooling: OrdinalHead(
            space=LabelSpace("ordinal", ("a", "b", "c")), pooling=pooling, **POST
        )
        for pooling in ("cls", "mean", "attention")
    },
    **{
        f"score-{pooling}": lambda pooling=pooling: ScoreHead(
            space=LabelSpace("score", ("a",)), pooling=pooling, loss="huber", **LAYERS
        )
        for pooling in ("cls", "mean", "attention")
    },
    "tokens": lambda: TokensHead(space=LabelSpace("tokens", ("marked",)), threshold=0.5, label_smoothing=0.1, **POST),
}
# What each kind takes beside `LAYERS`.
GIVEN: dict[str, tuple[Callable[..., nn.Module], dict[str, object]]] = {
    "multiclass": (MulticlassHead, {"pooling": "cls", "label_smoothing": 0.0, "balance": 1.0}),
    "multilabel": (MultilabelHead, {"pooling": "cls", "threshold": 0.5, "balance": 1.0}),
    "ordinal": (OrdinalHead, {"pooling": "cls", "balance": 1.0}),
    "score": (ScoreHead, {"pooling": "cls", "loss": "mse"}),
    "tokens": (TokensHead, {"threshold": 0.5, "balance": 1.0}),
    "choice": (ChoiceHead, {"pooling": "cls"}),
}
SMOOTHED = ("multiclass", "multilabel", "tokens", "choice")
every_head = pytest.mark.parametrize("kind", HEADS)


def weighed(kind: str, seed: int = 0) -> nn.Module:
    """A head of this kind, its labels of unlike frequency."""
    torch.manual_seed(seed)
    head = HEADS[kind]()
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 10]))
    head.observe(
        {"tokens": (labels == 2).float(), "multilabel": F.one_hot(labels).float(), "score": 10.0 + labels}.get(
            head.kind, labels
        )
    )
    return head


def posts(kind: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four posts of unlike length: hidden states (4, 7, D) with noise in the padding, mask, targets, all annotated."""
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    hidden = torch.randn(*mask.shape, D, generator=draw)
    if kind == "tokens":
        targets = torch.rand(mask.shape, generator=draw).round().where(mask == 1, IGNORED)
        targets[:, 0] = IGNORED  # a special token
    elif kind.startswith("multilabel"):
        targets = torch.rand(len(mask), 3, generator=draw).round()
    else:
        targets = torch.randint(3, (len(mask),), generator=draw)
        targets = 10.0 + targets if kind.startswith("score") else targets
    return hidden, mask, targets, torch.ones(len(mask), dtype=torch.bool)


def answers(soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log odds (50, 3), what is true of them, as shares if soft, and the weights of a yes (3,)."""
    draw = torch.Generator().manual_seed(0)
    logits, targets = (make(50, 3, generator=draw, dtype=torch.float64) for make in (torch.randn, torch.rand))
    return logits, targets if soft else targets.round(), torch.tensor([1.0, 9.0, 99.0], dtype=torch.float64)


def counted(head: nn.Module, *batches: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, float]:
    metric = head.metric()
    for hidden, mask, targets, has in batches:
        metric.update(head.scores(head(hidden, mask)), targets, has)
    return by_key(head.rows(metric.compute()))


@every_head
def test_padding_changes_nothing(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    more = 9
    padded = torch.cat([hidden, 100 * torch.randn(len(mask), more, D)], dim=1)
    longer = F.pad(mask, (0, more))
    wider = F.pad(targets, (0, more), value=IGNORED) if kind == "tokens" else targets
    narrow, wide = head(hidden, mask), head(padded, longer)
    torch.testing.assert_close(wide[:, : narrow.shape[1]], narrow)
    torch.testing.assert_close(head.loss(wide, wider, has), head.loss(narrow, targets, has))
    assert counted(head, (padded, longer, wider, has)) == counted(head, (hidden, mask, targets, has))


@every_head
def test_noise_in_the_padding_of_a_short_post_changes_nothing(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    other = torch.where(mask[..., None] == 1, hidden, 100 * torch.randn_like(hidden))
    torch.testing.assert_close(head.loss(head(other, mask), targets, has), head.loss(head(hidden, mask), targets, has))
    assert counted(head, (other, mask, targets, has)) == counted(head, (hidden, mask, targets, has))


@every_head
def test_a_post_gets_the_same_logits_alone_as_in_a_batch(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, _, _ = posts(kind)
    together = head(hidden, mask)
    for i, length in enumerate(LENGTHS):
        alone = head(hidden[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(alone[0], together[i, : alone.shape[1]])


@every_head
def test_where_no_post_is_annotated_the_loss_is_a_zero_with_a_gradient_of_zeros(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    hidden.requires_grad_()
    loss = head.loss(head(hidden, mask), targets, torch.zeros_like(has))
    assert loss.item() == 0
    (1e6 * loss).backward()  # of whatever weight
    for name, value in {**dict(head.named_parameters()), "hidden": hidden}.items():
        assert value.grad is not None, name
        assert torch.equal(value.grad, torch.zeros_like(value)), name


@every_head
def test_where_a_post_is_annotated_every_parameter_learns(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    head.loss(head(hidden, mask), targets, has).backward()
    for name, value in head.named_parameters():
        if name != "pool.query.bias":  # softmax takes no notice of a constant
            assert value.grad.abs().sum() > 1e-6, name


@every_head
def test_posts_without_the_annotation_count_in_neither_loss_nor_metric(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    has[[1, 3]] = False
    some = tuple(x[has] for x in (hidden, mask, targets, has))
    torch.testing.assert_close(head.loss(head(hidden, mask), targets, has), head.loss(head(*some[:2]), *some[2:]))
    assert counted(head, (hidden, mask, targets, has)) == counted(head, some)


@every_head
@pytest.mark.parametrize("soft", [False, True])
def test_the_losses_of_posts_weighed_by_their_answers_make_the_loss_of_all(kind: str, soft: bool) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    if soft and kind.startswith("multiclass"):
        targets = torch.rand(len(mask), 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    has[1] = False
    logits = head(hidden, mask)
    each = [(logits[i : i + 1], targets[i : i + 1], has[i : i + 1]) for i in range(len(mask))]
    answers = torch.stack([head.answers(*one).float() for one in each])
    losses = torch.stack([head.loss(*one) for one in each])
    torch.testing.assert_close((answers * losses).sum() / answers.sum(), head.loss(logits, targets, has))
    torch.testing.assert_close(answers.sum(), head.answers(logits, targets, has).float())


@every_head
def test_what_a_metric_says_does_not_depend_on_how_posts_are_batched(kind: str) -> None:
    head = weighed(kind)
    batch = posts(kind)
    singles = [tuple(x[i : i + 1] for x in batch) for i in reversed(range(len(LENGTHS)))]
    assert counted(head, *singles) == counted(head, batch)
    assert counted(head, batch, batch)[head.primary] == pytest.approx(counted(head, batch)[head.primary])


@every_head
def test_a_metric_starts_afresh(kind: str) -> None:
    head = weighed(kind)
    batch = posts(kind)
    first = counted(head, batch)
    assert counted(head, batch) == first


@every_head
def test_where_nothing_is_annotated_every_row_is_zero(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, targets, has = posts(kind)
    rows = counted(head, (hidden, mask, targets, torch.zeros_like(has)))
    assert head.primary in rows
    assert set(rows.values()) == {0.0}


@every_head
def test_the_primary_metric_is_one_of_the_rows_and_rows_are_plain_numbers(kind: str) -> None:
    head = weighed(kind)
    rows = counted(head, posts(kind))
    assert head.primary in rows
    assert all(type(value) is float for value in rows.values())


@every_head
def test_scores_are_probabilities_but_those_of_a_scale(kind: str) -> None:
    head = weighed(kind)
    hidden, mask, _, _ = posts(kind)
    scores = head.scores(head(hidden, mask))
    assert scores.shape == (mask.shape if kind == "tokens" else (len(LENGTHS), len(head.space)))
    assert head.kind == "score" or ((scores >= 0) & (scores <= 1)).all()
    if head.kind in ("multiclass", "ordinal"):
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(LENGTHS)))


@every_head
def test_what_is_saved_is_what_is_trained(kind: str) -> None:
    head = weighed(kind)
    scale = {"scale"} if head.kind == "score" else set()  # without which its weights say nothing
    assert set(head.state_dict()) == {name for name, _ in head.named_parameters()} | scale


@every_head
def test_a_copy_loads_from_the_saved_weights(kind: str) -> None:
    head, other = weighed(kind, seed=0), weighed(kind, seed=1)
    hidden, mask, _, _ = posts(kind)
    assert not torch.equal(head(hidden, mask), other(hidden, mask))
    other.load_state_dict(copy.deepcopy(head.state_dict()))
    assert torch.equal(head(hidden, mask), other(hidden, mask))


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        *((kind, {"label_smoothing": 1.0}, "label_smoothing=1.0.*below 1") for kind in SMOOTHED),
        *((kind, {"label_smoothing": -0.1}, "label_smoothing=-0.1") for kind in SMOOTHED),
        *((kind, {"balance": 1.5}, "balance=1.5.*0.*1") for kind in ("multiclass", "multilabel", "tokens", "ordinal")),
        *((kind, {"layers": 0}, "layers=0.*at least 1") for kind in GIVEN),
        *((kind, {"dropout": 1.0}, "dropout=1.0") for kind in GIVEN),
        *(
            (kind, {"primary": "mea"}, "primary='mea'.*higher is better")
            for kind in GIVEN
            if kind not in ("tokens", "choice")
        ),
        *((kind, {"primary": "mae"}, "primary='mae'.*higher is better") for kind in ("score", "ordinal")),
        ("multiclass", {"primary": "mathews"}, "did you mean 'matthews'"),
        *((kind, {"threshold": 0.0}, "threshold=0.0") for kind in ("multilabel", "tokens")),
        *((kind, {"threshold": 1.0}, "threshold=1.0") for kind in ("multilabel", "tokens")),
    ],
)
def test_a_setting_out_of_range_is_named(kind: str, wrong: dict[str, object], says: str) -> None:
    head, given = GIVEN[kind]
    space = LabelSpace(kind, ("a",) if kind == "score" else ("a", "b"))  # type: ignore[arg-type]
    assert head(space=space, **(LAYERS | given))
    with pytest.raises(UserError, match=says):
        head(space=space, **(LAYERS | given | wrong))


@pytest.mark.parametrize(
    ("kind", "primaries"),
    [
        ("multiclass", ("macro_f1", "accuracy", "matthews", "f1_a", "f1_c")),
        ("multilabel", ("macro_f1", "micro_f1", "f1_b")),
        ("ordinal", ("quadratic_kappa", "accuracy", "macro_f1", "spearman")),
        ("score", ("pearson", "spearman")),
    ],
)
def test_any_row_of_which_higher_is_better_may_be_the_primary(kind: str, primaries: tuple[str, ...]) -> None:
    make, given = GIVEN[kind]
    space = LabelSpace(kind, ("a",) if kind == "score" else ("a", "b", "c"))  # type: ignore[arg-type]
    for primary in primaries:
        head = make(space=space, primary=primary, **(LAYERS | given))
        assert head.primary == primary
        assert primary in counted(head, posts(kind))


@pytest.mark.parametrize("soft", [False, True])
def test_without_smoothing_the_loss_is_torchs_bit_by_bit(soft: bool) -> None:
    logits, targets, weights = answers(soft)
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    assert torch.equal(binary_losses(logits, targets, weights, 0.0), expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
def test_a_smoothed_loss_is_torchs_for_the_smoothed_targets(share: float, soft: bool) -> None:
    logits, targets, _ = answers(soft)
    expected = F.binary_cross_entropy_with_logits(logits, targets * (1 - share) + share / 2, reduction="none")
    torch.testing.assert_close(binary_losses(logits, targets, torch.ones(3), share), expected)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
def test_with_smoothing_an_answer_is_weighed_by_what_it_is_and_a_soft_one_is_a_mixture_of_both(share: float) -> None:
    """Not as torch's `pos_weight`, which weighs what is smoothed into a no as if it were a yes."""
    logits, targets, weights = answers(soft=True)
    yes = weights * F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 1 - share / 2), reduction="none")
    no = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, share / 2), reduction="none")
    for given in (targets, targets.round()):
        torch.testing.assert_close(binary_losses(logits, given, weights, share), given * yes + (1 - given) * no)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.9])
@pytest.mark.parametrize(("soft", "weighed"), [(False, False), (False, True), (True, False)])
def test_a_smoothed_loss_is_least_where_the_score_is_the_smoothed_target(share: float, soft: bool, weighed: bool) -> None:
    """Whatever positives weigh, a sure answer is never pulled to the other side of a half."""
    _, targets, weights = answers(soft)
    if not weighed:
        weights = torch.ones_like(weights)
    logits = (targets * (1 - share) + share / 2).logit().requires_grad_()
    least = binary_losses(logits, targets, weights, share)
    least.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-12, rtol=0)
    for other in (logits - 0.5, logits + 0.5):
        assert (binary_losses(other, targets, weights, share) > least).all()


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "tokens"])
def test_a_head_pools_as_it_was_asked_to(kind: str) -> None:
    assert HEADS[kind]().pool.kind == kind.rpartition("-")[2]


@pytest.mark.parametrize("kind", ["multiclass-cls", "multilabel-cls", "tokens"])
def test_entropy_and_divergence_are_those_of_torchs_distributions(kind: str) -> None:
    """In nats: of each post's labels, or the mean over its answers of yes or no, of tokens those that are no padding."""
    head, (_, mask, _, _) = HEADS[kind](), posts(kind)
    size = mask.shape if kind == "tokens" else (len(mask), 3)
    weights = mask if kind == "tokens" else torch.ones(size)
    logits = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    p, q = map(Categorical if kind == "multiclass-cls" else Bernoulli, (None, None), logits)

    def each(values: Tensor) -> Tensor:
        return values if values.ndim == 1 else (values * weights).sum(dim=1) / weights.sum(dim=1)

    there, back = each(kl_divergence(p, q)), each(kl_divergence(q, p))
    torch.testing.assert_close(head.kl(*logits, mask), there)
    torch.testing.assert_close(head.divergence(*logits, mask), (there + back) / 2)
    if head.has_entropy:
        torch.testing.assert_close(head.entropy(logits[0]), p.entropy().mean())


def test_cls_pooling_takes_the_first_token() -> None:
    hidden, mask, _, _ = posts("multiclass")
    assert torch.equal(Pool("cls", D)(hidden, mask), hidden[:, 0])


def test_mean_pooling_is_the_mean_of_a_posts_own_tokens() -> None:
    hidden, mask, _, _ = posts("multiclass")
    mine = torch.stack([hidden[i, :length].mean(dim=0) for i, length in enumerate(LENGTHS)])
    torch.testing.assert_close(Pool("mean", D)(hidden, mask), mine)


def test_attention_pooling_weighs_a_posts_own_tokens_by_the_softmax_of_their_query() -> None:
    torch.manual_seed(0)
    pool, (hidden, mask, _, _) = Pool("attention", D), posts("multiclass")
    mine = [
        torch.softmax(hidden[i, :length] @ pool.query.weight[0], dim=0) @ hidden[i, :length]
        for i, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(pool(hidden, mask), torch.stack(mine))


def test_attention_pooling_that_prefers_no_token_is_mean_pooling() -> None:
    pool, (hidden, mask, _, _) = Pool("attention", D), posts("multiclass")
    nn.init.zeros_(pool.query.weight)
    torch.testing.assert_close(pool(hidden, mask), Pool("mean", D)(hidden, mask))


def test_one_layer_is_linear_and_two_have_a_gelu_between() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, D)
    one = feed_forward(D, 2, layers=1, dropout=0.0)
    only = [m for m in one if isinstance(m, nn.Linear)]
    assert len(only) == 1
    torch.testing.assert_close(one(x), x @ only[0].weight.T + only[0].bias)
    two = feed_forward(D, 2, layers=2, dropout=0.0)
    first, second = (m for m in two if isinstance(m, nn.Linear))
    assert (first.out_features, second.out_features) == (D, 2)
    torch.testing.assert_close(two(x), second(F.gelu(first(x))))


def test_dropout_drops_in_training_alone() -> None:
    torch.manual_seed(0)
    layers, x = feed_forward(50, 1, layers=1, dropout=0.5), torch.ones(1, 50)
    assert not torch.equal(layers(x), layers(x))
    layers.eval()
    assert torch.equal(layers(x), layers(x))


@pytest.mark.parametrize("balance", [-0.01, 1.01])
def test_balance_beyond_its_ends_is_refused(balance: float) -> None:
    with pytest.raises(UserError, match=r"no weighting.*fully balanced"):
        OrdinalHead(space=LabelSpace("ordinal", ("a", "b")), pooling="cls", balance=balance, **LAYERS)


@pytest.mark.parametrize("balance", [0, 1])
def test_balance_may_be_at_its_ends(balance: float) -> None:
    OrdinalHead(space=LabelSpace("ordinal", ("a", "b")), pooling="cls", balance=balance, **LAYERS)


def test_a_masked_mean_is_a_weighted_mean() -> None:
    values = torch.tensor([1.0, 2.0, 9.0])
    assert masked_mean(values, torch.tensor([1.0, 1.0, 0.0])).item() == 1.5
    assert masked_mean(values, torch.tensor([3.0, 1.0, 0.0])).item() == 1.25
    # far smaller weights than one, as a rare label's may be, still average
    assert masked_mean(values, torch.tensor([3e-6, 1e-6, 0.0])).item() == pytest.approx(1.25)


def test_where_no_weight_is_left_no_factor_makes_a_gradient() -> None:
    """Over the least float32 a factor of 4 would be infinite, and times the weight of 0 no number."""
    losses, weights = torch.rand(3, 2, requires_grad=True), torch.tensor([[1.0, 0.0]] * 3)
    each, share = grouped(losses, weights)
    (1e6 * (each * share).sum() + 1e6 * masked_mean(losses, torch.zeros(3, 2))).backward()
    assert losses.grad is not None and torch.equal(losses.grad, 1e6 * weights / 3)


@pytest.mark.parametrize(
    ("truth", "given"), [([1, 1, 0, 0], [1, 0, 1, 0]), ([1, 1, 1], [1, 1, 1]), ([1, 0], [0, 1]), ([1, 1], [0, 0])]
)
def test_f1_is_scikit_learns(truth: list[int], given: list[int]) -> None:
    pairs = list(zip(truth, given, strict=True))
    assert f1(pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0))) == pytest.approx(f1_score(truth, given))


def test_f1_of_nothing_is_zero() -> None:
    assert f1(0, 0, 0) == 0.0


def test_count_rows_are_named_by_kind_and_label() -> None:
    assert count_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]), ["x", "y"]) == [
        *(("tp", "x", 1.0), ("fp", "x", 2.0), ("fn", "x", 3.0)),
        *(("tp", "y", 4.0), ("fp", "y", 5.0), ("fn", "y", 6.0)),
    ]
