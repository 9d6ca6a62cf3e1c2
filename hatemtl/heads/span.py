"""Finds the answer to a question in the text that it is read with: extractive question answering."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hatemtl.answers import Answers, worth
from hatemtl.errors import UserError
from hatemtl.heads.base import Head, drawn_loss, masked_mean
from hatemtl.heads.figures import Figure, Tally
from hatemtl.heads.layers import feed_forward
from hatemtl.labels import IGNORED, LabelSpace


class SpanHead(Head):
    """Two logits for every token of the second text, where the answer starts and where it ends (Devlin et al. 2019, §4.2).

    Each is a softmax over those tokens (arXiv:1810.04805); the loss is the mean of both cross-entropies. What is answered is
    the span of the highest product of both probabilities among those that do not end before they start and have at most
    `max_answer` tokens. Of several right answers the first that max_length leaves whole is learned; a post that has none is
    left out of the loss, and judged as any other, by what the rest of its text lets one say: it seldom counts as right.
    em and f1 are those of SQuAD's official script (`answers.worth`), of each post the best over its right answers, and
    answers_cut says how many posts have none that is whole.
    """

    kind = "span"

    def __init__(
        self,
        *,
        hidden_size: int,
        space: LabelSpace,
        layers: int,
        dropout: float,
        max_answer: int,
        primary: str = "f1",
    ) -> None:
        super().__init__(space, primary, ["f1", "em"])
        if max_answer < 1:
            raise UserError(f"head max_answer={max_answer}: expected at least 1 token; type tasks.TASK.head.max_answer=30")
        self.max_answer = max_answer
        self.layers = feed_forward(hidden_size, 2, layers=layers, dropout=dropout)

    def forward(self, hidden: Tensor, attention_mask: Tensor, counts: Tensor | None = None) -> Tensor:
        """Computes logits (B, T, 2). attention_mask: (B, T) bool, which tokens are of the second text; others are at -inf.

        Of a post without any, which has no answer, no token is.
        """
        open_to = attention_mask | ~attention_mask.any(dim=1, keepdim=True)
        return super().forward(hidden, attention_mask).masked_fill(~open_to[..., None], -torch.inf)

    def loss(self, logits: Tensor, targets: Any, has: Tensor) -> Tensor:
        learned = _learned(targets, has)
        places = targets.places.masked_fill(~learned[:, None], int(IGNORED))
        losses = F.cross_entropy(logits, places, ignore_index=int(IGNORED), reduction="none")  # (B, 2)
        return masked_mean(losses.mean(dim=1), learned.to(losses.dtype))

    def answers(self, logits: Tensor, targets: Any, has: Tensor) -> Tensor:
        return _learned(targets, has).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Gives each post's answer, (B, 3): its first token, its last, and the product of their probabilities."""
        start, end = logits.log_softmax(dim=1).unbind(dim=2)
        width = min(self.max_answer, logits.shape[1])
        ends = F.pad(end, (0, width - 1), value=-torch.inf).unfold(1, width, 1)  # (B, T, width): of each start
        best, length = ends.max(dim=2)
        score, first = (start + best).max(dim=1)
        last = first + length.gather(1, first[:, None])[:, 0]
        return torch.stack([first.to(score), last.to(score), score.exp()], dim=1)

    def metric(self) -> Metric:
        return Tally(self.counted)

    def counted(self, scores: Tensor, targets: Any, has: Tensor) -> Tensor:
        """Judges the annotated posts, (B, 4): exact match, F1, whether the answer was cut off, 1; zeros of other posts."""
        found = torch.zeros(len(targets), 4)
        here, cut = has.tolist(), (targets.places[:, 0] < 0).tolist()
        for row, (first, last, _) in enumerate(scores.tolist()):
            if here[row]:
                passage = targets.passages[row]
                begin, end = passage.between(int(first), int(last))
                found[row] = torch.tensor([*worth(passage.text[begin:end], passage.answers), cut[row], 1])
        return found.to(scores.device)

    def rows(self, computed: Tensor) -> list[Figure]:
        em, f1, cut, posts = computed.double().sum(dim=0).tolist()
        shares = [Figure(name, None, value / posts if posts else 0.0) for name, value in (("em", em), ("f1", f1))]
        return [*shares, Figure("answers_cut", None, cut)]

    def surprise(self, logits: Tensor, draw: Generator) -> Tensor:
        return torch.stack([drawn_loss(side, draw) for side in logits.unbind(dim=2)]).sum()

    def kl(self, first: Tensor, second: Tensor, attention_mask: Tensor) -> Tensor:
        """Computes the mean of the divergences of the start and of the end, (B,)."""
        return super().kl(first, second, attention_mask).mean(dim=1)


def _learned(targets: Answers, has: Tensor) -> Tensor:
    """Tells which posts have an answer that is whole, (B,)."""
    return (targets.places[:, 0] >= 0) & has
