"""A run with a word list says the same wherever it is used, whatever became of the file that it was trained with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import main

from hatemtl.errors import UserError
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.predictor import Predictor

WORDS = "word,weight,category\nsnorf,1,abuse\nlovely,2,kind\nfriend,1,kind\n"
COMMAND = ["tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=100", "encoder=tiny"]
COMMAND += ["optimization.epochs=1", "trainer.precision=32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lexicon")
    (folder / "words.csv").write_text(WORDS, encoding="utf-8")
    words = f"tasks.label.head.lexicon={folder / 'words.csv'}"
    assert main(*COMMAND, words, "optimization.head_lr=0.1", f"save_path={folder / 'run'}") == 0
    return folder / "run", folder / "words.csv"


def test_the_words_travel_with_the_run_and_their_counts_with_the_posts(run: tuple[Path, Path], cli: Any) -> None:
    folder, words = run
    words.write_text("nothing\n", encoding="utf-8")  # what became of the file is of no matter
    moved = folder.rename(folder.with_name("moved"))
    try:
        predictor = Predictor.load(moved)
        head: Any = predictor.heads["label"]
        assert head.counts.scale.abs().sum() > 0 and not torch.equal(head.counts.scale[1], torch.ones(2))
        pool = predictor.pool(["lovely friend", "a snorf"])
        assert pool.counts["label"].tolist() == [[0.0, 1.5], [0.5, 0.0]]
        said = predictor.scores(pool)["label"]
        pool.counts["label"][:] = 0
        assert predictor.scores(pool)["label"] != said, "the head reads them"
        assert cli("action=test", f"load_path={moved}").code == 0
        for form in ("merged", "onnx"):
            ended = cli("action=export", f"load_path={moved}", f"export.format={form}", f"export.path={moved}-{form}")
            assert (ended.code, "reads the counts of a word list" in ended.err or "uv sync" in ended.err) == (2, True)
            assert not Path(f"{moved}-{form}").exists()
    finally:
        moved.rename(folder)
        words.write_text(WORDS, encoding="utf-8")


def test_what_asks_about_tokens_alone_is_refused_before_the_first_epoch(run: tuple[Path, Path], cli: Any) -> None:
    new = run[0].with_name("judged")
    told = cli(*COMMAND, f"tasks.label.head.lexicon={run[1]}", "action=[train,test]", "evaluations=[faithfulness]",
               f"save_path={new}")  # fmt: skip
    assert told.code == 2 and "evaluations=[faithfulness]: a head with a lexicon counts the words of whole posts" in told.err
    assert not [path for path in new.parent.iterdir() if "judged" in path.name]


def test_another_word_list_is_refused_and_the_same_in_another_file_is_not(run: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("snorf\n", encoding="utf-8")
    (tmp_path / "same.tsv").write_text(WORDS.replace(",", "\t"), encoding="utf-8")
    with pytest.raises(UserError, match=r"another word list than this run.s; type .*lexicon_label\.csv"):
        Predictor.load(run[0], f"tasks.label.head.lexicon={tmp_path / 'other.txt'}")
    assert Predictor.load(run[0], f"tasks.label.head.lexicon={tmp_path / 'same.tsv'}")
    with pytest.raises(UserError, match="was trained with a word list"):
        Predictor.load(run[0], "tasks.label.head.lexicon=null")
    assert SavedRun(run[0]).record["lexicons"].keys() == {"label"}


def test_a_list_that_was_changed_makes_another_run(run: tuple[Path, Path], cli: Any) -> None:
    folder, words = run
    words.write_text(WORDS + "hat,1,kind\n", encoding="utf-8")
    command = [*COMMAND, f"tasks.label.head.lexicon={words}"]
    ended = cli(*command, "optimization.head_lr=0.1", f"save_path={folder}")
    assert (ended.code, "the word lists of heads hold other words" in ended.err) == (2, True)
    words.write_text(WORDS, encoding="utf-8")
    assert cli(*command, "optimization.head_lr=0.1", f"save_path={folder}").code == 0
