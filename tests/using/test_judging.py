"""Evaluations of a test, whole: what they are handed, the rows that they leave, and what is refused beforehand."""

import csv
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Outcome
from invented import BATCHING, HEAD, Foreign, Mild, minilm
from sklearn.metrics import roc_auc_score

from hatemtl.batches.datamodule import DataModule
from hatemtl.corpora.sample import Sample
from hatemtl.corpora.table import Table
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Beforehand, Needs, Row
from hatemtl.evaluations.bias import Bias
from hatemtl.evaluations.calibration import Calibration
from hatemtl.evaluations.false_positives import FalsePositiveDifference
from hatemtl.harmless import unguarded
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.network.predictions import Predictions
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task
from hatemtl.using.judging import check_evaluations, check_test, judged

Cli = Callable[..., Outcome]
ONE_LABEL: Any = partial(MulticlassHead, pooling="cls", layers=1, dropout=0.0, label_smoothing=0.0, balance=0.0)
WORDS: Any = partial(TokensHead, layers=1, dropout=0.0, threshold=0.25, balance=0.0)
HEADS = {"label": ONE_LABEL, "kind": ONE_LABEL, "target": HEAD, "rationale": WORDS}


def bias(**given: Any) -> Bias:
    usual = {"task": "label", "normal": "normal", "communities": "target", "leave_out": [], "backgrounds": []}
    return Bias(**{**usual, "resamples": 0, "confidence": 0.95, "seed": 0, **given})


def data_of(**tasks: tuple[Any, str]) -> DataModule:
    made = {name: Task(corpus=corpus, column=column, head=HEADS[column]) for name, (corpus, column) in tasks.items()}
    return DataModule(made, batching=BATCHING, seed=0)


# What an evaluation is handed


@dataclass(frozen=True)
class Witness:
    """An evaluation that keeps what it is given."""

    needs: Needs
    given: list[Any] = field(default_factory=list)
    scalar: ClassVar[None] = None

    def check(self, spaces: Mapping[str, LabelSpace], test: Beforehand | None = None) -> None: ...

    def rows(self, predictions: Any, posts: Any, reader: Any) -> list[Row]:
        self.given.append((predictions, posts))
        return [Row("test", task, "posts", None, len(said.posts)) for task, said in predictions.items()]


@dataclass
class Module:
    """As much of a MultitaskModule as evaluations are made of."""

    heads: dict[str, Any]
    predictions: dict[str, Predictions] = field(default_factory=dict)

    def head(self, task: str) -> Any:
        return self.heads[task]


def test_predictions_and_columns_are_of_the_same_posts_in_the_same_order() -> None:
    data = data_of(kind=(Foreign(), "kind"), label=(Mild(), "label"), marks=(Mild(), "rationale"))
    data.tokenize(minilm(), 128)
    heads = {name: task.head(hidden_size=4, space=data.spaces[name]) for name, task in data.tasks.items()}
    module: Any = Module(heads)
    draw = torch.Generator().manual_seed(0)
    for rows in (np.array([8, 3]), np.array([0, 4, 6])):  # a foreign post, and of the mild ones the last, 0, 1 and 3
        batch = data.pool[rows]
        for task, shape in {"kind": (3,), "label": (2,), "marks": (batch.input_ids.shape[1],)}.items():
            scores = torch.rand(len(rows), *shape, generator=draw)
            module.predictions.setdefault(task, Predictions()).add(batch.posts, scores, batch.targets[task], batch.has[task])
    witness = Witness(
        Needs(columns={"label": {"target": "multilabel", "rationale": "tokens"}, "kind": {"kind": "multiclass"}})
    )
    check_evaluations({"witness": witness}, data)
    found = judged({"witness": witness}, module, data)
    ((predictions, posts),) = witness.given
    assert [row.metric for row in found] == ["test_kind_posts", "test_label_posts", "test_marks_posts"]
    assert predictions["label"].posts.tolist() == [8, 3, 6]  # the mild post 1, at 4, has no annotation
    assert predictions["label"].gold.tolist() == [1, 0, 0]
    assert predictions["label"].scores.shape == (3, 2)
    mild = Mild().load()
    for name in ("target", "rationale"):
        column = posts["label"][name]
        assert column.has.tolist() == [True, True, True]
        for value, post in zip(column.values, (5, 0, 3), strict=True):
            np.testing.assert_array_equal(value, mild.columns[name].values[post])
    assert posts["kind"]["kind"].values.tolist() == predictions["kind"].gold.tolist() == [2]
    words = predictions["marks"]
    assert words.threshold == 0.25
    for gold, score, post in zip(words.gold, words.scores, (5, 0, 3), strict=True):  # one value a word
        np.testing.assert_array_equal(gold, mild.columns["rationale"].values[post])
        assert score.shape == gold.shape


def test_nothing_is_computed_where_nothing_is_asked_for() -> None:
    assert judged({}, Module({}), data_of(label=(Mild(), "label"))) == []  # type: ignore[arg-type]


def test_no_row_is_lost_to_another_of_its_name() -> None:
    data = data_of(label=(Mild(), "label"))
    data.tokenize(minilm(), 128)
    module: Any = Module({"label": data.tasks["label"].head(hidden_size=4, space=data.spaces["label"])})
    batch, kept = data.pool[np.array([0, 2])], Predictions()
    kept.add(batch.posts, torch.rand(2, 2), batch.targets["label"], batch.has["label"])
    module.predictions["label"] = kept
    with pytest.raises(UserError, match=r"^evaluations=\[b\] gives a row test_label_posts, as another does"):
        judged({"a": Witness(Needs()), "b": Witness(Needs())}, module, data)


# What is refused


@pytest.mark.parametrize(
    ("name", "evaluation", "tasks", "said"),
    [
        ("bias", bias(), {"target": (Sample(size=100), "target")}, r"no task 'label' among tasks=\[target\]"),
        ("bias", bias(task="target"), {"target": (Sample(size=100), "target")}, r"'target' is multilabel"),
        ("bias", bias(normal="fine"), {"label": (Mild(), "label")}, ""),
        ("bias", bias(task="kind", normal="x"), {"kind": (Foreign(), "kind")}, r"no column 'target', .*known: kind"),
        ("bias", bias(communities="targt"), {"label": (Sample(size=100), "label")}, r"'targt', .*did you mean 'target'"),
        ("bias", bias(communities="rationale"), {"label": (Sample(size=100), "label")}, r"is tokens, expected a multilabel"),
        ("mine", FalsePositiveDifference(), {"label": (Sample(size=100), "label")}, r"expected a multilabel task"),
    ],
)
def test_what_has_nothing_to_be_judged_is_refused(name: str, evaluation: Any, tasks: Any, said: str) -> None:
    if not said:
        check_evaluations({name: evaluation}, data_of(**tasks))
        return
    with pytest.raises(UserError, match=rf"^evaluations=\[{name}\].*{said}"):
        check_evaluations({name: evaluation}, data_of(**tasks))


def test_a_users_table_may_hold_the_communities(tmp_path: Path) -> None:
    lines = ["text,label,about,split"]
    for i, (label, about) in enumerate([("rude", "a|b"), ("fine", "a"), ("rude", "b"), ("fine", "")] * 5):
        lines.append(f"post number {i},{label},{about},{('train', 'val', 'test')[i // 4 % 3]}")
    (tmp_path / "posts.csv").write_text("\n".join(lines) + "\n")
    table = Table(path=str(tmp_path / "posts.csv"), text="text", split="split", separator="|")
    check_evaluations({"bias": bias(normal="fine", communities="about")}, data_of(label=(table, "label")))
    with pytest.raises(UserError, match=r"^evaluations=\[bias\]: .*posts.csv has no column 'abut' .*did you mean 'about'"):
        check_evaluations({"bias": bias(normal="fine", communities="abut")}, data_of(label=(table, "label")))


def test_a_corpus_whose_posts_are_all_for_the_test_is_refused_before_they_are_tested(tmp_path: Path) -> None:
    lines = ["text,label", *(f"post number {i},{('rude', 'fine')[i % 2]}" for i in range(8))]
    (tmp_path / "posts.csv").write_text("\n".join(lines) + "\n")
    for fractions in ((0.0, 0.0, 1.0), (0.5, 0.25, 0.25)):
        data = data_of(label=(Table(path=str(tmp_path / "posts.csv"), text="text", fractions=fractions), "label"))
        data.tokenize(minilm(), 128)
        refused = pytest.raises(UserError, match=r"^evaluations=\[calibration\]: task 'label': no post of the val split")
        with refused if fractions[1] == 0 else nullcontext():
            check_test({"calibration": Calibration(bins=15)}, data, None)  # type: ignore[arg-type]


# The command line

# Without noise no normal post of the sample is about anyone.
NOISE = 0.4
POSTS = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", f"tasks.label.corpus.label_noise={NOISE}"]
POSTS += ["optimization.epochs=1"]
BOTH = "evaluations.bias.backgrounds=[hatexplain,borkan]"


def lines(run: Path) -> list[str]:
    return (run / "results.csv").read_text().splitlines()


def expected(run: Path) -> dict[str, float]:
    """Subgroup and both BPSN AUCs by scikit-learn, of the predictions that the run left."""
    posts = Sample(label_noise=NOISE).load()
    frame = pd.read_parquet(run / "predictions.parquet").set_index("post_id")
    normal = LabelSpace("multiclass", ("hatespeech", "normal", "offensive")).names.index("normal")
    here = [(posts.ids.index(post), row) for post, row in frame.iterrows()]
    toxic = np.array([row["gold"][0] != normal for _, row in here])
    score = np.array([1 - row["scores"][normal] for _, row in here])
    target = posts.columns["target"]
    named = target.values[[at for at, _ in here]] > 0
    ten = [name for name in target.space.names if name != "other"]
    anyone = named[:, [target.space.names.index(name) for name in ten]].any(axis=1)
    found = {}
    for name in ten:
        mine = named[:, target.space.names.index(name)]
        for measure, used in (
            ("subgroup_auc", mine),
            ("bpsn_auc_hatexplain", (mine & ~toxic) | (~mine & anyone & toxic)),
            ("bpsn_auc_borkan", (mine & ~toxic) | (~mine & toxic)),
        ):
            if len({*toxic[used]}) == 2:
                found[f"test_label_{measure}_{name}"] = float(roc_auc_score(toxic[used], score[used]))
    return found


@pytest.mark.slow
def test_a_run_is_judged_when_it_is_tested(cli: Cli, tmp_path: Path) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    assert cli(*POSTS, "action=[train,test]", f"save_path={plain}").code == 0
    told = cli(*POSTS, "action=[train,test]", "evaluations=[bias]", BOTH, f"save_path={run}")
    assert told.code == 0, told.err
    before = lines(run)
    assert before[: len(lines(plain))] == lines(plain)  # the rows of heads, in their order; those of evaluations come after
    rows = SavedRun(run).results
    assert "test_label_gmb_bnsp_auc_borkan" in told.out and "_tp_" not in told.out
    wanted = expected(run)
    assert len(wanted) > 10
    assert {name: rows[name] for name in wanted} == pytest.approx(wanted)
    assert rows.keys() >= {f"test_label_gmb_{name}" for name in ("subgroup_auc", "bpsn_auc_borkan", "bnsp_auc_hatexplain")}
    assert rows["test_label_gmb_subgroup_auc__communities"] == sum("subgroup_auc_" in name for name in wanted)
    assert "__low" not in told.out and rows["test_label_gmb_subgroup_auc__low"] <= rows["test_label_gmb_subgroup_auc"]
    # tested again, it is judged as it was; unless something else is typed
    again = cli("action=test", f"load_path={run}")
    assert again.code == 0, again.err
    assert lines(run) == before
    other = cli("action=test", "evaluations=[bias]", "evaluations.bias.backgrounds=[]", f"load_path={run}")
    assert other.code == 0, other.err
    assert lines(run) == [line for line in before if "bpsn" not in line and "bnsp" not in line]
    none = cli("action=test", "evaluations=[]", f"load_path={run}")
    assert none.code == 0, none.err
    assert lines(run) == lines(plain)


@pytest.mark.slow
def test_a_test_on_other_posts_is_refused_before_it_begins_where_there_are_none_to_fit_on(cli: Cli, tmp_path: Path) -> None:
    run, table = tmp_path / "run", tmp_path / "posts.csv"
    assert cli(*POSTS, f"save_path={run}").code == 0
    labels = json.loads((run / "labels.json").read_text())["label"]["names"]
    table.write_text("text,label\n" + "".join(f"post number {i},{labels[i % len(labels)]}\n" for i in range(20)))
    there = ["corpus@tasks.label.corpus=table", f"tasks.label.corpus.path={table}", f"save_path={tmp_path}/other"]
    asked = ["action=test", "tasks=[label]", f"load_path={run}", *there, "tasks.label.corpus.fractions=[0,0,1]"]
    told = cli(*asked, "evaluations=[calibration]")
    assert told.code == 2 and "task 'label': no post of the val split is annotated" in told.err
    assert "test_label" not in told.out and not (tmp_path / "other").exists()
    assert cli(*asked).code == 0


@pytest.mark.slow
def test_explanations_are_judged_and_change_no_other_row(cli: Cli, tmp_path: Path) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    tasks = [*POSTS, "tasks=[label,rationale]", "corpus@tasks.rationale.corpus=sample", "action=[train,test]"]
    assert cli(*tasks, f"tasks.rationale.corpus.label_noise={NOISE}", f"save_path={plain}").code == 0
    asked = ["evaluations=[plausibility,faithfulness]", f"tasks.rationale.corpus.label_noise={NOISE}"]
    for name in ("plausibility", "faithfulness"):
        asked.append(f"evaluations.{name}.explainers=[attention,rationale,gradient_input]")
    told = cli(*tasks, *asked, f"save_path={run}")
    assert told.code == 0, told.err
    assert lines(run)[: len(lines(plain))] == lines(plain)
    rows = SavedRun(run).results
    for explainer in ("attention", "rationale", "gradient_input"):
        assert rows[f"test_label_explaining_seconds_{explainer}_plausibility__posts"] > 5
        for name in ("iou_f1", "token_f1", "auprc"):
            assert 0 <= rows[f"test_label_{name}_{explainer}_official"] <= 1
        assert abs(rows[f"test_label_sufficiency_{explainer}_joined"]) <= 1
    # in a process of its own, of the saved weights, the same explanations
    again = cli("action=test", f"load_path={run}")
    assert again.code == 0, again.err
    for name, value in SavedRun(run).results.items():
        if "seconds" not in name:
            assert value == pytest.approx(rows[name], abs=0.02), name


@pytest.mark.slow
def test_errors_are_left_beside_the_rows_and_go_with_the_next_test(cli: Cli, tmp_path: Path) -> None:
    run, asked = tmp_path / "run", ["evaluations.errors.texts=true", "evaluations.errors.explainer=integrated_gradients"]
    told = cli(*POSTS, "action=[train,test]", "evaluations=[errors]", *asked, f"save_path={run}")
    assert told.code == 0, told.err
    frame = pd.read_parquet(run / "predictions.parquet").set_index("post_id")
    names = ("hatespeech", "normal", "offensive")
    with (run / "errors.csv").open(newline="") as file:
        rows = [{column: unguarded(cell) for column, cell in row.items()} for row in csv.DictReader(file)]
    assert rows and {row["error"] for row in rows} == {"false_positive", "false_negative"}
    for row in rows:
        said = frame.loc[row["post_id"]]
        assert float(row["score"]) == pytest.approx(said["scores"][names.index(row["label"])])
        assert row["gold"] == names[int(said["gold"][0])] != row["predicted"] == names[int(np.argmax(said["scores"]))]
        assert len(row["explained"].split(" ")) == len(row["text"].split(" "))
    assert cli("action=test", "evaluations=[]", f"load_path={run}").code == 0
    assert not (run / "errors.csv").exists()


@pytest.mark.slow
def test_how_a_run_is_judged_makes_no_other_run_of_it(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = [*POSTS, "action=[train,test]", f"save_path={run}"]
    assert cli(*train).code == 0
    trained = {**json.loads((run / "run.json").read_text()), "ledger": None}  # which a test adds to
    before = lines(run)
    for typed in ("evaluations=[bias]", "evaluations=bias"):
        told = cli(*train, typed)
        assert told.code == 0, told.err
        assert "not trained again" in told.out
        assert lines(run)[: len(before)] == before
        assert any(line.startswith("test_label_gmb_subgroup_auc,") for line in lines(run))
    assert {**json.loads((run / "run.json").read_text()), "ledger": None} == trained


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["evaluations=[bais]", "action=[train,test]"], "evaluations=bais: no such option; did you mean 'bias'?"),
        (["evaluation=[bias]", "action=[train,test]"], "evaluation: no such key; did you mean 'evaluations'?"),
        (["evaluations=[bias]"], "evaluations=[bias] judge a test; type action=[train,test]"),
        (
            ["evaluations=[bias]", "action=[train,test]", "evaluations.bias.task=toxic"],
            "no task 'toxic' among tasks=[label]",
        ),
        (["evaluations=[bias]", "action=[train,test]", "evaluations.bias.communities=x"], "no column 'x'"),
        (["evaluations=[bias]", "action=[train,test]", "+evaluations.bias.power=3"], "power"),
        (["evaluations=[false_positive_difference]", "action=[train,test]"], "'label' is multiclass"),
        (
            ["evaluations=[plausibility]", "action=[train,test]", "evaluations.plausibility.explainers=[rationale]"],
            "expected a tokens task that explainers=[rationale] asks among tasks=[label], and there is no 'rationale'",
        ),
        (["evaluations=[faithfulness]", "action=[train,test]", "evaluations.faithfulness.truth=marks"], "no column 'marks'"),
        (["evaluations=[plausibility]", "action=[train,test]", "evaluations.plausibility.explainers=[lime]"], "lime"),
        (
            ["evaluations=[faithfulness]", "action=[train,test]", "evaluations.faithfulness.layer=9"],
            "evaluations.faithfulness.layer=9: expected 0 to 1, or -1 for the last",
        ),
        (
            ["evaluations=[bias]", "action=[train,test]", "evaluations.bias.leave_out=[otehr]"],
            "evaluations.bias.leave_out=[otehr]: column 'target' has no label 'otehr'; did you mean 'other'?",
        ),
        (["evaluations=bias,bias", "action=[train,test]"], "type 'evaluations=[bias,bias]' for a list"),
    ],
    ids=lambda value: "",
)
def test_a_mistake_is_told_and_nothing_is_written(cli: Cli, tmp_path: Path, typed: list[str], said: str) -> None:
    outcome = cli(*POSTS, f"save_path={tmp_path}/run", *typed)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err and "Traceback" not in outcome.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
