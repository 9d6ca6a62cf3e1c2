"""int8 tests and predicts with a saved run, and trains none: near the scores of its number format, and said to be int8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Outcome, main

from hatemtl.using.predictor import Predictor

pytestmark = pytest.mark.slow  # runs are trained
Cli = Callable[..., Outcome]
TEXTS = ["you dronk", "a  long and mild post about the choir in our garden", "hm"]
INT8 = ("trainer.accelerator=cpu", "trainer.precision=int8")
TINY = ("tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=150", "encoder=tiny")
METHODS = {
    "ah_lora16": "method.learning_rate=1e-2",
    "full": "method.learning_rate=1e-3",
    "ah_seq_bn": "method.learning_rate=1e-3",
    "ah_prefix": "seed=0",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The command that trained a run, by its method."""
    root = tmp_path_factory.mktemp("int8")
    commands = {
        method: [
            *TINY,
            f"method={method}",
            rate,
            "optimization.epochs=1",
            "action=[train,test]",
            f"save_path={root}/{method}",
        ]
        for method, rate in METHODS.items()
    }
    for command in commands.values():
        assert main(*command) == 0
    return commands


def folder(command: list[str]) -> Path:
    return Path(command[-1].partition("=")[2])


def read(folder: Path) -> tuple[dict[str, Any], list[list[float]]]:
    """What run.json says, and the scores of the test posts."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record, [[*row] for row in pd.read_parquet(folder / "predictions.parquet")["scores"]]


@pytest.mark.parametrize("method", ["ah_lora16", "full", "ah_seq_bn"])
def test_a_test_in_int8_is_near_and_says_so(runs: dict[str, list[str]], method: str, cli: Cli, tmp_path: Path) -> None:
    run = folder(runs[method])
    before, exact = read(run)
    outcome = cli("action=test", f"load_path={run}", *INT8, f"save_path={tmp_path / 'apart'}")
    assert outcome.code == 0 and "test split, in int8" in outcome.out
    record, scores = read(tmp_path / "apart")
    assert record["tested_precision"] == {"label": "int8"} and before["tested_precision"]["label"] in ("32", "bf16")
    assert read(run) == (before, exact)
    assert scores != exact
    assert [score for row in scores for score in row] == pytest.approx([s for row in exact for s in row], abs=0.02)


@pytest.mark.parametrize("method", ["ah_lora16", "full"])
def test_a_predictor_says_what_a_test_does(runs: dict[str, list[str]], method: str, cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "posts.csv"
    source.write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    outcome = cli("action=predict", f"load_path={folder(runs[method])}", *INT8, f"predict.input={source}")
    assert outcome.code == 0 and "3 posts scored in int8" in outcome.out
    written = pd.read_csv(tmp_path / "posts.scored.csv")
    exact = Predictor.load(folder(runs[method]), "trainer.accelerator=cpu")
    for i, said in enumerate(Predictor.load(folder(runs[method]), *INT8)(TEXTS)):
        for label, score in said["label"].scores.items():
            assert written[f"pred_label_{label}"][i] == pytest.approx(score, abs=1e-4)
        assert said["label"].scores == pytest.approx(exact(TEXTS)[i]["label"].scores, abs=0.02)
        assert said["label"].scores != exact(TEXTS)[i]["label"].scores


def test_the_run_stays_the_same_and_is_tested_anew_in_its_own_format(runs: dict[str, list[str]], cli: Cli) -> None:
    run = folder(runs["ah_lora16"])
    config, (before, exact) = (run / "config.yaml").read_text(encoding="utf-8"), read(run)
    assert cli("action=test", f"load_path={run}", *INT8).code == 0
    assert read(run)[0]["tested_precision"] == {"label": "int8"} and read(run)[1] != exact
    assert (run / "config.yaml").read_text(encoding="utf-8") == config
    again = cli(*runs["ah_lora16"])
    assert again.code == 0 and "not trained again" in again.out
    assert read(run)[0]["tested_precision"] == before["tested_precision"] and read(run)[1] == exact


def test_a_sweep_tests_anew_what_was_tested_in_int8(cli: Cli, tmp_path: Path) -> None:
    sweep = ["-m", "seed=1,2", *TINY, "optimization.epochs=1", "action=[train,test]", f"save_path={tmp_path / 'sweep'}"]
    assert cli(*sweep).code == 0
    run = next(path.parent for path in sorted((tmp_path / "sweep").glob("*/run.json")))
    before = read(run)
    assert cli("action=test", f"load_path='{run}'", *INT8).code == 0
    assert read(run)[1] != before[1]
    assert cli(*sweep).code == 0
    assert read(run)[0]["tested_precision"] == before[0]["tested_precision"] and read(run)[1] == before[1]


def test_what_int8_cannot_do_is_told(runs: dict[str, list[str]], cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*TINY, *INT8, f"save_path={tmp_path / 'none'}")
    assert outcome.code == 2 and "nothing would learn" in outcome.err and "action=test load_path=FOLDER" in outcome.err
    assert not [*tmp_path.iterdir()]
    for words in (["-m", "seed=1,2"], ["action=tune", "tune.space={optimization.encoder_lr: log(1e-5, 3e-3)}"]):
        outcome = cli(*words, *TINY, *INT8, f"save_path={tmp_path / 'none'}")
        assert outcome.code == 2 and "nothing would learn" in outcome.err
        assert not [*tmp_path.iterdir()]
    outcome = cli("action=test", f"load_path={folder(runs['ah_prefix'])}", *INT8, f"save_path={tmp_path / 'none'}")
    assert outcome.code == 2 and "trainer.precision=int8" in outcome.err and "leave it out" in outcome.err
    explained = ["evaluations=[faithfulness]", "evaluations.faithfulness.explainers=[gradient_input]"]
    run = folder(runs["ah_lora16"])
    outcome = cli("action=test", f"load_path={run}", *INT8, *explained, f"save_path={tmp_path / 'none'}")
    assert outcome.code == 2 and "computes no gradients" in outcome.err
