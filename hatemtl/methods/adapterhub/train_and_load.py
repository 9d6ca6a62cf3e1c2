"""Trains an adapter of any kind of AdapterHub's `adapters` library, loads one, and lets several saved ones work together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from adapters.configuration import DynamicAdapterFusionConfig, LoRAConfig

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.mean import check_weights
from hatemtl.methods.adapterhub.configuration_strings import configuration
from hatemtl.methods.adapterhub.library import add, enable, load_all, train
from hatemtl.methods.adapterhub.several_adapters import LIBRARY, OVER_FLOATS, add_fusion, check, combine
from hatemtl.methods.base import Attached, Method, check_dropout, check_leave_out, check_lora, try_out


@dataclass(frozen=True, kw_only=True)
class AdapterHubLoRA(Method):
    """Trains a new LoRA (Hu et al. 2022, arXiv:2106.09685) on the frozen encoder; its update is scaled by alpha / rank."""

    rank: int
    alpha: float
    dropout: float
    attention: Sequence[str]
    intermediate: bool
    output: bool
    leave_out: Sequence[int]
    library = LIBRARY

    def __post_init__(self) -> None:
        check_lora(rank=self.rank, alpha=self.alpha, dropout=self.dropout)
        if not set(self.attention) <= set("qkv"):
            given = f"method.attention={list(self.attention)}"
            raise UserError(f"{given}: expected some of q, k, v; type method.attention=[q,v]")
        if not (self.attention or self.intermediate or self.output):
            raise UserError("method: LoRA on no layer at all; type method.attention=[q,k,v]")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        adapted = enable(model)
        config = LoRAConfig(
            r=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            selfattn_lora=bool(self.attention),
            attn_matrices=list(self.attention),
            intermediate_lora=self.intermediate,
            output_lora=self.output,
            leave_out=check_leave_out(self.leave_out, model.config.num_hidden_layers),
        )
        add(adapted, name, config, seed)
        return Attached(train(adapted, name))


@dataclass(frozen=True, kw_only=True)
class AdapterHubAdapter(Method):
    """Trains a new adapter of any kind that AdapterHub has on the frozen encoder, by a string such as `lora[r=8]|par_bn`."""

    config: str
    reduction_factor: float | None
    leave_out: Sequence[int]
    library = OVER_FLOATS

    def __post_init__(self) -> None:
        configuration(self.config, reduction_factor=self.reduction_factor, leave_out=self.leave_out)

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        left_out = check_leave_out(self.leave_out, model.config.num_hidden_layers)
        config = configuration(self.config, reduction_factor=self.reduction_factor, leave_out=left_out)
        adapted = enable(model)
        add(adapted, name, config, seed)
        return Attached(try_out(train(adapted, name), f"method.config={self.config!r}"))


@dataclass(frozen=True, kw_only=True)
class LoadAdapterHub(Method):
    """Starts from the adapter of a saved run, or from several at work together, to test, to predict or to train further."""

    path: str | None = field()
    loads = True
    library = LIBRARY


@dataclass(frozen=True, kw_only=True)
class Stacked(Method):
    """Trains a new adapter on top of frozen ones (MAD-X; Pfeiffer et al. 2020, arXiv:2005.00052), or beside LoRAs."""

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
        own = None if self.config is None else configuration(self.config, reduction_factor=self.reduction_factor)
        add(adapted, name, own or adapted.adapters_config.get(names[-1]), seed)
        return Attached(combine(adapted, "Stack", [*names, name], name))


@dataclass(frozen=True, kw_only=True)
class Averaged(Method):
    """Averages what frozen adapters say, in every layer or at the encoder's end; only the heads are trained."""

    sources: str = field()
    weights: Sequence[float] | None
    where: Literal["layers", "end"]
    library = OVER_FLOATS

    def __post_init__(self) -> None:
        check_weights(self.weights, "method.weights")

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        adapted, names = load_all(model, self.starts_from(), name)
        weights, ones = self.weights or [1] * len(names), ",".join("1" for _ in names)
        if len(weights) != len(names):
            given = f"method.weights={list(weights)}"
            raise UserError(f"{given}: expected one a source: {', '.join(names)}; type method.weights=[{ones}]")
        how = "Average" if self.where == "layers" else "Parallel"
        return Attached(combine(adapted, how, names, None, [weight / sum(weights) for weight in weights]))


@dataclass(frozen=True, kw_only=True)
class AdapterFusion(Method):
    """Trains AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247): attention over the outputs of frozen bottlenecks."""

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
        return Attached(combine(adapted, "Fuse", names, name))
