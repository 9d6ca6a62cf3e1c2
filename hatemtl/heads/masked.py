"""Guesses the masked tokens of a text: masked language modelling."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.errors import UserError
from hatemtl.heads.base import Head
from hatemtl.heads.figures import Figure, Tally
from hatemtl.labels import IGNORED, LabelSpace


class MaskedHead(Head):
    """Guesses masked tokens through the encoder's own input embedding, as BERT does (Devlin et al. 2019, arXiv:1810.04805).

    embedding: (V, E) the encoder's, of which the head owns nothing: it is neither its parameter nor saved with it.
    share: of a text's tokens that are masked. The vocabulary is read at masked tokens alone. Epochs are compared by the
    geometric mean of the right tokens' likelihoods, 1 / perplexity, which lies in [0, 1] as other tasks' rows do.
    """

    kind = "masked"

    def __init__(self, *, hidden_size: int, space: LabelSpace, embedding: nn.Embedding, share: float) -> None:
        super().__init__(space, "likelihood")
        if not 0 < share < 1:
            raise UserError(f"head share={share}: expected a share of the tokens above 0 and below 1, such as 0.15")
        self.share = share
        self.tied = (embedding,)  # within a tuple, or it would count as a part of the head
        words, width = embedding.weight.shape
        self.transform = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        """Gives the hidden states as they are: which of them are asked for, the targets say."""
        return hidden

    def guesses(self, hidden: Tensor, targets: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """Computes logits (M, V) over the vocabulary where tokens may be masked, and what stood there, `IGNORED` if not.

        M does not depend on the targets, whose number of masked tokens a GPU would have to tell first.
        """
        asked = (targets != int(IGNORED)) & has[:, None]
        most = min(targets.shape[1], math.ceil(self.share * targets.shape[1]) + 1)
        there, places = asked.int().topk(most, dim=1)
        chosen = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        truth = targets.gather(1, places).where(there == 1, int(IGNORED))
        weight = self.tied[0].weight
        logits = F.linear(self.transform(chosen).to(weight.dtype), weight).float() + self.bias
        return logits.flatten(0, 1), truth.flatten()

    def loss(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        words, truth = self.guesses(logits, targets, has)
        total = F.cross_entropy(words, truth, ignore_index=int(IGNORED), reduction="sum")
        return total / (truth != int(IGNORED)).sum().clamp(min=1)

    def answers(self, logits: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        return ((targets != int(IGNORED)) & has[:, None]).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Gives the hidden states as they are: scores of a whole vocabulary would be too wide to be handed over."""
        return logits

    def metric(self) -> Metric:
        return Tally(self.counted, torch.zeros(3))

    def counted(self, scores: Tensor, targets: Tensor, has: Tensor) -> Tensor:
        """Sums the masked tokens' negative log-likelihoods, how many were guessed, and how many there were, (3,)."""
        words, truth = self.guesses(scores, targets, has)
        loss = F.cross_entropy(words, truth, ignore_index=int(IGNORED), reduction="sum")
        right, asked = (words.argmax(dim=1) == truth).sum(), (truth != int(IGNORED)).sum()
        return torch.stack([loss, right.float(), asked.float()])

    def rows(self, computed: Tensor) -> list[Figure]:
        loss, right, asked = computed.tolist()
        perplexity = math.exp(min(loss / (asked or 1), 700))  # beyond it no number is left
        values = (loss / asked, perplexity, 1 / perplexity, right / asked) if asked else (0.0,) * 4
        names = ("loss", "perplexity", "likelihood", "accuracy")
        return [Figure(name, None, value) for name, value in zip(names, values, strict=True)]
