"""Published runs: transformers, PEFT and AdapterHub, each alone and without hatemtl, give the run's own scores."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import Outcome
from encoders.test_pretrained import save as save_encoder
from hub_stand_in import stand_in
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hatemtl.saved_runs import from_hub

# What somebody installs who reads the folder with a library alone.
INSTALLED = {
    "transformers": ("torch", "transformers"),
    "PEFT": ("torch", "peft"),
    "AdapterHub": ("torch", "adapters"),
    "load.py": ("torch", "transformers"),
}
TEXTS = ["A text.", "Another one, which says a little more."]  # of the card


def programs(folder: Path) -> dict[str, str]:
    """The card's own snippets, by library."""
    return dict(
        re.findall(r"^### (\S+)\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    )


def install(names: tuple[str, ...], into: Path) -> None:
    """Lays out, of the versions that are here, these distributions and what they require, and nothing else."""
    into.mkdir()
    missing, known = [*names], set[str]()
    while missing:
        if (name := canonicalize_name(missing.pop())) in known:
            continue
        known.add(name)
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (into / top).exists():
                (into / top).symlink_to(Path(str(found.locate_file(top))).resolve())
        required = [Requirement(line) for line in found.requires or ()]
        missing += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]


def alone(folders: list[Path], library: str, environment: Path) -> dict[Path, list[dict[str, float]]]:
    """The scores that the folders' snippets give in a fresh environment."""
    install(INSTALLED[library], environment)
    code = """
import importlib.util, json, os, sys
print("+" + json.dumps([name for name in ("hatemtl", "peft", "adapters") if importlib.util.find_spec(name)]))
for folder, program in json.load(sys.stdin):
    os.chdir(folder)
    before = [*sys.path]
    exec(program, own := {})
    sys.path[:] = before
    sys.modules.pop("load", None)
    print("\\n>" + json.dumps(own["scores"], default=lambda tensor: tensor.tolist()))
"""
    asked = json.dumps([(str(folder), programs(folder)[library]) for folder in folders])
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(environment)}
    command = [sys.executable, "-P", "-s", "-S", "-c", code]  # without the packages of this one
    done = subprocess.run(command, input=asked, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{library}: {done.stderr}"
    there = {*INSTALLED[library]} & {"peft", "adapters"}
    assert f"+{json.dumps([*there])}" in done.stdout.splitlines()
    said: Any = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith(">")]
    if library == "load.py":
        names = json.loads((folders[0] / "labels.json").read_text())["label"]["names"]
        said = [[dict(zip(names, row, strict=True)) for row in of["label"]] for of in said]
    return dict(zip(folders, said, strict=True))


@pytest.mark.slow
def test_each_library_alone_gives_the_runs_own_scores(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of LoRA runs and of merges of two, read at the first token and by the mean.

    On a tokenizer of five words, so that texts differ in their length alone.
    """
    monkeypatch.chdir(tmp_path)
    save_encoder("bert", tmp_path / "encoder")
    few = ["encoder=minilm", "encoder.source=./encoder", "encoder.max_length=32", "trainer.precision=32"]
    few += ["tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=200", "optimization.epochs=1"]
    few += ["action=[train,test]", "optimization.encoder_lr=0.01"]
    pd.DataFrame({"text": TEXTS}).to_csv("posts.csv", index=False)
    expected: dict[Path, pd.DataFrame] = {}
    for pooling, runs in (("cls", ["lora_0", "merged"]), ("mean", ["merged"])):
        given = [*few, f"tasks.label.head.pooling={pooling}"]
        for seed in (0, 1):
            assert cli(*given, f"seed={seed}", f"save_path=runs/{pooling}/lora_{seed}").code == 0
        merge = ["method=ah_merge16", f"method.sources='runs/{pooling}/lora_?'", "heads.merge=mean", "optimization.epochs=0"]
        assert cli(*given, *merge, f"save_path=runs/{pooling}/merged").code == 0
        for run in runs:
            folder, load = tmp_path / pooling / run, f"load_path=runs/{pooling}/{run}"
            place = ["action=publish", load, f"publish.folder={folder}", f"publish.base={tmp_path / 'encoder'}"]
            done = cli(*place)
            assert (done.code, done.err) == (0, "") and "published for transformers, peft, adapterhub" in done.out
            assert cli("action=predict", load, "predict.input=posts.csv", "overwrite=true").code == 0
            expected[folder] = pd.read_csv("posts.scored.csv").filter(like="pred_label_")
            card = (folder / "README.md").read_text()
            assert "More Information Needed" not in card
            for name in ("config.yaml", "run.json", "config.json", "labels.json"):
                assert str(tmp_path) not in (folder / name).read_text(), name
            results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["metrics"]
            assert [one["type"] for one in results] == ["f1", "accuracy", "matthews_correlation"]
            assert [*programs(folder)] == [*INSTALLED]
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    from_hub._lay_out(tmp_path / "cls" / "lora_0", fetched, "me/x")
    here = ["encoder.source=./encoder", "predict.input=posts.csv", "overwrite=true"]  # which nobody else has
    assert cli("action=predict", "load_path=fetched", *here).code == 0
    again = pd.read_csv("posts.scored.csv").filter(like="pred_label_")
    pd.testing.assert_frame_equal(again, expected[tmp_path / "cls" / "lora_0"], atol=1e-4, rtol=0)
    for library in INSTALLED:
        for folder, said in alone([*expected], library, tmp_path / f"with_{library}").items():
            scores = pd.DataFrame(said).add_prefix("pred_label_")
            pd.testing.assert_frame_equal(scores[expected[folder].columns], expected[folder], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_command_line_sends_what_it_wrote_and_refuses_what_cannot_be(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample", "tasks.label.corpus.size=200"]
    assert cli(*small, "optimization.epochs=1", "save_path=runs/run").code == 0
    publish = ["action=publish", "load_path=runs/run", "publish.folder=model"]
    untested = cli(*publish)
    assert untested.code == 2 and "was never tested, and a model card must say how good it is" in untested.err
    assert cli("action=test", "load_path=runs/run").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / ".half.unfinished").mkdir()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for words, message in (
        (["publish.hub_id=me/x"], "the environment has no HF_TOKEN"),
        (["publish.hub_id=x"], "expected OWNER/NAME"),
        (["publish.upload=true"], "type publish.hub_id=OWNER/NAME"),
        (["publish.folder=mine"], "publish.folder=mine has no valid hatemtl_export.json"),
        (["publish.folder=runs/run/new"], "lies in the saved run"),
        (["publish.folder=null"], "publish.folder=null: expected the folder to write; type publish.folder=FOLDER"),
        (["load_path=half"], "this run is not finished; train it to its end"),
        (["publish.head_of=lable"], "did you mean 'label'"),
        (["publish.verdicts=none.json"], "no such file"),
    ):
        refused = cli(
            *[word for word in publish if word.partition("=")[0] not in {of.partition("=")[0] for of in words}], *words
        )
        assert refused.code == 2 and message in refused.err, refused.err
        assert sorted(path.name for path in tmp_path.iterdir()) == [".half.unfinished", "mine", "runs"]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = cli(*publish, "publish.hub_id=me/x")
    assert told.code == 0 and "not sent: " in told.out and "peft: left out, nobody else has this encoder" in told.out
    again = cli(*publish)
    assert again.code == 2 and "publish.folder=model exists already" in again.err
    with stand_in() as hub:
        sent = cli(*publish, "publish.hub_id=me/x", "publish.upload=true", "overwrite=true")
        assert sent.code == 0 and "/me/x/commit/" in sent.out
        assert {"README.md", "model.safetensors", "labels.json", "load.py"} <= hub.files.keys()
        assert "hatemtl_export.json" not in hub.files and b"hf_secret" not in b"".join(hub.files.values())
        assert b'snapshot_download("me/x")' in hub.files["README.md"]
