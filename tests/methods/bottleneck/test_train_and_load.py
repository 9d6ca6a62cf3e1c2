"""hatemtl's own bottlenecks and fusions are AdapterHub's: values, gradients, first draws and files, in both directions."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders.fast.test_linear import by_library, encoder, moved, off
from encoders.fast.test_stack import step, tokens
from methods.bottleneck.fixtures import HERE, KINDS
from methods.test_base import RATES, hidden, record, save, trained

from hatemtl.encoders.fast import is_fast, merged, verify
from hatemtl.errors import UserError
from hatemtl.methods.base import components
from hatemtl.methods.bottleneck.files import LIBRARY
from hatemtl.methods.bottleneck.train_and_load import BottleneckFusion, Bottlenecks, LoadBottlenecks

OWN: dict[str, Any] = {"reduction_factor": 4, "non_linearity": None, "scaling": None, "leave_out": [], **RATES}
FUSION: dict[str, Any] = {"query": True, "key": True, "value": True, "width": None, "dropout": 0.0, **RATES}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_encoder = pytest.mark.parametrize("body", ["bert", "electra", "roberta", "deberta"])


def own(kind: str = "seq", body: str = "bert", **more: Any) -> Any:
    return Bottlenecks(kind=kind, **{**OWN, **more}).attach(encoder(body), name="run", seed=0).model  # type: ignore[arg-type]


def theirs(kind: str, body: str = "bert") -> Any:
    pytest.importorskip("adapters.methods")
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubAdapter

    method = AdapterHubAdapter(config=KINDS[kind], reduction_factor=4, leave_out=[], **RATES)
    return method.attach(encoder(body), name="run", seed=0).model


@every_encoder
@every_kind
def test_it_is_adapterhubs_from_the_first_draw_on(kind: str, body: str) -> None:
    mine, other = own(kind, body), theirs(kind, body)
    assert trained(mine).keys() == trained(other).keys()
    assert all(torch.equal(p, trained(other)[name]) for name, p in trained(mine).items())
    batch, expected = tokens(20), step(by_library(moved(other)), tokens(20))
    for model in (moved(mine), by_library(mine)):  # ours, fast, and its own plain way
        states, gradients = step(model, batch)
        assert off(states, expected[0]) < 1e-6
        assert gradients.keys() == expected[1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[1][name], atol=5e-5, rtol=1e-4)


@every_kind
def test_our_layers_compute_it_and_are_compared_with_its_plain_way(kind: str) -> None:
    model = moved(own(kind))
    assert is_fast(model) and verify(model, torch.float32) is None and is_fast(model)
    apart = hidden(model)
    with merged(model):
        assert off(hidden(model), apart) < 1e-6


@every_kind
def test_adapterhub_reads_what_is_saved_and_the_other_way_round(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("adapters.methods")
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubAdapter, LoadAdapterHub

    first = save(Bottlenecks(kind=kind, **OWN), tmp_path / "own", "bert")  # type: ignore[arg-type]
    method = AdapterHubAdapter(config=KINDS[kind], reduction_factor=4, leave_out=[], **RATES)
    second = save(method, tmp_path / "theirs", "bert")
    for folder, before in ((tmp_path / "own", first), (tmp_path / "theirs", second)):
        for loader in (LoadAdapterHub, LoadBottlenecks):
            again = loader(path=str(folder), **RATES).attach(encoder(), name="again", seed=0).model
            assert off(hidden(again), hidden(before)) < 1e-6


@pytest.mark.parametrize("kinds", [("seq", "seq"), ("double_seq", "double_seq"), ("par", "par")], ids=str)
def test_a_fusion_is_adapterhubs_and_so_are_its_files(kinds: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("adapters.methods")
    from hatemtl.methods.adapterhub.train_and_load import AdapterFusion, LoadAdapterHub

    for i, kind in enumerate(kinds):
        save(Bottlenecks(kind=kind, **OWN), tmp_path / f"source_{i}", change=i + 1)  # type: ignore[arg-type]
    pattern = str(tmp_path / "source_*")
    both = (cls(sources=pattern, **FUSION) for cls in (BottleneckFusion, AdapterFusion))
    mine, other = (method.attach(encoder(), name="run", seed=0).model for method in both)
    for fusion in [module for module in other.modules() if type(module).__name__ == "BertFusion"]:
        fusion.dropout.p = 0.0  # 0 means to the library: as the encoder's attention has it
    assert trained(mine).keys() == trained(other).keys()
    assert all(torch.equal(p, trained(other)[name]) for name, p in trained(mine).items())
    (states, gradients), (expected, others) = step(moved(mine), tokens(20)), step(moved(other), tokens(20))
    assert off(states, expected) < 1e-6
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=5e-5, rtol=1e-4)
    record(tmp_path / "fusion", library="adapterhub")
    LIBRARY.save(mine, "run", tmp_path / "fusion")
    for loader in (LoadAdapterHub, LoadBottlenecks):
        again = loader(path=str(tmp_path / "fusion"), **RATES).attach(encoder(), name="again", seed=0).model
        assert off(hidden(again), hidden(mine)) < 1e-6


@pytest.mark.parametrize("width", [3, 32])  # 32 is the encoder's own, without a bias of keys
def test_a_narrow_fusion_comes_back(width: int, tmp_path: Path) -> None:
    from hatemtl.methods.adapterhub.train_and_load import LoadAdapterHub

    for i in range(2):
        save(Bottlenecks(kind="seq", **OWN), tmp_path / f"source_{i}", change=i + 1)
    method = BottleneckFusion(sources=str(tmp_path / "source_*"), **{**FUSION, "width": width, "value": False})
    model = save(method, tmp_path / "fusion")
    for loader in (LoadBottlenecks, LoadAdapterHub):
        again = loader(path=str(tmp_path / "fusion"), **RATES).attach(encoder(), name="again", seed=0).model
        assert off(hidden(again), hidden(model)) < 1e-6
    found = {(part.name, part.kind, part.trained > 0, part.active) for part in components(method, model)}
    others = {(f"source_{i}", "adapter", False, True) for i in range(2)}
    assert found == {("encoder", "body", False, True), ("run", "adapter", True, True), *others}


def test_layers_may_be_left_out() -> None:
    model = own(leave_out=[0])
    assert {name.split(".")[2] for name in trained(model)} == {"1"}
    with pytest.raises(UserError, match="type method.leave_out"):
        own(leave_out=[0, 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "sequ"}, "method.kind=sequ.*seq"),
        ({"non_linearity": "rleu"}, "method.non_linearity=rleu.*relu"),
        ({"reduction_factor": 0}, "expected a number of at least 0.01"),
    ],
)
def test_what_is_none_is_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        own(**{"kind": "seq", **keys})


def test_an_encoder_of_other_layers_is_refused() -> None:
    with pytest.raises(UserError, match="know no layers of modernbert; type method=ah_seq_bn"):
        own(body="modernbert")


def test_a_lora_or_a_richer_bottleneck_is_adapterhubs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(Bottlenecks(kind="seq", **OWN), folder)
    path = folder / "adapter" / "adapter_config.json"
    for old, new in (('"ln_after": false', '"ln_after": true'), ('"architecture": null', '"architecture": "lora"')):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"no plain bottleneck \((ln_after|architecture).*type method=ah_load"):
            LoadBottlenecks(path=str(folder), **RATES).attach(encoder(), name="run", seed=0)
        path.write_text(text)


def test_sources_in_different_places_are_not_fused(tmp_path: Path) -> None:
    for kind in ("seq", "double_seq"):
        save(Bottlenecks(kind=kind, **OWN), tmp_path / kind)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="in different places; name sources of one method"):
        BottleneckFusion(sources=str(tmp_path / "*"), **FUSION).attach(encoder(), name="run", seed=0)


BROKEN: list[tuple[str, Any, str]] = [
    *(("reduction_factor", value, "reduction_factor") for value in (0, None, "x", {}, float("nan"), 1e-9, {"1": 2}, True)),
    *(("leave_out", value, "leave_out") for value in (5, None, ["0"], {})),
    *(("scaling", value, "scaling") for value in (float("nan"), "learned", True, None)),
    ("leave_out", [0, 1], "leaves out each of the encoder's layers"),
    ("non_linearity", None, "non_linearity"),
]


@pytest.mark.parametrize(("key", "value", "said"), BROKEN)
def test_a_file_that_says_no_bottleneck_is_told(key: str, value: Any, said: str, tmp_path: Path) -> None:
    save(Bottlenecks(kind="seq", **OWN), tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    content["config"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(str(path)) + f".*{said}"):
        LoadBottlenecks(path=str(tmp_path / "run"), **RATES).attach(encoder(), name="again", seed=0)


def test_a_scale_may_be_a_whole_number(tmp_path: Path) -> None:
    model = save(Bottlenecks(kind="par", **OWN), tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"scaling": 4.0', '"scaling": 4'))
    again = LoadBottlenecks(path=str(tmp_path / "run"), **RATES).attach(encoder(), name="again", seed=0).model
    assert torch.equal(hidden(again), hidden(model))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([], "expected keys with values"),
        ({"dropout_prob": "x"}, "dropout_prob is 'x', expected a probability"),
        ({"dropout_prob": 5}, "dropout_prob is 5, expected a probability"),
        ({"query": None}, "expected true or false"),
        ({"temperature": True}, "temperature: more than hatemtl's own fusions know"),
    ],
    ids=str,
)
def test_a_file_that_says_no_fusion_is_told(config: Any, said: str, tmp_path: Path) -> None:
    for i in range(2):
        save(Bottlenecks(kind="seq", **OWN), tmp_path / f"source_{i}", change=i + 1)
    save(BottleneckFusion(sources=str(tmp_path / "source_*"), **FUSION), tmp_path / "fusion")
    [path] = (tmp_path / "fusion").glob("adapter/*/adapter_fusion_config.json")
    content = json.loads(path.read_text())
    content["config"] = {**content["config"], **config} if isinstance(config, dict) else config
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(str(path)) + f".*{said}"):
        LoadBottlenecks(path=str(tmp_path / "fusion"), **RATES).attach(encoder(), name="again", seed=0)
    with pytest.raises(UserError, match="holds several adapters together, and one is expected"):
        BottleneckFusion(sources=str(tmp_path / "fusion"), **FUSION).attach(encoder(), name="more", seed=0)


def test_recorded_files_are_small() -> None:
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 100_000
