"""Runs written in Python: the parts are those of the YAMLs, and what is trained is tested and read again."""

from pathlib import Path

import pytest

from hatemtl.command.in_python import option, request, using
from hatemtl.corpora.hatexplain import HateXplain
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.tasks import Task
from hatemtl.training.train import train
from hatemtl.using import actions
from hatemtl.using.predictor import Predictor


def test_tasks_of_ones_own_are_trained_tested_and_read(tmp_path: Path) -> None:
    lines = [f"a {'fine' if i % 2 else 'poor'} post about soup {i},{'good' if i % 2 else 'bad'}\n" for i in range(60)]
    (tmp_path / "posts.csv").write_text("text,mood\n" + "".join(lines))
    posts = option("corpus", "table", path=str(tmp_path / "posts.csv"))
    made = request(
        "encoder=tiny", "optimization.epochs=1", "data.cache=null",
        tasks={"mood": Task(corpus=posts, column="mood", head=option("head", "multiclass", pooling="cls"))},
        save_path=tmp_path / "run",
    )  # fmt: skip
    result = train(made)
    assert result.folder == tmp_path / "run" and not train(made).trained
    tested = {row.metric: row.value for row in actions.test(using(made, result.folder)).rows}
    assert "test_mood_macro_f1" in tested and tested.items() <= SavedRun(result.folder).results.items()
    said = Predictor(using(made, result.folder), SavedRun(result.folder))(["a fine post"])[0]["mood"]
    assert set(said.scores) == {"good", "bad"}


def test_a_run_of_words_alone_is_that_of_the_command_line() -> None:
    made = request("tasks=[label]", "corpus@tasks.label.corpus=sample", "folds=5", "seed=7")
    assert (made.seed, made.config["seed"], made.folds and made.folds.number) == (7, 7, 5)
    assert isinstance(made.tasks["label"].corpus, Sample)


def test_what_a_run_may_have_several_of_is_built_by_its_name() -> None:
    assert option("regulariser", "proximal", decay=0.5).decay == 0.5
    assert option("evaluations", "calibration").bins == 15
    assert isinstance(option("tasks", "label").corpus, HateXplain)


def test_what_is_mistyped_is_told_as_on_the_command_line() -> None:
    for wrong, said in (
        (lambda: option("corpus", "samle"), r"corpus=samle: no such option; did you mean 'sample'"),
        (lambda: option("corpus", "sample", sise=200), r"sise=200: corpus=sample has no such key; did you mean 'size'"),
        (lambda: option("corpus", "sample", size=3), "size=3: expected at least 100"),
        (lambda: option("head", "multiclass", pooling="max"), "pooling"),
        (lambda: request(tsks={}), "tsks={}: a request has no such part; did you mean 'tasks'"),
        (lambda: request("encoder=tinny"), "did you mean 'tiny'"),
        (lambda: request("optimisation.epochs=1"), "did you mean 'optimization"),
    ):
        with pytest.raises(UserError, match=said):
            wrong()
