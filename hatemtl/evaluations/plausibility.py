"""Tells how well explanations of a task's predictions agree with the words that people marked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hatemtl.corpora.base import Column
from hatemtl.evaluations.base import Predicted, Reader, Row
from hatemtl.evaluations.eraser import auprc, highest, iou_f1, singles, spans, token_f1
from hatemtl.evaluations.explained import Explained, Places


@dataclass(frozen=True, kw_only=True)
class Plausibility(Explained):
    """Agreement of a post's highest tokens with the marked ones: IOU F1, token F1 and AUPRC, by the formulas of `eraser`.

    official, as Mathew et al. 2021, arXiv:2012.10289, ship it: every token chosen is a span of its own, and special tokens
    are never true but may be chosen. joined: neighbours among the chosen are one span, and there are no special tokens.
    Every piece of a marked word is true, also where max_length cuts it off; there its score is 0 and it is never chosen.
    """

    truth: str
    called: ClassVar[str] = "plausibility"

    def rows(
        self, predictions: Mapping[str, Predicted], posts: Mapping[str, Mapping[str, Column]], reader: Reader | None = None
    ) -> list[Row]:
        assert reader is not None
        said, rows = predictions[self.task], []
        judged = self.judged(said, posts[self.task], reader)
        for explainer in self.explainers:
            scores, cost = self.scores(explainer, said, judged, reader)
            for protocol in self.protocols:
                pairs, f1s, areas = [], [], []
                for post, of_tokens in zip(judged, scores, strict=True):
                    assert post.truth is not None
                    places = Places.of(post.tokens, protocol)
                    here, true = places.scores(of_tokens), places.marked(post.truth)
                    chosen = highest(here, places.token >= 0, self.top)
                    pairs.append(((singles if protocol == "official" else spans)(chosen), spans(true)))
                    f1s.append(token_f1(chosen, true))
                    areas.append(auprc(here, true))
                found = {"iou_f1": iou_f1(pairs), "token_f1": float(np.mean(f1s)), "auprc": float(np.nanmean(areas))}
                made = [(f"{name}_{explainer}_{protocol}", value) for name, value in found.items()]
                rows += [Row(said.stage, self.task, name, None, value) for name, value in made]
            rows += cost
        return rows
