from functools import cache, reduce
from operator import or_
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.base import Column, Posts
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.network.predictions import Predictions
from hatemtl.using.judging import predictions
from hatemtl.using.predictor import Scored, scored
from hatemtl.using.scored_file import score_columns

LABEL = LabelSpace("multiclass", ("rude", "fine"))
TARGET = LabelSpace("multilabel", ("women", "islam"))
RATIONALE = LabelSpace("tokens", ("marked",))
HATE = LabelSpace("score", ("hate",))
LEVEL = LabelSpace("ordinal", ("none", "some", "much"))
RIGHT = LabelSpace("choice", ("first", "second"))
POOLED: Any = {"hidden_size": 4, "pooling": "cls", "layers": 1, "dropout": 0.0}
TEXTS = ["you dronk", "fine", "hi you old dronk there"]


@cache
def tokenizer() -> Tokenizer:
    """Two pieces a word of more than three letters, specials around."""
    words = sorted({word for text in TEXTS for word in text.split()})
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *(word[:3] for word in words), *(f"##{word[3:]}" for word in words)]
    raw = RawTokenizer(models.WordPiece({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


def pool_of(texts: list[str], max_length: int = 32) -> TokenizedPosts:
    posts = Posts([f"id{i}" for i in range(len(texts))], texts, np.full(len(texts), "test"), {})
    return TokenizedPosts(tokenizer(), max_length, [posts])


class Module:
    """As much of a MultitaskModule as tables are made of."""

    everything: ClassVar[dict[str, nn.Module]] = {
        "label": MulticlassHead(
            hidden_size=4, space=LABEL, pooling="cls", layers=1, dropout=0.0, label_smoothing=0.0, balance=0.0
        ),
        "target": MultilabelHead(
            hidden_size=4, space=TARGET, pooling="cls", layers=1, dropout=0.0, threshold=0.5, balance=0.0
        ),
        "hate": ScoreHead(**POOLED, space=HATE, loss="mse"),
        "level": OrdinalHead(**POOLED, space=LEVEL, balance=0.0),
        "right": ChoiceHead(**POOLED, space=RIGHT),
        "rationale": TokensHead(hidden_size=4, space=RATIONALE, layers=1, dropout=0.0, threshold=0.5, balance=0.0),
    }

    def __init__(self, *tasks: str) -> None:
        self.heads = {task: self.everything[task] for task in tasks}
        self.predictions: dict[str, Predictions] = {}

    def head(self, task: str) -> nn.Module:
        return self.heads[task]


def as_module(module: Module) -> Any:
    return module


def token_scores(pool: TokenizedPosts, rows: list[int], by_word: dict[int, list[float]], width: int) -> Tensor:
    """Scores (B, width) that hold those of `by_word` where words begin, and .99 on every other token and the padding."""
    scores = torch.full((len(rows), width), 0.99)
    for i, row in enumerate(rows):
        begins = pool.begins[pool.offsets[row] : pool.offsets[row + 1]]
        for token in np.flatnonzero(begins >= 0):
            scores[i, token] = by_word[row][begins[token]]
    return scores


def test_predictions_have_a_row_a_post_and_task() -> None:
    pool, module = pool_of(TEXTS), Module()
    pool.annotate("label", Column(LABEL, np.array([1, 0, 1]), np.array([True, True, True])), 0)
    pool.annotate(
        "target", Column(TARGET, np.array([[1, 0], [0, 0], [0.5, 1]], np.float32), np.array([True, False, True])), 0
    )
    marks = np.fromiter((np.array(m, np.float32) for m in ([0, 1], [1], [0, 0, 0, 1, 0.5])), object, 3)
    pool.annotate("rationale", Column(RATIONALE, marks, np.array([True, True, True])), 0)
    words = {0: [0.1, 0.9], 1: [0.3], 2: [0.1, 0.2, 0.3, 0.4, 0.5]}
    narrow, wide = pool[np.array([1])], pool[np.array([2, 0])]
    module.predictions = {
        "label": Predictions(
            [torch.tensor([1]), torch.tensor([2, 0])],
            [torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])],
            [torch.tensor([0]), torch.tensor([1, 1])],
        ),
        "target": Predictions(
            [torch.tensor([2, 0])], [torch.tensor([[0.25, 1.0], [0.0, 0.5]])], [torch.tensor([[0.5, 1], [1, 0]])]
        ),
        "rationale": Predictions(
            [torch.tensor([1]), torch.tensor([2, 0])],
            [token_scores(pool, [1], words, 8), token_scores(pool, [2, 0], words, wide.input_ids.shape[1])],
            [narrow.targets["rationale"], wide.targets["rationale"]],
        ),
    }
    frame = predictions(as_module(module), pool)
    assert list(frame.columns) == ["post_id", "task", "gold", "scores"]
    assert [(row.post_id, row.task, row.gold) for row in frame.itertuples()] == [
        ("id1", "label", [0.0]),
        ("id2", "label", [1.0]),
        ("id0", "label", [1.0]),
        ("id2", "target", [0.5, 1.0]),
        ("id0", "target", [1.0, 0.0]),
        ("id1", "rationale", [1.0]),
        ("id2", "rationale", [0.0, 0.0, 0.0, 1.0, 0.5]),
        ("id0", "rationale", [0.0, 1.0]),
    ]
    expected = [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.25, 1.0], [0.0, 0.5], words[1], words[2], words[0]]
    for scores, mine in zip(frame["scores"], expected, strict=True):
        assert scores == pytest.approx(mine)


def test_numbers_levels_and_choices_are_told_as_lists_of_numbers() -> None:
    pool, module, has = pool_of(TEXTS), Module(), np.array([True, True, True])
    pool.annotate("hate", Column(HATE, np.array([-1.5, 0, 2], np.float32), has), 0)
    pool.annotate("level", Column(LEVEL, np.array([2, 0, 1]), has), 0)
    pool.annotate("right", Column(RIGHT, np.array([0, 0, 0]), has), 0)
    posts = [torch.tensor([2, 0])]
    module.predictions = {
        "hate": Predictions(posts, [torch.tensor([[1.25], [-7.0]])], [torch.tensor([2.0, -1.5])]),
        "level": Predictions(posts, [torch.tensor([[0.5, 0.25, 0.25], [0, 0, 1]])], [torch.tensor([1, 2])]),
        "right": Predictions(posts, [torch.tensor([[0.25, 0.75], [1, 0]])], [torch.tensor([0, 0])]),
    }
    frame = predictions(as_module(module), pool)
    assert [(row.post_id, row.task, row.gold, row.scores) for row in frame.itertuples()] == [
        ("id2", "hate", [2.0], [1.25]),
        ("id0", "hate", [-1.5], [-7.0]),
        ("id2", "level", [1.0], [0.5, 0.25, 0.25]),
        ("id0", "level", [2.0], [0.0, 0.0, 1.0]),
        ("id2", "right", [0.0], [0.25, 0.75]),
        ("id0", "right", [0.0], [1.0, 0.0]),
    ]


def said(task: str, *posts: list[float]) -> list[dict[str, Scored]]:
    """What the task's head makes of these scores of the texts."""
    head: Any = Module.everything[task]
    return [{task: scored(head, scores, text.split(" "))} for scores, text in zip(posts, TEXTS, strict=False)]


def columns(**tasks: list[list[float]]) -> dict[str, list[Any]]:
    """The columns of tasks with these scores of the texts."""
    by_task = [said(task, *posts) for task, posts in tasks.items()]
    spaces: Any = {task: Module.everything[task].space for task in tasks}
    return score_columns(spaces, [reduce(or_, of_text) for of_text in zip(*by_task, strict=True)])


def test_score_columns_of_numbers_and_levels() -> None:
    found = columns(hate=[[-7.0], [1.25], [0.5]], level=[[0, 0, 1], [0.25, 0.5, 0.25], [0.5, 0.5, 0]])
    assert found == {
        "pred_hate": ["-7.0000", "1.2500", "0.5000"],
        "pred_hate_hate": [-7.0, 1.25, 0.5],
        "pred_level": ["much", "some", "none"],
        "pred_level_none": [0.0, 0.25, 0.5],
        "pred_level_some": [0.0, 0.5, 0.5],
        "pred_level_much": [1.0, 0.25, 0.0],
    }
    assert [*found][:3] == ["pred_hate", "pred_hate_hate", "pred_level"]  # task by task, what is said before the scores


def test_predictions_survive_parquet(tmp_path: Any) -> None:
    pool, module = pool_of(TEXTS), Module()
    pool.annotate("label", Column(LABEL, np.array([1, 0, 1]), np.array([True, True, True])), 0)
    module.predictions = {"label": Predictions([torch.tensor([1])], [torch.tensor([[0.25, 0.75]])], [torch.tensor([0])])}
    frame = predictions(as_module(module), pool)
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    back = pd.read_parquet(tmp_path / "p.parquet")
    assert back["post_id"].tolist() == ["id1"]
    assert back["scores"][0].tolist() == [0.25, 0.75]
    assert back["gold"][0].tolist() == [0.0]


def test_where_a_task_annotates_no_post_there_are_no_rows_but_the_columns() -> None:
    frame = predictions(as_module(Module()), pool_of(TEXTS))
    assert len(frame) == 0
    assert list(frame.columns) == ["post_id", "task", "gold", "scores"]


def test_score_columns_of_labels() -> None:
    assert columns(
        label=[[0.125, 0.875], [0.25, 0.75], [0.625, 0.375]], target=[[0.125, 1.0], [0.5, 0.75], [0.25, 0.0]]
    ) == {
        "pred_label": ["fine", "fine", "rude"],
        "pred_label_rude": [0.125, 0.25, 0.625],
        "pred_label_fine": [0.875, 0.75, 0.375],
        "pred_target": ["islam", "women islam", ""],
        "pred_target_women": [0.125, 0.5, 0.25],
        "pred_target_islam": [1.0, 0.75, 0.0],
    }


def test_score_columns_of_words_name_the_marked_words() -> None:
    assert columns(rationale=[[0.1, 0.9], [0.3], [0.1, 0.8, 0.5, 0.6, 0.2]]) == {
        "pred_rationale": ["dronk", "", "you old dronk"],
        "pred_rationale_scores": ["0.1 0.9", "0.3", "0.1 0.8 0.5 0.6 0.2"],
    }


def test_no_text_has_columns_without_a_row() -> None:
    spaces = {"label": LABEL, "rationale": RATIONALE}
    empty: list[Any] = []
    assert score_columns(spaces, []) == dict.fromkeys(
        ("pred_label", "pred_label_rude", "pred_label_fine", "pred_rationale", "pred_rationale_scores"), empty
    )


def test_words_beyond_the_cut_are_there_and_score_nothing() -> None:
    pool, module = pool_of([*TEXTS, "hm"], max_length=5), Module()
    given = [[0, 1], [1], [0, 0, 0, 1, 0.5], [0]]
    marks = np.fromiter((np.array(m, np.float32) for m in given), object, 4)
    pool.annotate("rationale", Column(RATIONALE, marks, np.array([True, True, True, False])), 0)
    assert pool.cut[1].tolist() == [3, 4]
    batch = pool[np.arange(3)]
    scores = token_scores(pool, [0, 1, 2], dict(enumerate([[0.25, 0.5], [0.75], [0.5, 0.25, 0.5, 0.9, 0.9]])), 5)
    module.predictions = {"rationale": Predictions([torch.arange(3)], [scores], [batch.targets["rationale"]])}
    frame = predictions(as_module(module), pool)
    assert list(frame["gold"]) == given[:3]
    assert list(frame["scores"]) == [[0.25, 0.5], [0.75], [0.5, 0.25, 0.5, 0, 0]]


def test_scores_of_words_stand_in_the_words_places_where_spaces_double() -> None:
    """So that a reader can lay predictions.parquet beside `text.split(" ")`; the place of no word holds anything."""
    pool, module = pool_of(["you  dronk"]), Module()
    marks = np.fromiter([np.array([0, 0, 1], np.float32)], object, 1)
    pool.annotate("rationale", Column(RATIONALE, marks, np.array([True])), 0)
    scores = token_scores(pool, [0], {0: [0.1, 0.5, 0.9]}, 8)
    module.predictions = {
        "rationale": Predictions([torch.tensor([0])], [scores], [pool[np.array([0])].targets["rationale"]])
    }
    row = predictions(as_module(module), pool).iloc[0]
    assert len(row.scores) == len(row.gold) == 3
    assert (row.scores[0], row.scores[2]) == pytest.approx((0.1, 0.9))
    assert (row.gold[0], row.gold[2]) == (0, 1)
