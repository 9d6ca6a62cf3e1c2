"""The README's commands run, or compose, as they stand there."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Outcome
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

README = (ROOT / "README.org").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:#\+name: (\w+)\n)?#\+begin_src sh\n(.*?)#\+end_src", README, flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of every line of a block, as a shell would split them."""
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def block(name: str) -> list[list[str]]:
    return commands(next(text for label, text in BLOCKS if label == name))


@pytest.mark.slow
def test_the_partition_experiment_runs_as_it_stands(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, with ` encoder=tiny corpus@tasks.target.corpus=sample` and few posts appended to the `main.py` lines."""
    monkeypatch.chdir(tmp_path)
    small = ["encoder=tiny", "corpus@tasks.target.corpus=sample", "tasks.target.corpus.size=150"]
    for uv, run, script, *arguments in block("partition"):
        assert (uv, run) == ("uv", "run")
        if script == "main.py":
            outcome = cli(*arguments, *small)
            assert outcome.code == 0, outcome.err
        else:
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            monkeypatch.syspath_prepend(str(ROOT / "analysis"))
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            assert not ended.value.code
            table = capsys.readouterr().out
            for row in ("test_target_f1_african", "test_target_f1_women", "test_target_macro_f1", "test_target_micro_f1"):
                assert row in table
    saved = tmp_path / "adapters" / "small" / "lora16"
    names = [*(f"target_part_{i}" for i in range(1, 5)), "target_merge", "target_single"]
    assert sorted(path.name for path in saved.iterdir()) == sorted(names)
    for name in names:
        inside = {path.name for path in (saved / name).iterdir()}
        assert {"config.yaml", "run.json", "adapter", "heads.safetensors", "labels.json", "results.csv"} <= inside
        assert len(pd.read_parquet(saved / name / "predictions.parquet")) == 15


@pytest.mark.parametrize(
    "arguments",
    [words[3:] for _, text in BLOCKS for words in commands(text) if words[:3] == ["uv", "run", "main.py"]],
    ids=lambda words: " ".join(words)[:60],
)
def test_every_command_composes(arguments: list[str]) -> None:
    overrides = [word for word in arguments if word != "-m"]
    if "-m" in arguments:  # the first of several values
        overrides = [re.sub(r"^([\w.]+=)([^\[,]+),.*$", r"\1\2", word) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)


def test_every_option_of_every_group_is_in_the_tables() -> None:
    for path in (ROOT / "conf").glob("*/*.yaml"):
        if path.parent.name not in ("data",):
            assert f"={path.stem}=" in README or f"experiment={path.stem}" in README, f"{path} is not in the README"


def test_the_front_door_names_the_test_command() -> None:
    assert ["uv", "run", "pytest"] in block("start")
    assert "uv run pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "uv run main.py experiment=demo" in (ROOT / ".ci" / "run").read_text()


def test_every_file_and_script_named_is_there() -> None:
    for name in re.findall(r"(?:scripts|analysis|benchmarks)/[\w./]+\.(?:py|sh)", README):
        assert (ROOT / name).is_file()
