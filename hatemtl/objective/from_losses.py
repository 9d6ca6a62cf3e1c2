"""Weighs tasks by their losses alone. Weights of the tasks present add up to their number, where a method fixes the sum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.objective.weighting import Step, Weighting

LEAST = 1e-8  # a loss below it counts as it, where a logarithm or a quotient is taken


class Uncertainty(Weighting):
    """Σ exp(-s)·weight·loss + s/2 over tasks, s = log σ² learned (Kendall et al. 2018, arXiv:1705.07115, eq. 10)."""

    needs = "all losses"

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__(tasks=tasks)
        self.log_variance = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        terms = []
        for task, loss in losses.items():
            s = self.log_variance[task]
            terms.append(torch.exp(-s) * self.tasks[task] * loss + step.present[task] * s / 2)
        return torch.stack(terms).sum()


class ImpartialLosses(Weighting):
    """Σ exp(s)·weight·loss - s over tasks, s learned (IMTL-L; Liu et al. 2021, Towards Impartial Multi-task Learning)."""

    needs = "all losses"

    def __init__(self, *, tasks: Mapping[str, float]) -> None:
        super().__init__(tasks=tasks)
        self.log_scale = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        terms = []
        for task, loss in losses.items():
            s = self.log_scale[task]
            terms.append(torch.exp(s) * self.tasks[task] * loss - step.present[task] * s)
        return torch.stack(terms).sum()


class DynamicAverage(Weighting):
    """K·softmax(r/temperature), r a task's mean loss of the last epoch by that of the one before it (DWA).

    Equal weights until two epochs are over. Source: Liu et al. 2019, arXiv:1803.10704.
    """

    needs = "all losses"
    means: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, *, tasks: Mapping[str, float], temperature: float) -> None:
        super().__init__(tasks=tasks)
        if not 0 < temperature < float("inf"):
            raise UserError(f"weighting.temperature={temperature}: expected a number above 0; type weighting.temperature=2")
        self.temperature, self.epoch = temperature, 0
        self.register_buffer("means", torch.full((2, len(tasks)), torch.nan))  # of the epoch before last, and the last
        self.register_buffer("sums", torch.zeros(len(tasks)))  # of this epoch
        self.register_buffer("counts", torch.zeros(len(tasks)))

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        if step.epoch != self.epoch:
            mean = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1), self.means[1])
            self.means, self.epoch = torch.stack([self.means[1], mean]), step.epoch
            self.sums, self.counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)
        values, there = self.laid_out(losses, step)
        self.sums, self.counts = self.sums + values.detach() * there, self.counts + there
        rates = torch.nan_to_num(self.means[1] / self.means[0], nan=1.0, posinf=1.0)
        return (len(self.tasks) * torch.softmax(rates / self.temperature, dim=0) * values).sum()

    def get_extra_state(self) -> int:
        return self.epoch

    def set_extra_state(self, state: Any) -> None:
        self.epoch = state


class Famo(Weighting):
    """Lowers all losses at a like rate by logits that follow how much each fell (FAMO; Liu et al. 2023, arXiv:2306.03792).

    Trains Σ z·log(loss) with z = softmax(logits), scaled so that weights of losses add up to the number of tasks. After the
    step, Adam moves the logits against the fall of log(loss), which costs another pass over the batch.
    learning_rate, decay: of Adam over the logits. The paper and TorchJD decay by 1e-3, the authors' code by 1e-5.
    """

    needs = "all losses"
    compares = True
    looks_back = True
    logits: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor
    before: Tensor
    there: Tensor

    def __init__(self, *, tasks: Mapping[str, float], learning_rate: float, decay: float) -> None:
        super().__init__(tasks=tasks)
        for key, value in (("learning_rate", learning_rate), ("decay", decay)):
            if not 0 <= value < float("inf"):
                raise UserError(f"weighting.{key}={value}: expected a number, 0 or more")
        self.learning_rate, self.decay = learning_rate, decay
        for name in ("logits", "first", "second", "steps", "before", "there"):
            self.register_buffer(name, torch.zeros(len(tasks)))

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        values, there = self.laid_out(losses, step)
        self.before, self.there = self.before + values.detach(), torch.maximum(self.there, there)
        z = self._shares(there)
        weights = z / values.detach().clamp(min=LEAST)
        weights = there.sum() * weights / weights.sum().clamp(min=LEAST)
        return (weights * values).sum()

    def look_back(self, losses: Mapping[str, Tensor], step: Step) -> None:
        after, _ = self.laid_out(losses, step)
        fall = (self.before.clamp(min=LEAST) / after.detach().clamp(min=LEAST)).log() * self.there
        z = self._shares(self.there)
        slope = z * (fall - (z * fall).sum()) + self.decay * self.logits * self.there
        self.steps = self.steps + self.there
        self.first = torch.where(self.there > 0, 0.9 * self.first + 0.1 * slope, self.first)
        self.second = torch.where(self.there > 0, 0.999 * self.second + 0.001 * slope.square(), self.second)
        count = self.steps.clamp(min=1)
        root = (self.second / (1 - 0.999**count)).sqrt() + 1e-8
        self.logits = self.logits - self.there * self.learning_rate * self.first / (1 - 0.9**count) / root
        self.before, self.there = torch.zeros_like(self.before), torch.zeros_like(self.there)

    def _shares(self, there: Tensor) -> Tensor:
        return _among(self.logits, there) * there


class Random(Weighting):
    """Draws weights at every step, a softmax of normals times the tasks (RLW; Lin et al. 2022, arXiv:2111.10603)."""

    needs = "all losses"
    compares = True

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        values, there = self.laid_out(losses, step)
        drawn = torch.randn(len(values)).to(values)  # on the CPU, where every process draws alike
        return (there.sum() * _among(drawn, there) * there * values).sum()


class SmoothTchebycheff(Weighting):
    """n·μ·log(mean(exp(weight·loss/μ))) over n tasks, a smooth maximum (STCH; Lin et al. 2024, arXiv:2402.19078).

    mu: losses; the smaller, the more the greatest loss counts alone. The paper's own μ is this by the number of tasks.
    """

    needs = "all losses"
    compares = True

    def __init__(self, *, tasks: Mapping[str, float], mu: float) -> None:
        super().__init__(tasks=tasks)
        if not 0 < mu < float("inf"):
            raise UserError(f"weighting.mu={mu}: expected a number above 0; type weighting.mu=.5")
        self.mu = mu

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        values, there = self.laid_out(losses, step)
        scaled = (values / self.mu).masked_fill(there == 0, torch.finfo(values.dtype).min)
        count = there.sum()
        return count * self.mu * (torch.logsumexp(scaled, dim=0) - count.clamp(min=1).log())


class GeometricMean(Weighting):
    """n·(Π weight·loss)^(1/n) over n tasks: all fall by like shares (GLS; Chennupati et al. 2019, arXiv:1904.08492)."""

    needs = "all losses"
    compares = True

    def forward(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        values, there = self.laid_out(losses, step)
        count = there.sum()
        logs = torch.where(there > 0, values.clamp(min=LEAST), 1.0).log()
        return count * (logs.sum() / count.clamp(min=1)).exp()


def _among(logits: Tensor, there: Tensor) -> Tensor:
    return torch.softmax(logits.masked_fill(there == 0, torch.finfo(logits.dtype).min), dim=0)
