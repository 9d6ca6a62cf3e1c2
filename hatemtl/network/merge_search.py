"""Searches for a merge's coefficients: by gradient through a bank of the sources, or by forwards alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.heads.base import Head, primary
from hatemtl.merging.learned import Learned
from hatemtl.methods import lora_formats
from hatemtl.methods.bank.lora_bank import Gating, banks, empty, fill
from hatemtl.network.forward import Forward
from hatemtl.network.module import Predictions
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

    model: the pretrained encoder, as it is again at the end. heads: of the merged network; they stay as they are.
    """
    if any(run.record["library"] not in lora_formats.FILES for run in runs):
        raise UserError("merge=learned weighs LoRAs; for fully trained encoders type merge=mean, or merge=task_arithmetic")
    check_objectives(merge, heads)
    sources = {str(i): lora_formats.read(run, model) for i, run in enumerate(runs)}
    fill(model, sources, gating=Gating(input=False, softmax=False), name="search", seed=merge.seed)
    found = banks(model)
    for bank in found.values():
        bank.gate = _Given()
    try:
        start = 1 / len(runs) if merge.start is None else merge.start
        rows = len(found) if merge.by == "layer" else 1
        first = torch.full((rows, len(runs)), start)
        net = nn.ModuleDict(heads).eval().requires_grad_(False)
        worth = _Worth(merge, model.eval(), net, list(found.values()), batches)
        best, trace = (_by_gradient if merge.search == "gradient" else _by_cmaes)(merge, first, worth)
        nn.ModuleDict(heads).requires_grad_(True)
    finally:
        empty(model)
    by_layer = best.expand(len(found), -1)
    return [{path: by_layer[i, n] for i, path in enumerate(found)} for n in range(len(runs))], trace


def check_objectives(merge: Learned, heads: Heads) -> None:
    """Raises UserError where a head's predictions have no entropy, or the tasks no bias, and that counts."""
    for task, head in heads.items():
        if "entropy" in merge.objectives and not head.has_entropy:
            raise UserError(
                f"merge.entropy: the {head.kind} head of task {task!r} has none; type merge.entropy=0 merge.loss=1"
            )
    if "bias" in merge.objectives:
        try:
            merge.bias_of.check({task: head.space for task, head in heads.items()})
        except UserError as error:
            raise UserError(f"merge.bias={merge.bias}: {error}; or type merge.bias=0 merge.error=1") from error


def has_bias(merge: Learned, heads: Heads) -> bool:
    """Tells whether a search can record the bias, which it does even where that does not count."""
    try:
        merge.bias_of.check({task: head.space for task, head in heads.items()})
    except UserError:
        return False
    return merge.search == "cmaes"


class _Given(nn.Module):
    """A gate whose weights, one a source, are set from without."""

    weights: Tensor

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        return self.weights


class _Worth:
    """Measures coefficients (layers or 1, sources): by the weighted objectives, and by each of them alone."""

    def __init__(
        self, merge: Learned, model: Transformer, heads: nn.ModuleDict, found: Sequence[Any], batches: Sequence[Batch]
    ) -> None:
        self.merge, self.heads, self.banks, self.batches = merge, heads, found, batches
        self.forward = Forward(model, heads)
        judged = {task: self._head(task) for task in heads}
        if not has_bias(merge, judged):
            judged = {}
        self.judged = [task for task, head in judged.items() if head.space.about in ("posts", "second texts")]

    def __call__(self, coefficients: Tensor, batches: Sequence[Batch] | None = None) -> tuple[Tensor, Candidate]:
        for bank, row in zip(self.banks, coefficients.expand(len(self.banks), -1), strict=True):
            bank.gate.weights = row
        sums: dict[str, Tensor] = {name: torch.zeros(()) for name in self.merge.objectives if name in ("loss", "entropy")}
        metrics = {task: self._head(task).metric() for task in self.heads if "error" in self.merge.objectives}
        said = {task: Predictions() for task in self.judged}
        posts = 0
        for batch in self.batches if batches is None else batches:
            for task, logits in self.forward(batch).items():
                head = self._head(task)
                targets, has = batch.targets[task], batch.has[task]
                for name in sums:
                    value = head.loss(logits, targets, has) if name == "loss" else head.entropy(logits)
                    sums[name] = sums[name] + value * len(batch)
                if task in metrics:
                    metrics[task].update(head.scores(logits).detach(), targets, has)
                if task in said:
                    said[task].add(batch.posts, head.scores(logits).detach(), targets, has)
            posts += len(batch)
        values = {name: value / posts for name, value in sums.items()}
        if metrics:
            best = [primary(self._head(task), self._head(task).rows(metric.compute())) for task, metric in metrics.items()]
            values["error"] = torch.tensor(1 - sum(best) / len(best))
        if said:
            whole = {task: of.whole("val", self._head(task)) for task, of in said.items()}
            rows = self.merge.bias_of.rows(whole, {})
            biases = [row.value for row in rows if row.name == self.merge.bias_of.scalar]
            values["bias"] = torch.tensor(sum(biases) / len(biases))
        total = torch.stack([weight * values[name] for name, weight in self.merge.objectives.items()]).sum()
        return total, {name: float(value.detach()) for name, value in values.items()}

    def _head(self, task: str) -> Head:
        return self.heads[task]  # type: ignore[return-value]


def _by_gradient(merge: Learned, start: Tensor, worth: _Worth) -> tuple[Tensor, list[Candidate]]:
    """The weights after the last step, or those at the start if on all posts these are better."""
    coefficients, trace = start.clone().requires_grad_(), []
    solver = torch.optim.Adam([coefficients], lr=merge.rate)
    for batch in islice(_shuffled(worth.batches, merge.seed), merge.steps):
        solver.zero_grad()
        with torch.enable_grad():
            value, _ = worth(coefficients, [batch])
            value.backward()
        solver.step()
    ends = [start, coefficients.detach()]
    with torch.no_grad():
        values = []
        for end in ends:
            value, row = worth(end)
            values.append(float(value))
            trace.append(_weights(end) | row)
    return ends[values.index(min(values))], trace


def _shuffled(batches: Sequence[Batch], seed: int) -> Iterator[Batch]:
    """The batches again and again, each time in another order: they come from short to long."""
    draw = generator(seed, "batches")
    while True:
        for i in torch.randperm(len(batches), generator=draw).tolist():
            yield batches[i]


def _weights(coefficients: Tensor) -> Candidate:
    """Each source's weight, the mean over layers."""
    return {f"weight_{n}": value for n, value in enumerate(coefficients.detach().mean(dim=0).tolist(), 1)}


@torch.no_grad()
def _by_cmaes(merge: Learned, start: Tensor, worth: _Worth) -> tuple[Tensor, list[Candidate]]:
    from cmaes import CMA

    if start.numel() < 2:
        raise UserError("merge.search=cmaes needs two coefficients at least; type merge.search=gradient")
    solver, trace = (
        CMA(mean=start.double().flatten().numpy(), sigma=merge.rate, seed=derive(merge.seed, "cmaes") % 2**32),
        [],
    )
    value, row = worth(start)
    best, least = start, float(value)
    trace.append(_weights(start) | row)
    for _ in range(merge.steps):
        told = []
        for _ in range(solver.population_size):
            asked = solver.ask()
            candidate = torch.from_numpy(asked).float().view_as(start)
            value, row = worth(candidate)
            told.append((asked, float(value)))
            trace.append(_weights(candidate) | row)
            if float(value) < least:
                best, least = candidate, float(value)
        solver.tell(told)
    return best, trace
