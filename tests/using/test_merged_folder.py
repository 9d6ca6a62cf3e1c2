"""Merged encoders: what transformers or load.py alone reads off the folder is what the network says."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders.test_pretrained import hidden, ids
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from using.test_export import METHODS, inside, predictor, source, trained

from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.heads.choice import ChoiceHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.ordinal import OrdinalHead
from hatemtl.heads.score import ScoreHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.using import load, merged_folder
from hatemtl.using.export import MARKER
from hatemtl.using.made_up_posts import TEXTS as MADE_UP
from hatemtl.using.made_up_posts import cases
from hatemtl.using.merged_encoder import merged

TEXTS = ["this is fine", "that is not this is not that"]


def head(kind: str, pooling: str, layers: int = 1, size: int = 32) -> Any:
    """A head drawn at random, its outputs well apart."""
    given: dict[str, Any] = {"hidden_size": size, "dropout": 0.1, "layers": layers}
    pooled = {**given, "pooling": pooling}
    names: tuple[str, ...] = ("kind", "rude", "neither")
    torch.manual_seed(0)
    some: Any
    if kind == "multiclass":
        some = MulticlassHead(**pooled, space=LabelSpace(kind, names), label_smoothing=0.0, balance=0.0)
    elif kind == "multilabel":
        some = MultilabelHead(**pooled, space=LabelSpace(kind, names), threshold=0.4, balance=0.0)
    elif kind == "score":
        some = ScoreHead(**pooled, space=LabelSpace(kind, ("level",)), loss="mse")
        some.observe(torch.tensor([2.0, 7.0, 11.0]))
    elif kind == "ordinal":
        some = OrdinalHead(**pooled, space=LabelSpace(kind, names), balance=0.0)
    elif kind == "choice":
        some = ChoiceHead(**pooled, space=LabelSpace(kind, names))
    else:
        some = TokensHead(**given, space=LabelSpace("tokens", ("rationale",)), threshold=0.4, balance=0.0)
    with torch.no_grad():
        for parameter in some.layers.parameters():
            parameter.mul_(5)
    return some.eval()


def network_says(encoder: Encoder, model: Any, some: Any, texts: list[str] = TEXTS) -> torch.Tensor:
    inputs = encoder.tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return some.scores(some(states, inputs["attention_mask"]))


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("name", METHODS)
def test_a_merged_encoder_is_a_plain_one(name: str, kind: str, tmp_path: Path) -> None:
    encoder = source(tmp_path, kind)
    run, said = trained(METHODS[name], encoder, tmp_path)
    merged_folder.write(predictor(run, encoder, {}), tmp_path / "out")
    plain, seen = AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager", output_loading_info=True)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]  # with its pooler
    torch.testing.assert_close(hidden(plain.eval(), ids()), said, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(said, hidden(encoder.model(dropout=False, seed=0), ids()), atol=1e-3)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("this is fine")["input_ids"] == encoder.tokenizer()("this is fine")["input_ids"]
    assert {MARKER, "config.yaml", "README.md"} <= inside(tmp_path / "out").keys()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.get("hidden_dropout_prob", 0.3) == 0.3  # as pretrained, whatever the run trained with


@pytest.mark.parametrize(
    ("encoder_kind", "kind", "layers"),
    [
        *(
            (encoder, kind, 1)
            for encoder in ("bert", "roberta", "electra", "deberta")
            for kind in ("multiclass", "multilabel")
        ),
        *(("bert", "score", 1), ("electra", "score", 1), ("electra", "multiclass", 2), ("deberta", "multilabel", 2)),
    ],
)
def test_a_pipeline_gives_the_networks_scores(encoder_kind: str, kind: str, layers: int, tmp_path: Path) -> None:
    encoder, some = source(tmp_path, encoder_kind), head(kind, "cls", layers)
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    told = merged_folder.write(predictor(run, encoder, {"label": some}), tmp_path / "out")
    expected = network_says(encoder, merged(run, encoder, seed=0), some)
    call, gives, _ = told.partition(" gives its scores")
    assert gives
    classifier = eval(call, {"pipeline": pipeline})
    assert classifier.model.config.id2label == dict(enumerate(some.space.names))
    for row, answers in zip(expected, classifier(TEXTS), strict=True):
        found = {each["label"]: each["score"] for each in answers}
        assert found == pytest.approx(dict(zip(some.space.names, row.tolist(), strict=True)), abs=1e-4)
    body = AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    torch.testing.assert_close(hidden(body, ids()), hidden(merged(run, encoder, seed=0), ids()), atol=1e-5, rtol=1e-5)
    again = Encoder(source=str(tmp_path / "out"), max_length=32, attention="eager", random=None)
    torch.testing.assert_close(hidden(again.model(dropout=False, seed=0), ids()), hidden(body, ids()))
    torch.testing.assert_close(load.Reader(tmp_path / "out")(TEXTS)["label"], expected, atol=1e-4, rtol=1e-4)


UNSAID = {
    "mean": ("bert", "multiclass", "mean", 1, "BertForSequenceClassification has no head of pooling=mean"),
    "attention": (
        "electra",
        "multilabel",
        "attention",
        1,
        "ElectraForSequenceClassification has no head of pooling=attention",
    ),
    "tanh between two": ("bert", "multiclass", "cls", 2, "BertForSequenceClassification has no place"),
    "three layers": ("electra", "multiclass", "cls", 3, "ElectraForSequenceClassification has no place"),
    "norm": ("modernbert", "multiclass", "cls", 1, "ModernBertForSequenceClassification has no place"),
    "ordinal": ("bert", "ordinal", "cls", 2, "BertForSequenceClassification has no ordinal head"),
    "score": ("bert", "score", "mean", 2, "BertForSequenceClassification has no head of pooling=mean"),
    "tokens": ("bert", "tokens", "", 1, "BertForSequenceClassification has no tokens head"),
    "choice": ("deberta", "choice", "mean", 1, "DebertaV2ForSequenceClassification has no choice head"),
}


@pytest.mark.parametrize("name", UNSAID)
def test_what_the_library_cannot_say_is_read_by_load_py(name: str, tmp_path: Path) -> None:
    encoder_kind, kind, pooling, layers, why = UNSAID[name]
    encoder, some = source(tmp_path, encoder_kind), head(kind, pooling, layers)
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    told = merged_folder.write(predictor(run, encoder, {"label": some}), tmp_path / "out")
    assert why in told and "load.py" in told and "at random" in told
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "ForSequenceClassification" not in written["architectures"][0]  # it would draw a head
    assert "rude" not in str(written)  # whose answers would look like ours
    assert why in (tmp_path / "out" / "README.md").read_text()
    reader = load.Reader(tmp_path / "out")
    for case in cases(predictor(run, encoder, {"label": some}), merged(run, encoder, seed=0), ["label"]):
        read, expected = [reader(MADE_UP, seconds)["label"] for seconds in case.seconds], case.said["label"]
        rows = read[0] if kind == "tokens" else read[0].tolist()
        if kind == "choice":  # of two second texts
            rows = torch.cat(read, dim=1).softmax(dim=1).tolist()
            expected = [row[: len(read)] for row in expected]
        assert rows == [pytest.approx(row, abs=1e-4, rel=1e-4) for row in expected]
        if kind == "tokens":
            assert [len(row) for row in rows] == [len(text.split(" ")) for text in MADE_UP]
        if kind != "choice":
            for text, row in zip(MADE_UP, rows, strict=True):
                said = reader.said("label", row, text)
                decoded = some.decode(row, text.split(" "))
                assert (said if isinstance(said, list) else [f"{said:.4f}" if kind == "score" else said]) == decoded


def test_white_space_is_read_as_it_was_in_training(tmp_path: Path) -> None:
    encoder, some = source(tmp_path), head("tokens", "")
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    merged_folder.write(predictor(run, encoder, {"rationale": some}), tmp_path / "out")
    reader = load.Reader(tmp_path / "out")
    # one at a time, for some processors round two rows of one product otherwise
    one, other = (reader([text])["rationale"][0] for text in ("this is fine", " this  is\n\tfine"))
    assert one == other and len(one) == 3 and not any(map(math.isnan, one))
    assert len(reader.said("rationale", [1.0, 1.0, 1.0], " this  is\n\tfine")) == 3


@pytest.mark.slow
def test_load_py_runs_alone(tmp_path: Path) -> None:
    """In a process of its own, with two tasks, and nothing of hatemtl in sight."""
    encoder = source(tmp_path)
    heads = {"label": head("multiclass", "mean"), "target": head("multilabel", "attention", 2)}
    run, _ = trained(METHODS["ah_lora"], encoder, tmp_path)
    told = merged_folder.write(predictor(run, encoder, heads), tmp_path / "out")
    assert "there are 2 tasks" in told
    left = inside(tmp_path / "out")
    assert left.keys() == {MARKER, *json.loads(left[MARKER])["files"]}
    assert b"import hatemtl" not in left["load.py"] and b"from hatemtl" not in left["load.py"]
    command = [sys.executable, "-I", "-W", "ignore", str(tmp_path / "out" / "load.py"), *TEXTS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    model, lines = merged(run, encoder, seed=0), [json.loads(line) for line in done.stdout.splitlines()]
    for task, some in heads.items():
        for scores, line in zip(network_says(encoder, model, some), lines, strict=True):
            said = some.decode(scores.tolist(), [])
            assert line[task] == (said[0] if task == "label" else said)


def test_a_reader_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, some = source(tmp_path), head("multiclass", "mean")
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    monkeypatch.setattr(load, "_pooled", lambda hidden, mask, how, own: hidden[:, 0])
    with pytest.raises(UserError, match=r"task 'label' .* type export.format=onnx"):
        merged_folder.write(predictor(run, encoder, {"label": some}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_would_come_out_too_coarse_is_left_to_load_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, some = source(tmp_path), head("multiclass", "cls")
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    monkeypatch.setattr("hatemtl.encoders.for_others.SMALL", 1.0)
    told = merged_folder.write(predictor(run, encoder, {"label": some}), tmp_path / "out")
    assert "too coarsely" in told
    torch.testing.assert_close(
        load.Reader(tmp_path / "out")(TEXTS)["label"],
        network_says(encoder, merged(run, encoder, seed=0), some),
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_tokenizer_cuts_where_hatemtl_does(tmp_path: Path) -> None:
    encoder = source(tmp_path)
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    merged_folder.write(predictor(run, encoder, {}), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer("this " * 99, truncation=True)["input_ids"]) == encoder.max_length


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_run_of_the_command_line_is_read_without_hatemtl(pooling: str, cli: Any, tmp_path: Path) -> None:
    """MiniLM under two LoRA tasks' kinds, by what the command says."""
    run, out = tmp_path / "run", tmp_path / "out"
    posts = tmp_path / "posts.csv"
    posts.write_text("text\nwe had soup and cake in the garden\nall jugglers should be sent away from here\n")
    small = ["encoder=minilm", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=100"]
    small += [f"tasks.label.head.pooling={pooling}", "optimization.epochs=1", "trainer.precision=32"]
    assert cli(*small, f"save_path={run}").code == 0
    done = cli("action=export", "export.format=merged", f"export.path={out}", f"load_path={run}")
    assert (done.code, done.err) == (0, ""), done.err
    assert ("gives its scores" in done.out) == (pooling == "cls")
    import pandas as pd

    done = cli("action=predict", f"load_path={run}", f"predict.input={posts}", "trainer.precision=32")
    assert done.code == 0, done.err
    expected = pd.read_csv(tmp_path / "posts.scored.csv")
    labels = json.loads((run / "labels.json").read_text())["label"]["names"]
    scores = torch.tensor(expected[[f"pred_label_{label}" for label in labels]].to_numpy()).float()
    found = load.Reader(out)(expected["text"].tolist())["label"]
    torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-4)
    if pooling == "cls":
        classifier = pipeline("text-classification", str(out), top_k=None, truncation=True)
        for answers, row in zip(classifier(expected["text"].tolist()), scores.tolist(), strict=True):
            said = {each["label"]: each["score"] for each in answers}
            assert said == pytest.approx(dict(zip(labels, row, strict=True)), abs=1e-4)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
