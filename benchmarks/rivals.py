"""The rivals: Hugging Face's Trainer with PEFT, and AdapterHub's AdapterTrainer, as their quick starts have it or better."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.flops import Method
from benchmarks.machine import synchronize
from benchmarks.posts import Examples
from benchmarks.readings import Reading, Tasks
from benchmarks.rival_networks import (
    MAX_LENGTH,
    Library,
    attentions,
    encode,
    fused,
    group_as_of_many,
    network,
    optimizer,
    scorer,
)

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a user sets the Trainer up.

    encoder: its folder. method: as hatemtl calls it. library: whose adapters and Trainer.
    switches: every documented switch that makes it faster on this machine, the doubtful ones tried beforehand (see `tuned`),
        bf16 only where the hardware multiplies it; otherwise `TrainingArguments`' defaults.
    pad_to_longest: of the batch; otherwise every post to 128 tokens.
    lean: no dropout of the encoder's own, the LoRA goes into the weights for evaluation, whose posts are sorted by length.
    fused: what Unsloth's guides set for a fast LoRA on a GPU, as far as torch has it, beside `switches` and `lean`: frozen
        weights of bf16, training compiled, sdpa. Its own kernels, and posts packed without padding, torch has not.
    head_rate: the learning rate of a head that reads the mean of the tokens; None for transformers' own head, which reads
        the first one and learns as fast as the rest.
    The rest is what `tuned` decides: attention None for the library's own choice; in_memory: a list instead of a
    datasets.Dataset; full_bf16: evaluation with bf16 weights instead of autocast.
    """

    encoder: str
    method: Method = "ah_lora16"
    library: Library = "transformers"
    switches: bool = False
    pad_to_longest: bool = True
    lean: bool = False
    fused: bool = False
    epochs: float = 1.0
    learning_rate: float = 5e-5
    head_rate: float | None = None
    seed: int = 42
    attention: str | None = None
    in_memory: bool = False
    workers: int = 0
    eval_batch: int = BATCH
    full_bf16: bool = False


@dataclass
class Model:
    """One task's network and its posts, tokenized beforehand."""

    network: Any
    collate: Callable[[list[dict[str, Any]]], Any]
    score: Callable[[Any], dict[str, float]]
    train: list[dict[str, Any]]
    evaluation: list[dict[str, Any]]


class TrainerArm:
    """A Trainer that trains one model a task, one after the other, as Trainer offers it."""

    def __init__(
        self,
        recipe: Recipe,
        train: Examples,
        evaluation: Examples,
        *,
        device: str,
        tasks: Tasks,
        found: Mapping[str, str] | None = None,
    ) -> None:
        """found: what another arm's warm-up found of the switches, where this one need not try them."""
        silence()
        bf16 = machine.multiplies_bf16(device)
        if found is not None:
            recipe = as_found(recipe, found)
            recipe = replace(recipe, full_bf16=recipe.full_bf16 and bf16)
        if recipe.fused:
            recipe = replace(recipe, attention=attentions(recipe.encoder)[-1])
        self.recipe, self.device, self.posts, self.tuned = recipe, device, (train, evaluation), found is not None
        self.bf16 = bf16
        if recipe.switches:
            torch.set_float32_matmul_precision("medium")
            group_as_of_many()
        self.models = {task: self._model(task) for task in tasks}
        self.scores: dict[str, float] = {}

    def warm_up(self, *, steps: int = 10) -> dict[str, str]:
        """Runs every model a little; with switches, finds the best of them first, and says which."""
        found = {}
        if self.recipe.switches and not self.tuned:
            self.tune(next(iter(self.models)))
            found = {name: str(getattr(self.recipe, name)) for name in CHOICES}
        for task in self.models:
            self._train(task, posts=steps * BATCH)
            self._evaluate(task, posts=4 * BATCH)
        return found

    def train(self, tasks: Tasks) -> Reading:
        """One training of one task's model, data loading included, from the first step to the last."""
        return self._train(_only(tasks))

    def evaluate(self, tasks: Tasks) -> Reading:
        """One pass of one task's model over the evaluation posts, metrics included."""
        return self._evaluate(_only(tasks))

    def tune(self, task: str) -> None:
        """Tries each doubtful switch on a few posts, best of three times, and keeps what is faster, one after the other."""
        posts = max(BATCH, min(8 * BATCH, len(self.posts[0]) // 2))
        rounds = 3 if posts > 2 * BATCH else 2
        stages: dict[str, Callable[..., Reading]] = {"train": self._train, "eval": self._evaluate}
        self._train(task, posts=posts)
        there = {
            "attention": (self.recipe.attention,) if self.recipe.fused else attentions(self.recipe.encoder),
            "full_bf16": (False, True) if self.bf16 else (False,),
        }
        for name, (stage, every) in CHOICES.items():
            options = tuple(option for option in every if option in there.get(name, every))
            recipes = {option: replace(self.recipe, **{name: option}) for option in options}
            seconds = dict.fromkeys(options, float("inf"))
            for option in rounds * options:  # in turns, for the machine's mood changes
                self.recipe = recipes[option]
                if name == "attention":
                    self.models[task] = self._model(task)
                reading = stages[stage](task, posts=posts if stage == "train" else 2 * posts)
                seconds[option] = min(seconds[option], reading.seconds)
            self.recipe = recipes[min(seconds, key=lambda option: seconds[option])]
        self.models = {name: self._model(name) for name in self.models}

    def _train(self, task: str, *, posts: int | None = None) -> Reading:
        model = self.models[task]
        rows = model.train[:posts]
        watch = _stopwatch(self.device)
        trainer = self._trainer(model.network, model, train_dataset=self._dataset(rows), callbacks=[watch])
        model.network.train()
        trainer.train()
        # undoes the autocast wrapped around forward, which the next Trainer would wrap once more
        trainer.accelerator.unwrap_model(model.network, keep_fp32_wrapper=False)
        return _reading(rows * int(self.recipe.epochs), watch.seconds, trainer.padded)

    def _evaluate(self, task: str, *, posts: int | None = None) -> Reading:
        model = self.models[task]
        rows = model.evaluation[:posts]
        # a copy: both merging and bf16 weights would change what is trained next
        measured = copy.deepcopy(model.network) if self.recipe.lean or self.recipe.full_bf16 else model.network
        merging = 0.0
        if self.recipe.lean and hasattr(measured, "merge_and_unload"):
            start = machine.clock()
            measured = measured.merge_and_unload()
            synchronize(self.device)
            merging = machine.clock() - start
        trainer = self._trainer(measured, model, eval_dataset=self._dataset(rows))
        synchronize(self.device)
        start = machine.clock()
        self.scores = trainer.evaluate()
        synchronize(self.device)
        seconds = machine.clock() - start + merging
        trainer.accelerator.unwrap_model(measured, keep_fp32_wrapper=False)
        return _reading(rows, seconds, trainer.padded)

    def _dataset(self, rows: list[dict[str, Any]]) -> Any:
        from datasets import Dataset

        return rows if self.recipe.in_memory else Dataset.from_list(rows)

    def _trainer(self, network: Any, model: Model, **rest: Any) -> Any:
        from transformers import PrinterCallback, TrainingArguments

        recipe, training = self.recipe, "train_dataset" in rest
        arguments: dict[str, Any] = {
            "output_dir": tempfile.gettempdir(),
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": recipe.eval_batch,
            "num_train_epochs": recipe.epochs,
            "learning_rate": recipe.learning_rate,
            "seed": recipe.seed,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "use_cpu": self.device == "cpu",
        }
        if recipe.switches:
            arguments |= {
                "bf16": self.bf16,
                "bf16_full_eval": recipe.full_bf16,
                "group_by_length": training or not recipe.lean,  # the leanest arm evaluates sorted posts, which pads less
                "optim": "adamw_torch_fused",
                "dataloader_num_workers": recipe.workers,
                "dataloader_persistent_workers": recipe.workers > 0,
                "dataloader_pin_memory": self.device == "cuda",
                "logging_nan_inf_filter": False,
            }
        if recipe.library == "adapters":
            from adapters import AdapterTrainer as Base  # type: ignore[attr-defined]
        else:
            from transformers import Trainer as Base
        if recipe.head_rate is not None:
            rest["optimizers"] = (optimizer(network, recipe.learning_rate, recipe.head_rate), None)
        trainer = _counting(Base)(
            model=network,
            args=TrainingArguments(**arguments),
            data_collator=model.collate,
            compute_metrics=model.score,
            **rest,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _model(self, task: str) -> Model:
        from transformers import AutoTokenizer, DataCollatorForTokenClassification, DataCollatorWithPadding, set_seed

        set_seed(self.recipe.seed)
        recipe, tokens = self.recipe, task == "rationale"
        tokenizer = AutoTokenizer.from_pretrained(self.recipe.encoder)
        padding: dict[str, Any] = (
            {"padding": True} if recipe.pad_to_longest else {"padding": "max_length", "max_length": MAX_LENGTH}
        )
        if recipe.switches and self.device == "cuda":
            padding["pad_to_multiple_of"] = 8  # slower on a CPU
        kind = DataCollatorForTokenClassification if tokens else DataCollatorWithPadding
        train, evaluation = (encode(tokenizer, posts, task) for posts in self.posts)
        if recipe.lean:
            evaluation.sort(key=lambda row: len(row["input_ids"]))
        classes = {"label": self.posts[0].labels, "target": self.posts[0].target.shape[1], "rationale": 2}[task]
        made = network(
            task,
            classes,
            encoder=recipe.encoder,
            method=recipe.method,
            library=recipe.library,
            dropout=not recipe.lean,
            attention=recipe.attention,
            mean=recipe.head_rate is not None,
        )
        made = fused(made) if recipe.fused else made
        return Model(made, kind(tokenizer, **padding), scorer(task, classes), train, evaluation)


# What `tune` tries, in this order: the stage that tells, and the options.
CHOICES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "attention": ("train", ("eager", "sdpa")),
    "in_memory": ("train", (False, True)),
    "workers": ("train", (0, 1)),
    "full_bf16": ("eval", (False, True)),
    "eval_batch": ("eval", (32, 64, 128)),
}


def as_found(recipe: Recipe, found: Mapping[str, str]) -> Recipe:
    """The recipe with the options of all doubtful switches that a warm-up found, and told as text."""
    told = {name: next(o for o in options if str(o) == found[name]) for name, (_, options) in CHOICES.items()}
    return replace(recipe, **told)


def silence() -> None:
    """Hushes what the libraries say of freshly drawn heads."""
    for name in ("transformers", "adapters", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _only(tasks: Tasks) -> str:
    (task,) = tasks  # Trainer has one model a task
    return task


def _reading(rows: list[dict[str, Any]], seconds: float, padded: int) -> Reading:
    lengths = np.array([len(row["input_ids"]) for row in rows], dtype=np.int64)
    return Reading(len(rows), seconds, int(lengths.sum()), int((lengths**2).sum()), padded)


def _stopwatch(device: str) -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        """Seconds from each epoch's first step to its last, the fetching of batches included."""

        seconds = started = 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            synchronize(device)
            self.started = machine.clock()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            synchronize(device)
            self.seconds += machine.clock() - self.started

    return Stopwatch()


def _counting(base: type) -> type:
    class Counting(base):
        """Adds up the positions, padding included, that go through the model."""

        padded = 0

        def _prepare_inputs(self, inputs: Any) -> Any:
            self.padded += inputs["input_ids"].numel()
            return super()._prepare_inputs(inputs)

    return Counting
