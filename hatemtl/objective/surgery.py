"""Weighs tasks by the Gramian of their gradients. Orthogonal gradients of one length have weights of 1, whatever solves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchjd import aggregation

from hatemtl.errors import UserError
from hatemtl.objective.gradients import GradientWeighting, Of

EXTRA = "uv sync --extra mtl"


class Solved(GradientWeighting):
    """Leaves the weights to a function of the Gramian, (K, K) → (K,), which is given with a mean of 1 on its diagonal.

    scale: what its weights are multiplied by: nothing, the number of tasks, or what makes them add up to that number.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, float],
        of: Of,
        solve: Callable[[Tensor], Tensor],
        scale: Literal["none", "tasks", "sum"] = "none",
    ) -> None:
        super().__init__(tasks=tasks, of=of)
        self.solve, self.scale = solve, scale

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Tensor) -> Tensor:
        mean = gramian.diagonal().mean()
        if not 0 < mean < float("inf"):  # nothing to weigh, or what check_finite will refuse
            return torch.ones(len(gramian), dtype=torch.float64)
        found = self.solve(gramian / mean).double()
        if self.scale == "sum":
            return found * (len(found) / found.sum())
        return found * len(found) if self.scale == "tasks" else found


def pcgrad(*, tasks: Mapping[str, float], of: Of) -> Solved:
    """Takes from each gradient what conflicts with another, in random order (PCGrad; Yu et al. 2020, arXiv:2001.06782)."""
    return Solved(tasks=tasks, of=of, solve=aggregation.PCGradWeighting())


def mgda(*, tasks: Mapping[str, float], of: Of, epsilon: float, max_iters: int) -> Solved:
    """Finds the shortest convex combination of gradients, times K (MGDA; Sener & Koltun 2018, arXiv:1810.04650)."""
    _check(epsilon > 0, f"epsilon={epsilon}", "a number above 0")
    _check(max_iters > 0, f"max_iters={max_iters}", "1 or more")
    return Solved(tasks=tasks, of=of, solve=aggregation.MGDAWeighting(epsilon, max_iters), scale="tasks")


def imtl_g(*, tasks: Mapping[str, float], of: Of) -> Solved:
    """Projects equally on every task's direction, times K (IMTL-G; Liu et al. 2021, Impartial Multi-task Learning)."""
    return Solved(tasks=tasks, of=of, solve=aggregation.IMTLGWeighting(), scale="tasks")


def aligned_mtl(*, tasks: Mapping[str, float], of: Of, scale_mode: Literal["min", "median", "rmse"]) -> Solved:
    """Makes the system of gradients well conditioned, times K (Aligned-MTL; Senushkin et al. 2023, arXiv:2305.19000)."""
    modes = ("min", "median", "rmse")
    _check(scale_mode in modes, f"scale_mode={scale_mode}", " or ".join(modes))
    return Solved(tasks=tasks, of=of, solve=aggregation.AlignedMTLWeighting(scale_mode=scale_mode), scale="tasks")


def fairgrad(*, tasks: Mapping[str, float], of: Of, alpha: float) -> Solved:
    """Solves G·w = w^(-1/α), scaled to a sum of K (FairGrad; Ban & Ji 2024, arXiv:2402.15638)."""
    _check(0 <= alpha < float("inf"), f"alpha={alpha}", "0 or more")
    return Solved(tasks=tasks, of=of, solve=aggregation.FairGradWeighting(alpha), scale="sum")


def cagrad(*, tasks: Mapping[str, float], of: Of, c: float) -> Solved:
    """Helps the worst task within c of the mean, times K/(1+c) (CAGrad; Liu et al. 2021, arXiv:2110.14048)."""
    _check(0 <= c < float("inf"), f"c={c}", "0 or more")
    solver = _extra("cagrad", lambda: aggregation.CAGradWeighting(c))
    return Solved(tasks=tasks, of=of, solve=lambda gramian: solver(gramian) / (1 + c), scale="tasks")


def upgrad(*, tasks: Mapping[str, float], of: Of) -> Solved:
    """Projects each gradient to where no task is hurt, times K (UPGrad; Quinton & Rey 2024, arXiv:2406.16232)."""
    return Solved(tasks=tasks, of=of, solve=_extra("upgrad", aggregation.UPGradWeighting), scale="tasks")


def nash_mtl(*, tasks: Mapping[str, float], of: Of) -> Solved:
    """Solves G·w = 1/w, the bargain of Nash, scaled to a sum of K (Nash-MTL; Navon et al. 2022, arXiv:2202.01017)."""
    return Solved(tasks=tasks, of=of, solve=bargain, scale="sum")


def bargain(gramian: Tensor, steps: int = 50) -> Tensor:
    """Finds w > 0 with G·w = 1/w, (K,), as the minimum of w·G·w/2 - Σ log w, by Newton's method with halved steps.

    The authors approach it by a sequence of convex programs; it is convex itself, so that Newton's method finds it whole.
    """
    system = gramian + 1e-9 * torch.eye(len(gramian), dtype=gramian.dtype)
    w = gramian.diagonal().clamp(min=1e-12).rsqrt()

    def value(w: Tensor) -> Tensor:
        return w @ system @ w / 2 - w.log().sum()

    for _ in range(steps):
        slope = system @ w - 1 / w
        move = torch.linalg.solve(system + torch.diag(w.pow(-2)), slope)
        size = 1.0
        while size > 1e-6 and not ((w - size * move > 0).all() and value(w - size * move) <= value(w)):
            size /= 2
        w = (w - size * move).clamp(min=1e-12)
        if (slope @ move) < 1e-20:
            break
    return w


class OrthoLora(Solved):
    """Takes conflicts out of the gradients of all A of a LoRA and of all B apart, by PCGrad each.

    A LoRA's A and B live in different spaces and differ in length: of one Gramian over both, the greater decides for both.
    """

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__(tasks=tasks, of="parameters", solve=aggregation.PCGradWeighting())

    def check(self, shared: Sequence[str]) -> None:
        super().check(shared)
        if {self.group(name) for name in shared} == {"rest"}:
            raise UserError("weighting=ortho_lora is for the factors of a LoRA, and none is trained; type weighting=pcgrad")

    def group(self, parameter: str) -> str:
        found = [factor for factor in ("lora_A", "lora_B") if factor in parameter]
        return found[0] if found else "rest"


class GradientVaccine(GradientWeighting):
    """Raises cosines of gradients to their running means (GradVac; Wang et al. 2021, arXiv:2010.05874).

    decay: of the running mean of cosines: the share that a step's cosine has in it.
    """

    cosines: Tensor

    def __init__(self, *, tasks: Mapping[str, float], of: Of, decay: float) -> None:
        super().__init__(tasks=tasks, of=of)
        _check(0 <= decay <= 1, f"decay={decay}", "0 to 1")
        self.decay = decay
        self.register_buffer("cosines", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Tensor) -> Tensor:
        places, length = self.places(tasks), gramian.diagonal().sqrt()
        goals = self.cosines.cpu()
        total = torch.zeros(len(tasks), dtype=torch.float64)
        for i in range(len(tasks)):
            mine = torch.eye(len(tasks), dtype=torch.float64)[i]
            others = [j for j in range(len(tasks)) if j != i]
            for j in (others[place] for place in torch.randperm(len(others)).tolist()):
                size = (mine @ gramian @ mine).clamp(min=0).sqrt()
                if not length[j] or not size:
                    continue
                cosine, goal = float(gramian[j] @ mine / (size * length[j])), float(goals[places[i], places[j]])
                if cosine < goal < 1:
                    rise = goal * (1 - cosine**2) ** 0.5 - cosine * (1 - goal**2) ** 0.5
                    mine[j] += size * rise / (length[j] * (1 - goal**2) ** 0.5)
                goals[places[i], places[j]] = (1 - self.decay) * goal + self.decay * cosine
            total += mine
        self.cosines = goals.to(self.cosines.device)
        return total


class GradNorm(GradientWeighting):
    """Learns weights that give tasks gradients of like length, longer for those that lag (Chen et al. 2018,
    arXiv:1711.02257).

    alpha: how much a task that learned less so far is helped; 0: not at all. They learn at the rate of the heads.
    """

    first: Tensor

    def __init__(self, *, tasks: Mapping[str, float], of: Of, alpha: float) -> None:
        super().__init__(tasks=tasks, of=of)
        _check(0 <= alpha < float("inf"), f"alpha={alpha}", "0 or more")
        self.alpha, self.learned = alpha, nn.ParameterDict({task: nn.Parameter(torch.ones(())) for task in tasks})
        self.register_buffer("first", torch.full((len(tasks),), torch.nan, dtype=torch.float64))

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Tensor) -> Tensor:
        places = self.places(tasks)
        first = self.first.cpu()
        first[places] = torch.where(first[places].isnan(), losses, first[places])
        self.first = first.to(self.first.device)
        every = torch.stack([self.learned[task].detach() for task in self.tasks]).cpu().double()
        weights, lengths = every[places].clamp(min=1e-3), gramian.diagonal().sqrt()
        mine = len(every) - (every.sum() - every[places].sum())  # of the number of tasks, what absent ones leave
        weights = weights * (mine.clamp(min=1e-3) / weights.sum())
        left = losses / first[places].clamp(min=1e-8)
        goal = (weights * lengths).mean() * (left / left.mean()).pow(self.alpha)
        slopes = lengths * torch.sign(weights * lengths - goal)
        for task, weight, slope in zip(tasks, weights, slopes, strict=True):
            parameter = self.learned[task]
            parameter.data.copy_(weight)
            before = 0 if parameter.grad is None else parameter.grad  # of the step's batches, where each is weighed
            parameter.grad = before + slope.to(parameter)
        return weights


def _extra(name: str, make: Callable[[], Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    try:
        return make()
    except ImportError as error:
        raise UserError(
            f"weighting={name} needs packages that are not installed; type {EXTRA}, or weighting=pcgrad"
        ) from error


def _check(holds: bool, given: str, expected: str) -> None:
    if not holds:
        raise UserError(f"weighting.{given}: expected {expected}")
