"""What a tired user types is answered with what to type instead."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from hatemtl.command import words
from hatemtl.command.suggestions import CONF, arguments, explain, is_mistyped
from hatemtl.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def _composed_once() -> Iterator[None]:
    """Most of these words come down to none once what is wrong is left out: the same tree of names each time."""

    @cache
    def once(name: str, overrides: tuple[str, ...]) -> object:
        return compose(name, overrides=[*overrides], return_hydra_config=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "compose", lambda name, overrides, return_hydra_config: once(name, tuple(overrides)))
        yield


def answer(*typed: str) -> str:
    """The error that follows these overrides."""
    with pytest.raises((HydraException, ValueError)) as error, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=list(typed))
    assert is_mistyped(error.value)
    return explain(error.value, typed)


TWO = "tasks=[label,target]"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        # an option of a group
        ("method=ah_lora61", "method=ah_lora61: no such option; did you mean 'ah_lora16'"),
        ("tasks=[label,targets]", "tasks=targets: no such option; did you mean 'target'"),
        ("corpus@tasks.target.corpus=smaple", "corpus=smaple: no such option; did you mean 'sample'?"),
        ("merge=xyz", "merge=xyz: no such option; known: breadcrumbs, core_space"),
        ("encoder=", "encoder=: no such option; known: bert_base,"),
        ("encoder=MINILM", "encoder=MINILM: no such option; did you mean 'minilm'?"),
        ("encoder=conf/encoder/tiny", "encoder=conf/encoder/tiny: no such option; did you mean 'tiny'?"),
        ("experiment=dmeo", "experiment=dmeo: no such option; did you mean 'demo'?"),
        ("experiment=zzz", "experiment=zzz: no such option; known: demo"),
        ("+experiment=demo", "experiment is there already; type experiment=demo"),
        ("hydra/sweeper=optuna", "hydra/sweeper=optuna: no such option; known: basic"),
        ("merge=null", "merge=null: expected one of its options; known: breadcrumbs,"),
        ("encoder=3", "encoder=3: expected one of its options; known: bert_base,"),
        ("tasks=label,target", "type 'tasks=[label,target]' for a list, or -m tasks=label,target for one run each"),
        ("encoder=tiny,minilm", "encoder=tiny,minilm: type -m encoder=tiny,minilm for one run each"),
        ("seed=1,2", "seed=1,2: type -m seed=1,2 for one run each"),
        (
            "+tune.space.method.rank=4,8",
            "tune.space.method.rank=4,8: expected a list or a range; type 'tune.space.",
        ),
        # a loss, as it is typed and as Hydra takes it
        ("loss@tasks.target.head.loss=focla", "loss=focla: no such option; did you mean 'focal'?"),
        ("tasks.target.head.loss.gamma=1", "type tasks.target.head.loss=class_balanced or focal as well"),
        ("tasks=[mhs_insult] loss@tasks.mhs_insult.head.loss=focal", "head=ordinal has no such key, but head=multiclass,"),
        ("tasks=[mhs_score] loss@tasks.mhs_score.head.loss=focal", "no such loss; type tasks.mhs_score.head.loss=mse"),
        # a group
        ("encodr=tiny", "encodr: no such key; did you mean 'encoder'?"),
        ("task=[label]", "task: no such key; did you mean 'tasks'"),
        (f"{TWO} head@tasks.label.haed=tokens", "head@tasks.label.haed: no such key; did you mean 'head@tasks.label.head'?"),
        (
            "tasks=[label] corpus@tasks.lable.corpus=sample",
            "corpus@tasks.lable.corpus: no such key; did you mean 'corpus@tasks.label.corpus'?",
        ),
        (
            "corpuss@tasks.target.corpus=sample",
            "corpuss@tasks.target.corpus: no such key; did you mean 'corpus@tasks.target.corpus'?",
        ),
        ("corpus@tasks.label.corpus=sample", "no task 'label' among tasks=[target]; type 'tasks=[target,label]'"),
        # a key with its path
        (
            "optimization.warm_up=3",
            "optimization.warm_up: optimization=adamw has no such key; did you mean 'optimization.warmup'?",
        ),
        ("heads.merg=refit", "heads.merg: no such key; did you mean 'heads.merge'?"),
        ("optimizaton.epochs=3", "optimizaton.epochs: no such key; did you mean 'optimization.epochs'?"),
        ("method.epochs=3", "method.epochs: method=ah_lora16 has no such key; did you mean 'optimization.epochs'?"),
        (
            f"{TWO} tasks.label.head.poolin=cls",
            "tasks.label.head.poolin: head=multiclass has no such key; did you mean 'tasks.label.head.pooling'?",
        ),
        (
            "tasks=[label] tasks.label.corpus.limt=9",
            "tasks.label.corpus.limt: corpus=hatexplain has no such key; did you mean 'tasks.label.corpus.limit'?",
        ),
        ("tasks=[label] tasks.lable.head.pooling=cls", "did you mean 'tasks.label.head.pooling'?"),
        ("tasks.label.head.pooling=cls", "no task 'label' among tasks=[target]; type 'tasks=[target,label]'"),
        ("merge.density=.5", "merge.density: merge=mean has no such key, but merge=dare_linear,"),
        ("batching.batch_tokens=4096", "batching.batch_tokens: batching=buckets has no such key, but batching=tokens has"),
        ("method=full_merge method.rank=8", "method.rank: method=full_merge has no such key, but method="),
        ("hydra.sweep.dri=x", "hydra.sweep.dri: no such key; did you mean 'hydra.sweep.dir'?"),
        ("seed.x=3", "seed.x: no such key; seed is a value, no group of keys"),
        (
            "encoder.random.layers=2",
            "encoder.random is null; where it takes keys, type 'encoder.random={layers: VALUE}'",
        ),
        ("trainer.gpus=1", "trainer.gpus: trainer=auto has no such key; known: trainer.accelerator, trainer.compile,"),
        ("~seeed", "seeed: no such key; did you mean 'seed'?"),
        # a key without its path
        ("format=peft", "format: no such key; did you mean 'export.format'?"),
        ("save_pth=x", "save_pth: no such key; did you mean 'save_path'?"),
        ("epochs=3", "epochs: no such key; did you mean 'optimization.epochs'?"),
        ("epoch=3", "epoch: no such key; did you mean 'optimization.epochs'?"),
        ("lr=1e-3", "lr: no such key; did you mean 'optimization.encoder_lr' or 'optimization.head_lr'?"),
        ("batch_size=8", "batch_size: no such key; did you mean 'batching.batch_size'"),
        ("data_dir=x", "data_dir: no such key; did you mean 'data.dir'?"),
        ("seeds=3", "seeds: no such key; did you mean 'tune.seeds'?"),
        ("max_length=64", "max_length: no such key; did you mean 'encoder.max_length'?"),
        ("num_epochs=3", "num_epochs: no such key; did you mean 'optimization.epochs'?"),
        ("head=tokens", "head: no such key; did you mean 'head@tasks.target.head'?"),
        ("xyzzy=3", "xyzzy: no such key; known: action,"),
        # other words that are mistyped too do not take the tree away
        ("nonsense=1 tasks=[label] optimizaton.epochs=3", "nonsense: no such key; known: action,"),
        ("optimizaton.epochs=3 tasks=[label] nonsense=1", "did you mean 'optimization.epochs'?"),
    ],
)
def test_the_nearest_name_is_told(typed: str, said: str) -> None:
    told = answer(*typed.split(" "))
    assert said in told
    assert "earch path" not in told
    assert "\n" not in told


def test_the_suggestion_of_another_option_is_right() -> None:
    told = re.findall(r"merge=(\w+)", answer("merge.density=.5").split(", but ")[1])
    assert told
    for option in told:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose("config", overrides=[f"merge={option}", "merge.density=.5"])


def test_no_key_of_another_task_is_told() -> None:
    assert "target" not in answer(TWO, "tasks.label.head.poolin=cls")


def test_a_key_that_the_constructor_alone_knows(tmp_path: Path) -> None:
    """A user's own task may leave out what it does not need."""
    (tmp_path / "tasks").mkdir()
    task = yaml.safe_load((CONF / "tasks/target.yaml").read_text())
    node = {key: value for key, value in task["target"].items() if key != "labels"} | {"head": None}
    own = {"defaults": [{"/corpus@own.corpus": "hatexplain"}, "_self_"], "own": node}
    (tmp_path / "tasks/own.yaml").write_text(yaml.safe_dump(own))
    overrides = ["tasks=[own]", "tasks.own.labels={a: [women]}"]
    searched = [f"hydra.searchpath=[file://{tmp_path}]", *overrides]
    with pytest.raises(HydraException, match="labels") as error, initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=searched)
    expected = "tasks.own.labels: no such key; did you mean '+tasks.own.labels' (a key that is not set by default)?"
    assert explain(error.value, searched) == expected
    assert explain(error.value, ["--config-dir", str(tmp_path), *overrides]) == expected


# What Hydra cannot read


@pytest.mark.parametrize(
    ("typed", "advised"),
    [
        (["save_path=/home/läuf"], """'save_path="/home/läuf"'"""),
        (["predict.input=данные.csv"], """'predict.input="данные.csv"'"""),
        (["save_path=my(1)"], """'save_path="my(1)"'"""),
        (["save_path=b=c"], """'save_path="b=c"'"""),
        (["tasks=[table]", "tasks.table.corpus.path=мои посты.csv"], """'tasks.table.corpus.path="мои посты.csv"'"""),
        (["save_path=my", "run"], """'save_path="my run"'"""),
        (["save_path=мой", "опыт", "1", "seed=3"], """'save_path="мой опыт 1"'"""),
        (["save_path=a,b"], """'save_path="a,b"'"""),
        (["save_path=it's"], "'save_path=\"it'\"'\"'s\"'"),
        (['save_path=a"b'], r"""'save_path="a\"b"'"""),
        (["save_path=a#b"], """'save_path="a#b"'"""),
        (["method.leave_out=[1,2"], "'method.leave_out=[1,2]'"),
        (["export.path=[1"], "'export.path=[1]'"),
        (["tasks.target.column=[раса,пол]"], """'tasks.target.column=["раса","пол"]'"""),
        (["encoder", "minilm"], "encoder=minilm"),
        (["--save_path=мой опыт"], """'save_path="мой опыт"'"""),
        (["seed", "=", "3"], "seed=3"),
        (["seed", "=3"], "seed=3"),
        (["seed=", "3"], "seed=3"),
        (["seed:3"], "seed=3"),
        (["save_path:läuf"], """'save_path="läuf"'"""),
        (["seed 3"], "seed=3"),
        (["seed : 3"], "seed=3"),
        ([" seed=3"], "seed=3"),
        (["seed =3"], "seed=3"),
    ],
    ids=str,
)
def test_what_is_advised_works(typed: list[str], advised: str) -> None:
    told = answer(*typed)
    assert f"type {advised}" in told
    assert "\n" not in told
    assert "Exception" not in told
    again = [word for word in typed if word.startswith("tasks=")] + shlex.split(advised)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        compose("config", overrides=again)


def test_home_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert """type 'save_path="/home/me/x"'""" in answer("save_path=~/x")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["="], "'=': expected KEY=VALUE"),
        (["=3"], "'=3': expected KEY=VALUE"),
        ([""], "'': expected KEY=VALUE"),
        (["encoder"], "encoder: expected one of its options; known: bert_base,"),
        (["seed"], "seed: expected a value; type seed=VALUE"),
        (["seéd=3"], "seéd: no such key; did you mean 'seed'?"),
        (["optimization.=3"], "optimization.: no such key; did you mean 'optimization'"),
        (["encodr"], "encodr: expected KEY=VALUE; did you mean 'encoder'?"),
        (["seed=1,", "2"], "seed=1, 2: there are spaces in it; type -m seed=1,2 for one run each"),
        (["method.rank=range(4"], "a bracket is not closed; type 'method.rank=range(4)'"),
    ],
    ids=str,
)
def test_what_is_no_override(typed: list[str], said: str) -> None:
    assert said in answer(*typed)


# Hydra's own options


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ([], []),
        (["-m", "seed=1,2"], ["-m", "seed=1,2"]),
        (["seed=1,2", "-m"], ["-m", "seed=1,2"]),
        (["seed=1,2", "-m", "encoder=tiny"], ["-m", "seed=1,2", "encoder=tiny"]),
        (["encoder=tiny", "--cfg", "job", "seed=3", "--resolve"], ["--cfg", "job", "--resolve", "encoder=tiny", "seed=3"]),
        (["experiment=null"], ["experiment=[]"]),
        (["regulariser=[vat,ema]", "tasks=[label,target]"], ["regulariser=[vat,ema]", "tasks=[label,target]"]),
        (["experiment=demo", "experiment=none", "seed=1"], ["experiment=demo", "experiment=[]", "seed=1"]),
    ],
)
def test_options_may_stand_anywhere_and_no_experiment_is_one(typed: list[str], given: list[str]) -> None:
    assert arguments(typed) == given


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["tasks=[label, cola,label]"], "tasks=[label, cola,label]: one stands there twice; type tasks=[label,cola]"),
        (["--encoder=minilm"], "--encoder=minilm: keys are typed without dashes; type encoder=minilm"),
        (["-seed=3"], "-seed=3: keys are typed without dashes; type seed=3"),
        (["--encoder", "minilm"], "--encoder: keys are typed without dashes; type encoder=minilm"),
        (["--multi-run", "seed=1,2"], "--multi-run: no such option; did you mean '--multirun'"),
        (["-mseed=1,2"], "type a space between -m and seed=1,2"),
        (["--cfg"], "argument --cfg/-c: expected one argument"),
        (["--config=x"], "ambiguous option: --config"),
        (
            ["weighting=[pcgrad, famo]"],
            "one option of the group weighting; type weighting=pcgrad, or -m weighting=pcgrad,famo",
        ),
        (["head@tasks.label.head=[ordinal,score]"], "type head@tasks.label.head=ordinal, or -m head@tasks.label.head=ord"),
        (["folds.number=9", "folds=5"], "folds.number=9 folds=5: both say how many folds; type one of them, as folds=5"),
    ],
    ids=str,
)
def test_an_option_that_hydra_does_not_know(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        arguments(typed)
    assert said in str(error.value)
    assert capsys.readouterr() == ("", "")
