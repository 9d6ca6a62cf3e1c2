"""Cross-validation and folds of a test from the command line: what runs it leaves, and which posts it never confuses."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from composed import refused
from conftest import Outcome
from sklearn.metrics import f1_score

from hatemtl.corpora.folds import Folds
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.training.refusals import check_folds

Cli = Callable[..., Outcome]
LABEL = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=200"]


def posts_of(folder: Path) -> set[str]:
    return set(pd.read_parquet(folder / "predictions.parquet")["post_id"])


@pytest.mark.slow
def test_each_fold_is_a_run_that_is_tested_on_what_it_did_not_see(cli: Cli, tmp_path: Path) -> None:
    whole = [*LABEL, "optimization.epochs=1", "folds=3", "action=[train,test]", f"save_path={tmp_path}/cv"]
    outcome = cli(*whole)
    assert outcome.code == 0, outcome.err
    folders = sorted((tmp_path / "cv").iterdir())
    assert [folder.name for folder in folders] == ["fold_1", "fold_2", "fold_3"]
    posts = Sample(size=200).load()
    train = {i for i, split in zip(posts.ids, posts.splits, strict=True) if split == "train"}
    assert [i for folder in folders for i in sorted(posts_of(folder))] == [
        i for fold in (1, 2, 3) for i in sorted(np.array(posts.ids)[Folds(number=3).dealt(posts, "train") == fold])
    ]
    assert set().union(*map(posts_of, folders)) == train
    values = [SavedRun(folder).results["test_label_accuracy"] for folder in folders]
    row = next(line for line in outcome.out.splitlines() if "test_label_accuracy" in line and line.count("│") == 5)
    assert [cell.strip() for cell in row.split("│")[2:5]] == [f"{fmean(values):.3f}", f"{stdev(values):.3f}", "3"]

    again = cli(*whole)
    assert again.code == 0 and again.out.count("not trained again") == 3

    one = SavedRun(folders[1]).results  # composed again, the same fold is tested
    assert cli("action=test", f"load_path={folders[1]}").code == 0
    assert SavedRun(folders[1]).results == one
    other = cli("action=test", f"load_path={folders[1]}", "folds.fold=1")
    assert (other.code, SavedRun(folders[1]).results) == (2, one)
    assert "was trained on all but fold 2 of 3, so these folds would test it on posts that it knows" in other.err
    alone = cli("action=test", f"load_path={folders[1]}", "folds=null", "folds.fold=null")
    assert alone.code == 2 and "of a cross-validation, whose test posts are fold 2" in alone.err
    start = cli(*LABEL, "folds=3", "folds.fold=1", "method=ah_load", f"load_path={folders[1]}", f"save_path={tmp_path}/on")
    assert start.code == 2 and "was trained on posts that fold 1 of 3 is tested on" in start.err
    assert not (tmp_path / "on").exists()


@pytest.mark.slow
def test_folds_of_the_test_posts_train_as_ever_and_give_a_spread(cli: Cli, tmp_path: Path) -> None:
    run, of = tmp_path / "run", ["folds=4", "folds.of=test"]
    assert cli(*LABEL, "optimization.epochs=1", "action=[train,test]", f"save_path={run}").code == 0
    before = SavedRun(run).results
    finished = cli(*LABEL, "optimization.epochs=1", "action=[train,test]", f"save_path={run}", *of)  # the very same run
    assert finished.code == 0, finished.err
    after = SavedRun(run).results
    assert {name: after[name] for name in before} == before
    posts = Sample(size=200).load()
    fold_of = dict(zip(posts.ids, Folds(number=4, of="test").dealt(posts, "test"), strict=True))
    rows = pd.read_parquet(run / "predictions.parquet")
    gold, said = rows["gold"].map(lambda g: int(g[0])), rows["scores"].map(lambda s: int(np.argmax(s)))
    fold = rows["post_id"].map(fold_of)
    accuracies = [float((gold == said)[fold == i].mean()) for i in range(1, 5)]
    f1s = [f1_score(gold[fold == i], said[fold == i], average="macro", labels=[0, 1, 2]) for i in range(1, 5)]
    assert after["test_label_accuracy_fold_mean"] == pytest.approx(fmean(accuracies))
    assert after["test_label_accuracy_fold_sd"] == pytest.approx(stdev(accuracies))
    assert after["test_label_macro_f1_fold_mean"] == pytest.approx(fmean(f1s))
    assert not any("_tp_" in name and "fold" in name for name in after)
    assert cli("action=test", f"load_path={run}").code == 0
    assert SavedRun(run).results == before  # a test's rows replace those of the one before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folds.number=1"], "folds.number=1: expected at least 2"),
        (["folds.number=many"], "folds.number=many: expected a whole number or null"),
        (["folds.fold=2"], "folds.fold=2: expected a number of folds as well; type folds=5"),
        (["folds.group_by=author"], "folds.group_by=author: expected a number of folds as well"),
        (["folds.number=2", "folds.of=val"], "folds.of=val: expected train or test"),
        (["folds.number=2", "folds.of=test"], "folds.of=test deals the posts of a test; type action=.train,test."),
        (["folds.number=2", "folds.fold=1", "folds.group_by=labl"], "folds.group_by=labl: .* did you mean 'label'"),
        (["folds.number=2", "folds.group_by=rationale"], "folds.group_by=rationale: .* is tokens, not one label a post"),
        (["folds.number=4", "folds.group_by=label"], "the train posts have 3 groups in column 'label'; type folds=3"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(said, refused(*LABEL, *words))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folds.number=2"], "to train one run, as torchrun does, and folds=2 asks for several; type folds.fold=1"),
        (["action=tune"], "and action=tune asks for several; type action=train, or leave it to trainer.devices=2"),
    ],
)
def test_several_processes_of_one_run_do_not_wait_for_a_second(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said in refused(*LABEL, "trainer.devices=2", f"save_path={tmp_path / 'run'}", *words)
    assert not [*tmp_path.iterdir()]


RTE: Any = {"_target_": "hatemtl.corpora.glue.Glue", "dir": "/a/glue", "task": "rte", "fraction": 1.0}
SAMPLE: Any = {"_target_": "elsewhere.Sample", "size": 200}  # as a run of the command line has it


@pytest.mark.parametrize(
    ("own", "theirs", "same", "starts"),
    [
        (Sample(size=200), {"class": "Sample", "size": 200}, True, True),
        (Sample(size=200), {"class": "Sample", "size": 200, "fraction": 0.5}, False, False),
        (Sample(size=200), SAMPLE, False, False),
        (Sample(size=200), {"corpora": {"a": RTE, "b": SAMPLE}}, False, False),
        (RTE, {**RTE, "task": "mnli"}, False, True),
        (RTE, {**RTE, "dir": "/b/glue", "fraction": 0.5}, False, False),
        (RTE, {}, False, True),  # of an adapter of the hub nobody knows what it saw
    ],
)
def test_a_run_starts_from_one_that_saw_the_posts_of_its_fold_dealt_alike(
    own: Any, theirs: dict[str, Any], same: bool, starts: bool
) -> None:
    posts = Sample(size=200).load()
    shares = {"label": replace(posts.columns["label"], shares=np.zeros((len(posts), 3), np.float32))}
    posts = replace(posts, columns=shares)
    saw = posts.fingerprint("label") if same else "0123"  # it learned from shares
    source: Any = SimpleNamespace(folder="runs/s", config={"tasks": {"x": {"corpus": theirs}}}, record={"data": {"x": saw}})
    node = own if isinstance(own, dict) else {"class": "Sample", **vars(own)}
    request: Any = SimpleNamespace(folds=Folds(number=3, fold=1), identity={"tasks": {"label": {"corpus": node}}})
    data: Any = SimpleNamespace(corpora={"corpus": posts})
    if starts:
        check_folds(request, [source], data)
    else:
        with pytest.raises(UserError, match="runs/s was trained on posts that fold 1 of 3 is tested on; start from a run"):
            check_folds(request, [source], data)
