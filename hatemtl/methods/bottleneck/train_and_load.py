"""Trains bottlenecks and AdapterFusion of hatemtl's own, which need no AdapterHub, and loads those of either."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hatemtl.encoders.fast import ACTIVATIONS
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError, did_you_mean
from hatemtl.methods.base import Attached, Method, check_dropout, check_leave_out, module_names
from hatemtl.methods.bottleneck.configuration import KINDS, LEAST, Kind, configuration
from hatemtl.methods.bottleneck.files import LIBRARY, load_one
from hatemtl.methods.bottleneck.layers import activate, fuse, insert
from hatemtl.seeds import seeded


@dataclass(frozen=True, kw_only=True)
class Bottlenecks(Method):
    """Trains bottlenecks on the frozen encoder (Pfeiffer et al. 2021; Houlsby et al. 2019; He et al. 2022)."""

    kind: Kind
    reduction_factor: float
    non_linearity: str | None
    scaling: float | None
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"method.kind={self.kind}: {did_you_mean(self.kind, [*KINDS])}")
        if self.non_linearity is not None and self.non_linearity.lower() not in ACTIVATIONS:
            raise UserError(f"method.non_linearity={self.non_linearity}: {did_you_mean(self.non_linearity, [*ACTIVATIONS])}")
        for key, value, least in (("reduction_factor", self.reduction_factor, LEAST), ("scaling", self.scaling, 1e-6)):
            if value is not None and not least <= value < float("inf"):
                raise UserError(f"method.{key}={value}: expected a number of at least {least:g}; type method.{key}=4")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        config = configuration(
            self.kind,
            reduction_factor=self.reduction_factor,
            non_linearity=self.non_linearity,
            scaling=None if self.scaling is None else float(self.scaling),
            leave_out=check_leave_out(self.leave_out, model.config.num_hidden_layers),
        )
        with seeded(seed, "adapter"):
            insert(model, name, config)
        return Attached(activate(model, [name], None, name))


@dataclass(frozen=True, kw_only=True)
class LoadBottlenecks(Method):
    """Starts from the bottleneck of a saved run, or from a fusion of some, whether AdapterHub trained it or hatemtl."""

    path: str | None = field()
    loads = True
    library = LIBRARY


@dataclass(frozen=True, kw_only=True)
class BottleneckFusion(Method):
    """Trains AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247): attention over what frozen bottlenecks add."""

    sources: str = field()
    query: bool
    key: bool
    value: bool
    width: int | None
    dropout: float
    library = LIBRARY
    takes = (LIBRARY.name,)

    def __post_init__(self) -> None:
        if not (self.query or self.key or self.value):
            raise UserError("method: a fusion without query, key and value has nothing to train; type method.value=true")
        if self.width is not None and (self.width < 1 or not (self.query and self.key)):
            raise UserError(
                f"method.width={self.width}: expected a whole number from 1, and both matrices, for a narrow query cannot "
                f"meet a whole key; type method.width=16 method.query=true method.key=true"
            )
        check_dropout(self.dropout)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        runs = self.starts_from()
        names = module_names((run.folder.resolve().name for run in runs), name)
        for run, each in zip(runs, names, strict=True):
            load_one(model, run, each)
        matrices = {"query": self.query, "key": self.key, "value": self.value}
        with seeded(seed, "fusion"):
            fuse(model, name, names, **matrices, width=self.width, dropout=self.dropout)
        return Attached(activate(model, names, name, name))
