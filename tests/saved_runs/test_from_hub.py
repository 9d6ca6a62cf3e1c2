"""Adapters of the hub: laid out as saved runs from what a download leaves in the cache; no pickle, pinned to a commit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hatemtl.errors import UserError
from hatemtl.saved_runs import from_hub
from hatemtl.saved_runs.from_hub import is_named
from hatemtl.saved_runs.saved_run import SavedRun

SHA = "a" * 40
PEFT: dict[str, Any] = {
    **{"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 2, "modules_to_save": ["classifier"]},
    **{"base_model_name_or_path": "some/encoder", "target_modules": ["bert.encoder.layer.0.attention.self.query", "value"]},
}
ADAPTERHUB: dict[str, Any] = {"config": {"architecture": "lora"}, "name": "theirs", "model_name": "some/encoder"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATEMTL_CACHE", str(tmp_path / "ours"))
    monkeypatch.chdir(tmp_path)


def laid_out(
    cache: Path, files: dict[str, Any], repo: str = "me/adapter", *, revision: str = "main", sha: str = SHA
) -> None:
    """Writes files as a download of the repository leaves them: JSON, tensors by key, or text."""
    snapshot = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / sha
    for name, content in files.items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({key: torch.full((2, 2), float(i)) for i, key in enumerate(content)}, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    references = snapshot.parents[1] / "refs"
    references.mkdir(exist_ok=True)
    (references / revision).write_text(sha)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        *(("me/x", True), ("me/x@v1", True), ("me/x@refs/pr/1", True), ("x", False), ("a/b/c", False), ("/a/b", False)),
        *(("a/", False), ("../x", False), ("me/x y", False), ("here/typo", False), ("~/x", False)),
    ],
)
def test_what_leads_anywhere_here_is_no_repository(given: str, named: bool, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()  # so that adapters/TYPO is not looked for on the hub
    assert is_named(given) is named


def test_an_adapter_of_peft_loses_its_head_and_the_name_of_the_model_around_the_encoder(hub: Path) -> None:
    before = "base_model.model."
    keys = [f"{before}bert.encoder.layer.0.attention.self.query.lora_{x}.weight" for x in "AB"]
    laid_out(hub, {"adapter_config.json": PEFT, "adapter_model.safetensors": [*keys, f"{before}classifier.weight"]})
    run = SavedRun("me/adapter")
    assert run.folder.name == f"me--adapter@{SHA}" and run.record["hub"] == f"me/adapter@{SHA}"
    assert (run.record["library"], run.record["encoder"], run.record["encoder_source"]) == ("peft", None, "some/encoder")
    assert (run.labels, run.config["tasks"]) == ({}, {})
    assert [*run.tensors("adapter/adapter_model.safetensors")] == [key.replace("bert.", "") for key in keys]
    said = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert (said["modules_to_save"], said["task_type"]) == (None, None)
    assert said["target_modules"] == ["encoder.layer.0.attention.self.query", "value"]
    assert SavedRun(f"me/adapter@{SHA}").folder == run.folder  # as run.json names it


def test_a_revision_is_the_one_that_was_asked_for_and_read_once(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"base_model.model.encoder.layer.0.{x}" for x in "ab"]
    laid_out(hub, {"adapter_config.json": PEFT, "adapter_model.safetensors": keys})
    other = "b" * 40
    settings = {**PEFT, "base_model_name_or_path": None, "model_name": None, "target_modules": "query"}
    laid_out(hub, {"adapter_config.json": settings, "adapter_model.safetensors": keys[:1]}, revision="v1", sha=other)
    old, new = SavedRun("me/adapter@v1"), SavedRun("me/adapter")
    assert (old.record["hub"], new.record["hub"]) == (f"me/adapter@{other}", f"me/adapter@{SHA}")
    assert old.record["encoder_source"] == "an encoder that it does not name"
    assert [*old.tensors("adapter/adapter_model.safetensors")] == keys[:1]  # of a part of the encoder alone nothing is cut
    assert json.loads((old.folder / "adapter" / "adapter_config.json").read_text())["target_modules"] == "query"
    assert old.folder.parent == new.folder.parent and old.folder.parent.name == "hub"
    assert capsys.readouterr().out.count("was read from the hub") == 2
    assert SavedRun("me/adapter").folder == new.folder and not capsys.readouterr().out
    assert sorted(path.name for path in new.folder.parent.iterdir()) == [new.folder.name, old.folder.name]


def test_an_adapter_of_adapterhub_is_read_without_its_head(hub: Path) -> None:
    keys = [f"bert.encoder.layer.0.attention.self.query.loras.theirs.lora_{x}" for x in "AB"]
    files = {
        "adapter_config.json": ADAPTERHUB,
        "adapter.safetensors": keys,
        "model_head.safetensors": ["heads.theirs.1.bias"],
    }
    laid_out(hub, files)
    run = SavedRun("me/adapter")
    assert (run.record["library"], run.record["encoder_source"]) == ("adapterhub", "some/encoder")
    assert [*run.tensors("adapter/adapter.safetensors")] == [key.removeprefix("bert.") for key in keys]
    assert not (run.folder / "adapter" / "model_head.safetensors").exists()


def test_a_published_run_keeps_heads_and_labels(hub: Path) -> None:
    files = {
        "run.json": {"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "some/encoder"},
        "config.yaml": "tasks: {label: {}}\nchoices: {method: ah_lora16}\n",
        "labels.json": {"label": {"kind": "multiclass", "names": ["a", "b"], "pooling": "cls"}},
        "heads.safetensors": ["label.layers.1.weight"],
        "adapterhub/adapter_config.json": ADAPTERHUB,
        "adapterhub/adapter.safetensors": ["encoder.layer.0.output.dense.loras.theirs.lora_A"],
        "peft/adapter_config.json": PEFT,
    }
    laid_out(hub, files)
    run = SavedRun("me/adapter")
    assert (run.record["encoder"], run.record["hub"]) == ("mark", f"me/adapter@{SHA}")
    assert run.labels["label"].names == ("a", "b") and [*run.tensors("heads.safetensors")] == ["label.layers.1.weight"]
    assert load_file(run.folder / "adapter" / "adapter.safetensors").keys() == {*files["adapterhub/adapter.safetensors"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": PEFT}, "no pickle, such as adapter_model.bin"),
        ({"adapter_config.json": ADAPTERHUB}, "no pickle, such as pytorch_adapter.bin"),
        ({"labels.json": {}}, "holds no adapter of PEFT or AdapterHub"),
        ({"adapter_config.json": "{", "adapter_model.safetensors": ["x"]}, "not valid JSON"),
    ],
)
def test_what_is_no_adapter_in_safetensors_is_refused_and_leaves_nothing(
    files: dict[str, Any], message: str, hub: Path, tmp_path: Path
) -> None:
    laid_out(hub, files)
    with pytest.raises(UserError, match=message):
        SavedRun("me/adapter")
    assert not [*(tmp_path / "ours").glob("hub/*")]


def test_no_more_is_fetched_than_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(given: str, **how: Any) -> None:
        asked.update(how)
        raise UserError("far")

    monkeypatch.setattr(from_hub, "fetch", fetch)
    with pytest.raises(UserError, match="far"):
        SavedRun("me/adapter")
    adapter = ["adapter_config.json", "adapter_model.safetensors", "adapter.safetensors"]
    places = [f"{place}{name}" for place in ("", "adapterhub/", "peft/") for name in adapter]
    own = ["run.json", "config.yaml", "labels.json", "heads.safetensors"]
    assert (asked["kind"], sorted(asked["patterns"])) == ("model", sorted([*own, *places]))


def test_without_network_the_way_out_is_told(hub: Path) -> None:
    with pytest.raises(
        UserError, match=r"neither cached here nor within reach; no folder here is called me/none either; .*hf download"
    ):
        SavedRun("me/none")
    with pytest.raises(UserError, match="`hf download me/none --revision refs/pr/1`"):
        SavedRun("me/none@refs/pr/1")
