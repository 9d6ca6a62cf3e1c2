"""Moves the embeddings of a batch's tokens a little: what adversarial regularisers have in common.

All sizes are shares of what is moved: of the Euclidean norm ‖E‖ of a sequence's own embeddings, taken over its tokens and
their numbers together, or of the embeddings' root mean square. So they mean the same for encoders of any width and scale,
and for short posts and long ones.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hatemtl.errors import UserError
from hatemtl.objective.regularisers.base import Passes, drops


def norms(values: Tensor) -> Tensor:
    """Computes the Euclidean norm of each sequence's numbers, (S, T, E) → (S, 1, 1), in float32."""
    return values.float().flatten(1).norm(dim=1)[:, None, None]


def unit(values: Tensor) -> Tensor:
    """Scales each sequence's numbers, (S, T, E), to norm 1; of nothing but zeros it makes zeros."""
    return values / norms(values).clamp(min=torch.finfo(torch.float32).tiny)


def tokens(batch: Any) -> Tensor:
    """Gives (S, T, 1) float32, 1 at a token and 0 at padding."""
    return batch.attention_mask[..., None].float()


def moved(words: Tensor, by: Tensor) -> Tensor:
    """Adds in float32, and gives embeddings in the type in which the encoder keeps its own."""
    return (words.float() + by).to(words.dtype)


def steady(forward: Passes, batch: Any, hidden: Tensor | None, tasks: Iterable[str]) -> dict[str, Tensor]:
    """Computes the logits of a batch that was not moved, to be called where dropout is off.

    Of the hidden states (S, T, D) of training where these were computed without dropout; else the encoder reads again.
    """
    return forward(batch, tasks) if hidden is None or drops(forward) else forward.read(hidden, batch, tasks)


def check_embeddings(forward: Passes, name: str) -> None:
    """Raises UserError where the encoder, given the embeddings of tokens, does not say what it says of the tokens."""
    ids = torch.tensor([[3, 4, 5, 6], [6, 5, 4, 3]], device=next(forward.encoder.parameters()).device)
    same, mask = False, torch.ones_like(ids)
    with forward.without_dropout(), torch.no_grad():
        try:
            exact = forward.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            embeddings = forward.encoder.get_input_embeddings()(ids)
            found = forward.encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
            same = found.shape == exact.shape and torch.allclose(found, exact, rtol=1e-3, atol=1e-3)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            pass  # it takes no embeddings
    if not same:
        raise UserError(
            f"regulariser=[{name}] moves the embeddings of tokens, and this encoder with this method does not read posts by "
            f"them alone; type method=peft_lora16, or leave it out"
        )
