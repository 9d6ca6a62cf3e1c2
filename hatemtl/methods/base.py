"""Defines a method: makes the encoder trainable, and saves what of it was trained."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from hatemtl.encoders import pretrained
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.base import Merge
from hatemtl.saved_runs import from_hub
from hatemtl.saved_runs.saved_run import AGAIN, SavedRun
from hatemtl.seeds import generator

# Which method loads what a library saved. To import `adapters` would not tell: folders of this name hold saved runs.
LOADERS = {"adapterhub": "ah_load", "peft": "peft_load", "full": "full", "bank": "bank_load", "mtl_lora": "mtl_load"}
if not any(Distribution.discover(name="adapters")):
    LOADERS["adapterhub"] = "bottleneck_load"  # which reads its bottlenecks, and fusions of them
# How a library fails at what a user or a file gave it that does not fit.
FAILURES = (*pretrained.FAILURES, AssertionError, re.error)


@dataclass(frozen=True)
class Library:
    """A format of saved adapters or encoders, and what all methods have in common that save in it.

    name: in the record of a saved run. pattern: finds the adapter's name in a parameter's. quantizable: whether the
    encoder's linear layers may be of 8 or 4 bits. save, load: what was trained under a name; the seed draws what is not
    saved. active: the names of the adapters that take part in a forward, if not all do.
    """

    name: str
    pattern: re.Pattern[str] | None
    quantizable: bool
    save: Callable[[Any, str, Path], None]
    load: Callable[[Any, SavedRun, str, int], Any]
    active: Callable[[Any], list[str]] | None = None


@dataclass(frozen=True)
class Attached:
    """An encoder that is ready to train, and what a user should know of how it became so."""

    model: nn.Module
    notes: tuple[str, ...] = ()
    lost: Mapping[str, float] = field(default_factory=dict)  # of a merge's energy ‖ΔW‖², by its cut to a rank, by layer


@dataclass(frozen=True, kw_only=True)
class Method(Protocol):
    """A way to make the encoder trainable: full fine-tuning, an adapter, a merge of adapters.

    What each key of a method does stands beside it in conf/method/.
    library: whose format it saves in. takes: the libraries of its sources. One that starts from saved runs has the keyword
    for it, `sources: str = field()`: path, of the run that it loads, without which one that `loads` does nothing; sources,
    a glob; merge, how they are merged.
    """

    library: ClassVar[Library]
    takes: ClassVar[Sequence[str]] = ("adapterhub", "peft")
    loads: ClassVar[bool] = False
    path: str | None = field(default=None, init=False)
    sources: str | None = field(default=None, init=False)
    merge: Merge | None = field(default=None, init=False)
    learning_rate: float
    body_dropout: bool

    def starts_from(self) -> list[SavedRun]:
        """Lists the saved runs whose weights this method starts from. Raises UserError where one is missing or no fit."""
        if self.sources is not None:
            if not self.sources:
                raise UserError("this method needs the saved runs to start from; type method.sources=\"'adapters/run_*'\"")
            given = f"method.sources={self.sources!r}"
            folders = [folder for folder in sorted(glob(self.sources)) if Path(folder).is_dir()]
            if not folders and all(map(from_hub.is_named, self.sources.split(","))):
                folders = self.sources.split(",")
            if not (found := [*map(SavedRun, folders)]):
                raise UserError(f"{given} matches no saved run (from {Path.cwd()}); train one with save_path=FOLDER")
            return [saved_by(run, given, *self.takes) for run in found]
        if self.path is None and self.loads:
            raise UserError(f"method={LOADERS[self.library.name]} needs the saved run to load; type load_path=FOLDER")
        return [saved_by(SavedRun(self.path), f"load_path={self.path}", self.library.name)] if self.path is not None else []

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        """Makes the model, which the caller has checked, ready to train: adds or loads `name`, freezes the rest."""
        return Attached(self.library.load(model, self.starts_from()[0], name, seed))

    def each(self, model: Transformer, *, seed: int, linear: bool) -> Iterator[tuple[Transformer, dict[str, nn.Parameter]]]:
        """Gives a copy of the encoder as one source after the other computes, and what is merged of that source, by name.

        Of adapters that are no LoRAs. linear: only the weights of linear layers that read posts. Raises UserError where they
        cannot be merged, or have anything else but such layers with their biases, norms, scales and gates.
        """
        return iter(())


def saved_by(run: SavedRun, given: str, *libraries: str) -> SavedRun:
    """Gives the run itself. Raises UserError where none of these libraries saved it; `given` is what the user typed."""
    if (library := run.record["library"]) not in libraries:
        raise UserError(
            f"{given}: {run.folder} was saved by {run.record['method']} ({library}), expected one saved by "
            f"{' or '.join(libraries)}; load it with method={LOADERS[library]}"
        )
    return run


def check_keys(path: Path, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises UserError where a file has other tensors than its adapter; they would be taken for weights of the encoder."""
    for word, keys in (("lacks", own.keys() - given.keys()), ("holds", given.keys() - own.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:3])
            raise UserError(f"{path} {word} {some}, unlike what is described beside it; {AGAIN}")


@dataclass(frozen=True)
class Component:
    """A line of the table at the start of a run: a part of the network, its parameters, and how many of them are trained."""

    name: str
    kind: str
    parameters: int
    trained: int
    active: bool


def components(method: Method, model: nn.Module) -> list[Component]:
    """Counts the encoder's body and each adapter on it."""
    library, found = method.library, []
    groups: dict[str, list[nn.Parameter]] = {"": []}
    for name, parameter in model.named_parameters():
        match = library.pattern.search(name) if library.pattern else None
        groups.setdefault(match[1] if match else "", []).append(parameter)
    active = library.active(model) if library.active else groups.keys()
    for name, group in groups.items():
        # of 4 bits, a place of a parameter holds two numbers
        numbers = sum((getattr(p, "quant_state", None) or p).shape.numel() for p in group)
        trained = sum(p.numel() for p in group if p.requires_grad)
        kind = "adapter" if name else "body"
        found.append(Component(name or "encoder", kind, numbers, trained, active=not name or name in active))
    return found


def try_out(model: Any, given: str) -> Any:
    """Gives the model as it was, once it has read two posts: some adapters fail at a forward and not before."""
    device = next(model.parameters()).device
    posts = torch.full((2, 4), 3, device=device)
    try:
        with torch.no_grad():
            model.eval()(input_ids=posts, attention_mask=torch.ones_like(posts))
    except FAILURES as error:
        raise UserError(
            f"{given}: its library cannot compute it on the encoder {model.config.model_type} "
            f"({type(error).__name__}: {error}); give other adapters, or type method=peft_lora16"
        ) from error
    return model.train()


def fusion_width(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Gives the `method.width` of a saved AdapterFusion, whose keys have no bias then; None for the encoder's own."""
    of = {".".join(key.split(".")[-2:]): tensor for key, tensor in tensors.items()}
    chosen = {"query.weight", "key.weight"} <= of.keys() and "key.bias" not in of
    return of["query.weight"].shape[0] if chosen else None


def module_name(folder: str, taken: Sequence[str] = ()) -> str:
    """Gives a folder's name as torch takes it for a module: without dots, none that its containers use or that is taken."""
    name = wanted = folder.replace(".", "_")
    number = 2
    while name in taken or hasattr(nn.ModuleDict(), name):
        name, number = f"{wanted}_{number}", number + 1
    return name


def module_names(folders: Iterable[str], name: str) -> list[str]:
    """Gives such a name of each folder, none twice, and none as what is trained is called, `name`."""
    names: list[str] = []
    for folder in folders:
        names.append(module_name(folder, taken=[*names, name]))
    return names


@torch.no_grad()
def draw_lora_A(A: torch.Tensor, *, seed: int, layer: str) -> None:
    """Fills a LoRA matrix A (r, in) as LoRA does, uniform in ±1/√in, by a draw that depends on seed and layer alone.

    Merging needs sources that started from the same A, so it must not depend on labels, tasks or heads. Rows are drawn in
    order: rank 8 gets the first half of rank 16.
    """
    bound = A.shape[-1] ** -0.5
    A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator(seed, "lora_A", layer)))


def check_lora(*, rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Raises UserError where one is no number that a LoRA can have."""
    if rank < 1:
        raise UserError(f"method.rank={rank}: expected a whole number from 1; type method.rank=16")
    if not 0 < alpha < math.inf:
        raise UserError(f"method.alpha={alpha}: expected a number above 0; type method.alpha={rank}")
    check_dropout(dropout)


def check_dropout(dropout: float) -> None:
    """Raises UserError where it is no probability."""
    if not 0 <= dropout < 1:
        raise UserError(f"method.dropout={dropout}: expected a probability below 1; type method.dropout=0.1")


def check_leave_out(leave_out: Sequence[int], depth: int) -> list[int]:
    """Sorts the layers without an adapter. Raises UserError where one is not there, or none is left to adapt."""
    layers = sorted(set(leave_out))
    if not all(0 <= layer < depth for layer in layers) or len(layers) == depth:
        half = ",".join(map(str, range(depth // 2)))
        raise UserError(
            f"method.leave_out={leave_out}: expected a list of some of this encoder's layers, 0 to {depth - 1}, not all; "
            f"type method.leave_out=[{half}]"
        )
    return layers
