"""Judged explanations, of a network that adds up what its tokens weigh: by hand in both protocols."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient
from figures import by_metric
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.corpora.base import Column
from hatemtl.errors import UserError
from hatemtl.evaluations import explainers
from hatemtl.evaluations.base import Beforehand, Predicted, Tokens
from hatemtl.evaluations.explained import Places
from hatemtl.evaluations.faithfulness import Faithfulness, alone, without
from hatemtl.evaluations.plausibility import Plausibility
from hatemtl.labels import LabelSpace

CLS, SEP, PAD = 1, 2, 0
LABEL = LabelSpace("multiclass", ("rude", "fine"))
TOKENS = LabelSpace("tokens", ("marked",))
# Of posts of four words, the second of two pieces; what each token weighs for "rude".
POSTS = [
    Tokens(np.array([CLS, 10, 11, 12, 13, 14, SEP]), np.array([-1, 0, 1, 1, 2, 3, -1]), np.zeros(0, int)),
    Tokens(np.array([CLS, 15, 14, 13, 10, SEP]), np.array([-1, 0, 1, 2, 3, -1]), np.array([4, 4])),
]
WEIGHTS = np.zeros(20)
WEIGHTS[10:16] = [0.1, 0.9, 0.2, -0.6, 0.3, 1.5]
TRUTH = [np.array([0, 1, 0, 0]), np.array([1, 0, 0, 0, 1])]


class Adding:
    """A reader of a network whose logit of "rude" is what `weigh` makes of its tokens' embeddings, (B, T, E)."""

    pad = PAD

    def __init__(self, scores: Any = lambda logits: logits.softmax(dim=1)) -> None:
        self.through, self.kept, self.computed = self, {}, 0
        self.table = torch.zeros(20, 2)
        self.table[:, 0] = torch.from_numpy(WEIGHTS)
        self.table[:, 1] = torch.linspace(-1, 1, 20)
        self.side = torch.tensor([1.0, 0.25])
        self.heads = {
            "label": SimpleNamespace(scores=scores, space=LABEL),
            "rationale": SimpleNamespace(scores=lambda logits: logits, space=TOKENS),
        }

    def embed(self, batch: Batch) -> Tensor:
        return self.table[batch.input_ids]

    def logits(self, batch: Batch, task: str, embeddings: Tensor) -> Tensor:
        rude = (embeddings @ self.side * batch.attention_mask).sum(dim=1)
        return torch.stack([rude, -rude], dim=1)

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        (task,) = tasks
        weights = torch.from_numpy(WEIGHTS)[batch.input_ids]
        if task == "rationale":
            return {task: weights}
        return {task: torch.stack([weights.sum(dim=1), torch.zeros(len(weights))], dim=1)}

    def attention(self, batch: Batch, task: str, *, layer: int, head: int | None) -> Tensor:
        """The special tokens take the highest places."""
        self.computed += 1
        return torch.from_numpy(WEIGHTS)[batch.input_ids] + 2.0 * (batch.input_ids < 10)

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        for place, row in enumerate(ids):
            assert len(row)
            rows = torch.from_numpy(np.array([row]))
            yield np.array([place]), Batch(rows, torch.ones_like(rows), {}, {}, torch.tensor([place]))

    def tokens(self, post: int) -> Tokens:
        return POSTS[post]

    def named(self, post: int) -> tuple[str, int]:
        return f"p{post}", len(TRUTH[post])

    def inference(self) -> Any:
        return torch.inference_mode()

    def gradients(self) -> Any:
        return nullcontext()

    def once(self, key: Any, compute: Any) -> Any:
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]


def sigmoid(*tokens: int) -> float:
    return float(1 / (1 + np.exp(-WEIGHTS[list(tokens)].sum())))


def judged(kind: Any, reader: Any, posts: Any = (0, 1), truth: Any = TRUTH, **given: Any) -> dict[str, float]:
    rude = np.array([sigmoid(*POSTS[post].ids) for post in posts])
    said = Predicted("test", LABEL, np.array(posts), np.stack([rude, 1 - rude], axis=1), np.zeros(2, int))
    values = np.fromiter([truth[post] for post in posts], object, 2)
    columns = {"label": {"rationale": Column(TOKENS, values, np.ones(2, bool))}}
    return by_metric(made(kind, **given).rows({"label": said}, columns, reader))


def made(kind: Any, **given: Any) -> Any:
    settings: dict[str, Any] = {
        **{
            "task": "label",
            "truth": "rationale",
            "explainers": ["attention"],
            "protocols": ["official", "joined"],
            "top": 2,
        },
        **{"rationale_task": "rationale", "layer": -1, "head": None, "steps": 50, "outside": None},
        **({"aopc": False} if kind is Faithfulness else {}),
    }
    return kind(**{**settings, **given})


# Plausibility


def test_official_lets_special_tokens_be_chosen_and_joined_does_not() -> None:
    """Official: [CLS] and [SEP] of both posts, which are never true. Joined: 11 and 14, 15 and 14 of the tokens."""
    rows = judged(Plausibility, Adding())
    assert rows["test_label_token_f1_attention_official"] == rows["test_label_iou_f1_attention_official"] == 0
    # the first post: of 2 chosen 1 true, of 2 true 1 chosen; the second: 15 is true, and so are both pieces cut off
    f1s = [2 * 1 / (2 + 2), 2 * 1 / (2 + 3)]
    assert rows["test_label_token_f1_attention_joined"] == pytest.approx(np.mean(f1s))
    # chosen are "11", "14" and "15 14": half of the true "11 12", nothing, and one half of the true "15"
    precision, recall = (1 / 2 + 1) / 2, (1 + 1 / 2) / 2
    assert rows["test_label_iou_f1_attention_joined"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_words_that_were_cut_off_are_true_and_score_nothing() -> None:
    places = {protocol: Places.of(POSTS[1], protocol) for protocol in ("official", "joined")}  # type: ignore[arg-type]
    assert places["official"].words.tolist() == [-1, 0, 1, 2, 3, 4, 4, -1]
    assert places["joined"].token.tolist() == [1, 2, 3, 4, -1, -1]
    assert places["joined"].scores(np.arange(6.0)).tolist() == [1, 2, 3, 4, 0, 0]
    assert places["official"].marked(TRUTH[1] > 0).tolist() == [False, True, False, False, False, True, True, False]


def test_a_perfect_explanation_is_plausible_in_every_way(tmp_path: Path) -> None:
    lines = [json.dumps({"post_id": f"p{i}", "scores": truth.tolist()}) for i, truth in enumerate(TRUTH)]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines) + "\n")
    # of the first post alone: of the other, what was cut off is never found
    reader, given = Adding(), {"explainers": ["outside"], "outside": str(tmp_path / "scores.jsonl")}
    rows = judged(Plausibility, reader, **given, protocols=["joined"])
    assert rows["test_label_iou_f1_outside_joined"] < 1
    POSTS[1], kept = POSTS[0], POSTS[1]
    TRUTH[1], kept_truth = TRUTH[0], TRUTH[1]
    try:
        (tmp_path / "scores.jsonl").write_text(f"{lines[0]}\n{lines[0].replace('p0', 'p1')}\n")
        rows = judged(Plausibility, Adding(), **given)
    finally:
        POSTS[1], TRUTH[1] = kept, kept_truth
    for name in ("iou_f1", "token_f1", "auprc"):
        assert rows[f"test_label_{name}_outside_joined"] == 1, name
    assert rows["test_label_auprc_outside_official"] == 1


# Faithfulness


def test_special_tokens_are_deleted_and_doubled_in_official_alone() -> None:
    post, official = POSTS[0], np.isin(POSTS[0].ids, [CLS, 11, SEP])
    assert without(post, official).tolist() == [10, 12, 13, 14]
    assert alone(post, official).tolist() == [CLS, CLS, 11, SEP, SEP]
    joined = np.isin(post.ids, [14, 11])
    assert without(post, joined).tolist() == [CLS, 10, 12, 13, SEP]
    assert alone(post, joined).tolist() == [CLS, 11, 14, SEP]  # in the text's order
    assert without(post, np.ones(7, bool)).tolist() == [CLS, SEP]  # never nothing


def test_comprehensiveness_and_sufficiency_by_hand() -> None:
    reader = Adding()
    rows = judged(Faithfulness, reader)
    full = [sigmoid(10, 11, 12, 13, 14), sigmoid(15, 14, 13, 10)]  # both rude
    official = (full[0] - sigmoid(10, 11, 12, 13, 14) + full[1] - sigmoid(15, 14, 13, 10)) / 2
    assert rows["test_label_comprehensiveness_attention_official"] == pytest.approx(official, abs=1e-6)
    assert rows["test_label_sufficiency_attention_official"] == pytest.approx(np.mean(full) - 0.5)
    lost = (full[0] - sigmoid(10, 12, 13) + full[1] - sigmoid(13, 10)) / 2
    assert rows["test_label_comprehensiveness_attention_joined"] == pytest.approx(lost)
    kept = (full[0] - sigmoid(11, 14) + full[1] - sigmoid(15, 14)) / 2
    assert rows["test_label_sufficiency_attention_joined"] == pytest.approx(kept)
    assert rows["test_label_explaining_seconds_attention_faithfulness__posts"] == 2
    assert reader.computed == 2


def test_aopc_is_the_mean_over_bins_of_at_least_one_token() -> None:
    """Of five and four tokens without special ones 1, 5, 10 and 20 % are one, 50 % are three and two."""
    rows = judged(Faithfulness, Adding(), protocols=["joined"], aopc=True)
    full = [sigmoid(10, 11, 12, 13, 14), sigmoid(15, 14, 13, 10)]
    one = (full[0] - sigmoid(10, 12, 13, 14) + full[1] - sigmoid(14, 13, 10)) / 2
    half = (full[0] - sigmoid(10, 13) + full[1] - sigmoid(13, 10)) / 2
    assert rows["test_label_aopc_comprehensiveness_attention_joined"] == pytest.approx((4 * one + half) / 5)


def test_an_explanation_is_computed_and_told_of_once() -> None:
    reader = Adding()
    first, second = judged(Plausibility, reader), judged(Faithfulness, reader)
    assert reader.computed == len(POSTS)
    name = "test_label_explaining_seconds_attention"
    assert first[f"{name}_plausibility"] == second[f"{name}_faithfulness"] > 0
    assert not first.keys() & second.keys()
    assert not first.keys() & judged(Faithfulness, reader, layer=0).keys()  # each of its own layer
    assert reader.computed == 2 * len(POSTS)


def test_other_posts_are_explained_for_themselves() -> None:
    reader = Adding()
    judged(Plausibility, reader)
    other = judged(Plausibility, reader, posts=[1, 0])
    assert reader.computed == 2 * len(POSTS)
    alone = judged(Plausibility, Adding(), posts=[1, 0])
    seconds = [name for name in other if "seconds" in name and "__" not in name]
    assert {name: other[name] for name in other if name not in seconds} == {
        name: alone[name] for name in alone if name not in seconds
    }


def test_without_a_marked_word_there_is_nothing_to_judge() -> None:
    with pytest.raises(UserError, match="no test post of task 'label' has a marked word in the column 'rationale'"):
        judged(Plausibility, Adding(), truth=[np.zeros(4), np.zeros(5)])


def test_each_file_of_scores_explains_for_itself(tmp_path: Path) -> None:
    found = []
    for name, sign in (("right", 1), ("wrong", -1)):
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"post_id": f"p{i}", "scores": (sign * truth).tolist()}) for i, truth in enumerate(TRUTH)]
        path.write_text("\n".join(lines))
        found.append({"explainers": ["outside"], "outside": str(path)})
    reader = Adding()
    right, wrong = (judged(Plausibility, reader, **given)["test_label_auprc_outside_joined"] for given in found)
    assert wrong < 0.7 < right


# Explainers


def test_a_task_of_tokens_that_is_asked_explains() -> None:
    """Joined, of the first post both pieces of its true word; of the second one of its true three, and one false."""
    found = judged(Plausibility, Adding(), explainers=["rationale"])["test_label_token_f1_rationale_joined"]
    assert found == pytest.approx((1 + 2 * 1 / (2 + 3)) / 2)


def test_a_head_of_tokens_explains_by_words() -> None:
    first, second = explainers.rationale(Adding(), "rationale", POSTS)  # type: ignore[arg-type]
    assert first.tolist() == pytest.approx([0, 0.1, 0.9, 0.9, -0.6, 0.3, 0])  # 12 is of the word that begins at 11
    assert second.tolist() == pytest.approx([0, 1.5, 0.3, -0.6, 0.1, 0])


def test_of_a_linear_network_gradients_are_its_parts_and_captums() -> None:
    """Where scores are logits, a token's part of the label's is embedding · weights, with a sign for the label."""
    reader: Any = Adding(scores=lambda logits: logits)
    for labels, sign in ((np.array([0, 0]), 1), (np.array([1, 1]), -1)):
        found = explainers.gradient_input(reader, "label", POSTS, labels)
        whole = explainers.integrated_gradients(reader, "label", POSTS, labels, steps=3)
        for tokens, mine, summed in zip(POSTS, found, whole, strict=True):
            part = (reader.table[tokens.ids] @ reader.side).numpy() * sign
            np.testing.assert_allclose(mine, part, atol=1e-6)
            blank = float(reader.table[PAD] @ reader.side) * sign
            np.testing.assert_allclose(summed, np.where(tokens.words < 0, 0, part - blank), atol=1e-6)
            rows = torch.from_numpy(tokens.ids)[None]
            batch = Batch(rows, torch.ones_like(rows), {}, {}, torch.zeros(1))
            captum = InputXGradient(lambda some, b=batch, s=sign: s * reader.logits(b, "label", some)[:, 0])
            theirs = captum.attribute(reader.embed(batch).requires_grad_()).sum(dim=-1)[0]
            np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=1e-6)


def test_integrated_gradients_add_up_to_what_the_label_gains() -> None:
    reader: Any = Adding()
    found = explainers.integrated_gradients(reader, "label", POSTS, np.zeros(2, int), steps=50)
    for tokens, mine in zip(POSTS, found, strict=True):
        chances = []
        for ids in (tokens.ids, np.where(tokens.words < 0, tokens.ids, PAD)):
            rows = torch.from_numpy(ids)[None]
            batch = Batch(rows, torch.ones_like(rows), {}, {}, torch.zeros(1))
            chances.append(float(reader.logits(batch, "label", reader.embed(batch)).softmax(dim=1)[0, 0]))
        assert mine.sum() == pytest.approx(chances[0] - chances[1], abs=1e-4)
        assert mine[[0, -1]].tolist() == [0, 0]


# What is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top": 0}, "top=0: expected a whole number from 1"),
        ({"steps": 0}, "steps=0"),
        ({"explainers": []}, r"explainers=\[\]: expected one or more of rationale, attention"),
        ({"explainers": ["attention", "attention"]}, "each once"),
        ({"protocols": []}, r"protocols=\[\]"),
        ({"explainers": ["outside"]}, "outside=None and .*type evaluations.plausibility.explainers=.*outside=scores.jsonl"),
        ({"outside": "x.jsonl"}, "expected both or neither"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(Plausibility, **given)


def test_a_run_without_the_tasks_that_are_asked_is_refused() -> None:
    spaces = {"label": LABEL}
    made(Plausibility).check(spaces)
    with pytest.raises(UserError, match=r"expected a tokens task that explainers=\[rationale\] asks .*no 'rationale'"):
        made(Plausibility, explainers=["rationale"]).check(spaces)
    with pytest.raises(
        UserError, match=r"expected a multiclass task .*'marks' is tokens.*evaluations.faithfulness.task=NAME"
    ):
        made(Faithfulness, task="marks").check({"marks": TOKENS})


def test_a_post_is_explained_before_anything_is_trained_and_those_of_two_texts_are_refused() -> None:
    reader: Any = Adding()
    reader.paired = np.zeros(2, bool)
    marked = Column(TOKENS, np.fromiter(TRUTH, object, 2), np.ones(2, bool))
    test = Beforehand({"label": np.arange(2)}, {"label": {"rationale": marked}}, {}, reader)
    made(Plausibility).check({"label": LABEL}, test)
    assert reader.computed == 1
    reader.paired[1] = True
    with pytest.raises(
        UserError, match=r"^task=label: expected posts of one text each.*evaluations\.plausibility\.task=NAME"
    ):
        made(Plausibility).check({"label": LABEL}, test)


GOOD = ['{"post_id": "p0", "scores": [0, 1, 0, 0]}', '{"post_id": "p1", "scores": [1, 0, 0, 0, 2.5]}']


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD[0], GOOD[1].replace("2.5", "NaN")], "line 2: 'nan' is no number"),
        ([GOOD[0].replace("1", "true"), GOOD[1]], "line 1: 'True' is no number"),
        ([GOOD[0], "", GOOD[1][:-3]], "line 3: not valid JSON"),
        ([GOOD[0], '{"post_id": "p1"}'], 'line 2: expected {"post_id"'),
        ([*GOOD, GOOD[0]], "line 3: post 'p0' stands in line 1 already"),
        ([GOOD[0].replace(", 0]", "]"), GOOD[1]], "line 1: 3 scores for the 4 words of post 'p0'"),
        ([*GOOD, GOOD[0].replace("p0", "p7")], "line 3: there is no test post 'p7'; known: p0, p1"),
        ([GOOD[1]], r"has no line for post 'p0' \(1 of 2 posts"),
    ],
)
def test_a_file_of_scores_that_is_wrong_is_told_with_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    path = tmp_path / "scores.jsonl"
    given: dict[str, Any] = {"explainers": ["outside"], "outside": str(path)}
    with pytest.raises(UserError, match="cannot be read"):
        made(Plausibility, **given).check({"label": LABEL})
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"scores\.jsonl.*{said}"):
        judged(Plausibility, Adding(), **given)
