"""Merges what a saved run trained into its encoder's weights."""

from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast import restore
from hatemtl.encoders.pretrained import Encoder, Transformer, fingerprint
from hatemtl.errors import UserError
from hatemtl.methods.base import module_name
from hatemtl.network.assembly import check_encoder
from hatemtl.saved_runs.saved_run import SavedRun

TOLERANCE = 1e-3  # of the largest hidden number, by which merging in float32 may change an encoder


def merged(run: SavedRun, encoder: Encoder, *, seed: int) -> Transformer:
    """The encoder with what the run trained merged into its weights, in float32, as plain transformers computes it.

    Raises UserError where that is impossible, or would change what the encoder says.
    """
    plain, body = (encoder.model(dropout=True, seed=seed, pooler=pooler) for pooler in (True, False))
    check_encoder(run, fingerprint(body), encoder)
    library, way_out = run.record["library"], f"type export.format={run.record['library']}"
    attached: Any
    if library == "full":
        from hatemtl.methods import full

        attached = full.load(body, run, "run", seed)
        before = _hidden(attached)
    elif library == "peft":
        from hatemtl.methods.peft_adapters import library as peft_library

        attached = peft_library.load(body, run, "run", seed)
        before = _hidden(attached)
        attached = peft_library.fold(attached)
    elif library == "adapterhub":
        from hatemtl.methods.adapterhub import library as ah_library
        from hatemtl.methods.adapterhub import several_adapters

        name = module_name(run.record["method"])  # by which it is named where it cannot be merged
        attached = several_adapters.load(body, run, name, seed)
        before = _hidden(attached)
        if len(ah_library.active(attached)) != 1:
            raise UserError(
                f"export.format=merged: {run.folder} holds several adapters at work together on {encoder.source} "
                f"({run.record['method']}); {way_out}"
            )
        attached = ah_library.fold(attached, ah_library.active(attached)[0])
    else:
        raise UserError(
            f"export.format=merged: what {run.record['method']} ({library}) adds to {encoder.source} depends on the post or "
            f"its task, so no weights hold it; train one LoRA instead, method=ah_lora16, or for a merge method=ah_merge16"
        )
    state = attached.state_dict()
    plain.load_state_dict({**plain.state_dict(), **{key: state[key] for key in plain.state_dict() if key in state}})
    after = _hidden(plain)
    if not torch.allclose(before, after, rtol=0, atol=TOLERANCE * float(before.abs().max())):
        raise UserError(
            f"export.format=merged: merged into {encoder.source}, the adapter of {run.folder} ({run.record['method']}) "
            f"would compute something else (off by {float((before - after).abs().max()):.2g}); {way_out}"
        )
    return plain


@torch.no_grad()
def _hidden(model: nn.Module) -> Tensor:
    """Gives what the model makes of two made-up texts of eight tokens, as its library computes them."""
    restore(model)
    tokens = (torch.arange(16) % model.config.vocab_size).view(2, 8)  # type: ignore[operator, union-attr]
    return model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
