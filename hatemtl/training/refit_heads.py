"""Fits heads to an encoder that stands still: one pass of it over the posts, then a convex problem on what it said."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.batches.datamodule import DataModule
from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.methods.mtl_lora import reads_by_task
from hatemtl.network.module import MultitaskModule
from hatemtl.seeds import generator

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)  # on half the squared weights of standardised features
HELD_OUT = 5  # every fifth training post says which penalty is best


def check_refit(encoder: nn.Module, heads: Mapping[str, Head]) -> None:
    """Raises UserError where a head cannot be fitted to one vector a post."""
    if reads_by_task(encoder):
        raise UserError(
            "heads.merge=refit: what this method makes of a post depends on the task that reads it; type heads.merge=fresh "
            "optimization.heads_first=1"
        )
    for task, head in heads.items():
        if head.space.about != "posts":  # those of posts read one vector each
            raise UserError(
                f"heads.merge=refit: the {head.kind} head of task {task!r} reads more than one vector a post; train it, "
                f"type heads.merge=fresh optimization.heads_first=1"
            )
        if head.counts is not None:
            raise UserError(
                f"heads.merge=refit: the head of task {task!r} reads the counts of a lexicon as well; train it, type "
                f"heads.merge=fresh optimization.heads_first=1"
            )
        if head.pool is not None and head.pool.query is not None:
            raise UserError(
                f"heads.merge=refit: the head of task {task!r} learns how to pool, which no one pass can tell; type "
                f"tasks.{task}.head.pooling=mean"
            )


def features(module: MultitaskModule, data: DataModule, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Gathers for each task the pooled vectors (N, D) of its training posts and their annotations, in float32 on the CPU."""
    module.eval().to(device)
    rows, pool = data.rows("train"), data.pool
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {task: ([], []) for task in module.heads}
    with module.through.inference():
        for batch in (pool[rows[some]].to(device) for some in data.batching.in_order(pool.lengths[rows])):
            hidden = batch.first(module.through.encode(batch).float())
            for task, (vectors, targets) in found.items():
                head: Any = module.head(task)
                with torch.autocast(device.type, enabled=False):
                    pooled = head.pool(hidden, batch.first(batch.attention_mask))
                vectors.append(pooled[batch.has[task]].cpu())
                targets.append(batch.learned(task)[batch.has[task]].cpu())
    # a copy made outside: a tensor of inference mode takes no part in a fit
    return {task: (torch.cat(vectors).clone(), torch.cat(targets)) for task, (vectors, targets) in found.items()}


def fit(head: Head, vectors: Tensor, targets: Tensor, penalty: float) -> None:
    """Minimises the head's own loss over these posts plus penalty/2·‖W‖² on standardised features, by L-BFGS.

    Convex for a head of one layer (L-BFGS: Nocedal & Wright 2006, Numerical Optimization, ch. 7). In scikit-learn's words,
    of n posts whose features a StandardScaler has scaled:
        multiclass: LogisticRegression(C=1/(n·penalty)), of two labels C=2/(n·penalty), for softmax halves the one weight
        multilabel: LogisticRegression(C=1/(n·labels·penalty)) for each label, the loss being the mean over labels
        score: Ridge(alpha=n·penalty/2) on standardised scores; with the head's loss=huber, none
        ordinal: none; the proportional-odds model with the penalty on its one direction, the thresholds free
    The head's balance is `sample_weight`; a multiclass head's loss is the weighted mean, so n is then the weights' sum. With
    label_smoothing no estimator of theirs is the same. The first layer takes in what the features were standardised by.
    """
    own: Any = head
    linear = [layer for layer in own.layers if isinstance(layer, nn.Linear)]
    mean, scale = vectors.mean(0), vectors.std(0, correction=0).clamp(min=1e-6)
    inputs = (vectors - mean) / scale
    parameters = list(own.parameters())
    if len(linear) == 1:  # a deeper head starts as it was drawn: from zero it would never move
        nn.init.zeros_(linear[0].weight)
        nn.init.zeros_(linear[0].bias)
    solver = torch.optim.LBFGS(parameters, max_iter=100, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        squares = torch.stack([layer.weight.square().sum() for layer in linear])
        loss = _loss(head, inputs, targets) + penalty / 2 * squares.sum()
        loss.backward()
        return loss

    own.eval()  # without dropout
    with torch.enable_grad():
        solver.step(closure)
    solver.zero_grad()
    with torch.no_grad():
        linear[0].weight.div_(scale)
        linear[0].bias.sub_(linear[0].weight @ mean)


def _loss(head: Head, vectors: Tensor, targets: Tensor) -> Tensor:
    """The head's own loss on pooled vectors, which are what it pools of one token."""
    one = torch.ones(len(vectors), 1)
    return head.loss(head(vectors[:, None], one), targets, one[:, 0] > 0)


def refit(module: MultitaskModule, data: DataModule, *, device: torch.device, seed: int) -> dict[str, float]:
    """Fits every head to the encoder as it stands; gives the penalty that held-out posts chose for each task."""
    chosen = {}
    for task, (vectors, targets) in features(module, data, device).items():
        head: Any = module.head(task).cpu()
        order = torch.randperm(len(vectors), generator=generator(seed, "refit", task))
        out, kept = order[::HELD_OUT], order[torch.arange(len(order)) % HELD_OUT != 0]
        drawn, losses = {key: value.clone() for key, value in head.state_dict().items()}, {}
        for penalty in PENALTIES if len(kept) else ():
            head.load_state_dict(drawn)
            fit(head, vectors[kept], targets[kept], penalty)
            with torch.no_grad():
                losses[penalty] = float(_loss(head, vectors[out], targets[out]))
        chosen[task] = min(losses, key=losses.__getitem__, default=PENALTIES[-1])
        head.load_state_dict(drawn)
        fit(head, vectors, targets, chosen[task])
    return chosen
