"""A saved run as texts → rows: the scores are the module's, wherever it is asked."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, main
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun, write_config
from hatemtl.using.predictor import WORK, Predictor

TEXTS = ["you dronk", "a long and mild post about the choir in our garden", "fine", "the cake, the soup; and so on", "hm"]
TASKS = ("label", "target", "rationale")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of three tasks in float32, and one of a single task in bf16."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name: str, tasks: tuple[str, ...], *typed: str) -> Path:
        corpora = [w for t in tasks for w in (f"corpus@tasks.{t}.corpus=sample", f"tasks.{t}.corpus.size=200")]
        command = [
            f"tasks=[{','.join(tasks)}]",
            *corpora,
            "encoder=tiny",
            "optimization.epochs=1",
            "method.learning_rate=1e-2",
        ]
        assert main(*command, *typed, f"save_path={folder / name}") == 0
        return folder / name

    return {
        "32": train("three", TASKS, "trainer.precision=32"),
        "bf16": train("one", ("label",), "trainer.precision=bf16", "seed=7"),
    }


@pytest.fixture(scope="module")
def three(runs: dict[str, Path]) -> Predictor:
    return Predictor.load(runs["32"])


def expected(predictor: Predictor, texts: list[str]) -> dict[str, list[list[float]]]:
    """Each task's scores as the module itself gives them for one batch a text's length, within autocast."""
    pool, module = predictor.pool(texts), predictor.network.module.eval()
    found: dict[str, list[list[float]]] = {task: [[]] * len(texts) for task in module.heads}
    for rows in predictor.request.batching.in_order(pool.lengths):
        batch = pool[rows]
        with module.through.inference():
            logits = module(batch)
        for task in logits:
            scores = module.head(task).scores(logits[task])
            for row, post in enumerate(rows):
                mine = scores[row].tolist()
                found[task][post] = pool.at_words(post, mine) if task == "rationale" else mine
    return found


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_scores_are_the_modules_to_the_last_bit(runs: dict[str, Path], precision: str) -> None:
    predictor = Predictor.load(runs[precision], "trainer.accelerator=cpu")
    with predictor.request.trainer.arithmetic():
        theirs = expected(predictor, TEXTS)
    said = predictor(TEXTS)
    assert [*said[0]] == [*SavedRun(runs[precision]).labels]
    for i, of_text in enumerate(said):
        for task, one in of_text.items():
            assert [*one.scores.values()] + [score for _, score in one.words] == theirs[task][i]


def test_what_is_said_has_names(three: Predictor, runs: dict[str, Path]) -> None:
    said, labels = three(TEXTS), SavedRun(runs["32"]).labels
    for text, of_text in zip(TEXTS, said, strict=True):
        for task in ("label", "target"):
            assert [*of_text[task].scores] == [*labels[task].names]
            assert of_text[task].words == []
        scores = of_text["label"].scores
        assert of_text["label"].labels == [max(scores, key=scores.__getitem__)]
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert of_text["target"].labels == [name for name, score in of_text["target"].scores.items() if score >= 0.5]
        words = of_text["rationale"].words
        assert [word for word, _ in words] == text.split(" ")
        assert of_text["rationale"].labels == [word for word, score in words if score >= 0.5]
        assert of_text["rationale"].scores == {}


@pytest.mark.slow
def test_two_runs_live_in_one_process(runs: dict[str, Path]) -> None:
    first, second = (Predictor.load(run) for run in runs.values())
    one, other = first(TEXTS), second(TEXTS)
    assert [r["label"].scores for r in one] != [r["label"].scores for r in other]
    assert first(TEXTS) == one and second(TEXTS) == other
    assert Predictor.load(runs["32"])(TEXTS) == one


def test_what_is_typed_is_laid_over_the_run(runs: dict[str, Path]) -> None:
    assert [*Predictor.load(runs["32"], "tasks=[target]", "trainer.precision=bf16")(TEXTS)[0]] == ["target"]


def test_nothing_else_in_the_process_is_changed(runs: dict[str, Path]) -> None:
    """Neither random generators nor torch's arithmetic, nor a Hydra that is at work."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    precision = torch.get_float32_matmul_precision()
    with initialize_config_dir(str(ROOT / "conf" / "merge"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        Predictor.load(runs["32"])(TEXTS)
        with pytest.raises(UserError):
            Predictor.load(runs["32"], "tasks=[nope]")
        assert GlobalHydra.instance().hydra is hydra
        assert compose("mean")._target_
    assert not GlobalHydra.instance().is_initialized()
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert torch.get_float32_matmul_precision() == precision


def test_a_run_with_options_of_ones_own(runs: dict[str, Path], tmp_path: Path) -> None:
    run, mine = Path(shutil.copytree(runs["bf16"], tmp_path / "run")), tmp_path / "it's mine" / "encoder"
    mine.mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "encoder" / "tiny.yaml", mine / "own.yaml")
    config = SavedRun(run).config
    write_config(run, {**config, "choices": {**config["choices"], "encoder": "own"}})
    with pytest.raises(UserError, match=r"run has encoder=own, .* type --config-dir FOLDER, in Python .*config_dir=FOLDER"):
        Predictor.load(run)
    assert Predictor.load(run, config_dir=mine.parent)(TEXTS) == Predictor.load(runs["bf16"])(TEXTS)
    with pytest.raises(UserError, match=r"encoder=owm: no such option; did you mean 'own'"):
        Predictor.load(run, "encoder=owm", config_dir=mine.parent)


def test_loras_are_merged_once_and_the_thread_is_left_as_it_was(three: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    said, before = three(TEXTS), (*state(), torch.is_grad_enabled())
    with monkeypatch.context() as patch:
        patch.setattr("hatemtl.network.forward.merge", lambda *_, **__: pytest.fail("merged once more"))
        assert three(TEXTS) == said
    with pytest.raises(ZeroDivisionError), three.reading(20):
        raise ZeroDivisionError
    assert (*state(), torch.is_grad_enabled()) == before
    through = three.network.module.through
    with through.gradients():
        assert not through.settled  # a merged LoRA gives no gradient
    assert three(TEXTS) == said and through.settled


def test_few_tokens_are_computed_by_one_thread(three: Predictor) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for tokens, threads in ((20, 1), (WORK, 2)):
            with three.reading(tokens):
                assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_words_beyond_max_length_score_nothing(three: Predictor) -> None:
    (said,) = three(["cake " * 200])
    words, read = said["rationale"].words, three.network.encoder.max_length - 2
    assert [word for word, _ in words] == ["cake"] * 200
    assert all(score > 0 for _, score in words[:read]) and all(score == 0 for _, score in words[read:])


def test_space_is_collapsed_as_in_training(three: Predictor) -> None:
    assert three(["you  dronk\n"]) == three(["you dronk"])
    assert three(["so funny \ud83d"]) == three(["so funny ?"])  # half an emoji


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one text", r"'one text': expected several texts; .*\[text\] for one"),
        (None, "None: expected several texts"),
        (["fine", 3], "text 1: 3, expected a text"),
        (["fine", None], "text 1: None, expected a text"),
        ([" \n"], r"text 0: ' \\n', expected a text"),
        (["x" * 1_000_001], "text 0: 1,000,001 characters, expected 1,000,000 at most"),
    ],
)
def test_what_is_no_text_is_named(three: Predictor, texts: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        three(texts)


def test_no_text_says_nothing(three: Predictor) -> None:
    assert three([]) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["trainer.precison=32"], "trainer.precison: trainer=auto has no such key; did you mean 'trainer.precision'"),
        (["tasks=[labell]"], "did you mean 'label'"),
        (["tasks=[mlm]"], r"no trained head for task 'mlm'; type tasks=\[label,target,rationale\]"),
        (["method=full"], "method=full on encoder=tiny: .*load it with method=(ah|peft)_load"),
        (["heads.load=false"], "never trained; type heads.load=true"),
    ],
)
def test_what_cannot_be_loaded_is_told_as_on_the_command_line(runs: dict[str, Path], typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Predictor.load(runs["32"], *typed)


def test_another_tokenizer_than_the_runs_is_refused(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatemtl.using.predictor.vocabulary", lambda _: "another")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        Predictor.load(runs["32"])


@pytest.mark.slow
def test_a_plain_script_in_another_folder_says_what_the_command_line_says(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = ["action=predict", f"load_path={runs['32']}", f"predict.input={tmp_path}/posts.jsonl"]
    subprocess.run([sys.executable, ROOT / "main.py", *command], check=True, cwd=tmp_path, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "posts.scored.jsonl").read_text().splitlines()]
    script = "import json, sys\nfrom hatemtl.using.predictor import Predictor\n" + (
        f"said = Predictor.load('three')({TEXTS!r})\nprint(json.dumps([r['label'].scores for r in said]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=runs["32"].parent, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "none are activated" not in done.stderr
    found = json.loads(done.stdout)
    for line, scores in zip(lines, found, strict=True):
        assert {f"pred_label_{name}": score for name, score in scores.items()} == {
            key: value for key, value in line.items() if key.startswith("pred_label_")
        }
