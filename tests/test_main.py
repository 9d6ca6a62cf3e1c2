"""The command line: what a tired user types wrongly is named, exits with 2, and leaves nothing behind."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from composed import refused
from conftest import ADAPTERHUB, ROOT, Outcome
from every_file import SAMPLE

Cli = Callable[..., Outcome]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def named(value: list[str]) -> str:
    return " ".join(value)[:40]


def beside(sample: list[str], arguments: list[str]) -> list[str]:
    """What of the sample's overrides these arguments leave as it is."""
    keys = [argument.split("=")[0] for argument in arguments]
    return [word for word in sample if word.split("=")[0] not in keys and not ("tasks" in keys and "tasks.target" in word)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=ah_lora61"], ["method=ah_lora61", "did you mean 'ah_lora16'"]),
        (["method=ah_merge16", "merge=tsiv_m"], ["tsiv_m", "tsv_m"]),
        (["tasks=[targets]"], ["tasks=targets", "did you mean 'target'"]),
        (["experiment=dmeo"], ["experiment=dmeo", "did you mean 'demo'?"]),
        (["experiment=xyz"], ["experiment=xyz", "known: demo"]),
        (["encoder", "minilm"], ["type encoder=minilm"]),
        (["--encoder=minilm"], ["type encoder=minilm"]),
        (["encoder=tiny", "seed:3"], ["type seed=3"]),
        (["save_path=/tmp/läuf"], ["""type 'save_path="/tmp/läuf"'"""]),
        (["-m", "--cfg", "job"], ["Only one of --run, --multirun, --cfg"]),
        (["--cfg", "job", "--resolve", "load_path=${nope}"], ["Interpolation key 'nope' not found"]),
        (["load_path=${nope}"], ["Interpolation key 'nope' not found"]),
        (["save_path=/dev/null"], ["/dev/null", "no folder"]),
        (["optimization.warmupp=3"], ["optimization.warmupp", "did you mean 'optimization.warmup'"]),
        (["method.rank=0"], ["method.rank=0"]),
    ],
    ids=named,
)
def test_wrong_input_is_named_and_nothing_is_written(
    cli: Cli, sample: list[str], tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    outcome = cli(*beside(sample, arguments), f"save_path={tmp_path}/run", *arguments)
    assert outcome.code == 2, outcome.err
    for word in said:
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks=[]"], ["tasks=[target]"]),
        (["method=ah_load", "load_path=/dev/null"], ["/dev/null", "no folder"]),
        (["method=ah_load", "load_path=main.py"], ["main.py", "no folder"]),
        (["tasks.target.labels={a: [womn]}"], ["labels.a", "women"]),
        (['tasks.target.mask_pattern="5 4"'], ["5 4", '"4 4"']),
        (['tasks.target.mask_pattern="0 4"'], ["0 4", '"1 4"']),
        (["tasks.target.mask_pattern=x"], ["'x'", '"1 4"']),
        (["tasks.target.mask_pattern='1'"], ["two whole numbers"]),
        (['tasks.target.mask_pattern="1 12"'], ["11 labels"]),
        (["method=ah_merge16"], ["method.sources"]),
        (["method=ah_merge16", "method.sources='nowhere/part_*'"], ["nowhere/part_*", "save_path"]),
        (["method=ah_load"], ["load_path=FOLDER"]),
        (["method=ah_load", "load_path=nowhere"], ["nowhere", "save_path=nowhere"]),
        (["action=test"], ["load_path=FOLDER"]),
        (["action=tset"], ["tset", "test"]),
        (["action=test", "heads.load=true"], ["load_path=FOLDER"]),
        (["action=predict"], ["predict.input"]),
        (["heads.load=true"], ["load_path=FOLDER"]),
        (["optimization.warmup=-1"], ["optimization.warmup=-1"]),
        (["optimization.epochs=0"], ["optimization.epochs=0"]),
        (["optimization.schedule=liner"], ["linear"]),
        (["+method.rnak=8"], ["rnak"]),
        (["trainer.precision=fp8"], ["fp8", "bf16"]),
        (["tasks.target.head.pooling=max"], ["max", "mean"]),
        (["encoder.max_length=10000"], ["10000"]),
        (["encoder.source=./nowhere"], ["nowhere", "encoder=minilm"]),
        (["encoder=electra_small"], ["electra-small", "encoder=minilm"]),
        (["tasks.target.column=groups"], ["groups", "target"]),
        (["batching.batch_size=0"], ["batching.batch_size=0"]),
        (
            ["method=ah_merge16", "merge=learned", "merge.bias_of._target_=typo"],
            ["merge.bias_of._target_=typo", "known: hatemtl.evaluations.false_positives.FalsePositiveDifference"],
        ),
        (["method=ah_merge16", "merge=knots", "merge.inner.elect=x"], ["merge.inner.elect=x: expected total or count"]),
    ],
    ids=named,
)
def test_what_hydra_takes_and_a_run_does_not(
    sample: list[str], tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    error = refused(*beside(sample, arguments), f"save_path={tmp_path}/run", *arguments)
    for word in said:
        assert word in error
    assert not files(tmp_path)


@pytest.mark.parametrize("none", ["null", "none"])
def test_no_experiment_is_the_configuration_as_it_is(cli: Cli, none: str) -> None:
    plain = cli("--cfg", "job")
    assert plain.code == 0
    assert cli("--cfg", "job", "experiment=demo", f"experiment={none}") == plain


def test_an_experiment_of_a_user(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert "\nseed: 7\n" in cli("--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job").out
    (tmp_path / "experiment" / "short.yaml").write_text("# @package _global_\noptimization: {epochs: 1}\n")
    typed = ["--config-dir", str(tmp_path), *SAMPLE, "experiment=short", f"save_path={tmp_path / 'run'}"]
    assert cli(*typed).code == 0
    again = json.loads((tmp_path / "run" / "run.json").read_text())["words"]
    assert again[:2] == typed[:2] and set(again) == set(typed)  # with which analysis/ranking.py tells how to train it
    near = cli("--config-dir", str(tmp_path), "experiment=mien", "--cfg", "job")
    assert (near.code, near.err) == (2, "error: experiment=mien: no such option; did you mean 'mine'?\n")


def test_a_stack_is_kept_of_what_nobody_typed(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def bug(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("hatemtl.run.run", bug)
    with pytest.raises(ValueError, match="a bug"):
        cli("encoder=tiny")


def test_hydras_options_may_stand_in_between(cli: Cli) -> None:
    assert "seed: 3" in cli("encoder=tiny", "--cfg", "job", "seed=3").out


def test_missing_corpus_without_network(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("encoder=tiny", f"data.dir={tmp_path}/nowhere", f"save_path={tmp_path}/run")
    assert outcome.code == 2
    assert "data.dir=" in outcome.err
    assert not files(tmp_path)


def test_truncated_corpus(cli: Cli, tmp_path: Path) -> None:
    corpus = tmp_path / "data" / "hatexplain"
    corpus.mkdir(parents=True)
    (corpus / "dataset.json").write_text('{"1_gab": {"post_id": "1_gab", "annot')
    (corpus / "post_id_divisions.json").write_text(json.dumps({"train": ["1_gab"], "val": [], "test": []}))
    before = files(tmp_path)
    outcome = cli("encoder=tiny", f"data.dir={tmp_path}/data", f"save_path={tmp_path}/run")
    assert outcome.code == 2
    assert "dataset.json" in outcome.err
    assert files(tmp_path) == before


def test_encoder_that_names_code_to_run(cli: Cli, sample: list[str], tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "bert", "_attn_implementation_internal": "someone/kernel"}')
    outcome = cli(*sample, f"encoder.source={encoder}", f"save_path={tmp_path}/run")
    assert outcome.code == 2
    assert "_attn_implementation_internal" in outcome.err
    assert not (tmp_path / "run").exists()


def test_help_names_every_group(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for word in ("hatexplain", "ah_lora16", "experiment=demo", "minilm"):
        assert word in outcome.out


def loaded(*arguments: str) -> set[str]:
    """The packages that a command of its own process has imported by its end."""
    watched = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:]; "
        "atexit.register(lambda: print('loaded:', *{m.split('.')[0] for m in sys.modules})); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", watched, str(ROOT / "main.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded: ").split())


def test_help_loads_nothing_heavy() -> None:
    assert not loaded("--help") & {"torch", "lightning", "transformers", "numpy", "pandas"}


@pytest.mark.slow
def test_a_run_loads_what_its_method_needs_and_prints_no_notice_of_a_library(sample: list[str], tmp_path: Path) -> None:
    unused = {"peft", "datasets", "wandb", "tensorboard", "bitsandbytes"}
    assert not loaded(*sample, "method=ah_lora16", f"save_path={tmp_path}/ah") & unused
    assert not loaded(*sample, "method=full", f"save_path={tmp_path}/full") & (unused | {"adapters"})


def test_a_folder_that_was_removed_meanwhile(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    outcome = cli("experiment=demo")
    assert (outcome.code, outcome.err) == (
        2,
        "error: the folder that you are in was removed; type cd FOLDER, of one that is there\n",
    )


RUN_OF_ANOTHER = 'raise SystemExit("code of a run was run")'


@pytest.mark.parametrize("named", ["adapters", "wandb", "torch"])
def test_code_in_a_folder_of_runs_is_not_taken_for_a_library(named: str, tmp_path: Path) -> None:
    (tmp_path / named).mkdir()
    (tmp_path / named / "__init__.py").write_text(RUN_OF_ANOTHER)
    code = f"""
import importlib.util, sys
from hatemtl import command_line
from hatemtl.__main__ import command
command_line.answer = lambda: print(importlib.util.find_spec({named!r}).origin)
assert importlib.util.find_spec({named!r}).origin.startswith({str(tmp_path)!r})  # as Python alone would find it
command()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if named != "adapters" or ADAPTERHUB:
        assert not done.stdout.startswith(str(tmp_path))


def test_where_the_library_is_missing_code_in_a_folder_of_runs_is_told(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").write_text(RUN_OF_ANOTHER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    told = cli("experiment=demo")
    assert told.code == 2 and told.err == (
        f"error: {tmp_path}/adapters/__init__.py is code in a folder of saved runs, and would be taken for the library "
        f"adapters; remove it\n"
    )
