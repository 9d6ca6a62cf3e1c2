"""Lets a predictor's encoder multiply in int8 on a CPU."""

from torch import nn

from hatemtl.encoders.fast import Int8Linear, is_fast
from hatemtl.errors import UserError
from hatemtl.network.forward import Forward
from hatemtl.using.merged_encoder import merged
from hatemtl.using.predictor import Predictor

KEY = "serve.precision=int8"


def shrink(model: nn.Module) -> None:
    """Puts an `Int8Linear` in the place of each linear layer of the model."""
    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        model.set_submodule(path, Int8Linear(layer.weight, layer.bias))


def quantized(predictor: Predictor) -> Predictor:
    """Lets a predictor read posts with its run's adapter merged into the encoder's weights, and these in int8.

    In hatemtl's own layers where these compute it, else in the library's, in float32.
    """
    module = predictor.network.module
    if is_fast(module.encoder):
        module.through.int8 = True
        return predictor
    try:
        model = merged(predictor.saved, predictor.request.encoder, seed=predictor.request.seed)
    except UserError as error:
        raise UserError(str(error).replace("export.format=merged", KEY).partition("; type")[0] + "; leave it out") from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    shrink(model)
    module.encoder, module.through = model.eval(), Forward(model, module.heads)
    return predictor
