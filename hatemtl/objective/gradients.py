"""Takes each task's gradients apart, over the batches of an optimizer step, and weighs them against one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.machine.crew import Crew
from hatemtl.objective.weighting import Step, Weighting

Of = Literal["parameters", "hidden"]


class GradientWeighting(Weighting):
    """Weighs tasks by the products of their gradients; heads, which are one task's, learn at the weight that it declares.

    of: parameters, all trained ones that several tasks reach, a backward pass a task; hidden, the hidden states that heads
        read, one backward pass through the encoder, whose products stand for those of the parameters.
    """

    needs: ClassVar[Literal["losses", "all losses", "gradients"]] = "gradients"
    compares = True

    def __init__(self, *, tasks: Mapping[str, float], of: Of) -> None:
        super().__init__(tasks=tasks)
        if of not in ("parameters", "hidden"):
            raise UserError(f"weighting.of={of}: expected parameters or hidden")
        counted = [task for task, weight in tasks.items() if weight]
        if len(counted) < 2:
            here = f"here is one, {counted[0]}" if counted else "all here have a weight of 0"
            less = ", each with a weight above 0" if len(tasks) > len(counted) else ""
            raise UserError(
                f"this weighting sets gradients of several losses against one another, and {here}; type weighting=sum, or "
                f"more tasks=[...]{less}"
            )
        self.of = of

    def check(self, shared: Sequence[str]) -> None:
        if not shared:
            raise UserError(
                "this weighting needs gradients that tasks share, and nothing of the encoder is trained; type weighting=sum"
            )

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Tensor) -> Tensor:
        """Gives the weight of each of the K tasks that have a post and a gradient that is not 0, (K,) float64.

        gramian: (K, K) float64 on the CPU, products of the gradients of weight·loss. losses: (K,), weight·loss.
        """
        raise NotImplementedError

    def places(self, tasks: Sequence[str]) -> list[int]:
        """Finds where these tasks stand among all, for what is kept of each between steps."""
        return [[*self.tasks].index(task) for task in tasks]

    def group(self, parameter: str) -> str:
        """Names the group that a parameter is of; each has a Gramian and weights of its own. One of all by default."""
        return ""


def of_hidden(weighting: Weighting) -> bool:
    """Tells whether gradients of the hidden states are weighed."""
    return isinstance(weighting, GradientWeighting) and weighting.of == "hidden"


@dataclass
class Gathered:
    """Holds gradients of each task's loss, by task and by the name of the tensor; None where a loss does not reach it."""

    rows: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    has: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, losses: Mapping[str, Tensor], has: Mapping[str, Tensor], trained: Mapping[str, Tensor], *, last: bool
    ) -> None:
        """Adds the gradients of a batch by the tensors that are trained. last: whether the graph may go afterwards."""
        for place, (task, loss) in enumerate(losses.items(), 1):
            keep = not last or place < len(losses)
            found = torch.autograd.grad(loss, [*trained.values()], retain_graph=keep, allow_unused=True)
            row = self.rows.setdefault(task, {})
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    row[name] = row[name] + gradient if name in row else gradient
            self.losses[task] = self.losses.get(task, 0) + loss.detach()
            self.has[task] = self.has[task] | has[task].any() if task in self.has else has[task].any()

    def shared(self, crew: Crew) -> "Gathered":
        """Gives what all processes of a run gathered together."""
        if crew.world == 1:
            return self
        crew.average([row[name] for row in self.rows.values() for name in row])
        return Gathered(self.rows, crew.mean(self.losses), crew.any(self.has))

    def combined(
        self, weighting: Weighting, epoch: int, parts: Mapping[str, float] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Gives the gradient of each tensor, and what is told of the step: weights of tasks, cosines of their gradients.

        parts: of each task, what its gradient counts of once it was weighed as it is; None for all of it.
        """
        if weighting.needs != "gradients":
            leaves = {task: loss.clone().requires_grad_() for task, loss in self.losses.items()}
            with torch.enable_grad():
                weighting(leaves, Step(epoch, self.has)).backward()
            weights = {task: leaf.grad for task, leaf in leaves.items() if leaf.grad is not None}
            shown = {f"weight_{t}": float(w) for t, w in weights.items()} if len(weighting.tasks) > 1 else {}
            return self._sums(dict.fromkeys(self._names(), weights)), shown
        assert isinstance(weighting, GradientWeighting)
        there = torch.stack([*self.has.values()]).tolist()  # waits for a GPU, once a step
        present = [task for task, some in zip(self.has, there, strict=True) if some and weighting.tasks[task]]
        counts = dict.fromkeys(self.rows, 1.0) if parts is None else parts
        declared: dict[str, Tensor | float] = {task: counts[task] * weighting.tasks[task] for task in self.rows}
        several = [name for name in self._names() if sum(name in row for row in self.rows.values()) > 1]
        shared = [name for name in several if not name.startswith("heads.")]  # which the labels of one task share
        groups: dict[str, list[str]] = {}
        for name in shared if len(present) > 1 else ():
            groups.setdefault(weighting.group(name), []).append(name)
        by_name = dict.fromkeys(self._names(), declared)
        told: dict[str, float] = {}
        whole = torch.zeros(len(present), len(present), dtype=torch.float64)
        scale = torch.tensor([weighting.tasks[task] for task in present], dtype=torch.float64)
        for group, names in groups.items():
            gramian = gramian_of([self.rows[task] for task in present], names) * scale.outer(scale)
            whole += gramian
            moves = gramian.diagonal() != 0  # a gradient of nothing would have all the weight
            some = [task for task, there in zip(present, moves.tolist(), strict=True) if there]
            if not some:
                continue
            losses = torch.stack([self.losses[task] for task in some]).cpu().double() * scale[moves]
            found = weighting.weights(gramian[moves][:, moves], some, losses)
            by_task = {t: counts[t] * w for t, w in zip(some, (found * scale[moves]).tolist(), strict=True)}
            by_name |= dict.fromkeys(names, by_task)
            told |= {"_".join(filter(None, ("weight", t, group))): w for t, w in zip(some, found.tolist(), strict=True)}
        lengths = whole.diagonal().sqrt().clamp(min=1e-30)
        for i, first in enumerate(present):
            for j, second in enumerate(present[:i]):
                told[f"cosine_{second}_{first}"] = float(whole[i, j] / (lengths[i] * lengths[j]))
        return self._sums(by_name), told if groups else {}

    def _names(self) -> list[str]:
        return [*dict.fromkeys(name for row in self.rows.values() for name in row)]

    def _sums(self, weights: Mapping[str, Mapping[str, Tensor | float]]) -> dict[str, Tensor]:
        """Adds up, for each tensor, the gradients of tasks, times their weights."""
        sums: dict[str, Tensor] = {}
        for task, row in self.rows.items():
            for name, gradient in row.items():
                weight = weights[name].get(task)
                if weight is not None:
                    term = gradient * weight
                    sums[name] = sums[name] + term if name in sums else term
        return sums


def gramian_of(rows: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> Tensor:
    """Computes the products of K tasks' gradients over the named tensors, (K, K) float64 on the CPU; a missing one is 0."""
    products = []
    for i, first in enumerate(rows):
        for second in rows[: i + 1]:
            both = [name for name in names if name in first and name in second]
            # no matrix product: its precision is what the run chose for speed
            products.append(
                sum((first[n].float().flatten().dot(second[n].float().flatten()) for n in both), torch.zeros(()))
            )
    values = torch.stack([product.to(products[0].device) for product in products]).cpu().double()
    lower = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    places = torch.tril_indices(len(rows), len(rows))
    lower[places[0], places[1]] = values
    return lower + lower.tril(-1).T
