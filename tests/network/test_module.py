"""One step over all tasks: one forward, a gradient for every trained weight, metrics that do not depend on batching."""

from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from figures import by_metric
from methods.test_base import trained
from sklearn.metrics import f1_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import posts as packing
from hatemtl.encoders.fast.adapted import LoRALinear
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import IGNORED, LabelSpace
from hatemtl.methods.peft_adapters.library import PEFTLoRA
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.from_losses import Uncertainty
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.stages import Stage
from hatemtl.objective.weighting import Sum

WIDTH, LENGTH = 16, 8
WEIGHTS = {"label": 1.0, "target": 0.5, "rationale": 2.0}
SPACES = {
    "label": LabelSpace("multiclass", ("good", "bad", "odd")),
    "target": LabelSpace("multilabel", ("a", "b", "c", "d")),
    "rationale": LabelSpace("tokens", ("rationale",)),
}


def head(task: str) -> torch.nn.Module:
    shared: dict[str, Any] = {"hidden_size": WIDTH, "space": SPACES[task], "layers": 1, "dropout": 0.0, "balance": 0.0}
    match task:
        case "label":
            return MulticlassHead(**shared, pooling="mean", label_smoothing=0.0)
        case "target":
            return MultilabelHead(**shared, pooling="attention", threshold=0.5)
        case _:
            return TokensHead(**shared, threshold=0.5)


def module(
    *tasks: str, lora: bool = True, clip: float | None = None, seed: int = 0, heads_first: int = 0
) -> MultitaskModule:
    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert: Any = BertModel(BertConfig(**size, vocab_size=30, attn_implementation="eager"), add_pooling_layer=False)
    if lora:
        given: dict[str, Any] = {"targets": None, "leave_out": [], "learning_rate": 1e-3, "body_dropout": False}
        bert = PEFTLoRA(rank=2, alpha=2, dropout=0.0, **given).attach(bert, name="run", seed=0).model
    optimization = Optimization(
        encoder_lr=1e-3, head_lr=1e-2, weight_decay=0.0, heads_first=heads_first, warmup=0, epochs=1,
        schedule="constant", clip=clip, accumulate=1, patience=None,
    )  # fmt: skip
    heads = {task: head(task) for task in tasks or SPACES}
    return MultitaskModule(bert, heads, weights=WEIGHTS, weighting=Sum, optimization=optimization, seed=seed)


def batch(size: int, *, seed: int = 0, without: str | None = None) -> Batch:
    """Random posts; every third lacks each annotation, and all lack that of the task `without`."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH + 1, (size, 1), generator=draw)
    inside = torch.arange(LENGTH) < lengths
    words = torch.randint(0, 2, (size, LENGTH), generator=draw).float()
    counted = inside & (torch.rand(size, LENGTH, generator=draw) < 0.7)
    has = torch.arange(size) % 3 != 0
    return Batch(
        input_ids=torch.randint(5, 30, (size, LENGTH), generator=draw) * inside,
        attention_mask=inside.long(),
        targets={
            "label": torch.randint(0, 3, (size,), generator=draw),
            "target": torch.randint(0, 2, (size, 4), generator=draw).float(),
            "rationale": torch.where(counted & has[:, None], words, IGNORED),
        },
        has={task: has & (task != without) for task in SPACES},
        posts=torch.arange(size) + 100,
    )


def part(whole: Batch, rows: slice) -> Batch:
    targets, has = ({k: v[rows] for k, v in d.items()} for d in (whole.targets, whole.has))
    return Batch(whole.input_ids[rows], whole.attention_mask[rows], targets, has, whole.posts[rows])


def trainer(**other: Any) -> L.Trainer:
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, num_sanity_val_steps=0, **off, **other)  # type: ignore[arg-type]


def loader(*batches: Batch) -> DataLoader[Batch]:
    # of its own generator, as ours: a pass over it would else draw from the global one
    return DataLoader(list(batches), batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


class Data(L.LightningDataModule):
    """So many batches of these posts an epoch, and one to validate."""

    def __init__(self, posts: Batch, batches: int) -> None:
        super().__init__()
        self.posts, self.batches = posts, batches

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(*[self.posts] * self.batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        return loader(self.posts)

    def ends(self, epochs: int, accumulate: int) -> list[int]:
        return [(epoch + 1) * -(-self.batches // accumulate) for epoch in range(epochs)]


def counted(module: MultitaskModule) -> list[None]:
    """Grows by one at every forward of the encoder."""
    calls: list[None] = []
    module.encoder.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


# One step


@pytest.mark.parametrize("tasks", [("label",), ("label", "target"), ("label", "target", "rationale")], ids=len)
def test_one_forward_a_batch_in_every_stage(tasks: tuple[str, ...]) -> None:
    multitask = module(*tasks)
    calls = counted(multitask)
    posts = batch(6)
    trainer().fit(multitask, Data(posts, 2))
    assert len(calls) == 3
    trainer().test(multitask, loader(posts, posts), verbose=False)
    assert len(calls) == 5


def merged(multitask: MultitaskModule) -> set[bool]:
    """Whether the LoRAs of the encoder are merged."""
    steps = [m.forward for m in multitask.encoder.modules() if isinstance(m.forward, LoRALinear)]
    return {step.merged is not None for step in steps}


def test_loras_are_merged_while_nothing_is_trained_and_apart_again_for_training() -> None:
    multitask, posts = module(), batch(6)
    seen: list[tuple[bool, set[bool]]] = []
    multitask.encoder.register_forward_pre_hook(lambda encoder, _: seen.append((encoder.training, merged(multitask))))
    run = trainer()
    run.fit_loop.max_epochs = 2
    run.fit(multitask, Data(posts, 1))
    run.test(multitask, loader(posts), verbose=False)
    assert seen == [(True, {False}), (False, {True})] * 2 + [(False, {True})]
    assert merged(multitask) == {False}


def test_after_a_validation_that_failed_training_trains_the_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    multitask, posts = module(), batch(6)
    with monkeypatch.context() as patch:
        patch.setattr(MultitaskModule, "validation_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer().validate(multitask, loader(posts), verbose=False)
    multitask.train().training_step(posts, 0).backward()
    assert all(parameter.grad is not None for parameter in trained(multitask).values())


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
def test_training_goes_through_the_compiled_encoder_and_evaluation_does_not() -> None:
    multitask, posts = module().eval(), batch(6)
    calls: list[bool] = []

    def compiled(**inputs: Tensor) -> Any:
        calls.append(torch.is_grad_enabled())
        return multitask.encoder(**inputs)

    eager = multitask.training_step(posts, 0)
    multitask.through.compiled = compiled
    assert torch.equal(multitask.training_step(posts, 0), eager)
    trainer().test(multitask, loader(posts), verbose=False)
    assert calls == [True]


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
@pytest.mark.parametrize("without", [None, *SPACES])
@pytest.mark.parametrize("lora", [True, False])
def test_every_trained_weight_gets_a_gradient(lora: bool, without: str | None) -> None:
    multitask = module(lora=lora).train()
    multitask.training_step(batch(6, without=without), 0).backward()
    assert trained(multitask).values()
    for name, parameter in multitask.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
            if without and name.startswith(f"heads.{without}."):
                assert parameter.grad.abs().max() == 0, name
    if without != "label":
        assert multitask.heads["label"].layers[1].weight.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
def test_the_loss_is_the_weighted_sum_over_the_tasks_that_are_there() -> None:
    multitask, posts = module().eval(), batch(6)
    with torch.no_grad():
        alone = {task: multitask.training_step(batch(6, without=task), 0) for task in SPACES}
        whole, logits = multitask.training_step(posts, 0), multitask(posts)
        losses = {t: multitask.head(t).loss(logits[t], posts.targets[t], posts.has[t]) for t in SPACES}
    assert whole == pytest.approx(sum(WEIGHTS[task] * float(loss) for task, loss in losses.items()), rel=1e-6)
    for task in SPACES:
        assert whole - alone[task] == pytest.approx(WEIGHTS[task] * float(losses[task]), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*self.trainer.*not registered.*")
@pytest.mark.parametrize("only", SPACES)
def test_a_step_of_one_task_moves_the_encoder_and_that_head_alone(only: str) -> None:
    multitask, posts = module().train(), batch(6)
    plan = multitask.optimization.plan([10], 1)
    sides = multitask.encoder.named_parameters(), multitask.heads.named_parameters()
    optimizer, _ = multitask.optimization.optimizer(plan, *sides)
    multitask.training_step(posts, 0).backward()
    optimizer.step()  # AdamW now has momentum everywhere, and would move what has a gradient of zero
    optimizer.zero_grad()
    before = {name: value.clone() for name, value in multitask.trained_state().items()}
    multitask.training_step(replace(posts, only=only), 0).backward()
    multitask.on_before_optimizer_step(optimizer)
    optimizer.step()
    moved = {name for name, value in multitask.trained_state().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith((f"heads.{only}.", "encoder."))}
    for name, parameter in multitask.named_parameters():
        assert (parameter.grad is None) is (name not in moved), name


def test_steps_apart_have_the_terms_of_the_sum_and_log_their_own_task() -> None:
    multitask, posts = module().eval(), batch(6)
    logged: list[dict[str, Tensor]] = []
    multitask.log_dict = lambda rows, **_: logged.append(rows)  # type: ignore[assignment, method-assign, misc]
    multitask._trainer = SimpleNamespace(is_last_batch=False, current_epoch=0, global_step=0)  # type: ignore[assignment]
    terms = {}
    with torch.no_grad():
        for task in SPACES:
            terms[task] = float(multitask.training_step(replace(posts, only=task), 0))
            multitask.on_train_batch_end(None, posts, 0)
            summed = {name for name in multitask.so_far.sums if name != "train_target_losses"}  # of its labels
            assert summed == {"train_loss", *(f"train_{name}_loss" for name in terms)}
        multitask._trainer.is_last_batch = True  # type: ignore[union-attr]
        assert not logged
        multitask.on_train_batch_end(None, posts, 0)
        whole = multitask.training_step(posts, 0)
    assert sum(terms.values()) == pytest.approx(float(whole), rel=1e-6)
    expected = {"train_loss": sum(terms.values()) / len(terms)} | {
        f"train_{task}_loss": terms[task] / multitask.weights[task] for task in terms
    }
    labels = [float(logged[0].pop(f"train_target_loss_{label}")) for label in SPACES["target"].names]
    assert np.mean(labels) == pytest.approx(float(logged[0]["train_target_loss"]), rel=1e-6)
    assert {name: float(value) for name, value in logged[0].items()} == pytest.approx(expected, rel=1e-6)


def test_the_losses_of_an_epoch_are_means_over_its_posts() -> None:
    multitask, logged = module("label").eval(), {}
    multitask.log_dict = lambda rows, **_: logged.update(rows)  # type: ignore[assignment, method-assign, misc]
    multitask._trainer = SimpleNamespace(is_last_batch=True, current_epoch=0, global_step=0)  # type: ignore[assignment]
    parts = [batch(size, seed=size) for size in (4, 8)]
    losses = [float(multitask.training_step(posts, 0).detach()) for posts in parts]
    multitask.on_train_batch_end(None, parts[1], 1)
    assert float(logged["train_loss"]) == pytest.approx((losses[0] + 2 * losses[1]) / 3)


def test_heads_and_losses_stay_in_float32() -> None:
    multitask, posts = module().eval(), batch(6)
    for parameter in multitask.encoder.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()  # as a run keeps them
    seen: list[Tensor] = []
    multitask.encoder.register_forward_hook(lambda _, __, output: seen.append(output.last_hidden_state.detach()))
    for task in SPACES:
        multitask.heads[task].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = multitask(posts)
        losses = [multitask.head(t).loss(logits[t], posts.targets[t], posts.has[t]) for t in SPACES]
        lowered = multitask.heads["label"](seen[0].float(), posts.attention_mask)
    assert {value.dtype for value in (*seen[1:], *logits.values(), *losses)} == {torch.float32}
    assert lowered.dtype == torch.bfloat16  # what would come out if nothing were done
    with torch.no_grad():
        exact = {task: multitask.heads[task](seen[0].float(), posts.attention_mask) for task in SPACES}
    assert all(torch.equal(logits[task], exact[task]) for task in SPACES)
    with torch.no_grad():
        assert not torch.equal(module().eval()(posts)["label"], logits["label"])  # the body did compute in bfloat16


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_clipped_together(clip: float | None) -> None:
    multitask = module(clip=clip)
    for parameter in trained(multitask).values():
        parameter.grad = torch.ones_like(parameter)
    multitask.on_before_optimizer_step(torch.optim.SGD(multitask.parameters()))
    norm = torch.cat([p.grad.flatten() for p in trained(multitask).values() if p.grad is not None]).norm()
    count = sum(p.numel() for p in trained(multitask).values())
    assert norm == pytest.approx(clip or count**0.5, rel=1e-3)


def test_an_epochs_draws_depend_on_seed_and_epoch_alone() -> None:
    def state(seed: int, epoch: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
        multitask = module(seed=seed)
        torch.rand(7)
        monkeypatch.setattr(MultitaskModule, "current_epoch", property(lambda self: epoch))
        multitask.on_train_epoch_start()
        return torch.get_rng_state()

    with pytest.MonkeyPatch.context() as patch:
        first = state(0, 1, patch)
        assert torch.equal(first, state(0, 1, patch))
        assert not torch.equal(first, state(0, 2, patch))
        assert not torch.equal(first, state(1, 1, patch))


# What is kept


@pytest.mark.parametrize("lora", [True, False])
def test_the_trained_state_holds_what_is_trained(lora: bool) -> None:
    multitask = module(lora=lora)
    state = multitask.trained_state()
    assert set(state) == {name for name, parameter in multitask.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("heads.") for name in state) is lora
    assert not any(value.requires_grad for value in state.values())
    checkpoint: dict[str, Any] = {"state_dict": dict(multitask.state_dict())}
    multitask.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == set(state)


def test_a_training_step_moves_what_is_trained_and_nothing_else() -> None:
    multitask, posts = module(), batch(6)
    before = {name: parameter.detach().clone() for name, parameter in multitask.named_parameters()}
    trainer().fit(multitask, Data(posts, 2))
    moved = {name for name, parameter in multitask.named_parameters() if not torch.equal(parameter, before[name])}
    idle = {"heads.target.pool.query.bias"}  # a softmax over tokens takes no shift, so only rounding moves it
    assert moved | idle == set(multitask.trained_state())


# Metrics


LOOKS = pytest.mark.skipif(int(version("transformers").split(".")[0]) > 4, reason="transformers 5 itself looks at the mask")


class Waits(TorchDispatchMode):
    """Counts what makes a program wait until a GPU has done its work: a number or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal)
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_in_epochs_of_the_heads_alone_the_encoder_side_stands_still_and_then_moves() -> None:
    multitask, seen = module(heads_first=1), []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append({key: value.clone() for key, value in multitask.trained_state().items()})

        on_train_end = on_train_epoch_start

    L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Watch()],
    ).fit(multitask, datamodule=Data(batch(9), 3))  # fmt: skip
    start, between, end = seen
    encoder = [key for key in start if key.startswith("encoder.")]
    heads = [key for key in start if key.startswith("heads.") and "weight" in key]
    assert encoder
    assert all(torch.equal(start[key], between[key]) for key in encoder)
    assert not any(torch.equal(start[key], between[key]) for key in heads)
    assert not any(torch.equal(between[key], end[key]) for key in encoder if "lora_B" in key)


def staged(*stages: Stage, **others: Any) -> MultitaskModule:
    """A network whose optimization has these stages; without dropout."""
    plain = module()
    optimization = replace(plain.optimization, stages=stages, **others)
    weighed: dict[str, Any] = {"weights": WEIGHTS, "weighting": Sum, "seed": 0}
    return MultitaskModule(
        plain.encoder, {task: plain.head(task) for task in plain.heads}, optimization=optimization, **weighed
    )


class Watch(L.Callback):
    """Keeps what is trained before every step, and after the last, with the gradients that moved it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.append({key: value.clone() for key, value in pl_module.trained_state().items()})

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.on_train_batch_start(trainer, pl_module)

    def moved(self, step: int) -> set[str]:
        before, after = self.seen[step : step + 2]
        return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_each_stage_moves_what_it_names_by_its_weighting() -> None:
    stages = [
        Stage(learns="heads", steps=1),
        Stage(learns=["heads", "layer 1"], epochs=1, weighting=Uncertainty),
        Stage(learns="encoder", epochs=1),
    ]
    multitask, watch = staged(*stages), Watch()
    made = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[watch],
    )  # fmt: skip
    made.fit(multitask, datamodule=Data(batch(9), 2))
    heads = {name for name in watch.seen[0] if name.startswith("heads.")}
    top = {name for name in watch.seen[0] if ".layer.1." in name}
    moved = [watch.moved(step) for step in range(4)]
    assert top
    assert moved[0] == heads
    assert moved[1] == heads | {name for name in top if "lora_B" in name}  # A has no gradient while B is zero
    assert moved[2] == moved[3] - {name for name in moved[3] if ".layer.0." in name and "lora_A" in name}
    assert moved[3] == {*watch.seen[0]} - heads
    assert all(parameter.requires_grad for parameter in multitask.learnable.values())
    assert [type(one) for one in multitask.weightings] == [Sum, Uncertainty, Sum]
    assert multitask.weightings[0] is multitask.weightings[2]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_evaluations_within_an_epoch_change_no_training() -> None:
    ends = []
    for every, expected in ((None, [5]), (2, [2, 4, 5]), (5, [5])):
        multitask, watch = staged(Stage(epochs=1), evaluate_every=every), Watch()
        trainer(callbacks=[watch]).fit(multitask, datamodule=Data(batch(9), 5))
        assert watch.validated == expected
        ends.append(watch.seen[-1])
    for other in ends[1:]:
        assert all(torch.equal(other[name], ends[0][name]) for name in ends[0])


@LOOKS
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_no_training_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "waits", lambda device: True)  # as on a GPU

    def waits(batches: int) -> int:
        multitask, data = module(clip=1.0), Data(batch(6), batches)
        with Waits() as mode:
            trainer(limit_val_batches=0).fit(multitask, data)
        return mode.count

    assert waits(9) == waits(2)


def test_metrics_do_not_depend_on_batching() -> None:
    whole = batch(20)
    pieces = [part(whole, slice(a, b)) for a, b in ((0, 1), (1, 7), (7, 9), (9, 20))]
    rows = []
    for batches in ([whole], pieces, pieces[::-1]):
        multitask = module().eval()
        trainer().test(multitask, loader(*batches), verbose=False)
        rows.append(multitask.rows)
    assert rows[0] == rows[1] == rows[2]
    assert {row.task for row in rows[0]} == set(SPACES)
    assert {row.stage for row in rows[0]} == {"test"}


def test_metrics_and_predictions_are_of_the_annotated_posts() -> None:
    multitask, posts = module().eval(), batch(20)
    measured = trainer().test(multitask, loader(part(posts, slice(0, 12)), part(posts, slice(12, 20))), verbose=False)[0]
    with torch.no_grad():
        scores = {task: multitask.head(task).scores(logits) for task, logits in multitask(posts).items()}
    kept = posts.has["label"]
    for task in SPACES:
        predictions = multitask.predictions[task]
        assert torch.equal(torch.cat(predictions.posts), posts.posts[kept])
        torch.testing.assert_close(torch.cat(predictions.scores), scores[task][kept], atol=1e-6, rtol=1e-5)
        assert torch.equal(torch.cat(predictions.targets), posts.targets[task][kept])
    label = f1_score(posts.targets["label"][kept], scores["label"][kept].argmax(1), average="macro", labels=[0, 1, 2])
    target = f1_score(posts.targets["target"][kept], scores["target"][kept] >= 0.5, average="macro", zero_division=0)
    words = posts.targets["rationale"][kept]
    rationale = f1_score(words[words >= 0], scores["rationale"][kept][words >= 0] >= 0.5)
    rows = by_metric(multitask.rows)
    assert rows["test_label_macro_f1"] == pytest.approx(label)
    assert rows["test_target_macro_f1"] == pytest.approx(target)
    assert rows["test_rationale_f1"] == pytest.approx(rationale)
    assert measured["test_score"] == pytest.approx(np.average([label, target, rationale], weights=[*WEIGHTS.values()]))
    assert not any("_tp_" in name for name in measured)  # counts go to results.csv, not to curves
    assert "test_target_tp_a" in rows
    assert [*rows][:5] == [
        *(f"test_label_f1_{name}" for name in ("good", "bad", "odd")),
        "test_label_macro_f1",
        "test_label_accuracy",
    ]


def test_only_a_test_keeps_predictions() -> None:
    multitask, posts = module(), batch(6)
    trainer().fit(multitask, Data(posts, 1))
    assert not multitask.predictions
    assert "val_label_macro_f1" in by_metric(multitask.rows)
    trainer().test(multitask, loader(posts), verbose=False)
    assert set(multitask.predictions) == set(SPACES)
    assert not any(row.stage == "val" for row in multitask.rows)


@pytest.mark.parametrize("cuts", [(0, 6, 12), (0, 5, 7, 12), (0, 12)], ids=str)
def test_accumulated_batches_move_the_weights_as_one_large_batch(cuts: tuple[int, ...]) -> None:
    """However many posts of each lack an annotation, and however many batches a step should have had.

    Of rationales so many words count as a post has, so there the mean over posts is not that over words.
    """
    whole = batch(12)
    parts = [part(whole, slice(*cut)) for cut in pairwise(cuts)]
    found = []
    for batches, accumulate in (([whole], 1), (parts, 4)):
        multitask = module("label", "target", clip=None).eval()
        multitask.optimization = replace(multitask.optimization, accumulate=accumulate)
        for one in batches:
            shares = {t: float(one.has[t].sum() / whole.has[t].sum()) for t in SPACES} if accumulate > 1 else None
            loss = multitask.training_step(replace(one, parts=shares), 0)
            (loss / accumulate).backward()  # as the trainer divides
        found.append([p.grad for p in trained(multitask).values() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_tasks_logged_loss_is_a_mean_over_its_annotated_posts() -> None:
    multitask = module().eval()
    with_task, without = batch(6), batch(9, seed=1, without="label")
    for one in (with_task, without):
        multitask.training_step(one, 0)
    alone = multitask.losses(with_task, multitask(with_task))["label"]
    total, posts = multitask.so_far.sums["train_label_loss"]
    torch.testing.assert_close(total / posts, alone.detach())


def test_a_task_of_weight_zero_does_not_decide_which_epoch_is_best() -> None:
    multitask, posts = module().eval(), batch(20)
    multitask.weights["label"] = 0.0
    score = trainer().test(multitask, loader(posts), verbose=False)[0]["test_score"]
    rows = {row.metric: row.value for row in multitask.rows}
    expected = np.average([rows["test_target_macro_f1"], rows["test_rationale_f1"]], weights=[0.5, 2.0])
    assert score == pytest.approx(expected)
