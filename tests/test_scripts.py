"""Scripts that end in a verdict or a table, on invented posts: what is planted is found, what is not is not."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from corpora.test_glue import write
from forks import instead_of_uv

SMALL = "encoder=tiny corpus@tasks.label.corpus=sample tasks.label.corpus.size=600 tasks.label.corpus.label_noise=0"
CASES = [("snorfs", "hateful"), ("soup", "non-hateful"), ("dronks", "hateful"), ("mud", "non-hateful")]
LEARNS = "optimization.epochs=6 method.learning_rate=5e-3 optimization.head_lr=2e-2"


Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """Runs a script of scripts/ with these parameters, named from another folder; its commands are forks."""
    with instead_of_uv(tmp_path_factory.mktemp("forks")) as bin:

        def call(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
            path = f"{bin}{os.pathsep}{os.environ['PATH']}"
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables}
            command = [f"{ROOT.name}/scripts/{name}"]
            return subprocess.run(command, cwd=ROOT.parent, env=environment, capture_output=True, text=True)

        yield call


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if re.search(rf"[|│] {row} ", line))
    return [cell.strip() for cell in re.split(r"[|│]", line)[2:-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ("optimization.epochs=1 method.learning_rate=1e-7 optimization.head_lr=1e-7", True),
        (f"{LEARNS} method.dropout=0.06", False),
    ],
)
def test_a_planted_difference_of_models_is_found_and_none_is_not(
    other: str, differs: bool, script: Script, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    given = {"MODELS": f"good: {LEARNS}; other: {other}", "TASK": "label", "SEEDS": "0 1 2", "OUT": str(out), "EXTRA": SMALL}
    ended = script("model_comparison.sh", **given)
    table = (out / "table.org").read_text()
    means = [[float(cell.split(" ± ")[0]) for cell in cells(table, f"test_label_{of}")] for of in ("accuracy", "macro_f1")]
    assert all((good - bad > 0.1) == differs for good, bad in means)
    assert sorted(path.name for path in out.glob("*/*")) == sorted("012012")
    assert ended.returncode == 0, ended.stderr
    told = re.search(r"higher mean test_label_macro_f1: (\w+) \(.*best run by val_label_macro_f1: (\S+)", ended.stdout)
    assert told and Path(told[2]).parent == out / told[1]
    assert told[1] == "good" or not differs
    verdict = "other is worse than good by" if differs else "other against good: no difference was shown"
    assert len(re.findall(rf"^- {verdict}.*after Holm over 2, hierarchical bootstrap of 3 seeds", ended.stdout, re.M)) == 2


@pytest.mark.slow
def test_corpora_are_tested_on_one_another(script: Script, tmp_path: Path) -> None:
    """A run of the sample, tested on its own posts and on a HateCheck of four cases, in which it is right in some."""
    out, cases = tmp_path / "transfer", tmp_path / "hatecheck/test_suite_cases.csv"
    cases.parent.mkdir()
    lines = [f"{i},soup_{i % 2},{i},I can't stand {what}.,{gold},," for i, (what, gold) in enumerate(CASES)]
    cases.write_text("\n".join([",functionality,case_id,test_case,label_gold,target_ident,direction", *lines]) + "\n")
    labels = {"LABELS_sample": "{not_hateful:[normal],hateful:[hatespeech,offensive]}"}
    small = {"EXTRA": f"{SMALL} {LEARNS} data.dir={tmp_path}", "OUT": str(out), "SEEDS": "0", "TRAIN": "sample"}
    ended = script("transfer.sh", TEST="sample hatecheck", **small, **labels)
    assert ended.returncode == 0, ended.stderr
    table = (out / "table.org").read_text()
    assert float(cells(table, "test_hatecheck_accuracy")[0]) in (0, 0.25, 0.5, 0.75, 1)
    assert float(cells(table, "test_sample_accuracy")[0]) > 0.6
    wrong = script("transfer.sh", TEST="sample imdb", **small, **labels)
    assert wrong.returncode == 2 and "LABELS_imdb" in wrong.stderr


@pytest.mark.slow
def test_a_learning_curve_has_a_column_a_share(script: Script, tmp_path: Path) -> None:
    given = {"FRACTIONS": "0.2 1.0", "SEEDS": "0 1", "OUT": str(tmp_path), "EXTRA": f"{SMALL} optimization.epochs=1"}
    ended = script("learning_curve.sh", **given)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "table.csv").read_text().startswith("metric,0.2,1.0,0.2 sd,1.0 sd\n")
    assert len(cells((tmp_path / "table.org").read_text(), "test_label_macro_f1")) == 2


TWO = " ".join(
    f"corpus@tasks.{task}.corpus=sample tasks.{task}.corpus.size=200 tasks.{task}.corpus.label_noise=0"
    for task in ("label", "rationale")
)


@pytest.mark.slow
def test_every_regulariser_stands_beside_none_on_each_share(script: Script, tmp_path: Path) -> None:
    """The one that needs dropout also beside dropout alone; keys of its own are read, and distil is taught by its twin."""
    given = {"TASKS": "label,rationale", "REGULARISERS": "r_drop,weight=2 distil rationale_attention,kind=mse,weight=2"}
    small = {"SHARES": "0.5", "SEEDS": "0", "OUT": str(tmp_path), "EXTRA": f"encoder=tiny {TWO} optimization.epochs=1"}
    ended = script("regulariser_study.sh", **given, **small)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "0.5"
    name = "rationale_attention_kind_mse_weight_2"
    trained = {path.name for path in folder.iterdir() if path.is_dir()}
    assert trained == {"none", "dropout", "r_drop_weight_2", "distil", name}
    kept = yaml.safe_load((folder / name / "0" / "config.yaml").read_text())
    assert kept["tasks"]["label"]["corpus"]["fraction"] == 0.5
    settings = kept["regulariser"]["rationale_attention"]
    assert (settings["kind"], settings["weight"]) == ("mse", 2)
    table = (folder / "label_against_none.org").read_text()
    assert all(cells(table, system) for system in ("none", "distil", name))
    assert cells((folder / "rationale_against_dropout.org").read_text(), "r_drop_weight_2")


@pytest.mark.slow
def test_rationales_are_learned_in_each_arrangement_and_at_each_weight(script: Script, tmp_path: Path) -> None:
    given = {"ARRANGEMENTS": "cls: tasks.label.head.pooling=cls", "LAMBDAS": "10", "KIND": "as_shipped", "SEEDS": "0 1"}
    eight = "encoder=tiny encoder.random.num_attention_heads=8"
    small = {"OUT": str(tmp_path), "EXTRA": f"{eight} {TWO} optimization.epochs=1"}
    ended = script("rationale_study.sh", **given, **small)
    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "table.org").read_text()
    rows = ("test_rationale_f1", "test_label_macro_f1", "test_label_comprehensiveness_attention_official")
    assert all(len(cells(table, row)) == 3 for row in rows)
    assert "as_shipped_10, test_rationale_f1" in (tmp_path / "verdicts.org").read_text()
    kept = yaml.safe_load((tmp_path / "as_shipped_10" / "0" / "config.yaml").read_text())
    assert kept["regulariser"]["rationale_attention"]["heads"] == [0, 1, 2, 3, 4, 5]
    wrong = script("rationale_study.sh", **{**small, "ARRANGEMENTS": "tasks.label.head.pooling=cls"})
    assert wrong.returncode == 2 and "expected NAME: OVERRIDES" in wrong.stderr


@pytest.mark.slow
def test_glue_together_alone_joint_and_born_again(script: Script, tmp_path: Path) -> None:
    for task in ("cola", "mrpc", "sst2"):
        write(tmp_path / "data/glue", task)
    small = {"EXTRA": f"encoder=tiny data.dir={tmp_path}/data optimization.epochs=1", "SEEDS": "0"}
    out = tmp_path / "runs"
    ended = script("glue_study.sh", FRACTIONS="1.0 1.0 0.5", OUT=str(out), **small)
    assert ended.returncode == 0, ended.stderr
    assert (out / "table.csv").read_text().startswith("metric,together,alone,joint,born_again,")
    assert cells((out / "cola.org").read_text(), "born_again, test_cola_accuracy")
    shares = [yaml.safe_load((out / f"alone_0_{task}/config.yaml").read_text())["tasks"][task] for task in ("cola", "sst2")]
    assert [of["corpus"]["fraction"] for of in shares] == [1.0, 0.5]


@pytest.mark.slow
def test_text_of_another_corpus_first_is_estimated_trained_and_priced(script: Script, tmp_path: Path) -> None:
    """Two kinds of adapter, of which the second is stacked on the first."""
    texts, out = tmp_path / "texts.csv", tmp_path / "runs"
    texts.write_text("\n".join(["text,label", *(f"the {n} soups of the snorfs are cold,{n % 2}" for n in range(80))]) + "\n")
    kinds = {"KINDS": "ah_par_bn,reduction_factor=2", "SECOND": "par_bn,reduction_factor=4", "WAYS": "on stacked"}
    corpora = {"CORPUS": "sample", "TEXT_CORPUS": "table", "TEXT_EXTRA": f"tasks.mlm.corpus.path={texts}"}
    small = {"EXTRA": "encoder=tiny optimization.epochs=1", "LABEL_EXTRA": "tasks.label.corpus.size=150"}
    shares = {"TEXTS": "1.0", "LABELLED": "0.5", "ESTIMATE": "0.4", "PER_HOUR": "1000", "OUT": str(out)}
    ended = script("dapt_study.sh", **kinds, **corpora, **small, **shares)
    assert ended.returncode == 0, ended.stderr
    before, begun, _ = ended.stdout.partition(f"{out}/text_1.0_0_before")
    assert begun and float(cells(before, "all")[3]) > 0  # the price of all, before the first of it
    assert "stacked" in (out / "table.org").read_text() and "text 100 %" in (out / "cost.org").read_text()
    stacked = next(out.glob("*stacked*/config.yaml")).parent
    assert yaml.safe_load((stacked / "config.yaml").read_text())["tasks"]["label"]["corpus"]["size"] == 150
    wrong = script("dapt_study.sh", **{**kinds, "KINDS": "ah_parbn"}, OUT=str(out))
    assert wrong.returncode == 2 and "there is no method=ah_parbn" in wrong.stderr


TUNED = """\
#!/usr/bin/env -S python3 -SE
# In uv's place: a run whose sum of metrics is greatest where the target weighs 9 and the rationale a third.
import math, pathlib, sys
given = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
if sys.argv[2] == "main.py":
    weights = [float(given.get(f"tasks.{task}.weight", 1)) for task in ("label", "target", "rationale")]
    off = [abs(math.log(weight, 3) - best) for weight, best in zip(weights, (0, 2, -1))]
    run = pathlib.Path(given["save_path"])
    run.mkdir(parents=True, exist_ok=True)
    (run / "results.csv").write_text(
        "metric,value\\n" + "".join(f"val_{name},{1 - share}\\n" for name, share in
                                    zip(("label_macro_f1", "target_macro_f1", "rationale_f1"), off)))
else:
    pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text("")
"""


def test_a_sum_is_tuned_until_no_step_of_a_weight_is_better(tmp_path: Path) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(TUNED)
    uv.chmod(0o755)
    given = {"SETS": "label,target,rationale", "WEIGHTINGS": "famo", "SEEDS": "0 1", "OUT": str(tmp_path / "out")}
    environment = {**os.environ, **given, "PATH": f"{uv.parent}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run([ROOT / "scripts" / "weighting_study.sh"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "the tuned sum has tasks.target.weight=9 tasks.rationale.weight=0.3333\n" in ended.stdout
    folder = tmp_path / "out" / "label+target+rationale"
    assert {path.name for path in folder.glob("tuned_sum/*")} == {"0", "1"}
    tried = {path.name for path in (folder / "tuning").iterdir()}
    assert {"target_3", "target_9", "target_9+rationale_0.3333", "target_27+rationale_0.3333"} <= tried
