"""Searches for a merge's coefficients: by gradient through a bank of the sources, or by forwards alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.heads.base import primary
from hatemtl.merging.learned import Learned
from hatemtl.methods import lora_formats
from hatemtl.methods.bank.lora_bank import Gating, banks, empty, fill
from hatemtl.network.forward import Forward
from hatemtl.network.predictions import Predictions
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import derive, generator

Heads = Mapping[str, Any]  # by task
Candidate = dict[str, float]  # each source's weight and each objective's value, by name


@dataclass(frozen=True)
class Search:
    """The weights that a search for a merge tried and found, by source and layer, and its optimizer steps, if it had any."""

    tried: Sequence[Candidate] = ()
    found: Sequence[Mapping[str, Tensor]] = ()
    steps: int = 0


def search(
    merge: Learned, model: Transformer, runs: Sequence[SavedRun], heads: Heads, batches: Sequence[Batch]
) -> tuple[list[dict[str, Tensor]], list[Candidate]]:
    """Finds for each source the coefficient of every layer, and what each candidate on the way was worth by every objective.

    The pretrained encoder and the merged network's heads are as they were at the end.
    """
    if any(run.record["library"] not in lora_formats.FILES for run in runs):
        raise UserError("merge=learned weighs LoRAs; for fully trained encoders type merge=mean, or merge=task_arithmetic")
    sources = {str(i): lora_formats.read(run, model) for i, run in enumerate(runs)}
    fill(model, sources, gating=Gating(input=False, softmax=False), name="search", seed=merge.seed)
    found = banks(model)
    for bank in found.values():
        bank.gate = _Given()
    net = nn.ModuleDict(heads).eval().requires_grad_(False)
    try:
        worth = _Worth(merge, Forward(model.eval(), heads), list(found.values()), batches)
        rows = len(found) if merge.by == "layer" else 1
        start = torch.full((rows, len(runs)), 1 / len(runs) if merge.start is None else merge.start)
        (_by_gradient if merge.search == "gradient" else _by_cmaes)(merge, start, worth)
    finally:
        net.requires_grad_(True)
        empty(model)
    by_layer = worth.best.expand(len(found), -1)
    return [{path: by_layer[i, n] for i, path in enumerate(found)} for n in range(len(runs))], worth.trace


class _Given(nn.Module):
    """A gate whose weights, one a source, are set from without."""

    weights: Tensor

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        return self.weights


class _Worth:
    """Measures coefficients (layers or 1, sources): by the weighted objectives, and by each of them alone.

    trace: of the candidates judged so far. best: the one among them that is worth the least.
    Raises UserError where a head's predictions have no entropy, or the tasks no bias, and that counts.
    """

    def __init__(self, merge: Learned, forward: Forward, found: Sequence[Any], batches: Sequence[Batch]) -> None:
        self.merge, self.forward, self.banks, self.batches = merge, forward, found, batches
        self.heads: Heads = forward.heads
        self.trace: list[Candidate] = []
        self.best, self.least = torch.empty(0), float("inf")
        self.judged: list[str] = []  # the tasks whose bias is recorded, as cmaes does even where it does not count
        for task, head in self.heads.items():
            if "entropy" in merge.objectives and not head.has_entropy:
                raise UserError(
                    f"merge.entropy: the {head.kind} head of task {task!r} has none; type merge.entropy=0 merge.loss=1"
                )
        try:
            merge.bias_of.check({task: head.space for task, head in self.heads.items()})
            if merge.search == "cmaes":
                self.judged = [task for task, head in self.heads.items() if head.space.about in ("posts", "second texts")]
        except UserError as error:
            if "bias" in merge.objectives:
                raise UserError(f"merge.bias={merge.bias}: {error}; or type merge.bias=0 merge.error=1") from error

    @torch.no_grad()
    def judge(self, candidate: Tensor) -> float:
        total, values = self(candidate, self.batches)
        weights = candidate.mean(dim=0).tolist()  # of each source, over layers
        self.trace.append({f"weight_{n}": weight for n, weight in enumerate(weights, 1)} | values)
        worth = float(total)
        if len(self.trace) == 1 or worth < self.least:
            self.best, self.least = candidate, worth
        return worth

    def __call__(self, coefficients: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Candidate]:
        for bank, row in zip(self.banks, coefficients.expand(len(self.banks), -1), strict=True):
            bank.gate.weights = row
        means = [name for name in self.merge.objectives if name in ("loss", "entropy")]
        sums: dict[tuple[str, str], Tensor] = {}  # of an objective and a task: its sum, and of how many answers or posts
        metrics = {task: head.metric() for task, head in self.heads.items() if "error" in self.merge.objectives}
        said = {task: Predictions() for task in self.judged}
        for batch in batches:
            for task, logits in self.forward(batch).items():
                head, targets, has = self.heads[task], batch.targets[task], batch.has[task]
                for name in means:
                    value = head.loss(logits, targets, has) if name == "loss" else head.entropy(logits)
                    count = head.answers(logits, targets, has) if name == "loss" else torch.tensor(len(batch))
                    sums[name, task] = sums.get((name, task), 0) + torch.stack([value * count, count.to(value)])
                if task in metrics:
                    metrics[task].update(head.scores(logits).detach(), targets, has)
                if task in said:
                    said[task].add(batch.posts, head.scores(logits).detach(), targets, has)
        by_task = {key: total / count.clamp(min=1) for key, (total, count) in sums.items()}
        values = {name: torch.stack([by_task[name, task] for task in self.heads]).sum() for name in means}
        if metrics:
            best = [primary(self.heads[task], self.heads[task].rows(metric.compute())) for task, metric in metrics.items()]
            values["error"] = torch.tensor(1 - sum(best) / len(best))
        if said:
            whole = {task: of.whole("val", self.heads[task]) for task, of in said.items()}
            rows = self.merge.bias_of.rows(whole, {})
            biases = [row.value for row in rows if row.name == self.merge.bias_of.scalar]
            values["bias"] = torch.tensor(sum(biases) / len(biases))
        total = torch.stack([weight * values[name] for name, weight in self.merge.objectives.items()]).sum()
        return total, {name: float(value.detach()) for name, value in values.items()}


def _by_gradient(merge: Learned, start: Tensor, worth: _Worth) -> None:
    """Judges the weights at the start and after the last step. Batches come from short to long, and are shuffled."""
    coefficients, draw = start.clone().requires_grad_(), generator(merge.seed, "batches")
    solver = torch.optim.Adam([coefficients], lr=merge.rate)
    rounds = (torch.randperm(len(worth.batches), generator=draw).tolist() for _ in count())
    for i in islice(chain.from_iterable(rounds), merge.steps):
        solver.zero_grad()
        worth(coefficients, [worth.batches[i]])[0].backward()
        solver.step()
    for end in (start, coefficients.detach()):
        worth.judge(end)


def _by_cmaes(merge: Learned, start: Tensor, worth: _Worth) -> None:
    from cmaes import CMA

    if start.numel() < 2:
        raise UserError(
            "merge.search=cmaes needs two coefficients at least, and a single source has one; type merge.by=layer"
        )
    solver = CMA(mean=start.double().flatten().numpy(), sigma=merge.rate, seed=derive(merge.seed, "cmaes") % 2**32)
    worth.judge(start)
    for _ in range(merge.steps):
        asked = [solver.ask() for _ in range(solver.population_size)]
        solver.tell([(of, worth.judge(torch.from_numpy(of).float().view_as(start))) for of in asked])
