"""Holds a run's request: what is trained or used, on which posts, how, and where it lands. Nothing here knows Hydra."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from hatemtl.batches.augmentation import Augmentation
from hatemtl.batches.batching import Batching
from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.sampling import Sampling
from hatemtl.batches.unlabelled import Unlabelled
from hatemtl.corpora.folds import Folds
from hatemtl.corpora.leaks import Policy
from hatemtl.corpora.preprocess import AS_IS, Preprocess
from hatemtl.encoders.fast import choose, restore, verify
from hatemtl.encoders.pretrained import Encoder, vocabulary
from hatemtl.errors import Refusal, UserError
from hatemtl.evaluations.base import Evaluation, Row
from hatemtl.labels import LabelSpace
from hatemtl.machine.ledger import Cost
from hatemtl.methods.base import Method
from hatemtl.network.assembly import (
    Network,
    assemble,
    check_method,
    check_preprocess,
    check_tokenizer,
    preprocessed_otherwise,
)
from hatemtl.network.forward import Forward
from hatemtl.network.initial_heads import HeadsMerge, check_heads
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.regularisers.base import Regulariser
from hatemtl.objective.weighting import Sum, Weighting
from hatemtl.saved_runs.saved_run import SavedRun, lexicon_file
from hatemtl.tasks import Task


class About:
    """Tells a tracker what a run is. study: what it is grouped by. action: train, or test of a run tested elsewhere.

    No dataclass, of which Hydra would make a mapping.
    """

    def __init__(self, run: str, study: str, tags: Sequence[str], action: str) -> None:
        self.run, self.study, self.tags, self.action = run, study, tags, action


@dataclass(frozen=True)
class Tested:
    """Holds what a tracker may show of a test: its predictions as a frame, and by task what it tells more of.

    labels, said: of tasks of one a post, and the places of those that were predicted. texts: by the posts' ids.
    """

    frame: Any
    labels: Mapping[str, Sequence[str]]
    said: Mapping[str, Sequence[int]]
    texts: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run, whole. Equal requests make equal runs, in any process and any number of times in one.

    config: of a request made of a configuration, the values of all keys and, under `choices`, the options of groups.
    weighting: makes the weighting for the weights of tasks. trainer: `training.trainer_settings.TrainerSettings`.
    teachers: uses each saved run that a regulariser asks, by its folder. evaluations: what else judges a test.
    logger: makes the tracker, given folder and what the run is (`About`). save_path: None for a place beside the saved run
    that is used.
    heads_load: whether heads start from load_path. heads_merge: where else they start.
    cache: the folder that keeps tokens and compiled code. leaks: what becomes of posts with near copies in a later split.
    folds: which posts train and which are tested; None for the corpora's splits. workers: processes that make batches.
    augmentations: what changes the posts of each training epoch, by name, in this order.
    unlabelled: posts that join each training batch, for the regularisers that have a say on any post.
    preprocess: rewrites the texts of all corpora, and of whatever the saved run is to read.
    micro_batches: how many each batch is computed in; auto: as few as fit. cost: of this machine, for the ledger.
    words: that were typed for it.
    """

    tasks: Mapping[str, Task]
    encoder: Encoder
    method: Method
    weighting: Callable[..., Weighting]
    optimization: Optimization
    batching: Batching
    sampling: Sampling
    trainer: Any
    logger: Callable[..., Any]
    regularisers: Mapping[str, Regulariser] = field(default_factory=dict)
    teachers: Mapping[Path, "Request"] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    seed: int = 0
    save_path: Path | None = None
    load_path: Path | None = None
    overwrite: bool = False
    heads_load: bool = False
    heads_merge: HeadsMerge = "fresh"
    cache: Path | None = None
    cache_prefix: bool = False
    leaks: Policy = "warn"
    folds: Folds | None = None
    preprocess: Preprocess = AS_IS
    augmentations: Mapping[str, Augmentation] = field(default_factory=dict)
    unlabelled: Unlabelled | None = None
    cost: Cost = field(default_factory=Cost)
    workers: int = 0
    micro_batches: int | Literal["auto"] = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    words: Sequence[str] = ()

    @property
    def identity(self) -> Mapping[str, Any]:
        """Gives the values that the saved run keeps as config.yaml and is known by: its configuration, or its own values."""
        if self.config:
            return self.config
        names = ("tasks", "encoder", "method", "weighting", "optimization", "batching", "sampling", "trainer", "seed")
        return {
            **{name: _plain(getattr(self, name)) for name in names},
            "regulariser": _plain(self.regularisers),
            "load_path": _plain(self.load_path),
            "heads": {"load": self.heads_load, "merge": self.heads_merge},
            "data": {"cache_prefix": self.cache_prefix, "leaks": self.leaks},
            **({"unlabelled": _plain(self.unlabelled)} if self.unlabelled is not None else {}),
            **({"augmentation": _plain(self.augmentations)} if self.augmentations else {}),
            **({"preprocess": dict.fromkeys(self.preprocess.asked, True)} if self.preprocess.asked else {}),
            **({} if self.folds is None or self.folds.of == "test" else {"folds": _plain(self.folds)}),
        }

    @property
    def choices(self) -> Mapping[str, str]:
        """Gives the options of groups that were chosen, by group."""
        return self.config.get("choices", {})

    def tracker(self, folder: Path, action: str, *, named: Path | None = None) -> Any:
        """Opens the tracker of a run that lies in this folder. named: where it will, if it is at work."""
        if (logs := folder / "logs").is_symlink():
            raise UserError(f"{logs} is a link, through which a tracker would write elsewhere; remove it")
        place = (named or folder).absolute()
        made_of = [self.choices.get("method", type(self.method).__name__), self.choices.get("encoder", self.encoder.source)]
        tags = [*dict.fromkeys([*made_of, *self.tasks])]
        return self.logger(folder=folder, about=About(place.name, place.parent.name, tags, action))

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Inside, what a method refuses is told with the names that the user typed, where a request is made of some."""
        try:
            yield
        except Refusal as error:
            if not {"method", "encoder"} <= self.choices.keys():
                raise
            raise error.named(self.choices["method"], self.choices["encoder"]) from error

    def heads_from(self) -> SavedRun | None:
        """Opens the saved run whose heads are loaded, if any. Raises UserError where none is given."""
        if not self.heads_load:
            return None
        if self.load_path is None:
            raise UserError("heads.load=true needs the saved run whose heads to load; type load_path=FOLDER")
        return SavedRun(self.load_path)

    def used_run(self, action: str) -> SavedRun:
        """Opens the saved run to test, predict with or export, once it is sure that nothing untrained would be used."""
        if self.load_path is None:
            raise UserError(f"action={action} needs the saved run to use; type load_path=FOLDER")
        if not self.heads_load:
            raise UserError(
                f"action={action} with heads.load=false would use heads that were never trained; type heads.load=true"
            )
        saved = SavedRun(self.load_path)
        check_method(saved, self.method, self.encoder)
        check_preprocess(saved, self.preprocess)
        check_heads(saved, self.tasks)
        return saved

    def tasks_knowing(self, saved: SavedRun | None) -> dict[str, Task]:
        """Gives the tasks with the labels of the saved heads that are loaded."""
        known = saved.labels if saved is not None else {}
        return {name: task.knowing(known[name]) if name in known else task for name, task in self.tasks.items()}

    def datamodule(self, tasks: Mapping[str, Task]) -> DataModule:
        """Loads the posts of these tasks, batched and sampled as asked for."""
        how: dict[str, Any] = {"batching": self.batching, "sampling": self.sampling, "workers": self.workers}
        how |= {"preprocess": self.preprocess, "augmentations": self.augmentations, "unlabelled": self.unlabelled}
        how["micro_batches"] = 1 if self.micro_batches == "auto" else self.micro_batches
        how["changes"] = {epoch: other or self.sampling for epoch, other in self.optimization.samplings().items()}
        return DataModule(tasks, seed=self.seed, folds=self.folds, **how)

    def network(
        self, tasks: Mapping[str, Task], spaces: Mapping[str, LabelSpace], *, name: str, data: DataModule | None = None
    ) -> Network:
        """Builds the network, seeded and in the run's number format.

        name: of the method's adapter. data: the posts to train on; None where a saved run is used.
        """
        L.seed_everything(self.seed, verbose=False)
        training: dict[str, Any] = {}
        if data is not None:

            def posts(split: Any, number: int) -> list[Any]:
                data.tokenize(self.encoder.tokenizer(), self.encoder.max_length, self.cache)
                return data.some(split, number)

            training = {"regularisers": self.regularisers, "heads_merge": self.heads_merge, "posts": posts}
            training |= {"teacher": self._teacher, "paired": data.paired}
        network = assemble(
            encoder=self.encoder,
            method=self.method,
            tasks=tasks,
            spaces=spaces,
            weighting=Sum if data is None else self.weighting,
            optimization=self.optimization,
            seed=self.seed,
            name=name,
            heads_from=self.heads_from(),
            **training,
        )
        layers = network.module.encoder
        if not self.trainer.fast or self.trainer.splits:
            restore(layers)
        known = [*self.method.starts_from(), *([heads] if (heads := self.heads_from()) else [])]
        other = dict.fromkeys(filter(None, (preprocessed_otherwise(run, self.preprocess) for run in known)))
        device = self.trainer.device if self.encoder.quantize is None else None  # what is quantized is not to be moved
        with self.trainer.arithmetic():  # as they will compute
            notes = [*network.notes, *other, verify(layers, torch.float32, device=device)]
            network.store(self.trainer.dtype)
            notes.append(verify(layers, self.trainer.dtype, device=device, int8=self.trainer.int8))
            if self.trainer.fast == "auto" and device is not None and device.type != "cpu":
                choose(layers, self.trainer.dtype, device, learns=data is not None)
        return replace(network, notes=tuple(filter(None, notes)))

    def _teacher(self, saved: SavedRun) -> Forward:
        """Gives the network of a saved run that reads this run's posts, as this run computes; nothing in it is trained."""
        if saved.folder not in self.teachers:
            raise UserError(f"{saved.folder} is asked by a regulariser; give Request(teachers={{folder: Request}}) with it")
        check_tokenizer(saved, vocabulary(self.encoder.tokenizer()))
        check_preprocess(saved, self.preprocess)
        for task, digest in saved.record.get("lexicons", {}).items():
            if task in self.tasks and ((lexicon := self.tasks[task].lexicon) is None or lexicon.digest != digest):
                raise UserError(
                    f"{saved.folder} reads the counts of a word list for task {task!r}, which this run does not make; type "
                    f"tasks.{task}.head.lexicon={saved.folder / lexicon_file(task)}"
                )
        own = self.teachers[saved.folder]
        longest = replace(own.encoder, max_length=self.encoder.max_length)  # which it refuses where it has too few positions
        like = replace(own, encoder=longest, trainer=self.trainer)
        module = like.network(like.tasks_knowing(saved), saved.labels, name=saved.folder.name).module
        module.requires_grad_(False).eval().to(self.trainer.device)
        return module.through


@dataclass(frozen=True)
class Result:
    """A run as it ended. rows: of results.csv. best: the epoch, counted from 1, whose weights were kept; 0 for none.

    seconds: from the request to the finished folder. trained: False where this very run was finished before.
    """

    folder: Path
    rows: Sequence[Row]
    best: int
    seconds: float
    trained: bool = True


def _plain(value: Any) -> Any:
    """A value as YAML writes it: of an object the name of its class, and its own values by name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, partial):
        return {"class": value.func.__name__, **_plain(value.keywords)}
    if isinstance(value, Path) or not hasattr(value, "__dict__"):
        return str(value)
    if callable(value) and hasattr(value, "__name__"):  # a class or a function
        return {"class": value.__name__}
    return {"class": type(value).__name__, **_plain(vars(value))}
