"""Trains an adapter of any kind of AdapterHub's `adapters` library, and loads what was saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from adapters.configuration import LoRAConfig

from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.methods.adapterhub.configuration_strings import configuration
from hatemtl.methods.adapterhub.library import add, enable, train
from hatemtl.methods.adapterhub.several_adapters import LIBRARY, OVER_FLOATS
from hatemtl.methods.base import Attached, Method, check_leave_out, check_lora, try_out


@dataclass(frozen=True, kw_only=True)
class AdapterHubLoRA(Method):
    """Trains a new LoRA (Hu et al. 2022, arXiv:2106.09685) on the frozen encoder.

    rank: r. alpha: the update is scaled by alpha / r. dropout: on the LoRA's input. attention: which of q, k, v carry one.
    intermediate, output: whether the two feed-forward layers carry one. leave_out: layers without any, counted from 0.
    """

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
            raise UserError(
                f"method.attention={list(self.attention)}: expected some of q, k, v; type method.attention=[q,v]"
            )
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
    """Trains a new adapter of any kind that AdapterHub has on the frozen encoder.

    config: names and keys as the library writes them, `lora[r=8]|par_bn`. reduction_factor: the encoder's width divided by
    that of the bottlenecks; None as the names have it. leave_out: layers without an adapter, counted from 0.
    """

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
    library = LIBRARY
