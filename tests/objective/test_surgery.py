"""Weights from Gramians by TorchJD's aggregators of whole gradients, by hand, and by what each method promises."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from hatemtl.errors import UserError
from hatemtl.objective import surgery
from hatemtl.objective.gradients import GradientWeighting, gramian_of

TASKS = ("label", "target", "rationale")
MAKE: dict[str, Callable[..., GradientWeighting]] = {
    "pcgrad": surgery.pcgrad,
    "mgda": partial(surgery.mgda, epsilon=1e-3, max_iters=100),
    "imtl_g": surgery.imtl_g,
    "aligned_mtl": partial(surgery.aligned_mtl, scale_mode="min"),
    "fairgrad": partial(surgery.fairgrad, alpha=1.0),
    "cagrad": partial(surgery.cagrad, c=0.4),
    "upgrad": surgery.upgrad,
    "nash_mtl": surgery.nash_mtl,
    "gradvac": partial(surgery.GradientVaccine, decay=0.5),
    "gradnorm": partial(surgery.GradNorm, alpha=1.5),
}
THEIRS: dict[str, tuple[aggregation.Aggregator, float]] = {  # and what ours are multiplied by
    "pcgrad": (aggregation.PCGrad(), 1),
    "mgda": (aggregation.MGDA(), 3),
    "imtl_g": (aggregation.IMTLG(), 3),
    "aligned_mtl": (aggregation.AlignedMTL(), 3),
    "cagrad": (aggregation.CAGrad(0.4), 3 / 1.4),
    "upgrad": (aggregation.UPGrad(), 3),
}


def made(name: str, of: str = "parameters", tasks: tuple[str, ...] = TASKS) -> GradientWeighting:
    return MAKE[name](tasks=dict.fromkeys(tasks, 1.0), of=of)


def weighed(weighting: GradientWeighting, gradients: Tensor, losses: Tensor | None = None) -> Tensor:
    """The weights of K gradients, (K, P)."""
    gradients = gradients.double()
    return weighting.weights(gradients @ gradients.T, TASKS[: len(gradients)], torch.ones(len(gradients)).double())


@pytest.fixture
def gradients() -> Tensor:
    torch.manual_seed(1)
    found = torch.randn(3, 7, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [0.5]])
    found[2] -= 0.4 * found[0]  # which conflicts
    assert (found @ found.T)[0, 2] < 0
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_the_combined_gradient_is_torchjds(name: str, gradients: Tensor) -> None:
    theirs, factor = THEIRS[name]
    torch.manual_seed(0)
    expected = factor * theirs(gradients)
    torch.manual_seed(0)  # the order of PCGrad's tasks
    torch.testing.assert_close(weighed(made(name), gradients) @ gradients, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", MAKE)
def test_orthogonal_gradients_of_one_length_stay(name: str) -> None:
    torch.testing.assert_close(weighed(made(name), 0.02 * torch.eye(3)), torch.ones(3).double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MAKE)
def test_one_task_alone_in_a_step_is_trained_as_it_is(name: str) -> None:
    found = weighed(made(name), torch.tensor([[0.3, -0.4]]))
    torch.testing.assert_close(found, torch.ones(1).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("kind", ["nothing", "one is nothing", "alike", "opposite"])
def test_degenerate_gradients_have_finite_weights(name: str, kind: str) -> None:
    rows = {
        "nothing": torch.zeros(3, 4),
        "one is nothing": torch.eye(3, 4) * torch.tensor([[1.0], [0.0], [2.0]]),
        "alike": torch.ones(3, 4),
        "opposite": torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3]]),
    }[kind]
    assert weighed(made(name), rows).isfinite().all()


def test_pcgrad_by_hand() -> None:
    """Of g1 = (1, 0) and g2 = (-1, 1), products -1: g1 + g2/2 = (½, ½), and g2 + g1 = (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()
    weighting = made("pcgrad", tasks=TASKS[:2])
    assert (weighed(weighting, gradients) @ gradients).tolist() == pytest.approx([0.5, 1.5])


def test_no_task_is_hurt_by_upgrad_mgda_or_nash(gradients: Tensor) -> None:
    for name in ("upgrad", "mgda", "nash_mtl"):
        combined = weighed(made(name), gradients) @ gradients
        assert (gradients @ combined >= -1e-3).all(), name


def test_imtl_g_is_as_long_on_each_direction(gradients: Tensor) -> None:
    combined = weighed(made("imtl_g"), gradients) @ gradients
    on_each = (gradients / gradients.norm(dim=1, keepdim=True)) @ combined
    assert on_each.tolist() == pytest.approx([on_each.mean().item()] * 3)


def test_nash_solves_the_bargain_as_fairgrad_of_alpha_one_does(gradients: Tensor) -> None:
    gramian = gradients @ gradients.T
    found = surgery.bargain(gramian)
    torch.testing.assert_close(gramian @ found, 1 / found)
    theirs = aggregation.FairGradWeighting(1.0)(gramian / gramian.diagonal().mean())
    mine = weighed(made("nash_mtl"), gradients)
    torch.testing.assert_close(mine, theirs * 3 / theirs.sum(), rtol=1e-3, atol=1e-4)
    for draw in range(200):  # of any shape, nearly singular ones too
        torch.manual_seed(draw)
        rows = torch.randn(5, 4).double() * 10.0 ** torch.randint(-3, 3, (5, 1))
        found = surgery.bargain(rows @ rows.T)
        assert found.isfinite().all() and (found > 0).all()


def test_gradvac_is_torchjds_over_steps() -> None:
    mine, theirs = made("gradvac"), aggregation.GradVac(beta=0.5)
    for draw in range(12):
        torch.manual_seed(draw)
        rows = torch.randn(3, 5).double() + 0.5
        expected = theirs(rows)
        torch.manual_seed(draw)
        torch.randn(3, 5)
        torch.testing.assert_close(weighed(mine, rows) @ rows, expected, rtol=1e-5, atol=1e-6)


def test_gradvac_moves_no_cosine_of_an_absent_task() -> None:
    mine = made("gradvac")
    mine.weights(torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double(), ["label", "rationale"], torch.ones(2))
    expected = torch.zeros(3, 3).double()
    expected[0, 2] = expected[2, 0] = 0.25
    assert torch.equal(mine.cosines, expected)  # type: ignore[arg-type]


def test_gradnorm_by_hand() -> None:
    """Lengths 1 and 3 at weights 1, mean 2, losses that fell alike: -1 raises the first weight, 3 lowers the second."""
    mine: Any = surgery.GradNorm(tasks={"label": 1.0, "target": 1.0}, of="parameters", alpha=1.5)
    gramian = torch.diag(torch.tensor([1.0, 9.0])).double()

    def slopes() -> list[float]:
        found = [mine.learned[task].grad.item() for task in ("label", "target")]
        mine.zero_grad()
        return found

    found = mine.weights(gramian, ["label", "target"], torch.tensor([2.0, 1.0]).double())
    assert found.tolist() == [1, 1] and slopes() == [-1, 3]
    # now the first fell to a quarter, the second to a half: r = ⅔ and 1⅓, goals 2·(⅔)^1.5 = 1.09 and 2·(1⅓)^1.5 = 3.08
    mine.weights(gramian, ["label", "target"], torch.tensor([0.5, 0.5]).double())
    assert slopes() == [-1, -3]
    for _ in range(2):  # batches of one step
        mine.weights(gramian, ["label", "target"], torch.tensor([0.5, 0.5]).double())
    assert slopes() == [-2, -6]
    mine.load_state_dict(mine.state_dict() | {"learned.label": torch.tensor(3.0), "learned.target": torch.tensor(1.0)})
    assert mine.weights(gramian, ["label", "target"], torch.ones(2).double()).tolist() == pytest.approx([1.5, 0.5])
    again = surgery.GradNorm(tasks={"label": 1.0, "target": 1.0}, of="parameters", alpha=1.5)
    again.load_state_dict(mine.state_dict())
    assert again.first.tolist() == [2, 1]


def test_gradnorm_moves_no_weight_of_an_absent_task() -> None:
    mine: Any = surgery.GradNorm(tasks=dict.fromkeys(TASKS, 1.0), of="parameters", alpha=1.5)
    mine.load_state_dict(mine.state_dict() | {"learned.label": torch.tensor(0.5), "learned.target": torch.tensor(2.0)})
    found = mine.weights(torch.eye(2).double(), ["label", "rationale"], torch.ones(2).double())
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3])  # which leave 2 of 3 to the absent one
    assert mine.learned["target"] == 2 and mine.learned["target"].grad is None


def test_ortho_lora_takes_conflicts_out_of_a_and_b_apart() -> None:
    weighting = surgery.OrthoLora(tasks={"label": 1.0, "target": 1.0})
    names = ["encoder.layer.0.lora_A", "encoder.layer.0.loras.run.lora_B", "encoder.bias"]
    assert [weighting.group(name) for name in names] == ["lora_A", "lora_B", "rest"]


def test_a_gramian_is_of_what_both_reach() -> None:
    torch.manual_seed(0)
    rows = [{"a": torch.randn(2, 3), "b": torch.randn(4)}, {"a": torch.randn(2, 3)}]
    flat = torch.stack([torch.cat([row["a"].flatten(), row.get("b", torch.zeros(4))]) for row in rows]).double()
    torch.testing.assert_close(gramian_of(rows, ["a", "b"]), flat @ flat.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("fairgrad", {"alpha": -1.0}, "alpha=-1"),
        ("cagrad", {"c": -0.1}, "c=-0.1"),
        ("mgda", {"epsilon": 0.0}, "epsilon=0"),
        ("aligned_mtl", {"scale_mode": "max"}, "scale_mode=max: expected min or median"),
        ("gradvac", {"decay": 2.0}, "decay=2"),
        ("gradnorm", {"alpha": -2.0}, "alpha=-2"),
        ("pcgrad", {"of": "states"}, "of=states: expected parameters or hidden"),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"weighting\.{says}"):
        MAKE[name](**{"tasks": dict.fromkeys(TASKS, 1.0), "of": "parameters", **keys})


@pytest.mark.parametrize("name", MAKE)
def test_one_task_in_all_has_nothing_to_weigh(name: str) -> None:
    with pytest.raises(UserError, match=r"here is one, label; type weighting=sum"):
        made(name, tasks=("label",))
    with pytest.raises(UserError, match=r"here is one, label; type weighting=sum.*each with a weight above 0"):
        MAKE[name](tasks={"label": 1.0, "target": 0.0}, of="parameters")


def test_a_solver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise ImportError("no solver")

    monkeypatch.setattr(aggregation, "CAGradWeighting", missing)
    with pytest.raises(UserError, match=r"weighting=cagrad needs.*uv sync --extra mtl"):
        made("cagrad")
