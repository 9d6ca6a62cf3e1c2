"""Values of the configuration: those that a constructor does not take are told by their key, and never end in a stack."""

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import torch
from composed import composed
from conftest import Outcome
from omegaconf import DictConfig, OmegaConf

from hatemtl.command.annotations import check_node, check_value
from hatemtl.command.configuration import KEYS, build, check_types, requested
from hatemtl.command.suggestions import CONF
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.using.actions import export_run, predict
from hatemtl.using.serve.action import serve

LABEL = ("encoder=tiny", "tasks=[label]", "corpus@tasks.label.corpus=sample")
WRONG: tuple[Any, ...] = ("abc", -1, True, None, math.nan, math.inf, 1.5, [], {}, "")


TRUTH = "expected true or false"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("method.rank=abc", "method.rank=abc: expected a whole number; type method.rank=16"),
        ("method.rank=4.0", "method.rank=4.0: expected a whole number; type method.rank=16"),
        ("method.rank=true", "method.rank=true: expected a whole number; type method.rank=16"),
        ("method.attention=-1", "method.attention=-1: expected a list of texts; type 'method.attention=[q,k,v]'"),
        ("method.attention=q", "method.attention=q: expected a list of texts; type 'method.attention=[q]'"),
        ("method.leave_out=nan", "method.leave_out=nan: expected a list of whole numbers; type 'method.leave_out=[]'"),
        ("method.alpha=-1", "method.alpha=-1: expected a number above 0; type method.alpha=16"),
        ("method.body_dropout=abc", f"method.body_dropout=abc: {TRUTH}"),
        ("method.body_dropout=no", f"method.body_dropout=no: {TRUTH}"),
        ("method=ah_merge16 method.sources=-1", "method.sources=-1: expected a text; type 'method.sources=\"-1\"'"),
        ("method=ah_load method.path=true", "method.path=true: expected a text or null; type 'method.path=\"true\"'"),
        ("method=ah_load load_path=5", "load_path=5: expected a text or null; type 'load_path=\"5\"'"),
        ("method=ah_seq_bn method.config=null", "method.config=null: expected a text; type method.config=seq_bn"),
        ("method=mtl_lora method.tasks=abc", "method.tasks=abc: expected a list of texts; type 'method.tasks=[abc]'"),
        ("method.learning_rate=abc", "method.learning_rate=abc: expected a number; type method.learning_rate=0.0005"),
        ("optimization.encoder_lr=abc", "optimization.encoder_lr=abc: expected a number"),
        ("optimization.clip=x", "optimization.clip=x: expected a number or null; type optimization.clip=1.0"),
        (
            "optimization.epochs=1000000000000000000",
            "optimization.epochs=1000000000000000000: expected a number below 4,294,",
        ),
        ("optimization.epochs=1000000", "optimization.epochs: 1000000 in all, expected 100,000 at most"),
        (
            "batching.batch_size=1000000000000000000000",
            "batching.batch_size=1000000000000000000000: expected a number below",
        ),
        ("optimization.epochs=2.5", "optimization.epochs=2.5: expected a whole number; type optimization.epochs=4"),
        ("optimization.schedule=cosin", "expected linear, cosine or constant; did you mean 'cosine'?"),
        ("trainer.accelerator=null", "trainer.accelerator=null: expected a text; type trainer.accelerator=auto"),
        ("trainer.precision=bf61", "trainer.precision=bf61: expected auto, 32, bf16 or int8; did you mean 'bf16'?"),
        ("trainer.compile=no", "trainer.compile=no: expected true, false or auto"),
        ("trainer.fast=0", "trainer.fast=0: expected true, false or auto"),
        ("encoder.max_length=abc", "encoder.max_length=abc: expected a whole number; type encoder.max_length=128"),
        ("encoder.attention=spda", "encoder.attention=spda: expected auto, eager or sdpa; did you mean 'sdpa'?"),
        ("encoder.quantize=4bits", "encoder.quantize=4bits: expected 8bit, 4bit or null; did you mean '4bit'"),
        ("encoder.random=5", "encoder.random=5: expected keys and values or null"),
        ("batching.batch_size=true", "batching.batch_size=true: expected a whole number; type batching.batch_size=32"),
        ("sampling.step=per-task", "sampling.step=per-task: expected joint or per_task; did you mean 'per_task'?"),
        ("merge=ties merge.scale=true", "merge.scale=true: expected a number; type merge.scale=1.0"),
        ("merge=ties merge.elect=x", "merge.elect=x: expected total or count"),
        ("merge=knots merge.inner.density=x", "merge.inner.density=x: expected a number; type merge.inner.density=0.2"),
        (
            "merge=knots merge.inner=ties",
            "merge.inner=ties: expected a class or function; leave it out, or type "
            "merge.inner._target_=hatemtl.merging.trimmed.TIES",
        ),
        (
            "merge=learned merge.bias_of=3",
            "merge.bias_of=3: expected a class or function; leave it out, or type merge.bias_of",
        ),
        ("tasks.label=label", "tasks.label=label: expected one of the options of the group tasks; type tasks=[label]"),
        (
            "tasks.label.head=multiclas",
            "tasks.label.head=multiclas: expected one of the options of the group head; type "
            "head@tasks.label.head=multiclass",
        ),
        ("tasks.label.corpus=3", "tasks.label.corpus=3: expected one of the options of the group corpus; type corpus@"),
        ("tasks.label.weight=abc", "tasks.label.weight=abc: expected a number; type tasks.label.weight=1.0"),
        (
            "tasks.label.column=7",
            "tasks.label.column=7: expected a text, a list of texts or null; type 'tasks.label.column=\"7\"'",
        ),
        ("tasks.label.labels={a:b}", "tasks.label.labels={a:b}: expected keys and values (each a list of texts) or null"),
        ("tasks.label.head.layers=x", "tasks.label.head.layers=x: expected a whole number; type tasks.label.head.layers=1"),
        ("tasks.label.head.pooling=men", "expected cls, mean or attention; did you mean 'mean'?"),
        ("tasks.label.corpus.limit=inf", "tasks.label.corpus.limit=inf: expected a whole number or null"),
        ("tasks.label.corpus.size=-5", "tasks.label.corpus.size=-5: expected at least 100 posts"),
        (
            "corpus@tasks.label.corpus=hatecheck tasks.label.corpus.labels=[1,2]",
            "tasks.label.corpus.labels=[1,2]: expected a list of texts; type "
            "'tasks.label.corpus.labels=[non_hateful,hateful]'",
        ),
        (
            "regulariser=[r_drop] regulariser.r_drop=2",
            "regulariser.r_drop=2: expected one of the options of the group regulariser",
        ),
        (
            "evaluations=[bias] evaluations.bias.backgrounds=[x]",
            "evaluations.bias.backgrounds=[x]: expected a list of hatexplain or borkan; type",
        ),
        ("weighting=pcgrad +weighting.off=hidden", "weighting.off: pcgrad has no such key; did you mean 'of'?"),
        ("logger=wandb logger.entity=5", "logger.entity=5: expected a text or null; type 'logger.entity=\"5\"'"),
        ("save_path=5", "save_path=5: expected a text or null; type 'save_path=\"5\"'"),
        ("data.dir=-1", "data.dir=-1: expected a text; type 'data.dir=\"-1\"'"),
        ("data.cache=true", "data.cache=true: expected a text or null"),
        ("data.cache=''", "data.cache=: expected a folder, or null for none; type data.cache=FOLDER"),
        (
            "data.cache=/dev/null",
            "data.cache=/dev/null is no folder, and one is expected; type data.cache=null",
        ),
        ("data.leaks=wran", "data.leaks=wran: expected warn, drop or refuse; did you mean 'warn'?"),
        ("data.workers=1.5", "data.workers=1.5: expected a whole number; type data.workers=0"),
        ("heads.merge=concta", "heads.merge=concta: expected fresh, concat, mean or refit; did you mean 'concat'?"),
        ("heads.load=1", f"heads.load=1: {TRUTH}"),
        ("heads=5", "heads=5: expected one of its keys; type heads.load=true"),
        ("overwrite=abc", f"overwrite=abc: {TRUTH}"),
        ("predict.input=5", "predict.input=5: expected a text or null; type 'predict.input=\"5\"'"),
        ("export.format=true", "export.format=true: expected a text or null"),
        ("seed=abc", "seed=abc: expected a whole number; type seed=0"),
        ("seed=-1", "seed=-1: expected a whole number from 0 to 4294967295"),
        ("~seed", "seed=null: expected a whole number; type seed=0"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(typed: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        requested(composed(*LABEL, *typed.split()))
    assert said in str(raised.value)


def test_what_is_typed_next_is_taken() -> None:
    requested(
        composed(
            *LABEL,
            *(
                "tasks.label.weight=2",
                "method.alpha=8",
                "method.attention=[q]",
                "method.leave_out=[0]",
                "trainer.precision=32",
            ),
            *("trainer.fast=false", "trainer.compile=false", "trainer.progress=true", "tasks.label.corpus.limit=50"),
            *("encoder.random={hidden_size:32}", "optimization.clip=null", "sampling=equal", "data.cache=null"),
        )
    )


def test_a_command_says_so_and_exits_with_2(cli: Callable[..., Outcome]) -> None:
    for typed in ("action=5", "action=null", "save_path=5", "encoder.attention=-1"):
        outcome = cli(*LABEL, typed)
        assert outcome.code == 2 and outcome.err.startswith(f"error: {typed.partition('=')[0]}="), outcome.err


def test_every_key_that_no_constructor_takes_has_a_type() -> None:
    """Those of predict, export and serve have that of the function that takes them."""
    cfg = OmegaConf.merge(OmegaConf.load(CONF / "config.yaml"), {"data": OmegaConf.load(CONF / "data/local.yaml")})
    known = {f"{key}.{name}" if isinstance(node, dict) else key for key, node in _plain(cfg).items() for name in _of(node)}
    known = {key for key in known if key.partition(".")[0] not in ("defaults", "hydra", "action", "tune")}
    assert known == KEYS.keys() - {"tasks", "regulariser", "augmentation", "evaluations"}
    for group, function in {"predict": predict, "export": export_run, "serve": serve}.items():
        hints = get_type_hints(function)
        kinds = {key.partition(".")[2]: kind for key, kind in KEYS.items() if key.startswith(f"{group}.")}
        if group == "serve":
            del kinds["precision"]  # short for another key
        assert {name: hints[name] for name in kinds} == kinds and kinds.keys() <= cfg[group].keys()


def _plain(node: Any) -> dict[str, Any]:
    return OmegaConf.to_container(node)  # type: ignore[return-value]


def _of(node: Any) -> Sequence[str]:
    return list(node) if isinstance(node, dict) else [""]


@pytest.mark.parametrize("key", sorted(KEYS.keys() - {"tasks", "regulariser", "augmentation", "evaluations"}))
def test_a_wrong_value_for_all_is_an_error_that_names_the_key(key: str) -> None:
    cfg = composed(*LABEL)
    before = copy.deepcopy(OmegaConf.select(cfg, key))
    for value in WRONG:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        try:
            check_types(cfg)
        except UserError as error:
            assert str(error).startswith(f"{key}="), f"{key}={value}: {error}"
        else:
            assert _may_be(before, value), f"{key}={value} was taken"


# --- leaves ---


def load(path: str) -> dict[str, Any]:
    return _plain(OmegaConf.load(CONF / f"{path}.yaml"))


SAMPLE = load("corpus/sample")
ROOT: dict[str, Any] = {
    "data": {"dir": "data"},
    "load_path": None,
    "merge": load("merge/mean"),
    "method": {"learning_rate": 1.0},
}
# What a leaf lacks that the user has to type.
TYPED = {
    "table": {"path": "posts.csv"},
    "squad": {"path": "posts.json", "pair": None},
    "joint": {"corpora": {"one": SAMPLE}},
}
TEXTS = ("tokens", "score", "masked")


@cache
def leaf(path: Path) -> tuple[dict[str, Any], str]:
    """A configuration with a leaf of a group in it, and where in it that is."""
    group, name = path.parent.name, path.stem
    node = load(f"{group}/{name}")
    root = copy.deepcopy(ROOT) | {"tasks": {"label": {}}}
    whole = OmegaConf.create({name: {}})
    for default in node.pop("defaults", ()) if group in ("tasks", "evaluations") else ():
        for what, option in default.items() if default != "_self_" else ():
            of, _, place = what[1:].partition("@")
            inner = load(f"{of}/{option}") | TYPED.get(option, {})
            inner.pop("defaults", None)  # of a head: no loss of its own
            OmegaConf.update(whole, place, inner, force_add=True)
    if group == "tasks":
        whole = OmegaConf.merge(whole, node, {name: {"column": node[name]["column"] or "label"}})
        if "masked" in whole[name].head._target_:
            whole[name].column = None
        return root | {"tasks": _plain(whole)}, f"tasks.{name}"
    if group in ("regulariser", "augmentation", "evaluations"):
        return root | {group: _plain(OmegaConf.merge(whole, node))}, f"{group}.{name}"
    node.pop("defaults", None)
    if group in ("corpus", "head"):
        root["tasks"]["label"][group] = node | TYPED.get(name, {})
        return root, f"tasks.label.{group}"
    return root | {group: node}, group


def keys(node: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """The keys of a node and of those within it, with what they hold."""
    for name, value in node.items():
        if not name.startswith("_"):
            yield f"{at}.{name}", value
            if isinstance(value, dict) and "_target_" in value:
                yield from keys(value, f"{at}.{name}")


def made(cfg: DictConfig, at: str) -> None:
    """Builds a node, and with what only the run knows."""
    node: Any = OmegaConf.select(cfg, at)
    if at == "logger":  # would log in
        return check_node(node)
    built = build(node)
    if at.endswith(".head"):
        kind = built.func.kind
        names = ("a", "b") if kind not in TEXTS else ("a",)
        more: dict[str, Any] = {"embedding": torch.nn.Embedding(4, 8)} if kind == "masked" else {}
        more |= {"counts": 1} if built.keywords.get("lexicon") else {}
        built(hidden_size=8, space=LabelSpace(kind, names), **more)
    elif isinstance(built, partial):
        built(tasks={"label": 1.0, "target": 1.0})
    return None


def _may_be(usual: Any, value: Any) -> bool:
    """Whether a value is of the type of the usual one, as far as that tells it."""
    if value is None or usual is None or (isinstance(usual, str) and "${" in usual):
        return True
    if usual == "auto":
        return isinstance(value, bool)
    if isinstance(usual, bool | str) or isinstance(value, bool):
        return type(value) is type(usual)
    if isinstance(usual, int | float):
        return isinstance(value, int | float)
    return type(value) is type(usual)


def _leaves() -> Iterator[Any]:
    seen = set()
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name not in ("experiment", "data"):
            target = re.findall(r"_target_: (\S+)", path.read_text())[0]
            slow = target in seen or path.stem.startswith("peft")
            seen.add(target)
            yield pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("path", [*_leaves()])
def test_a_wrong_value_is_taken_or_an_error_that_names_the_key(path: Path) -> None:
    root, at = leaf(path)
    cfg = OmegaConf.create(root)
    made(cfg, at)
    for key, usual in keys(_plain(OmegaConf.select(cfg, at)), at):
        for value in WRONG:
            OmegaConf.update(cfg, key, value, merge=False)
            try:
                made(cfg, at)
            except UserError as error:
                assert key.rpartition(".")[2] in str(error), f"{key}={value}: {error}"
            else:
                assert _may_be(usual, value), f"{key}={value} was taken"
        OmegaConf.update(cfg, key, usual, merge=False)


# --- annotations ---


class Ours:
    """Stands for a class of this package."""


Ours.__module__ = "hatemtl.corpora.base"


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (int, [0, -3], [True, 1.0, math.nan, "1", None]),
        (float, [1, 1.5, math.inf], [True, "1", None, []]),
        (bool, [True, False], [0, 1, "true"]),
        (str, ["", "a"], [1, True, None, ["a"]]),
        (str | None, ["a", None], [1, {}]),
        (Sequence[str], [[], ["a"]], ["a", [1], {}, None]),
        (Sequence[float], [[1, 0.5]], [[True], ["1"], 1]),
        (Mapping[str, Any], [{}, {"a": [1]}], [[], "a", {1: 2}]),
        (Mapping[str, Sequence[str]] | None, [{"a": ["b"]}, None], [{"a": "b"}, {"a": [1]}]),
        (Literal["auto", False], ["auto", False], [True, 0, "x", None]),
        (Literal["a", 1], ["a", 1], [True, 1.0]),
        (bool | Literal["auto"], [True, "auto"], [1, "true"]),
        (Ours | None, [None], [1, "a", [], {}, True]),
        (Mapping[str, Ours], [{}, {"a": {"_target_": "builtins.dict"}}], [{"a": 1}, 1, []]),
        (Callable[..., Ours], [], [1, "a", None]),
        (Path, ["a", 1, None], []),  # whatever a user's own class makes of it
        (Any, [1, None, [], {}], []),
    ],
)
def test_what_fits_an_annotation(annotation: Any, right: list[Any], wrong: list[Any]) -> None:
    def check(value: Any) -> None:
        cfg = OmegaConf.create({"key": value})
        check_value("key", cfg.key, annotation)

    for value in right:
        check(value)
    for value in wrong:
        with pytest.raises(UserError, match="^key"):
            check(value)


def test_a_class_without_annotations_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_merge.py").write_text(
        "class Bare:\n    def __init__(self, *, a, b: int):\n        self.a = a\n\n\n"
        "class Strange:\n    def __init__(self, *, a: 'Nowhere'):\n        self.a = a\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def made_of(**keys: Any) -> Any:
        return build(OmegaConf.create({"merge": keys}).merge)

    assert made_of(_target_="own_merge.Bare", a="x", b=1).a == "x"
    assert made_of(_target_="own_merge.Strange", a=[1]).a == [1]
    with pytest.raises(UserError, match="^merge.b=x: expected a whole number$"):
        made_of(_target_="own_merge.Bare", a="x", b="x")
