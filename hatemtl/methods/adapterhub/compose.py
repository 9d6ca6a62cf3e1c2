"""Lets several saved adapters work together: stacked, averaged, fused. Each is saved as one run.

The sources' weights are a part of that run, so it works when the sources are gone; `method=ah_load` loads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from adapters.configuration import DynamicAdapterFusionConfig

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.mean import check_weights
from hatemtl.methods.adapterhub.configuration_strings import configuration
from hatemtl.methods.adapterhub.library import add, load_all
from hatemtl.methods.adapterhub.several_adapters import OVER_FLOATS, add_fusion, check, combine
from hatemtl.methods.base import Attached, Method, check_dropout


@dataclass(frozen=True, kw_only=True)
class Stacked(Method):
    """Trains a new adapter on top of frozen ones (MAD-X; Pfeiffer et al. 2020, arXiv:2005.00052).

    A bottleneck reads what the one below says; the updates of LoRAs and of parallel adapters add up.
    sources: from the lowest up. config: of the new adapter; None as the highest source has it.
    """

    sources: str = field()
    config: str | None
    reduction_factor: float | None
    library = OVER_FLOATS

    def __post_init__(self) -> None:
        if self.config is not None:
            configuration(self.config, reduction_factor=self.reduction_factor)
        elif self.reduction_factor is not None:
            raise UserError("method.reduction_factor is a key of method.config; type method.config=seq_bn with it")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        adapted, names = load_all(model, self.starts_from(), name)
        if self.config is None:
            config = adapted.adapters_config.get(names[-1])
        else:
            config = configuration(self.config, reduction_factor=self.reduction_factor)
        add(adapted, name, config, seed)
        return Attached(combine(adapted, "Stack", [*names, name], trained=name))


@dataclass(frozen=True, kw_only=True)
class Averaged(Method):
    """Averages the outputs of frozen adapters; only the heads are trained.

    weights: the sources', in the order of their names, made to sum to 1; None for equal ones. where: layers, the mean of
    their outputs in every layer, one forward; end, the mean of what the encoder says with each by itself, as many forwards.
    """

    sources: str = field()
    weights: Sequence[float] | None
    where: Literal["layers", "end"]
    library = OVER_FLOATS

    def __post_init__(self) -> None:
        if self.weights is not None:
            check_weights(self.weights, "method.weights")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        adapted, names = load_all(model, self.starts_from(), name)
        weights = self.weights or [1] * len(names)
        if len(weights) != len(names):
            raise UserError(
                f"method.weights={list(weights)}: expected one a source: {', '.join(names)}; type "
                f"method.weights=[{','.join('1' for _ in names)}]"
            )
        how = "Average" if self.where == "layers" else "Parallel"
        shares = [weight / sum(weights) for weight in weights]
        return Attached(combine(adapted, how, names, trained=None, weights=shares))


@dataclass(frozen=True, kw_only=True)
class AdapterFusion(Method):
    """Trains AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247) over frozen bottlenecks: attention over their outputs.

    query, key, value: whether each has a matrix. width: of queries and keys, a head's worth of numbers; None for the
    encoder's own width, as published. dropout: on the attention's weights.
    """

    sources: str = field()
    query: bool
    key: bool
    value: bool
    width: int | None
    dropout: float
    library = OVER_FLOATS

    def __post_init__(self) -> None:
        if not (self.query or self.key or self.value):
            raise UserError("method: a fusion without query, key and value has nothing to train; type method=ah_average")
        if self.width is not None and self.width < 1:
            raise UserError(f"method.width={self.width}: expected a whole number from 1, or null for the encoder's own")
        if self.width is not None and not (self.query and self.key):
            raise UserError(
                f"method.width={self.width} needs both matrices, a narrow query cannot meet a whole key; type "
                f"method.query=true method.key=true"
            )
        check_dropout(self.dropout)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        adapted, names = load_all(model, self.starts_from(), name)
        matrices = {"query": self.query, "key": self.key, "value": self.value}
        config = DynamicAdapterFusionConfig(**matrices, dropout_prob=self.dropout, regularization=False)
        check(adapted, "Fuse", names)
        add_fusion(adapted, name, names, config, self.width, seed)
        return Attached(combine(adapted, "Fuse", names, trained=name))
