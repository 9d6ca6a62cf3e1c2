"""Merges what a saved run trained into its encoder's weights."""

from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast import restore
from hatemtl.encoders.pretrained import Encoder, Transformer, fingerprint
from hatemtl.errors import UserError
from hatemtl.methods import full
from hatemtl.methods.base import module_name
from hatemtl.methods.peft_adapters import library as peft_library
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun

TOLERANCE = 1e-3  # of the largest hidden number, by which merging in float32 may change an encoder


def _load_adapterhub(model: Transformer, run: SavedRun, name: str, seed: int) -> Any:
    from hatemtl.methods.adapterhub import several_adapters  # its library may be missing

    return several_adapters.load(model, run, name, seed)


LOADS: dict[str, Any] = {"full": full.load, "peft": peft_library.load, "adapterhub": _load_adapterhub}


def merged(run: SavedRun, encoder: Encoder, *, seed: int) -> Transformer:
    """The encoder with what the run trained merged into its weights, in float32, as plain transformers computes it.

    Raises UserError where that is impossible, or would change what the encoder says.
    """
    plain, body = (encoder.model(dropout=True, seed=seed, pooler=pooler) for pooler in (True, False))
    check_encoder(run, fingerprint(body), encoder)
    library, trained_by = run.record["library"], run.record["method"]
    if library not in LOADS:
        raise UserError(
            f"export.format=merged: what {trained_by} ({library}) adds to {encoder.source} depends on the post or its task, "
            f"so no weights hold it; train one LoRA instead, method=peft_lora16, or for a merge method=peft_merge16"
        )
    attached: Any = LOADS[library](body, run, module_name(trained_by), seed)  # named as it is told where it cannot be merged
    before = _hidden(attached)
    if library == "peft":
        attached = peft_library.fold(attached)
    elif library == "adapterhub":
        from hatemtl.methods.adapterhub import library as ah_library

        active = ah_library.active(attached)
        if len(active) != 1:
            raise UserError(
                f"export.format=merged: {run.folder} holds several adapters at work together on {encoder.source} "
                f"({trained_by}); type export.format={library}"
            )
        attached = ah_library.fold(attached, active[0])
    state = attached.state_dict()
    plain.load_state_dict({key: state.get(key, weight) for key, weight in plain.state_dict().items()})
    after = _hidden(plain)
    if not torch.allclose(before, after, rtol=0, atol=TOLERANCE * float(before.abs().max())):
        raise UserError(
            f"export.format=merged: merged into {encoder.source}, the adapter of {run.folder} ({trained_by}) would compute "
            f"something else (off by {float((before - after).abs().max()):.2g}); type export.format={library}"
        )
    return plain


@torch.no_grad()
def _hidden(model: nn.Module) -> Tensor:
    """Gives what the model makes of two made-up texts of eight tokens, as its library computes them."""
    restore(model)
    tokens = (torch.arange(16) % model.config.vocab_size).view(2, 8)  # type: ignore[operator, union-attr]
    return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
