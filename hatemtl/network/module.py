"""One step over all tasks: a shared encoder read by a head a task, in three stages."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import merged
from hatemtl.heads.base import Head
from hatemtl.methods.mtl_lora import reading, reads_by_task
from hatemtl.network.frozen_prefix import Prefix
from hatemtl.objective.optimization import Optimization
from hatemtl.seeds import derive

Stage = Literal["val", "test"]
Weighting = Callable[[Mapping[str, Tensor], Mapping[str, float]], Tensor]


@dataclass
class Predictions:
    """What a head said of the posts that its task annotates: pool positions, scores and targets, a tensor a batch."""

    posts: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


class Mean:
    """The mean of scalars, each weighed by how many posts it stands for; it waits for no GPU."""

    def __init__(self) -> None:
        self.sum: Tensor | float = 0.0
        self.posts = 0

    def update(self, value: Tensor, posts: int) -> None:
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
        weighting: Weighting,
        optimization: Optimization,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.weights, self.weighting, self.optimization, self.seed = dict(weights), weighting, optimization, seed
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen body
        self.rows: dict[str, float] = {}
        self.predictions: dict[str, Predictions] = {}
        self.metrics: dict[str, Metric] = {}
        self.compiled: Callable[..., Any] | None = None  # the encoder as training calls it
        self.prefix: Prefix | None = None  # the layers whose hidden states come with a batch
        self.losses_so_far: dict[str, Mean] = {}  # of the posts of this epoch
        self.merged = ExitStack()  # the LoRAs are merged while nothing is trained
        self.heads_alone = False  # whether the encoder side stands still in this epoch

    def head(self, task: str) -> Head:
        """The head of a task."""
        return self.heads[task]  # type: ignore[return-value]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What each task's head makes of the posts, as its loss takes it: see `Head`."""
        return self._logits(batch, self.encoder)

    def _logits(self, batch: Batch, encoder: Callable[..., Any]) -> dict[str, Tensor]:
        tasks = [*self.heads] if batch.only is None else [batch.only]  # what is not computed gets no gradient at all
        if not reads_by_task(self.encoder):
            return self._logits_of(tasks, batch, encoder)
        logits: dict[str, Tensor] = {}
        for task in tasks:
            with reading(self.encoder, task):
                logits |= self._logits_of([task], batch, encoder)
        return logits

    def _logits_of(self, tasks: list[str], batch: Batch, encoder: Callable[..., Any]) -> dict[str, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.heads_alone):
            hidden = self.hidden(batch, encoder)
        with torch.autocast(hidden.device.type, enabled=False):  # heads and losses stay in float32
            hidden = hidden.float()
            return {task: self._read(self.head(task), hidden, batch) for task in tasks}

    def hidden(self, batch: Batch, encoder: Callable[..., Any]) -> Tensor:
        """What the encoder, or a compiled one, makes of the posts' sequences, (S, T, D)."""
        if self.prefix is not None:
            self.prefix.recall(batch.prefix)
        return encoder(**batch.inputs).last_hidden_state

    def _read(self, head: Head, hidden: Tensor, batch: Batch) -> Tensor:
        if head.kind == "choice":
            return batch.by_post(head(hidden, batch.attention_mask), len(head.space))
        return head(batch.first(hidden), batch.first(batch.attention_mask))

    def losses(self, batch: Batch, encoder: Callable[..., Any]) -> dict[str, Tensor]:
        """A scalar for each task that the batch is stepped for, through the encoder or a compiled one."""
        logits = self._logits(batch, encoder)
        return {task: self.head(task).loss(logits[task], batch.targets[task], batch.has[task]) for task in logits}

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The one loss that is trained."""
        return self.weighting(losses, self.weights)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self.losses(batch, self.compiled or self.encoder)
        loss = self.weighted(losses)
        for name, value in [("train_loss", loss), *((f"train_{task}_loss", value) for task, value in losses.items())]:
            self.losses_so_far.setdefault(name, Mean()).update(value.detach(), len(batch))
        return loss

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
        self.heads_alone = self.current_epoch < self.optimization.heads_first
        self.losses_so_far = {}

    def on_train_epoch_end(self) -> None:
        self.heads_alone = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.optimization.clip is not None:  # not the trainer's: it refuses fused optimizers under autocast
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.optimization.clip)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch)

    def predict_step(self, batch: Batch, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Pool positions (B,) and each task's scores."""
        return batch.posts.cpu(), {t: self.head(t).scores(logits).cpu() for t, logits in self(batch).items()}

    def on_validation_epoch_start(self) -> None:
        self._begin()

    def on_test_epoch_start(self) -> None:
        self._begin()

    def on_predict_epoch_start(self) -> None:
        self.merged.enter_context(merged(self.encoder))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def on_predict_epoch_end(self) -> None:
        self.merged.close()

    def _begin(self) -> None:
        self.merged.enter_context(merged(self.encoder))
        self.predictions = defaultdict(Predictions)
        self.metrics = {task: self.head(task).metric().to(self.device) for task in self.heads}

    def _evaluate(self, batch: Batch) -> None:
        for task, logits in self(batch).items():
            scores, targets, has = self.head(task).scores(logits), batch.targets[task], batch.has[task]
            self.metrics[task].update(scores, targets, has)
            if self.trainer.testing and self.head(task).kind != "masked":  # which says nothing of a post
                kept = self.predictions[task]
                kept.posts.append(batch.posts[has].cpu())
                kept.scores.append(scores[has].float().cpu())
                kept.targets.append(targets[has].cpu())

    def _report(self, stage: Stage) -> None:
        self.merged.close()
        self.rows, primaries = {}, []
        for task, metric in self.metrics.items():
            rows = self.head(task).rows(metric.compute().cpu())
            self.rows |= {f"{stage}_{task}_{name}": value for name, value in rows.items()}
            primaries.append(rows[self.head(task).primary])
        counts = tuple(f"{stage}_{task}_{kind}_" for task in self.metrics for kind in ("tp", "fp", "fn"))
        shown = {name: value for name, value in self.rows.items() if not name.startswith(counts)}
        # the epoch with the best mean of the tasks' primary metrics is the one that is kept
        self.log_dict(shown | {f"{stage}_score": sum(primaries) / len(primaries)})

    def configure_optimizers(self) -> Any:
        total = self.trainer.datamodule.steps(self.optimization.total_epochs, self.optimization.accumulate)  # type: ignore[attr-defined]
        optimizer, schedule = self.optimization.optimizer(self.encoder.parameters(), self.heads.parameters(), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_parameters(self) -> list[nn.Parameter]:
        """The weights that training changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """The weights that training changes, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.trained_state()
