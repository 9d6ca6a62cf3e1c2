"""Computes linear layers in int8 on a CPU: weights quantised once, for each output, what enters at each call, for all."""

import warnings

import torch
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.network.forward import Forward
from hatemtl.using.merged_encoder import merged
from hatemtl.using.predictor import Predictor

KEY, TINY = "serve.precision=int8", 1e-8


class Int8Linear(nn.Module):
    """y = x·Wᵀ + b, W (out, in) as int8 with a scale for each output, x (..., in) as uint8 with one for each row.

    Dynamic quantisation (Jacob et al. 2018, Quantization and training of neural networks for efficient
    integer-arithmetic-only inference, arXiv:1712.05877, §2.1): the range of x is that of each call. torch's product has one
    scale for all of x, so each row is divided by its largest number before, and multiplied by it afterwards; else one row of
    large numbers would leave few steps to all others.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=TINY) / 127
        with warnings.catch_warnings(action="ignore"):  # torch will part with these tensors, not yet with their products
            small = torch.quantize_per_channel(weight, scales, torch.zeros_like(scales, dtype=torch.int64), 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(small, None)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        # without VNNI two products of eight bits may overflow the sixteen that they are summed in
        self.narrow = not torch.cpu._is_vnni_supported()

    def forward(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_(min=TINY)
        y = torch.ops.quantized.linear_dynamic(x / largest, self.packed, self.narrow)
        return y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)


def shrink(model: nn.Module) -> None:
    """Puts an `Int8Linear` in the place of each linear layer of the model."""
    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        model.set_submodule(path, Int8Linear(layer))


def quantized(predictor: Predictor) -> Predictor:
    """Lets a predictor read posts with its run's adapter merged into the encoder's weights, and these in int8."""
    try:
        model = merged(predictor.saved, predictor.request.encoder, seed=predictor.request.seed)
    except UserError as error:
        raise UserError(str(error).replace("export.format=merged", KEY).partition("; type")[0] + "; leave it out") from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    shrink(model)
    module = predictor.network.module
    module.encoder, module.through = model.eval(), Forward(model, module.heads)
    return predictor
