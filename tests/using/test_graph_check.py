"""An exported graph is compared with its run before it is left."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hatemtl.errors import UserError
from hatemtl.using import graph_check
from hatemtl.using.predictor import Predictor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*axis name.*", "ignore:.*isinstance.treespec.*")
def test_a_graph_that_scores_otherwise_is_not_written(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run, out = tmp_path / "run", tmp_path / "out"
    corpora = [f"corpus@tasks.{task}.corpus=sample" for task in ("label", "rationale")]
    few = [f"tasks.{task}.corpus.size=100" for task in ("label", "rationale")]
    trained = cli("encoder=tiny", "tasks=[label,rationale]", *corpora, *few, "optimization.epochs=1", f"save_path={run}")
    assert trained.code == 0, trained.err
    export = ["action=export", "export.format=onnx", f"load_path={run}"]
    done = cli(*export, f"export.path={out}")
    assert done.code == 0, done.err
    predictor = Predictor.load(run, "trainer.precision=32")
    graph_check.check(out / "model.onnx", predictor)
    for task in ("label", "rationale"):
        head: Any = predictor.head(task)
        weight = head.layers[-1].bias
        with torch.no_grad():
            weight[0] += 0.1
        with pytest.raises(UserError, match=rf"the graph scores task '{task}' otherwise .*off by 0.0.*export.format=merged"):
            graph_check.check(out / "model.onnx", predictor)
        with torch.no_grad():
            weight[0] -= 0.1
    monkeypatch.setattr(graph_check, "TOLERANCE", -1.0)
    refused = cli(*export, f"export.path={tmp_path / 'other'}")
    assert refused.code == 2 and "otherwise than the run does" in refused.err
    assert not list(tmp_path.glob("*other*")) and not list(tmp_path.glob(".*other*"))
