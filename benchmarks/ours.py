"""hatemtl as a benchmark sees it: the one file here that knows hatemtl's inside, to be changed with it."""

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks import machine
from benchmarks.machine import synchronize
from benchmarks.posts import Examples, batches, draw
from benchmarks.readings import Reading, Tasks
from hatemtl.command.configuration import build, requested
from hatemtl.command.used_run import using_alone
from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.machine.startup import keep_memory, quiet
from hatemtl.training.prepare import prepare
from hatemtl.using.reader import Reader

CONF = Path(__file__).parents[1] / "conf"
SAMPLE = "sample"
# What a configuration of this version may not know: the arm that asks for it is left out.
UNKNOWN = (HydraException, OmegaConfBaseException, UserError)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which posts: `name` is `sample` or a folder of corpora; so many of train and val, drawn by `seed`, and all of test.

    alike: whether they are drawn as batches of like lengths, for where there are few.
    """

    name: str
    train: int
    evaluation: int
    seed: int = 0
    alike: bool = False

    def overrides(self, tasks: Tasks) -> list[str]:
        """What selects the corpus on the command line."""
        if self.name != SAMPLE:
            return [f"data.dir={Path(self.name).resolve()}"]
        size = max(100, -(-self.train * 10 // 8) + 10, self.evaluation * 10)
        return [
            text for task in tasks for text in (f"corpus@tasks.{task}.corpus=sample", f"tasks.{task}.corpus.size={size}")
        ]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A corpus of some posts of another."""

    corpus: Any
    train: int
    evaluation: int
    seed: int
    alike: bool

    def load(self) -> Posts:
        posts, rows = self.corpus.load(), []
        sizes = np.fromiter(map(len, posts.texts), np.int64, len(posts))
        for split, count in (("train", self.train), ("val", self.evaluation), ("test", len(posts))):
            every = np.flatnonzero(posts.splits == split)
            mine = batches(every, sizes[every], count, self.seed) if self.alike else draw(every, count, self.seed)
            rows.append(mine)
        return posts.at(np.concatenate(rows))


@dataclass(frozen=True, kw_only=True)
class Stretched:
    """Another corpus's posts with `labels` targets drawn at random, or said over and over until they have `words` words."""

    corpus: Any
    labels: int | None = None
    words: int | None = None

    def load(self) -> Posts:
        posts = self.corpus.load()
        if self.labels is not None:
            values = (np.random.default_rng(0).random((len(posts), self.labels)) < 0.1).astype(np.float32)
            space = LabelSpace("multilabel", tuple(f"label_{i}" for i in range(self.labels)))
            target = Column(space, values, np.ones(len(posts), bool))
            posts = replace(posts, columns={**posts.columns, "target": target})
        if self.words is not None:
            texts = [" ".join((text.split(" ") * self.words)[: self.words]) for text in posts.texts]
            posts = replace(posts, texts=texts, columns={k: c for k, c in posts.columns.items() if c.space.kind != "tokens"})
        return posts


def composed(
    source: Source, tasks: Tasks, overrides: Sequence[str] = (), *, device: str = "cpu", copies: int = 0, **stretched: Any
) -> DictConfig:
    """hatemtl's configuration for these posts; raises UNKNOWN where it does not know a key.

    copies: that many further tasks, alike to the given ones. stretched: what `Stretched` does to the corpus.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "config",
            [
                f"tasks=[{','.join(tasks)}]",
                "encoder=minilm",
                f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
                *source.overrides(tasks),
                *overrides,
            ],
        )
    OmegaConf.set_struct(cfg, False)
    for i in range(copies):
        cfg.tasks[f"{tasks[i % len(tasks)]}_{i}"] = cfg.tasks[tasks[i % len(tasks)]]
    for task in cfg.tasks.values():
        corpus: Any = OmegaConf.to_container(task.corpus, resolve=True)
        if stretched:
            corpus = {"_target_": "benchmarks.ours.Stretched", "corpus": corpus, **stretched}
        counts = {"train": source.train, "evaluation": source.evaluation, "seed": source.seed, "alike": source.alike}
        task.corpus = {"_target_": "benchmarks.ours.Drawn", "corpus": corpus, **counts}
    return cfg


def examples(source: Source, split: str) -> Examples:
    """The posts of a split for rivals: those that hatemtl sees."""
    task = build(composed(source, ("label",)).tasks.label)
    posts: Posts = task.corpus.load()
    posts = posts.at(np.flatnonzero(posts.splits == split))
    rationale = posts.columns["rationale"]
    return Examples(
        words=[text.split(" ") for text in posts.texts],
        label=posts.columns["label"].values,
        target=posts.columns["target"].values,
        rationale=[value if has else None for value, has in zip(rationale.values, rationale.has, strict=True)],
        labels=len(posts.columns["label"].space),
    )


class Stopwatch(Callback):
    """Seconds from the start of training to its last step, with the fetching of all batches but the first; and positions."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.started, self.padded = device, 0.0, 0.0, 0
        self.busy = 0.0  # seconds of the processor, whoever else is at work on it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(self.device)
        self.started, self.busy = machine.clock(), -time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.padded += batch.input_ids.numel()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *rest: Any
    ) -> None:
        self.padded += batch.input_ids.numel()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize(self.device)
        self.seconds = machine.clock() - self.started
        self.busy += time.process_time()


class Bytes(Callback):
    """Bytes by what they are of: weights and tokens as training ends, and what its largest step kept for gradients.

    What every step keeps is looked at as autograd is told to keep it; each storage counts once, and weights do not.
    """

    def __init__(self, run: "Run") -> None:
        self.run, self.parts, self.most = run, dict[str, int](), 0
        self.weights, self.seen, self.hooks = set[int](), dict[int, int](), ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights = {weight.untyped_storage().data_ptr() for weight in pl_module.parameters()}
        self.hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is torch.strided:
            self.seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.most = max(self.most, sum(size for place, size in self.seen.items() if place not in self.weights))
        self.seen.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks.close()
        weights = [*pl_module.parameters()]
        trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
        moments = [value for of in trainer.optimizers[0].state.values() for value in of.values()]
        stacks = [getattr(module.forward, "layers", ()) for module in pl_module.modules()]  # hatemtl's own have some
        steps = [step for layers in stacks for _, layer, _ in layers for step in layer.leaves]
        forward, backward = ([getattr(step, name, None) for step in steps] for name in ("product", "transposed"))
        pool = self.run.data.pool
        self.parts = {
            "weights that stay": sum(weight.nbytes for weight in weights if not weight.requires_grad),
            "the same in oneDNN's order, forward": _ordered(forward),
            "the same in oneDNN's order, backward": _ordered(backward),
            "weights that are trained": trained,
            "their gradients and moments": trained + sum(value.nbytes for value in moments),
            "tokens": sum(array.nbytes for array in (pool.tokens, pool.offsets, pool.begins)),
            "texts": sum(map(sys.getsizeof, pool.texts)),
        }


def _ordered(layers: Iterable[Any]) -> int:
    return sum(layer.weight.nbytes for layer in layers if getattr(layer, "ordered", None) is not None)


def texts(source: Source) -> list[str]:
    """The texts of the corpus of labels."""
    corpus: Corpus = build(composed(source, ("label",)).tasks.label.corpus)
    return [*corpus.load().texts]


def encoder_of(run: Path) -> str:
    """The folder that a saved run's encoder lies in."""
    return str(requested(using_alone(run, [])).encoder.folder())


class Run:
    """A hatemtl run without its saved run: the network and the data that a configuration names, to train and evaluate."""

    def __init__(self, cfg: DictConfig, *, device: str = "cpu") -> None:
        quiet()
        keep_memory()
        self.device, self.request = device, requested(cfg)
        self.settings, self.optimization = self.request.trainer, self.request.optimization
        self.settings.take()
        self.notes: dict[str, str] = {}
        self.busy = 0.0  # of the last training, in seconds of the processor
        self.data = self.request.datamodule(self.request.tasks)
        network = self.request.network(self.request.tasks, self.data.spaces, name="benchmark", data=self.data)
        self.module = network.module
        start, kept = time.perf_counter(), self.request.cache_prefix
        # what is mapped from an own folder outlives it; the user's would hide what the layers below cost
        with tempfile.TemporaryDirectory() as folder:
            cache, epochs = Path(folder) if kept else None, self.optimization.total_epochs
            prepare(network, self.data, self.settings, epochs=epochs, cache=cache, cache_prefix=kept)
        if kept:
            seconds = (time.perf_counter() - start) / len(self.data.pool)
            self.notes["tokens and prefix, computed"] = f"{seconds:.2g} s a post"

    def train(self, also: Sequence[Callback] = ()) -> Reading:
        """Every epoch of the configuration, without validation; the log is written as always."""
        watch = Stopwatch(self.device)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(Path(folder), [watch, *also], self.request.tracker(Path(folder), "train").logger)
            trainer.limit_val_batches = 0
            trainer.fit(self.module.train(), self.data)
        self.busy = watch.busy
        return self._reading("train", watch.seconds, watch.padded, epochs=trainer.current_epoch)

    def evaluate(self) -> Reading:
        """One pass over the validation posts, metrics included."""
        watch = Stopwatch(self.device)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(Path(folder), [watch])
            synchronize(self.device)
            start = machine.clock()
            trainer.validate(self.module, self.data, verbose=False)
            synchronize(self.device)
            seconds = machine.clock() - start
        return self._reading("val", seconds, watch.padded)

    def test(self) -> Mapping[str, float]:
        """The rows of results on the test posts."""
        with tempfile.TemporaryDirectory() as folder:
            self._trainer(Path(folder), []).test(self.module, self.data, verbose=False)
        return {row.metric: row.value for row in self.module.rows}

    def explained(self, explainer: str) -> tuple[float, float]:
        """Seconds of one plain pass over the test posts whose words are marked, and of all that judges their explanations.

        That is both evaluations in both protocols, from the tokens to the rows. Needs the tasks label and rationale.
        """
        reader = Reader(self.module, self.settings, self.data, self.request.encoder.max_length)
        said = reader.predicted("test")
        column = self.data.corpora[self.data.tasks["label"].corpus].columns["rationale"]
        rows = said["label"].posts - self.data.first("label")
        truth = {"label": {"rationale": Column(column.space, column.values[rows], column.has[rows])}}
        ids = [reader.tokens(post).ids for post in said["label"].posts[truth["label"]["rationale"].has].tolist()]
        start = time.perf_counter()
        with reader.inference():
            for _, batch in reader.batches(ids):
                self.module.head("label").scores(reader.through(batch, ["label"])["label"]).cpu()
        plain = time.perf_counter() - start
        start = time.perf_counter()
        for evaluation in self.request.evaluations.values():
            replace(evaluation, explainers=[explainer]).rows(said, truth, reader)  # type: ignore[type-var]
        return plain, time.perf_counter() - start

    def load(self) -> Reading:
        """The batches of one training epoch, made and thrown away."""
        padded, start = 0, time.perf_counter()
        for batch in self.data.train_dataloader():
            padded += batch.input_ids.numel()
        return self._reading("train", time.perf_counter() - start, padded)

    def _trainer(self, root: Path, callbacks: list[Callback], logger: Any = False) -> Trainer:
        return self.settings.trainer(self.optimization, callbacks, root=root, logger=logger, bar=False)

    def _reading(self, split: Any, seconds: float, padded: int, *, epochs: int = 1) -> Reading:
        lengths = self.data.pool.lengths[self.data.rows(split)].astype(np.int64)
        return Reading(len(lengths) * epochs, seconds, int(lengths.sum()) * epochs, int((lengths**2).sum()) * epochs, padded)


class HatemtlArm:
    """hatemtl: one model for whichever tasks, one forward a batch."""

    def __init__(self, source: Source, overrides: Sequence[str], *, device: str, tasks: Sequence[Tasks]) -> None:
        overrides = ["optimization.epochs=1", *overrides]
        self.runs = {given: Run(composed(source, given, overrides, device=device), device=device) for given in tasks}

    def warm_up(self) -> dict[str, str]:
        """One epoch and one evaluation of each: every shape of batch has been seen, and compiled where that is asked for."""
        notes = {"compiled": str(any(run.module.through.compiled for run in self.runs.values()))}
        for tasks, run in self.runs.items():
            notes |= run.notes
            start = time.perf_counter()
            run.train()
            first = time.perf_counter() - start
            if run.module.through.compiled is not None:
                notes[f"compiling {'+'.join(tasks)}"] = f"{first - run.train().seconds:.0f} s"
            run.evaluate()
        return notes

    def train(self, tasks: Tasks) -> Reading:
        return self.runs[tasks].train()

    def evaluate(self, tasks: Tasks) -> Reading:
        return self.runs[tasks].evaluate()
