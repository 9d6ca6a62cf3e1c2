"""Graphs: what ONNX computes of texts and pairs is what the network says of them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from using.test_export import METHODS, inside, predictor, source, trained

from hatemtl.errors import UserError
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace
from hatemtl.using.export import MARKER
from hatemtl.using.merged_encoder import merged
from hatemtl.using.onnx_graph import write
from hatemtl.using.predictor import Predictor

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

GIVEN: dict[str, Any] = {"hidden_size": 32, "dropout": 0.1, "balance": 0.0}
TEXTS, SECONDS = ["this is fine", "that is not this is not that"], ["that is not", "this"]


def some_heads() -> dict[str, Any]:
    torch.manual_seed(0)
    heads: dict[str, Any] = {
        "label": MulticlassHead(
            **GIVEN, space=LabelSpace("multiclass", ("a", "b")), pooling="cls", layers=1, label_smoothing=0.0
        ),
        "target": MultilabelHead(
            **GIVEN, space=LabelSpace("multilabel", ("a", "b", "c")), pooling="attention", layers=2, threshold=0.5
        ),
        "rationale": TokensHead(**GIVEN, space=LabelSpace("tokens", ("rationale",)), layers=1, threshold=0.5),
    }
    return {task: head.eval() for task, head in heads.items()}


def computed(folder: Path, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the graph says, by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    graph = ReferenceEvaluator(str(folder / "model.onnx"))
    found = graph.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(graph.output_names, found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_a_graph_says_what_the_network_says_of_texts_and_pairs(kind: str, tmp_path: Path) -> None:
    encoder, heads = source(tmp_path, kind), some_heads()
    run, _ = trained(METHODS["ah_lora"], encoder, tmp_path)
    write(predictor(run, encoder, heads), tmp_path / "out")
    model = merged(run, encoder, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for texts in ((TEXTS,), (TEXTS, SECONDS)):
        inputs = tokenizer(*texts, padding=True, return_tensors="pt")
        assert ("token_type_ids" in inputs) == (kind != "roberta")  # which knows one type
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
            expected = {task: head.scores(head(hidden, inputs["attention_mask"])) for task, head in heads.items()}
        found = computed(tmp_path / "out", inputs)
        assert found.keys() == expected.keys()
        for task, scores in found.items():
            torch.testing.assert_close(scores, expected[task], atol=1e-4, rtol=1e-4)
    if kind != "roberta":  # of which segments tell something
        inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        assert not torch.allclose(computed(tmp_path / "out", inputs)["label"], expected["label"], atol=1e-4)
    left = inside(tmp_path / "out")
    assert left.keys() == {MARKER, *json.loads(left[MARKER])["files"]}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "by"), [("deberta", "torch"), ("modernbert", "ONNX's reference")])
def test_who_compared_the_scores_is_told(kind: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX's reference fails at DeBERTa's GatherElements, as torch writes it; then the traced program is compared."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no ONNX Runtime
    encoder = source(tmp_path, kind)
    run, _ = trained(METHODS["full"], encoder, tmp_path)
    told = write(predictor(run, encoder, some_heads()), tmp_path / "out")
    assert f"as {by}" in told and "are the network's" in told
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ("token_type_ids" in tokenizer("this")) == (kind == "deberta")  # ModernBERT takes none


@pytest.mark.slow
def test_a_graph_that_says_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = source(tmp_path)
    run, _ = trained(METHODS["ah_lora"], encoder, tmp_path)
    heads = some_heads()

    def off(self: Any, logits: torch.Tensor) -> torch.Tensor:  # while it is traced alone
        return logits.softmax(dim=-1) * (0.99 if torch.compiler.is_exporting() else 1)

    monkeypatch.setattr(MulticlassHead, "scores", off)
    with pytest.raises(UserError, match=r"task 'label' .* type export.format=merged"):
        write(predictor(run, encoder, heads), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_graph_is_compared_with_the_predictor(cli: Any, sample: list[str], tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert cli(*sample, f"save_path={run}").code == 0
    export = ["action=export", "export.format=onnx", f"load_path={run}", f"export.path={out}"]
    with pytest.MonkeyPatch.context() as patch:
        scores = Predictor.scores

        def others(*given: Any, **how: Any) -> Any:
            said = scores(*given, **how).items()
            return {task: [[1 - score for score in row] for row in rows] for task, rows in said}

        patch.setattr(Predictor, "scores", others)
        refused = cli(*export)
    assert refused.code == 2 and "of task 'target' the graph of" in refused.err and not out.exists()
    assert cli(*export).code == 0
    inputs = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, truncation=True, return_tensors="np")
    found = computed(out, dict(inputs))["target"]
    said = Predictor.load(run, "trainer.precision=32")(TEXTS)
    expected = torch.tensor([[*one["target"].scores.values()] for one in said])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
