"""Adapters with heads: PEFT's own classes and AdapterHub's give the merged model's logits, of every kind of encoder."""

from pathlib import Path
from typing import Any

import adapters
import peft
import pytest
import torch
from encoders.test_pretrained import ids
from using.test_export import METHODS, predictor, source, trained
from using.test_merged_folder import head

from hatemtl.corpora.preprocess import AS_IS
from hatemtl.using.made_up_posts import cases
from hatemtl.using.merged_encoder import merged
from hatemtl.using.publish import adapter_folders
from hatemtl.using.publish.said_head import say


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ah_lora", "peft_lora"])
@pytest.mark.parametrize(
    ("kind", "of"),
    [
        *((kind, ("multiclass", "cls", 1)) for kind in ("bert", "roberta", "electra", "deberta")),
        *((kind, ("multilabel", "mean", 1)) for kind in ("bert", "roberta", "electra", "deberta")),
        *((kind, ("multiclass", "cls", 2)) for kind in ("electra", "deberta")),
        ("bert", ("tokens", "", 1)),
    ],
    ids=str,
)
def test_both_libraries_load_the_adapter_with_its_head(
    kind: str, of: tuple[str, str, int], method: str, tmp_path: Path
) -> None:
    encoder, some = source(tmp_path, kind), head(*of)
    run, _ = trained(METHODS[method], encoder, tmp_path)
    model, base = merged(run, encoder, seed=0), encoder.source
    made, why = say(model, "task", some, [*cases(predictor(run, encoder, {"task": some}), model, ["task"])], AS_IS)
    assert made is not None, why
    body = encoder.model(dropout=True, seed=0)
    found, why = adapter_folders.updates(run, body)
    assert found is not None, why
    adapter_folders.write_peft(tmp_path / "peft", found, made, base)
    adapter_folders.write_adapterhub(tmp_path / "adapterhub", run, found, made, body, base)
    automatic: Any = getattr(peft, made.class_name.replace("AutoModel", "AutoPeftModel"))
    act = {"pooler_hidden_act": made.model.config.pooler_hidden_act} if kind == "deberta" and made.form == "sequence" else {}
    by_peft = automatic.from_pretrained(tmp_path / "peft", id2label=made.model.config.id2label, **act).eval()
    by_adapterhub: Any = adapters.AutoAdapterModel.from_pretrained(base)  # type: ignore[attr-defined]
    by_adapterhub.load_adapter(str(tmp_path / "adapterhub"), set_active=True, use_safetensors=True)
    with torch.no_grad():
        expected = made.model(input_ids=ids()).logits
        for loaded in (by_peft, by_adapterhub.eval()):
            torch.testing.assert_close(loaded(input_ids=ids()).logits, expected, atol=1e-4, rtol=1e-4)
