"""Defines a merge, and keeps its result: factors of full or of a smaller rank, or dense weights."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.merging.lora import LoRAUpdate, Updates, combine, factorise, truncate

Update = LoRAUpdate | Tensor
Needs = Literal["gram", "fisher", "search"]


class Merge(Protocol):
    """A formula that makes one update of a weight out of the sources' updates of it.

    The updates come as factors where the sources are LoRAs, else as tensors of the weight's own shape: a full model's or
    another adapter's difference to the weights that all sources started from.

    is_mean: whether it is a mean of the updates, weighted in any way: of W₀ + ΔWᵢ then too, so that the start W₀ drops out.
    needs: what it must know of posts beside the updates, of each layer: `gram`, Xᵀ·X (in, in) of its inputs; `fisher`, the
    mean squared gradient, of the weight's shape; `search`, the coefficient that is best. A merge that needs something has
    `posts`, how many of the run's all sources read, and `statistics`, which it is given: a mapping a source, by layer.
    Called without them it raises UserError.
    """

    is_mean: ClassVar[bool] = False
    needs: ClassVar[Needs | None] = None

    def __post_init__(self) -> None:
        """Raises UserError where it has a scale or density by which nothing can be multiplied or kept."""
        given = vars(self)
        if not math.isfinite(scale := given.get("scale", 1)):
            raise UserError(f"merge.scale={scale}: expected a number to multiply the merge by; type merge.scale=1")
        if not 0 < (share := given.get("density", 1)) <= 1:
            raise UserError(
                f"merge.density={share}: expected the share of entries to keep, above 0 and up to 1; type merge.density=0.5"
            )

    def __call__(self, updates: Sequence[Update], *, layer: str) -> Update:
        """Gives the merged update of one layer: factors where the formula keeps the rank low, else (out, in).

        A source that does not adapt the layer comes with an update of zero (rank 0). At least one update is given.
        """


def layers_of(sources: Sequence[Updates], names: Sequence[str] = ()) -> dict[str, list[LoRAUpdate]]:
    """Gives every source's update of every layer that any of them adapts, zeros where it has none.

    Raises UserError, with the sources' names, where one layer has two shapes or an update holds what is no number.
    """
    found: dict[str, list[LoRAUpdate]] = {}
    for layer in dict.fromkeys(layer for source in sources for layer in source):
        some = next(source[layer] for source in sources if layer in source)
        found[layer] = [source.get(layer, some.nothing()) for source in sources]
        for number, update in enumerate(found[layer]):
            name = names[number] if names else f"source {number + 1}"
            if update.shape != some.shape:
                raise UserError(
                    f"{name} adapts {layer} of shape {update.shape}, another one of shape {some.shape}: they come "
                    f"from encoders of different width, and only adapters of one encoder can be merged"
                )
            if not (torch.isfinite(update.A).all() and torch.isfinite(update.B).all()):
                raise UserError(
                    f"{name} holds what is no finite number in {layer}: its training diverged; leave it out, or "
                    f"train it again with a smaller optimization.encoder_lr"
                )
    return found


def merge_factors(
    merge: Merge, sources: Sequence[Updates], rank: int | None, names: Sequence[str] = ()
) -> tuple[dict[str, LoRAUpdate], dict[str, float]]:
    """Merges LoRAs into one of rank `rank`, the best there is, or lossless if None: by layer, and what of ‖ΔW‖² was lost."""
    updates, lost = dict[str, LoRAUpdate](), dict[str, float]()
    for layer, given in layers_of(sources, names).items():
        whole = merge(given, layer=layer)
        full = whole.rank if isinstance(whole, LoRAUpdate) else min(whole.shape)
        if isinstance(whole, Tensor):
            updates[layer], lost[layer] = factorise(whole, min(rank or full, full))
        elif rank is None or rank >= full:
            updates[layer], lost[layer] = whole, 0.0
        else:
            updates[layer], lost[layer] = truncate(whole, rank)
        cut = updates[layer]  # a direction of nothing has no gradient, and would never learn
        there = cut.A.any(dim=1) | cut.B.any(dim=0)
        updates[layer] = LoRAUpdate(cut.A[there], cut.B[:, there], cut.scale)
    return updates, lost


def merge_each(
    merge: Merge, sources: Sequence[Mapping[str, Update]], names: Sequence[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Merges uncut, in double precision, one layer or parameter after the other, and reads and makes one at a time."""
    given: Iterable[tuple[str, Sequence[Update]]]
    if all(isinstance(update, LoRAUpdate) for source in sources for update in source.values()):
        given = layers_of(sources, names).items()  # type: ignore[arg-type]
    else:
        given = ((layer, [source[layer] for source in sources]) for layer in sources[0])
    for layer, updates in given:
        merged = merge(updates, layer=layer)
        yield layer, merged.dense() if isinstance(merged, LoRAUpdate) else merged


def dense(updates: Sequence[Update]) -> Tensor:
    """Stacks the updates as one tensor (sources, *the weight's shape), in double precision."""
    return torch.stack([update.dense() if isinstance(update, LoRAUpdate) else update.double() for update in updates])


def merged_inside(inner: Merge, parts: Sequence[Tensor], *, layer: str) -> Tensor:
    """Merges parts by the merge that stands in another's `inner`, as a tensor in double precision."""
    try:
        return dense([inner(parts, layer=layer)])[0]
    except UserError as error:
        raise at(error, "merge.inner") from None


def at(error: UserError, place: str) -> UserError:
    """Makes an error of `merge` one of a merge that stands at `place`, such as merge.inner: with the keys to type there."""
    return UserError(re.sub(r"\bmerge\.", f"{place}.", str(error)))


def total(updates: Sequence[Update], weights: Sequence[float]) -> Update:
    """Computes Σ wᵢ·ΔWᵢ: in factors where all are, else dense."""
    if all(isinstance(update, LoRAUpdate) for update in updates):
        return combine([update for update in updates if isinstance(update, LoRAUpdate)], weights)
    merged = torch.zeros(tuple(updates[0].shape), dtype=torch.float64)
    for update, weight in zip(updates, weights, strict=True):  # of embeddings, a stack of them would be great
        merged.add_(dense([update])[0], alpha=weight)
    return merged


def average(updates: Sequence[Update]) -> Update:
    """Computes the mean, which a formula falls back on where it has nothing to go by."""
    return total(updates, [1 / len(updates)] * len(updates))


def of_factors(formula: Callable[..., Update]) -> Callable[..., Update]:
    """Hands a formula the updates as `factored`; those that are no matrices `inner` merges, or they get scale · mean."""

    @wraps(formula)
    def merge(self: Any, updates: Sequence[Update], *, layer: str) -> Update:
        if len(updates[0].shape) == 2:
            return formula(self, factored(updates), layer=layer)
        given = vars(self)
        if "inner" in given:
            return merged_inside(given["inner"], dense(updates).unbind(), layer=layer)
        return total(updates, [given["scale"] / len(updates)] * len(updates))

    return merge


def factored(updates: Sequence[Update]) -> list[LoRAUpdate]:
    """Gives the updates as factors in double precision, a full W as W·I or I·W."""
    factors = []
    for update in updates:
        if isinstance(update, LoRAUpdate):
            factors.append(LoRAUpdate(update.A.double(), update.B.double(), update.scale))
        else:
            W, eye = update.double(), torch.eye(min(update.shape), dtype=torch.float64, device=update.device)
            factors.append(LoRAUpdate(eye, W) if W.shape[0] >= W.shape[1] else LoRAUpdate(W, eye))
    return factors
