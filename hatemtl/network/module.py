"""Steps over all tasks at once: a shared encoder read by a head a task, in three stages."""

from collections import defaultdict
from collections.abc import Callable, Mapping
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
from hatemtl.objective.regularisers.base import Regulariser, Run
from hatemtl.objective.step import Step
from hatemtl.objective.weighting import Weighting
from hatemtl.seeds import derive


@dataclass
class Predictions:
    """A head's answers to the posts that its task annotates: places in the pool, scores and targets, a tensor a batch."""

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

        def joined(batches: list[Tensor]) -> np.ndarray:
            if head.space.about != "words":
                return torch.cat(batches).numpy()
            assert at_words is not None
            each = zip(posts.tolist(), (row.tolist() for batch in batches for row in batch), strict=True)
            return np.fromiter((np.array(at_words(post, row), np.float32) for post, row in each), object, len(posts))

        scores, gold = joined(self.scores), joined(self.targets)
        threshold = 0.5 if head.threshold is None else head.threshold.cpu().numpy()
        return Predicted(stage, head.space, posts, scores, gold, threshold)


class MultitaskModule(L.LightningModule):
    """The encoder, run once a batch, and every task's head on its hidden states of all B posts, annotated or not."""

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        weights: Mapping[str, float],
        weighting: Callable[..., Weighting],
        optimization: Optimization,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.through = Forward(encoder, self.heads)
        self.weights, self.optimization, self.seed = dict(weights), optimization, seed
        self.weighting = weighting(tasks={task: self.weights[task] for task in heads})
        self.regularisers: dict[str, Regulariser] = {}
        self.states = nn.ModuleDict()  # of the regularisers
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen body
        self.rows: list[Row] = []
        self.predictions = defaultdict[str, Predictions](Predictions)
        self.metrics: dict[str, Metric] = {}
        self.losses_so_far: dict[str, tuple[Tensor, Tensor | int]] = {}  # of this epoch's posts: their sum, and how many
        self.merged = ExitStack()  # the LoRAs are merged while nothing is trained

    def regularise(self, regularisers: Mapping[str, Regulariser], run: Run) -> None:
        """Gives these regularisers a say in training. Raises UserError where one would say nothing."""
        for name, regulariser in regularisers.items():
            regulariser.check(self.through)
            self.regularisers[name] = regulariser.begin(self.through, run)
            self.states[name] = self.regularisers[name].state

    def head(self, task: str) -> Head:
        return self.heads[task]  # type: ignore[return-value]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.through(batch)

    def losses(self, batch: Batch, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes a scalar for each task that the batch is stepped for."""
        return {task: self.head(task).loss(logits[task], batch.targets[task], batch.has[task]) for task in logits}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        hidden, logits = self.through.states_and_logits(batch)
        losses = self.losses(batch, logits)
        weighed = losses
        if batch.parts is not None:  # those of a step's batches are to add up to the mean over all their posts
            divisor = self.optimization.accumulate  # the trainer's
            weighed = {task: divisor * batch.parts[task] * loss for task, loss in losses.items()}
        shared = self.encoder.parameters() if self.through.learns else ()
        loss = self.weighting(weighed, Step(self.current_epoch, shared, hidden, batch.has))
        for name, regulariser in [(name, one) for name, one in self.regularisers.items() if one.weight]:
            for term, value in regulariser.terms(self.through, batch, hidden, logits).items():
                loss = loss + regulariser.weight * value
                self._add(f"train_{name}_{term}", value, len(batch))
        for task, value in losses.items():
            self._add(f"train_{task}_loss", value, batch.has[task].sum())
        self._add("train_loss", loss, len(batch))
        return loss

    def _add(self, name: str, value: Tensor, posts: Tensor | int) -> None:
        total, count = self.losses_so_far.get(name, (0.0, 0))
        self.losses_so_far[name] = total + value.detach() * posts, count + posts  # waits for no GPU

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # to log at every step would take Lightning longer than to update the weights
            means = {name: total / posts for name, (total, posts) in self.losses_so_far.items()}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=len(batch))

    def train(self, mode: bool = True) -> "MultitaskModule":
        if mode:
            self.merged.close()  # open after an evaluation that failed; a merged LoRA would learn nothing
        return super().train(mode)

    def on_train_epoch_start(self) -> None:
        # an epoch's dropout depends on seed and epoch alone, so a resumed run equals an uninterrupted one
        torch.manual_seed(derive(self.seed, "epoch", self.current_epoch))
        self.through.learns = self.current_epoch >= self.optimization.heads_first
        self.losses_so_far.clear()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.optimization.clip is not None:  # not the trainer's: it refuses fused optimizers under autocast
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.optimization.clip)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.through.progress = self.trainer.global_step / self.steps

    def on_validation_epoch_start(self) -> None:
        for regulariser in self.regularisers.values() if self.trainer.state.fn == "fit" else ():
            self.merged.enter_context(regulariser.evaluating(self.through))
        self.merged.enter_context(merged(self.encoder))
        self.predictions.clear()
        self.metrics = {task: self.head(task).metric().to(self.device) for task in self.heads}

    def validation_step(self, batch: Batch, index: int) -> None:
        for task, logits in self(batch).items():
            scores, targets, has = self.head(task).scores(logits), batch.targets[task], batch.has[task]
            self.metrics[task].update(scores, targets, has)
            if self.trainer.testing and self.head(task).space.about != "masked tokens":  # say nothing of a post
                self.predictions[task].add(batch.posts, scores, targets, has)

    def on_validation_epoch_end(self) -> None:
        stage: Stage = "test" if self.trainer.testing else "val"
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

    def on_validation_end(self) -> None:
        self.merged.close()  # no sooner: the best weights, which a callback has kept by now, are those that were evaluated

    on_test_epoch_start, test_step, on_test_epoch_end = on_validation_epoch_start, validation_step, on_validation_epoch_end
    on_test_end = on_validation_end

    def configure_optimizers(self) -> Any:
        self.steps = self.trainer.datamodule.steps(self.optimization.total_epochs, self.optimization.accumulate)  # type: ignore[attr-defined]
        optimizer, schedule = self.optimization.optimizer(
            self.encoder.parameters(),
            self.heads.parameters(),
            self.steps,
            weighting=self.weighting.parameters(),
            regularisers=self.states.parameters(),
        )
        optimizer.register_step_post_hook(self._updated)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _updated(self, *_: Any) -> None:
        for regulariser in self.regularisers.values():
            regulariser.after_update(self.through)

    def trained_state(self) -> dict[str, Tensor]:
        """Gives the weights that training changes, by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        beside = self.weighting.state_dict(prefix="weighting.") | self.states.state_dict(prefix="states.")
        checkpoint["state_dict"] = self.trained_state() | beside
