"""Steps over all tasks at once: a shared encoder read by a head a task, in three stages."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import merged
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations.base import Row, Stage
from hatemtl.heads.base import Head, primary
from hatemtl.heads.figures import COUNTS
from hatemtl.machine.crew import ALONE
from hatemtl.machine.sharding import clip, keep_whole, part_of, whole
from hatemtl.network.epoch_losses import EpochLosses
from hatemtl.network.forward import Forward
from hatemtl.network.predictions import Predictions
from hatemtl.objective.gradients import Gathered, of_hidden
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.regularisers.base import Regulariser, Run
from hatemtl.objective.stages import WHOLE, Plan, layer_of
from hatemtl.objective.weighting import Step, Weighting
from hatemtl.seeds import derive, seeded


class Weighed(NamedTuple):
    """The losses of a batch, whose gradients are to be taken one at a time, as `Step` has them. terms: of regularisers.

    parts: of the mean over the posts of the optimizer step, the share that each loss is.
    """

    losses: dict[str, Tensor]
    parts: dict[str, float]
    has: dict[str, Tensor]
    terms: Tensor
    hidden: Tensor | None


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
        by_label: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self.through = Forward(encoder, self.heads)
        self.weights, self.optimization, self.seed = dict(weights), optimization, seed
        self.through.weights = self.weights
        # what is weighed: the loss of a task, or those of its labels; by name the task
        self.by_label = {task: [f"{task}_{label}" for label in self.head(task).space.names] for task in by_label}
        self.losses_of = {name: task for task in heads for name in self.by_label.get(task, [task])}
        self.learns = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.stage = 0  # of training: its number, from 0 on, in the course of the optimization
        # a network that is used alone may be made without any
        self.stages = (optimization.course if isinstance(optimization, Optimization) else []) or [WHOLE]
        made: list[Any] = [weighting if stage.weighting is None else stage.weighting for stage in self.stages]
        weighed = {name: self.weights[task] for name, task in self.losses_of.items()}
        each = {one: one(tasks=weighed) for one in dict.fromkeys(made)}
        self.weightings = nn.ModuleList(each[one] for one in made)
        for one in each.values():
            one.check([name for name, parameter in encoder.named_parameters() if parameter.requires_grad])
            if of_hidden(one) and self.through.by_task:
                raise UserError(
                    "weighting.of=hidden weighs gradients of the hidden states that all tasks read, and with this method "
                    "each task has its own; type weighting.of=parameters"
                )
        self.regularisers: dict[str, Regulariser] = {}
        self.states = nn.ModuleDict()  # of the regularisers
        self.strict_loading = False  # a checkpoint holds what is trained, not the frozen body
        self.rows: list[Row] = []
        self.predictions = defaultdict[str, Predictions](Predictions)
        self.metrics: dict[str, Metric] = {}
        self.so_far = EpochLosses(self.head)
        self.weighed: Weighed | None = None
        self.gathered = Gathered()  # of the batches since the last optimizer step, where tasks' gradients are taken apart
        self.answered: dict[str, Tensor] = {}  # by these batches, by what is weighed
        self.moved: list[Batch] = []  # the batches since then, where the weighting looks back at them
        self.rates: dict[str, float] = {}  # of the last optimizer step
        self.stepped = False  # whether the last batch ended an optimizer step
        self.told: list[dict[str, Any]] = []  # of every optimizer step: each task's weight, the cosines of their gradients
        self.plan: Plan
        self.learning: tuple[bool, set[int]] | None = None  # heads or not, and layers of the encoder side
        self.crew = ALONE  # the processes that train
        self.merged = ExitStack()  # the LoRAs are merged while nothing is trained

    @property
    def learnable(self) -> dict[str, nn.Parameter]:
        """Gives what training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if name in self.learns}

    @property
    def weighting(self) -> Weighting:
        """Gives the weighting of the stage that training is in."""
        return self.weightings[self.stage]  # type: ignore[return-value]

    @property
    def regularising(self) -> dict[str, Regulariser]:
        """Gives the regularisers that act in the stage that training is in."""
        return self._acting(self.stage)

    @property
    def reads_unlabelled(self) -> bool:
        """Tells whether a regulariser says something of posts of no task, in the stage of the step that comes."""
        acting = self._acting(self.plan.at(self.trainer.global_step))
        return any(one.of_any_post and one.weight for one in acting.values())

    def _acting(self, stage: int) -> dict[str, Regulariser]:
        some = self.stages[stage].regulariser
        return {name: one for name, one in self.regularisers.items() if some is None or name in some}

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
        """Computes a scalar for each task that the batch is stepped for; outside training by the targets that judge it."""
        return {task: self.head(task).loss(logits[task], self._target(batch, task), batch.has[task]) for task in logits}

    def _target(self, batch: Batch, task: str) -> Tensor:
        return batch.learned(task) if self.training else batch.targets[task]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        hidden, logits = self.through.states_and_logits(batch)
        losses = self.losses(batch, logits)
        named, has = self._by_name(batch, logits, losses)
        weighed = self._of_step(batch, named)
        needs = self.weighting.needs
        apart = needs == "gradients" or (needs == "all losses" and self.optimization.accumulate > 1)
        if not apart:
            weighed = self.crew.mean(weighed)  # each process learns by its own posts, weighed by what all have
        with self._drawing():
            loss = self.weighting.summed(weighed) if apart else self.weighting(weighed, self._step(has))
        terms, scale = loss.new_zeros(()), 1 if batch.parts is None else self._batches * batch.part
        for name, regulariser in [(name, one) for name, one in self.regularising.items() if one.weight]:
            for term, value in regulariser.terms(self.through, batch, hidden, logits).items():
                terms = terms + scale * regulariser.weight * value
                self.so_far.add(f"train_{name}_{term}", value, len(batch))
        targets = {task: self._target(batch, task) for task in losses}
        self.so_far.add_tasks("train", losses, logits, targets, batch.has)
        self.so_far.add("train_loss", loss + terms, len(batch))
        for name, some in has.items():
            self.answered[name] = self.answered.get(name, some) | some
        if self.weighting.looks_back:
            self.moved.append(batch)
        self.weighed = Weighed(named, self._parts(batch, named), has, terms, hidden) if apart else None
        if not apart and len(self.losses_of) > 1:
            self._tell_weights(loss, weighed)
        return loss + terms

    def _of_step(self, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scales losses so that those of a step's batches, as the trainer divides them, have the mean over their posts."""
        return {name: self._batches * part * losses[name] for name, part in self._parts(batch, losses).items()}

    def _parts(self, batch: Batch, names: Collection[str]) -> dict[str, float]:
        """Gives, by what is weighed, the share of the optimizer step's mean that is this batch's."""
        of = batch.parts
        return {name: 1 / self._batches if of is None else of[self.losses_of[name]] for name in names}

    @property
    def _batches(self) -> int:
        """Counts the parts of an optimizer step, by whose number trainer and crew divide."""
        return self.optimization.accumulate * self.crew.world

    def _by_name(
        self, batch: Batch, logits: Mapping[str, Tensor], losses: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gives what is weighed, a loss a task, or, of those that are weighed by label, each label's part in it.

        And of each whether anything answers it, (): not so a label that counts nothing, or an answer that was cut off.
        Regularisers may have mixed something else in, of a task by label into all of its labels alike.
        """
        named: dict[str, Tensor] = {}
        has: dict[str, Tensor] = {}
        mixed = [one.mixed(self.through, batch, logits) for one in self.regularising.values() if one.weight]
        for task, loss in losses.items():
            head, given = self.head(task), (logits[task], self._target(batch, task), batch.has[task])
            found, shares = head.losses_by_label(*given) if task in self.by_label else (loss, None)
            for stays, more in (of[task] for of in mixed if task in of):
                found = stays * found + more
            if shares is None:
                named[task], has[task] = found, head.answers(*given) > 0
            else:
                named |= zip(self.by_label[task], found * shares, strict=True)
                has |= zip(self.by_label[task], shares > 0, strict=True)
        return named, has

    def _drawing(self) -> AbstractContextManager[None]:
        """Inside, a weighting draws the same in all processes, and in all batches of a step."""
        return seeded(self.seed, "weighting", self.global_step)

    def _step(self, has: Mapping[str, Tensor]) -> Step:
        return Step(self.current_epoch, self.crew.any(has))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.weighed is None:
            loss.backward()
            return
        (losses, parts, has, terms, hidden), self.weighed = self.weighed, None
        if terms.requires_grad:
            (terms / self.optimization.accumulate).backward(retain_graph=True)
        trained = self._trained()
        if not of_hidden(self.weighting) or not self.through.learns:
            losses = {name: self.crew.world * parts[name] * loss for name, loss in losses.items()}
            self.gathered.add(losses, has, trained, last=True)
            return
        assert hidden is not None  # or __init__ would have refused
        heads = {name: parameter for name, parameter in trained.items() if not name.startswith("encoder.")}
        gathered = Gathered()
        gathered.add(losses, has, {"hidden": hidden, **heads}, last=False)
        with self._drawing():
            found, told = gathered.combined(self.weighting, self.current_epoch, parts)
        hidden.backward(found.pop("hidden"))
        self._leave(found, told)

    def _trained(self) -> dict[str, nn.Parameter]:
        """Gives what the losses move now, by name; the weighting's own parameters are moved by itself."""
        sides = ("encoder.", "heads.") if self.through.learns else ("heads.",)
        return {name: p for name, p in self.named_parameters() if p.requires_grad and name.startswith(sides)}

    def _leave(self, gradients: Mapping[str, Tensor], told: Mapping[str, Any]) -> None:
        """Adds gradients to those of parameters, by name, where regularisers may have left some, and tells of the step."""
        parameters = dict(self.named_parameters())
        for name, gradient in gradients.items():
            already = parameters[name].grad
            parameters[name].grad = gradient if already is None else already + gradient
        self._tell(told)

    def _tell(self, figures: Mapping[str, Any]) -> None:
        """Tells of the step, in which a later batch has the last word."""
        if figures:
            step = self.global_step + 1
            if not self.told or self.told[-1]["step"] != step:
                self.told.append({"step": step, "epoch": self.current_epoch + 1})
            self.told[-1] |= figures

    def _tell_weights(self, loss: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Tells each task's weight, which is the derivative of what is trained by its loss: no pass through the network."""
        asked = {task: value for task, value in losses.items() if value.requires_grad}
        found = torch.autograd.grad(loss, [*asked.values()], retain_graph=True) if asked else ()
        self._tell({f"weight_{task}": weight.detach() for task, weight in zip(asked, found, strict=True)})

    def _look_back(self) -> None:
        losses: dict[str, Tensor] = {}
        has: dict[str, Tensor] = {}
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for batch in self.moved:
                logits = self(batch)
                found, there = self._by_name(batch, logits, self.losses(batch, logits))
                for name, value in self._of_step(batch, found).items():
                    losses[name] = losses.get(name, 0) + value / self.optimization.accumulate
                    has[name] = has.get(name, there[name]) | there[name]
        self.weighting.look_back(self.crew.mean(losses), self._step(has))
        self.moved = []

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.stepped and self.moved:
            self._look_back()
        every = self.optimization.evaluate_every
        due = every is not None and self.stepped and self.trainer.global_step % every == 0
        # Lightning's own key cannot have the end of every epoch as well
        self.trainer.val_check_batch = 1 if due else math.inf
        self.stepped = False
        if self.trainer.is_last_batch:  # to log at every step would take Lightning longer than to update the weights
            self.log_dict(
                {**self.so_far.means("train", self.crew), **self.rates}, on_step=False, on_epoch=True, batch_size=len(batch)
            )

    def train(self, mode: bool = True) -> "MultitaskModule":
        if mode:
            self.merged.close()  # open after an evaluation that failed; a merged LoRA would learn nothing
        return super().train(mode)

    def on_train_epoch_start(self) -> None:
        self.told, self.moved, self.gathered, self.answered = [], [], Gathered(), {}
        # an epoch's dropout depends on seed and epoch alone, so a resumed run equals an uninterrupted one
        rank = (self.crew.rank,) if self.crew.rank else ()  # else all processes would drop the same places
        torch.manual_seed(derive(self.seed, "epoch", self.current_epoch, *rank))
        self.so_far.forget("train")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.stepped = True
        self.rates = {f"rate_{group['name']}": group["lr"] for group in optimizer.param_groups if "name" in group}
        if self.gathered.rows:
            with self._drawing():
                self._leave(*self.gathered.shared(self.crew).combined(self.weighting, self.current_epoch))
            self.gathered = Gathered()
        if any(True for _ in self.weighting.parameters()):
            self.weighting.rest(self.crew.any(self.answered))
        self.answered = {}
        groups = [group for group in optimizer.param_groups if group.get("name") != "weighting"]
        trained = [parameter for group in groups for parameter in group["params"]]
        self.crew.average_gradients(trained)
        if self.optimization.clip is not None:  # not the trainer's: it refuses fused optimizers under autocast
            clip(trained, self.optimization.clip)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.through.progress = self.trainer.global_step / self.plan.ends[-1]
        self._let_learn(self.trainer.global_step)

    def _let_learn(self, step: int) -> None:
        """Begins the stage of an optimizer step: what does not learn in it gets no gradient."""
        self.stage = self.plan.at(step)
        heads, layers = learning = self.plan.learns(step)
        if learning != self.learning:
            self.learning, self.through.learns = learning, bool(layers)
            for name, parameter in self.learnable.items():
                side, _, own = name.partition(".")
                parameter.requires_grad = heads if side == "heads" else layer_of(own, self.plan.depth) in layers

    def on_train_end(self) -> None:
        for parameter in self.learnable.values():
            parameter.requires_grad = True

    def on_validation_epoch_start(self) -> None:
        for regulariser in self.regularising.values() if self.trainer.state.fn == "fit" else ():
            self.merged.enter_context(regulariser.evaluating(self.through))
        self.merged.enter_context(merged(self.encoder, self.through.dtype, int8=self.through.int8))
        self.predictions.clear()
        self.so_far.forget("val")
        self.metrics = {task: self.head(task).metric().to(self.device) for task in self.heads}

    def validation_step(self, batch: Batch, index: int) -> None:
        logits_of = self(batch)
        if not self.trainer.testing:
            self.so_far.add_tasks("val", self.losses(batch, logits_of), logits_of, batch.targets, batch.has)
        for task, logits in logits_of.items():
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
        losses = self.so_far.means("val", self.crew) if stage == "val" else {}
        if losses:
            losses["val_loss"] = torch.stack([self.weights[task] * losses[f"val_{task}_loss"] for task in self.heads]).sum()
        self.log_dict(shown | losses | {f"{stage}_score": score})

    def on_validation_end(self) -> None:
        self.merged.close()  # no sooner: the best weights, which a callback has kept by now, are those that were evaluated

    on_test_epoch_start, test_step, on_test_epoch_end = on_validation_epoch_start, validation_step, on_validation_epoch_end
    on_test_end = on_validation_end

    def configure_optimizers(self) -> Any:
        self.plan = self.planned(self.trainer.datamodule)  # type: ignore[attr-defined]
        optimizer, schedule = self.optimization.optimizer(
            self.plan,
            self.encoder.named_parameters(),
            self.heads.named_parameters(),
            weighting=self.weightings.named_parameters(),
            regularisers=self.states.named_parameters(),
        )
        optimizer.register_step_post_hook(self._updated)
        keep_whole(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def planned(self, data: Any) -> Plan:
        """Lays the stages out over these data's steps. Raises UserError where one has none, or nothing learns in it."""
        depth: int = self.encoder.config.num_hidden_layers  # type: ignore[union-attr, assignment]
        ends = data.ends(self.optimization.total_epochs, self.optimization.accumulate)
        plan = self.optimization.plan(ends, depth)
        sides = [name.partition(".")[::2] for name in self.learns]
        for number, stage in enumerate(self.stages):
            for name in [name for name in stage.regulariser or () if name not in self.regularisers]:
                known = did_you_mean(name, self.regularisers)
                raise UserError(f"optimization.stages[{number}].regulariser=[{name}]: it is none of the run's; {known}")
        plan.check({layer_of(name, depth) for side, name in sides if side == "encoder"})
        return plan

    def _updated(self, *_: Any) -> None:
        for regulariser in self.regularising.values():
            regulariser.after_update(self.through)

    def trained_state(self) -> dict[str, Tensor]:
        """Gives the weights that training changes, by name."""
        return {name: parameter.detach() for name, parameter in self.learnable.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        beside = self.weightings.state_dict(prefix="weightings.") | self.states.state_dict(prefix="states.")
        checkpoint["state_dict"] = {name: whole(tensor) for name, tensor in self.trained_state().items()} | beside

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name, like in self.trained_state().items():  # other libraries may have made another network of the same run
            if getattr(state.get(name), "shape", None) != like.shape:
                raise UserError(
                    f"the unfinished run has no {name} of this network's size ({' × '.join(map(str, like.shape))}); type "
                    f"overwrite=true to begin it again"
                )
        state |= {name: part_of(state[name], like) for name, like in self.trained_state().items()}
