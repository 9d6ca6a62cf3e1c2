"""A run that rewrites its posts rewrites whatever it reads: in a test, a prediction, an export."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import main

from hatemtl.corpora.preprocess import AS_IS
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.load import Reader
from hatemtl.using.predictor import Predictor

POSTS = ["@anna see https://a.b/c the soup 😂 is lovely", "so😂 hm"]
READ = ["<user> see <url> the soup face with tears of joy is lovely", "so face with tears of joy hm"]
KEYS = ["preprocess.users=true", "preprocess.urls=true", "preprocess.emoji=true"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preprocessed") / "run"
    sample = [f"corpus@tasks.{task}.corpus=sample" for task in ("label", "rationale")]
    sizes = [f"tasks.{task}.corpus.size=100" for task in ("label", "rationale")]
    words = ["tasks=[label,rationale]", *sample, *sizes, "encoder=tiny", "optimization.epochs=1", "trainer.precision=32"]
    assert main(*words, *KEYS, f"save_path={folder}") == 0
    return folder


def test_a_prediction_reads_what_training_would_have_read(run: Path) -> None:
    predictor, plain = Predictor.load(run), Predictor.load(run)
    plain.request = replace(plain.request, preprocess=AS_IS)
    scores = torch.tensor(predictor.scores(predictor.pool(POSTS))["label"])
    torch.testing.assert_close(scores, torch.tensor(plain.scores(plain.pool(READ))["label"]))
    assert plain.scores(plain.pool(POSTS))["label"] != scores.tolist()
    said = predictor(POSTS)
    assert [word for word, _ in said[1]["rationale"].words] == ["so😂", "hm"], "words are the author's own"


def test_another_preprocessing_than_the_runs_is_refused(run: Path, cli: Any) -> None:
    with pytest.raises(UserError, match=r"was trained with preprocess\.urls=true, and this run reads posts otherwise"):
        Predictor.load(run, "preprocess.urls=false")
    ended = cli("action=test", f"load_path={run}", "preprocess.case=true")
    assert (ended.code, "preprocess.case=false" in ended.err) == (2, True)


@pytest.mark.slow
def test_its_load_py_rewrites_too_and_no_other_export_is_written(run: Path, cli: Any, tmp_path: Path) -> None:
    for form in ("onnx", "peft", "adapterhub"):
        ended = cli("action=export", f"load_path={run}", f"export.format={form}", f"export.path={tmp_path / form}")
        assert ended.code == 2
        assert not (tmp_path / form).exists()
    assert "type export.format=merged" in ended.err
    cli("action=export", f"load_path={run}", "export.format=merged", f"export.path={tmp_path / 'merged'}")
    predictor, reader = Predictor.load(run), Reader(tmp_path / "merged")
    expected = torch.tensor(predictor.scores(predictor.pool(POSTS))["label"])
    torch.testing.assert_close(reader(POSTS)["label"], expected, atol=1e-4, rtol=0)
    found = reader(POSTS)["rationale"]
    assert [len(words) for words in found] == [len(post.split(" ")) for post in POSTS]


def test_a_saved_run_is_tested_as_it_was_trained_and_the_corpus_counts_as_the_same(run: Path, cli: Any) -> None:
    assert cli("action=test", f"load_path={run}").code == 0
    mark = SavedRun(run).record["tested_data"]["label"]
    assert mark == Sample(size=100).load().fingerprint(), "runs with and without it are compared on the same posts"
