"""Questions answered by the command line: learned beside labels, tested, predicted; and who refuses them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import Outcome
from outcomes import read_outcome
from results import read_results

from hatemtl.answers import worth
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using import merged_folder
from hatemtl.using.predictor import Predictor, check_predictable
from hatemtl.using.publish.folder import _chosen

Cli = Callable[..., Outcome]
OWNERS = ("anna", "boris", "clara", "dmitri")
THINGS = ("choir", "garden", "soup", "cake")


def questions(path: Path, paragraphs: int = 40) -> Path:
    """Who owns what, a sentence each; the answer is the owner, or as well the owner and a town."""
    of = []
    for i in range(paragraphs):
        sentences = [f"The {thing} is of {OWNERS[(i + k * (i % 3)) % 4]} of Oslo." for k, thing in enumerate(THINGS)]
        context = f"{i}: {' '.join(sentences)}"
        qas = []
        for k in (i % 4, (i + 1) % 4):
            owner = sentences[k].split(" is of ")[1].split(" ")[0]
            start = context.index(sentences[k]) + sentences[k].index(owner)
            given = [{"text": text, "answer_start": start} for text in (owner, f"{owner} of Oslo")]
            qas.append({"id": f"{i}-{k}", "question": f"Who has the {THINGS[k]}?", "answers": given})
        of.append({"context": context, "qas": qas})
    path.write_text(json.dumps({"data": [{"title": "owners", "paragraphs": of}]}), encoding="utf-8")
    return path


@pytest.mark.slow
def test_questions_are_learned_beside_labels_tested_and_predicted(cli: Cli, tmp_path: Path) -> None:
    path, run = questions(tmp_path / "q.json"), tmp_path / "run"
    both = ["encoder=tiny", "tasks=[squad,label]", f"tasks.squad.corpus.path={path}", "corpus@tasks.label.corpus=sample"]
    both += ["tasks.label.corpus.size=100", "optimization.epochs=1", "encoder.max_length=32"]
    trained = cli(*both, "action=[train,test]", f"save_path={run}")
    assert trained.code == 0, trained.err
    assert "squad: encoder.max_length=32 cuts the answers off" in " ".join(trained.out.split())
    found, frame = SavedRun(run).results, pd.read_parquet(run / "predictions.parquet")
    asked = frame[frame["task"] == "squad"]
    each = [worth(answer, right) for answer, right in zip(asked["answer"], asked["right_answers"], strict=True)]
    assert len(each) == 8 and found["test_squad_answers_cut"] > 0
    assert found["test_squad_em"] == pytest.approx(sum(em for em, _ in each) / 8)
    assert found["test_squad_f1"] == pytest.approx(sum(f1 for _, f1 in each) / 8)
    read_outcome(read_results(run / "results.csv"), "squad").check()
    read_outcome(read_results(run / "results.csv"), "label").check()

    contexts = {of["id"]: p["context"] for p in json.loads(path.read_text())["data"][0]["paragraphs"] for of in p["qas"]}
    predict = ["action=predict", f"load_path={run}", f"predict.input={path}"]
    scored = cli(*predict, "predict.pair=context")
    assert scored.code == 0, scored.err
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "q.scored.jsonl").read_text().splitlines())}
    tested: Any = asked.set_index("post_id")
    for post, answer in tested["answer"].items():
        row = rows[post]
        assert row["pred_squad"] == answer and row["pred_label"]
        assert contexts[post][row["pred_squad_start"] :].startswith(answer)
        assert [row["pred_squad_start"], row["pred_squad_score"]] == pytest.approx(
            [tested["scores"][post][0], tested["scores"][post][2]], rel=1e-4
        )

    with pytest.raises(UserError, match="is about answers and says nothing of a single text"):
        (predictor := Predictor.load(run))(["who has the soup?"])
    for seconds, wrong in (
        (["a", "b"], "2 second texts for 1 texts; give one for each"),
        ([" "], "second text 0: ' ', expected"),
    ):
        with pytest.raises(UserError, match=wrong):
            predictor(["who has the soup?"], seconds=seconds)
    (said,) = predictor(["who has  the soup?"], seconds=[" the soup \n is of anna"])
    start = int(said["squad"].scores["start"])
    assert said["squad"].labels == [" the soup \n is of anna"[start : start + len(said["squad"].labels[0])]]


def test_who_reads_single_texts_refuses_answers(tmp_path: Path) -> None:
    spaces = {"label": LabelSpace("multiclass", ("a", "b")), "asked": LabelSpace("span", ("answer",))}
    check_predictable(spaces, pairs=True)
    with pytest.raises(UserError, match="task 'asked' is about answers and says nothing of a single text"):
        check_predictable(spaces)  # as action=serve and export.format=onnx ask
    run: Any = SimpleNamespace(folder="run", labels=spaces)
    predictor: Any = SimpleNamespace(spaces=spaces, saved=run, network=SimpleNamespace(encoder=None))
    with pytest.raises(UserError, match=r"format=merged: task 'asked' finds answers.*tasks=\[...\] without it"):
        merged_folder.write(predictor, tmp_path / "out")
    assert _chosen(None, ["label", "asked"], run) == ("label", ["label"])
    with pytest.raises(UserError, match="publish.head_of=asked: no task of the run that classifies"):
        _chosen("asked", ["label", "asked"], run)
    with pytest.raises(UserError, match="run has no task but answers, and no label to give"):
        _chosen(None, ["asked"], run)
