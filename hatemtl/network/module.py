"""Steps over all tasks at once: a shared encoder read by a head a task, in three stages."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import merged
from hatemtl.evaluations.base import Predicted, Row, Stage
from hatemtl.heads.base import COUNTS, Head, primary
from hatemtl.network.forward import Forward
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.regularisers import Regulariser
from hatemtl.objective.step import Step
from hatemtl.objective.weighting import Weighting
from hatemtl.seeds import derive


@dataclass
class Predictions:
    """A head's answers to the posts that its task annotates: pool positions, scores and targets, a tensor a batch."""

    posts: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)

    def add(self, posts: Tensor, scores: Tensor, targets: Tensor, has: Tensor) -> None:
        """Keeps what was said of a batch's posts that have the annotation, on the CPU."""
        self.posts.append(posts[has].cpu())
        self.scores.append(scores[has].float().cpu())
        self.targets.append(targets[has].cpu())

    def whole(
        self, stage: Stage, head: Head, at_words: Callable[[int, list[float]], list[float]] | None = None
    ) -> Predicted:
        """The same as one array each, for evaluations. at_words: `TokenizedPosts.at_words`, for a head of tokens."""
        posts = torch.cat(self.posts).numpy()

        def joined(batches: Sequence[Tensor]) -> np.ndarray:
            if head.space.about != "words":
                return torch.cat([*batches]).numpy()
            assert at_words is not None
            each = zip(posts.tolist(), (row.tolist() for batch in batches for row in batch), strict=True)
            return np.fromiter((np.array(at_words(post, row), np.float32) for post, row in each), object, len(posts))

        scores, gold = joined(self.scores), joined(self.targets)
        return Predicted(stage, head.space, posts, scores, gold, threshold=head.threshold or 0.5)


class Mean:
    """The mean of scalars, each weighed by how many posts it stands for; it waits for no GPU."""

    def __init__(self) -> None:
        self.sum: Tensor | float = 0.0
        self.posts: Tensor | int = 0

    def update(self, value: Tensor, posts: Tensor | int) -> None:
        self.sum, self.posts = self.sum + value * posts, self.posts + posts

    def compute(self) -> Tensor | float:
        return self.sum / self.posts


class MultitaskModule(L.LightningModule):
    """The encoder, run once a batch, and every task's head on its hidden states.

    A head computes all B rows of a batch and its loss averages those that have the annotation: a head without a row
    takes part with a zero, so every parameter gets a gradient and no row count leaves the device.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        weights: Mapping[str, float],
        weighting: Callable[..., Weighting],
        optimization: Optimization,
        seed: int,
        regularisers: Mapping[str, Regulariser] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.through = Forward(encoder, self.heads)
        self.weights, self.optimization, self.seed = dict(weights), optimization, seed
        self.weighting = weighting(tasks={task: self.weights[task] for task in heads})
        self.regularisers = dict(regularisers or {})
        for regulariser in self.regularisers.values():
            regulariser.check(self.through)
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen body
        self.rows: list[Row] = []
        self.predictions: dict[str, Predictions] = {}
        self.metrics: dict[str, Metric] = {}
        self.losses_so_far: dict[str, Mean] = {}  # of the posts of this epoch
        self.merged = ExitStack()  # the LoRAs are merged while nothing is trained

    def head(self, task: str) -> Head:
        """Gives the head of a task."""
        return self.heads[task]  # type: ignore[return-value]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Gives each task's logits of the posts, as its loss takes them: see `Head`."""
        return self.through(batch)

    def losses(self, batch: Batch, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes a scalar for each task that the batch is stepped for."""
        return {task: self.head(task).loss(logits[task], batch.targets[task], batch.has[task]) for task in logits}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        hidden, logits = self.through.states_and_logits(batch)
        losses = self.losses(batch, logits)
        counted = {task: batch.has[task].sum() for task in losses}
        shared = [p for p in self.encoder.parameters() if p.requires_grad] if self.through.learns else []
        present = {task: (number > 0).float() for task, number in counted.items()}
        step = Step(self.current_epoch, shared, hidden, present)
        loss = self.weighting(self._of_the_step(losses, batch), step)
        for name, regulariser in self.regularisers.items():
            for term, value in regulariser.terms(self.through, batch, hidden, logits).items():
                loss = loss + regulariser.weight * value
                self.losses_so_far.setdefault(f"train_{name}_{term}", Mean()).update(value.detach(), len(batch))
        for name, value in losses.items():
            self.losses_so_far.setdefault(f"train_{name}_loss", Mean()).update(value.detach(), counted[name])
        self.losses_so_far.setdefault("train_loss", Mean()).update(loss.detach(), len(batch))
        return loss

    def _of_the_step(self, losses: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses so weighed that those of the batches of one optimizer step add up to the mean over all their posts."""
        if batch.parts is None:
            return losses
        # the trainer divides by how many batches a step should have
        return {task: self.optimization.accumulate * batch.parts[task] * loss for task, loss in losses.items()}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # to log at every step would take Lightning longer than to update the weights
            means = {name: mean.compute() for name, mean in self.losses_so_far.items()}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=len(batch))

    def train(self, mode: bool = True) -> "MultitaskModule":
        if mode:
            self.merged.close()  # open after an evaluation that failed; a merged LoRA would learn nothing
        return super().train(mode)

    def on_train_epoch_start(self) -> None:
        # an epoch's dropout depends on seed and epoch alone, so a resumed run equals an uninterrupted one
        torch.manual_seed(derive(self.seed, "epoch", self.current_epoch))
        self.through.learns = self.current_epoch >= self.optimization.heads_first
        self.losses_so_far = {}

    def on_train_epoch_end(self) -> None:
        self.through.learns = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.optimization.clip is not None:  # not the trainer's: it refuses fused optimizers under autocast
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.optimization.clip)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        self._begin()

    def on_test_epoch_start(self) -> None:
        self._begin()

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _begin(self) -> None:
        self.merged.enter_context(merged(self.encoder))
        self.predictions = defaultdict(Predictions)
        self.metrics = {task: self.head(task).metric().to(self.device) for task in self.heads}

    def _evaluate(self, batch: Batch) -> None:
        for task, logits in self(batch).items():
            scores, targets, has = self.head(task).scores(logits), batch.targets[task], batch.has[task]
            self.metrics[task].update(scores, targets, has)
            if self.trainer.testing and self.head(task).space.about != "masked tokens":  # say nothing of a post
                self.predictions[task].add(batch.posts, scores, targets, has)

    def _report(self, stage: Stage) -> None:
        self.merged.close()
        self.rows, primaries = [], {}
        for task, metric in self.metrics.items():
            figures = self.head(task).rows(metric.compute().cpu())
            self.rows += [Row(stage, task, *figure) for figure in figures]
            primaries[task] = primary(self.head(task), figures)
        shown = {row.metric: row.value for row in self.rows if row.name not in COUNTS}
        # the epoch with the best mean of the tasks' primary metrics, by the tasks' weights, is the one that is kept
        weights = self.weights if any(self.weights[task] for task in primaries) else dict.fromkeys(primaries, 1.0)
        score = sum(weights[task] * value for task, value in primaries.items()) / sum(weights[task] for task in primaries)
        self.log_dict(shown | {f"{stage}_score": score})

    def configure_optimizers(self) -> Any:
        total = self.trainer.datamodule.steps(self.optimization.total_epochs, self.optimization.accumulate)  # type: ignore[attr-defined]
        optimizer, schedule = self.optimization.optimizer(
            self.encoder.parameters(), self.heads.parameters(), total, weighting=self.weighting.parameters()
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Lists the weights that training changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """Gives the weights that training changes, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weighting = {f"weighting.{name}": value for name, value in self.weighting.state_dict().items()}
        checkpoint["state_dict"] = self.trained_state() | weighting
