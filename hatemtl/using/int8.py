"""Lets the encoder of a saved run multiply in int8 on a CPU."""

from torch import nn

from hatemtl.command.request import Request
from hatemtl.encoders.fast import Int8Linear, is_fast
from hatemtl.errors import UserError
from hatemtl.network.assembly import Network
from hatemtl.network.forward import Forward
from hatemtl.saved_runs.saved_run import SavedRun

KEY = "trainer.precision=int8"


def shrink(model: nn.Module) -> None:
    """Puts an `Int8Linear` in the place of each linear layer of the model."""
    for path, layer in [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]:
        model.set_submodule(path, Int8Linear(layer.weight, layer.bias))


def quantize(network: Network, request: Request, saved: SavedRun) -> None:
    """Lets a saved run's network, which learns nothing any more, read posts by int8 weights with what it trained in them.

    In hatemtl's own layers where these compute it, else in the library's. Raises UserError where no weights hold what was
    trained.
    """
    if request.encoder.quantize is not None:
        raise UserError(f"{KEY}: encoder.quantize={request.encoder.quantize} weights are few bits already; leave one out")
    module = network.module
    module.through.int8 = is_fast(module.encoder)
    if module.through.int8:
        return
    from hatemtl.using.merged_encoder import merged  # and both libraries of adapters

    try:
        model = merged(saved, request.encoder, seed=request.seed)
    except UserError as error:
        reason = str(error).removeprefix("export.format=merged: ").partition("; ")[0]
        raise UserError(f"{KEY} computes weights with what was trained in them: {reason}; leave it out") from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    shrink(model)
    module.encoder = model.requires_grad_(False).eval()
    module.through = Forward(model, module.heads, dtype=request.trainer.dtype)
