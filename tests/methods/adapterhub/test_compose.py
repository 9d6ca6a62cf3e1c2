"""Saved adapters at work together: what each way computes, what is trained, and that it is one saved run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.methods.modeling import BertFusion
from conftest import Outcome
from methods.adapterhub.test_kinds_of_adapter import adapter
from methods.adapterhub.test_train_and_load import added, dense, lora, mean
from methods.test_base import RATES, encoder, hidden, record, save, trained
from safetensors.torch import load_file
from torch import Tensor, nn

from hatemtl.encoders.attention import of_first_token
from hatemtl.errors import UserError
from hatemtl.merging.mean import Mean
from hatemtl.methods.adapterhub.library import active
from hatemtl.methods.adapterhub.merged import MergedAdapters
from hatemtl.methods.adapterhub.train_and_load import AdapterFusion, Averaged, LoadAdapterHub, Stacked
from hatemtl.methods.base import components
from hatemtl.methods.lora_formats import SEVERAL as SETUP
from hatemtl.saved_runs.saved_run import SavedRun

every_kind = pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])


def stacked(sources: Path, **other: Any) -> Stacked:
    return Stacked(**{"sources": str(sources), "config": None, "reduction_factor": None, **RATES, **other})


def averaged(sources: Path, where: str = "layers", **other: Any) -> Averaged:
    return Averaged(**{"sources": str(sources), "weights": None, "where": where, **RATES, **other})


def fusion(sources: Path, **other: Any) -> AdapterFusion:
    keys = {"query": True, "key": True, "value": True, "width": None, "dropout": 0.0}
    return AdapterFusion(**{"sources": str(sources), **keys, **RATES, **other})


def parts(method: Any, folder: Path, kind: str = "bert", number: int = 2) -> list[nn.Module]:
    """Saved runs part_1, part_2 and so on, each of its own weights."""
    return [save(method, folder / f"part_{i}", kind, change=i) for i in range(1, number + 1)]


def attached(method: Any, kind: str = "bert", *, name: str = "whole", seed: int = 3) -> Any:
    return method.attach(encoder(kind), name=name, seed=seed).model


def fusions(model: nn.Module) -> list[BertFusion]:
    return [module for module in model.modules() if isinstance(module, BertFusion)]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def step(model: nn.Module) -> None:
    """One step of training, if there is anything to train."""
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.3)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(input_ids=torch.tensor([[3, 4, 5, 6]])).last_hidden_state[..., :5].square().sum().backward()
        optimizer.step()


# Stacked


@every_kind
def test_a_new_adapter_on_a_lora_changes_nothing_yet(kind: str, tmp_path: Path) -> None:
    """The library's stack of LoRAs would forget the one below: B₂·A₂·(B₁·A₁·x) is 0 where B₂ is."""
    (source,) = parts(lora(), tmp_path, kind, 1)
    assert close(hidden(attached(stacked(tmp_path / "part_1"), kind)), hidden(source))
    assert not close(hidden(source), hidden(encoder(kind)))


@every_kind
def test_loras_in_a_stack_add_up(kind: str, tmp_path: Path) -> None:
    parts(lora(), tmp_path, kind)
    model = attached(stacked(tmp_path / "part_*"), kind)
    step(model)
    names = ["part_1", "part_2", "whole"]
    whole = {path: 3 * change for path, change in mean(*(dense(model, name) for name in names)).items()}
    assert close(hidden(model), hidden(added(kind, whole)))
    assert all(change.abs().max() > 0 for change in dense(model, "whole").values())


@pytest.mark.parametrize("config", ["par_bn[reduction_factor=4]", "scaled_par_bn[reduction_factor=4]"])
def test_a_parallel_adapter_on_another_changes_nothing_yet(config: str, tmp_path: Path) -> None:
    """The library's stack keeps the last parallel adapter alone."""
    (source,) = parts(adapter(config), tmp_path, number=1)
    assert not close(hidden(source), hidden(encoder()))
    assert close(hidden(attached(stacked(tmp_path / "part_1"))), hidden(source))


@pytest.mark.parametrize(
    "config",
    ["seq_bn", "double_seq_bn", "compacter[reduction_factor=8]", "prefix_tuning", "ia3", "vera", "par_bn", "mam", "unipelt"],
)
def test_every_adapter_of_a_stack_has_a_say(config: str, tmp_path: Path) -> None:
    parts(adapter(config), tmp_path)
    model = attached(stacked(tmp_path / "part_*"))
    step(model)
    before = hidden(model)
    for name in ("part_1", "part_2", "whole"):
        mine = [p for key, p in model.named_parameters() if f".{name}." in key]
        kept = [p.detach().clone() for p in mine]
        with torch.no_grad():
            for p in mine:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        assert not close(hidden(model), before), name
        with torch.no_grad():
            for p, was in zip(mine, kept, strict=True):
                p.copy_(was)


@pytest.mark.parametrize("below", ["lora", "seq_bn"])
def test_another_kind_may_stand_on_top(below: str, tmp_path: Path) -> None:
    """An adapter that was trained on unlabelled text, and one for the task above it."""
    (source,) = parts(adapter(below), tmp_path, number=1)
    model = attached(stacked(tmp_path / "part_1", config="lora[r=4]" if below == "seq_bn" else "par_bn"))
    assert close(hidden(model), hidden(source))  # either starts as nothing
    step(model)
    assert not close(hidden(model), hidden(source))


# Averaged


def test_adapters_that_each_read_by_themselves_have_no_one_attention(tmp_path: Path) -> None:
    parts(lora(), tmp_path)
    inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3)}
    of_first_token(attached(averaged(tmp_path / "part_*")), inputs, layer=-1, head=None)
    with pytest.raises(UserError, match=r"method=ah_parallel.*explainers=\[gradient_input\]"):
        of_first_token(attached(averaged(tmp_path / "part_*", "end")), inputs, layer=-1, head=None)


@every_kind
def test_the_average_of_loras_is_their_exact_merge(kind: str, tmp_path: Path) -> None:
    """The library's average divides by their number twice."""
    parts(lora(), tmp_path, kind, 3)
    merge = MergedAdapters(sources=str(tmp_path / "part_*"), merge=Mean(weights=None), rank=None, **RATES)  # type: ignore[arg-type]
    assert close(hidden(attached(averaged(tmp_path / "part_*"), kind)), hidden(attached(merge, kind)))


@pytest.mark.parametrize("where", ["layers", "end"])
@pytest.mark.parametrize("config", ["lora", "seq_bn", "double_seq_bn", "par_bn", "ia3", "vera"])
def test_an_average_of_one_is_that_one(config: str, where: str, tmp_path: Path) -> None:
    sources = parts(adapter(config), tmp_path)
    assert close(hidden(attached(averaged(tmp_path / "part_1", where))), hidden(sources[0]))
    only = averaged(tmp_path / "part_*", where, weights=[0, 2])  # whatever they sum to
    assert close(hidden(attached(only)), hidden(sources[1]))


def test_bottlenecks_are_averaged_after_each_layer(tmp_path: Path) -> None:
    """On one layer: the mean of the two outputs before the layer's norm."""
    parts(adapter("seq_bn"), tmp_path)
    model = attached(averaged(tmp_path / "part_*", weights=[1, 3]))
    layer = model.encoder.layer[0].output
    states, residual = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    said = layer.bottleneck_layer_forward(states, residual, layer.LayerNorm)
    normed = layer.LayerNorm(states + residual)
    outputs = [layer.adapters[name](normed, residual_input=states)[0] for name in ("part_1", "part_2")]
    expected = layer.LayerNorm(0.25 * outputs[0] + 0.75 * outputs[1] + residual)
    torch.testing.assert_close(said, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("config", ["lora", "dora", "seq_bn_inv", "par_bn", "unipelt", "loreft", "prefix_tuning"])
def test_at_the_end_any_adapters_are_averaged(config: str, tmp_path: Path) -> None:
    sources = parts(adapter(config), tmp_path)
    model = attached(averaged(tmp_path / "part_*", "end"))
    assert close(hidden(model), (hidden(sources[0]) + hidden(sources[1])) / 2)
    assert not trained(model)


def test_kinds_may_be_mixed_at_the_end(tmp_path: Path) -> None:
    one, two = save(lora(), tmp_path / "part_1"), save(adapter("loreft"), tmp_path / "part_2", change=2)
    assert close(hidden(attached(averaged(tmp_path / "part_*", "end"))), (hidden(one) + hidden(two)) / 2)


# Fused


@pytest.mark.parametrize("config", ["seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "compacter[reduction_factor=8]"])
def test_a_fusion_of_equals_is_each_of_them(config: str, tmp_path: Path) -> None:
    """Whatever attention says; the library adds the residual twice to parallel adapters."""
    source = save(adapter(config), tmp_path / "part_1")
    shutil.copytree(tmp_path / "part_1", tmp_path / "part_2")
    assert close(hidden(attached(fusion(tmp_path / "part_*", value=False))), hidden(source))
    torch.testing.assert_close(hidden(attached(fusion(tmp_path / "part_*"))), hidden(source), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({}, 2 * (32 * 32 + 32) + 32 * 32),
        ({"value": False}, 2 * (32 * 32 + 32)),
        ({"value": False, "width": 4}, 2 * 32 * 4 + 4),
        ({"query": False, "key": False}, 32 * 32),
        ({"query": False, "value": False}, 32 * 32 + 32),
    ],
    ids=str,
)
def test_a_fusion_is_as_large_as_its_keys_say(keys: dict[str, Any], count: int, tmp_path: Path) -> None:
    parts(adapter("seq_bn"), tmp_path)
    method = fusion(tmp_path / "part_*", **keys)
    model = attached(method)
    table = {part.name: part for part in components(method, model)}
    assert set(table) == {"encoder", "part_1", "part_2", "whole"}
    assert table["whole"].trained == table["whole"].parameters == 2 * count  # two layers
    assert {name for name, part in table.items() if part.trained} == {"whole"}
    assert all(part.active for part in table.values())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model)
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == set(trained(model))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_fusion_drops_what_it_was_asked_to_whatever_the_encoder_does(dropout: float, tmp_path: Path) -> None:
    parts(adapter("seq_bn"), tmp_path)
    model = encoder("bert")
    model.config.attention_probs_dropout_prob = 0.1
    fused = fusion(tmp_path / "part_*", dropout=dropout).attach(model, name="whole", seed=3).model
    assert [layer.dropout.p for layer in fusions(fused)] == [dropout] * 2


def test_a_fusion_reads_its_sources_as_one_block_of_memory(tmp_path: Path) -> None:
    """In bf16 and without a gradient, a CPU takes a hundred times as long to multiply a view of another order."""
    parts(adapter("seq_bn"), tmp_path)
    model = attached(fusion(tmp_path / "part_*"))
    before, read = hidden(model), []
    for layer in fusions(model):
        layer.value.register_forward_pre_hook(lambda module, given: read.append(given[0].is_contiguous()))
    assert torch.equal(hidden(model), before) and read == [True, True]
    for layer in fusions(model):
        layer._forward_pre_hooks.clear()
    assert close(hidden(model), before)


def test_a_narrow_fusion_is_drawn_by_the_seed(tmp_path: Path) -> None:
    parts(adapter("seq_bn"), tmp_path)
    method = fusion(tmp_path / "part_*", width=4)
    first, same, other = (fusions(attached(method, seed=seed))[0].query.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_layers_that_the_sources_leave_out_have_no_fusion(tmp_path: Path) -> None:
    parts(adapter("seq_bn", leave_out=[0]), tmp_path)
    assert len(fusions(attached(fusion(tmp_path / "part_*")))) == 1


# One saved run

WAYS: dict[str, Callable[[Path], Any]] = {
    "stack of loras": lambda folder: (parts(lora(), folder), stacked(folder / "part_*"))[1],
    "stack of bottlenecks": lambda folder: (parts(adapter("seq_bn"), folder), stacked(folder / "part_*"))[1],
    "lora on a bottleneck": lambda folder: (
        parts(adapter("seq_bn"), folder, number=1),
        stacked(folder / "part_*", config="lora"),
    )[1],
    "average": lambda folder: (parts(lora(), folder), averaged(folder / "part_*", weights=[1, 2]))[1],
    "parallel": lambda folder: (parts(adapter("unipelt"), folder), averaged(folder / "part_*", "end", weights=[1, 2]))[1],
    "fusion": lambda folder: (parts(adapter("double_seq_bn"), folder), fusion(folder / "part_*"))[1],
    "narrow fusion": lambda folder: (parts(adapter("par_bn"), folder), fusion(folder / "part_*", width=4, value=False))[1],
    "shared rules": lambda folder: (parts(adapter("compacter[reduction_factor=8]"), folder), fusion(folder / "part_*"))[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_one_saved_run(way: str, tmp_path: Path) -> None:
    method = WAYS[way](tmp_path)
    model = attached(method)
    step(model) if trained(model) else None
    method.library.save(model, "whole", record(tmp_path / "whole", "adapterhub"))
    kept = {path.name: load_file(path / "adapter" / "adapter.safetensors") for path in tmp_path.glob("part_*")}
    for path in tmp_path.glob("part_*"):
        shutil.rmtree(path)
    how = LoadAdapterHub(path=str(tmp_path / "whole"), **RATES)  # type: ignore[arg-type]
    loaded = how.attach(encoder(), name="again", seed=9).model
    assert torch.equal(hidden(loaded), hidden(model))
    said, was = ({p.name: (p.parameters, p.trained, p.active) for p in components(how, m)} for m in (loaded, model))
    assert {name.replace("again", "whole"): part for name, part in said.items()} == was
    assert active(loaded) == [name.replace("whole", "again") for name in active(model)]

    step(loaded) if trained(loaded) else None  # it goes on, and what was frozen is as its own run saved it
    how.library.save(loaded, "again", record(tmp_path / "again", "adapterhub"))
    for name, tensors in kept.items():
        own = load_file(tmp_path / "again" / "adapter" / name / "adapter.safetensors")
        inner = {key.replace(".run.", f".{name}."): tensor for key, tensor in tensors.items()}
        assert own.keys() == inner.keys()
        assert all(torch.equal(own[key], inner[key]) for key in own)
    assert SavedRun(tmp_path / "again").digest()
    last = LoadAdapterHub(path=str(tmp_path / "again"), **RATES).attach(encoder(), name="part_1", seed=0).model  # type: ignore[arg-type]
    assert torch.equal(hidden(last), hidden(loaded))  # even under the name of a source


def test_what_is_saved_is_said_in_a_file(tmp_path: Path) -> None:
    method = WAYS["average"](tmp_path)
    method.library.save(attached(method), "whole", record(tmp_path / "whole", "adapterhub"))
    content = json.loads((tmp_path / "whole" / SETUP).read_text())
    assert content == {"how": "Average", "names": ["part_1", "part_2"], "trained": None, "weights": [1 / 3, 2 / 3]}


@pytest.mark.parametrize(
    "broken",
    [
        *({"names": ["../part_1", "part_2"]}, {"names": None}, {"names": ["part_1", "part_9"]}, {"names": ["part_1", 5]}),
        *({"how": "Split"}, {"how": ["Average"]}, {"trained": "../../elsewhere"}, {"how": "Fuse", "trained": None}),
        *({"weights": [1]}, {"weights": ["x", "y"]}, {"weights": 5}, "no JSON"),
    ],
    ids=str,
)
def test_a_broken_composition_is_told(broken: Any, tmp_path: Path) -> None:
    method = WAYS["average"](tmp_path)
    method.library.save(attached(method), "whole", record(tmp_path / "whole", "adapterhub"))
    path = tmp_path / "whole" / SETUP
    content = json.loads(path.read_text())
    path.write_text("{" if broken == "no JSON" else json.dumps({**content, **broken}))
    with pytest.raises(UserError, match=str(tmp_path / "whole")):
        LoadAdapterHub(path=str(tmp_path / "whole"), **RATES).attach(encoder(), name="again", seed=0)  # type: ignore[arg-type]


def test_a_fusion_without_its_weights_is_told(tmp_path: Path) -> None:
    method = WAYS["fusion"](tmp_path)
    method.library.save(attached(method), "whole", record(tmp_path / "whole", "adapterhub"))
    path = tmp_path / "whole" / "adapter" / "whole" / "model_adapter_fusion.safetensors"
    path.rename(path.with_name("pytorch_model_adapter_fusion.bin"))
    with pytest.raises(UserError, match="has no adapter/whole/model_adapter_fusion.safetensors"):
        LoadAdapterHub(path=str(tmp_path / "whole"), **RATES).attach(encoder(), name="again", seed=0)  # type: ignore[arg-type]


def test_a_fusion_lies_in_the_run(tmp_path: Path) -> None:
    method = WAYS["fusion"](tmp_path)
    for name in ("whole", "other"):
        method.library.save(attached(method), name, record(tmp_path / name, "adapterhub"))
    path = tmp_path / "whole" / SETUP
    path.write_text(path.read_text().replace('"trained": "whole"', '"trained": "../../other/adapter/other"'))
    with pytest.raises(UserError, match=f"{path}: expected .* names of adapters"):
        LoadAdapterHub(path=str(tmp_path / "whole"), **RATES).attach(encoder(), name="again", seed=0)  # type: ignore[arg-type]


# Refused


@pytest.mark.parametrize(
    ("config", "make", "expected"),
    [
        (
            "lora",
            fusion,
            "part_1 .lora. on bert: the library fuses bottlenecks alone .*type method=lora_fusion.; type method=ah_parallel",
        ),
        (
            "prefix_tuning",
            fusion,
            "fuses bottlenecks alone; type method=ah_parallel, or train sources with method=ah_seq_bn",
        ),
        ("seq_bn_inv", fusion, "lets only the first one act"),
        ("unipelt", fusion, "made of several adapters on bert, which the library does not fuse; type method=ah_parallel"),
        ("loreft", stacked, "lets only the first one act; .*method=ah_load, .*method=ah_parallel"),
        ("double_seq_bn_inv", stacked, "lets only the first one act"),
        ("dora", stacked, "a weight takes one magnitude"),
        ("dora", averaged, "a weight takes one magnitude; type method=ah_parallel"),
        ("prefix_tuning", averaged, "the library cannot average prefixes; type method=ah_parallel"),
        ("loreft", averaged, "type method=ah_parallel"),
    ],
)
def test_what_the_library_computes_wrongly_is_refused(
    config: str, make: Callable[[Path], Any], expected: str, tmp_path: Path
) -> None:
    parts(adapter(config), tmp_path)
    with pytest.raises(UserError, match=expected):
        attached(make(tmp_path / "part_*"))


@pytest.mark.parametrize(
    ("first", "second", "make", "expected"),
    [
        ("seq_bn", "par_bn", stacked, "change .* of bert in different ways"),
        ("lora[attn_matrices=['k','v'],intermediate_lora=True]", "ia3", averaged, "change .* of bert in different ways"),
        ("lora", "lora[attn_matrices=['q']]", averaged, "part_1 alone; name sources that adapt the same layers"),
        ("seq_bn", "double_seq_bn", fusion, "part_2 alone; name sources that adapt the same layers"),
        ("lora", "seq_bn", averaged, "alone; name sources that adapt the same layers"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(
    first: str, second: str, make: Callable[[Path], Any], expected: str, tmp_path: Path
) -> None:
    save(adapter(first), tmp_path / "part_1")
    save(adapter(second), tmp_path / "part_2")
    with pytest.raises(UserError, match=expected):
        attached(make(tmp_path / "part_*"))


def test_what_the_library_fails_at_is_told(tmp_path: Path) -> None:
    parts(lora(), tmp_path, "modernbert")
    with pytest.raises(UserError, match="cannot compute it on the encoder modernbert .*type method=peft_lora16"):
        attached(averaged(tmp_path / "part_*"), "modernbert")


def test_a_composition_is_no_source(tmp_path: Path) -> None:
    method = WAYS["average"](tmp_path)
    method.library.save(attached(method), "whole", record(tmp_path / "whole", "adapterhub"))
    with pytest.raises(UserError, match="whole holds several adapters .*only method=ah_load"):
        attached(stacked(tmp_path / "whole"), name="other")


@pytest.mark.parametrize(
    ("make", "keys", "expected"),
    [
        (averaged, {"weights": [1]}, "expected one a source: part_1, part_2; type method.weights=.1,1."),
        (averaged, {"weights": [0, 0]}, "not all 0"),
        (fusion, {"query": False, "key": False, "value": False}, "nothing to train; type method=ah_average"),
        (fusion, {"width": 4, "key": False}, "needs both matrices"),
        (fusion, {"width": 0}, "expected a whole number from 1"),
        (fusion, {"dropout": 1.0}, "expected a probability below 1"),
        (stacked, {"config": "lorra"}, "did you mean 'lora'"),
        (stacked, {"reduction_factor": 4}, "type method.config=seq_bn with it"),
        (stacked, {"sources": ""}, "this method needs the saved runs"),
        (fusion, {"sources": "no_such_*"}, "matches no saved run"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_keys_that_make_no_sense_are_told(make: Any, keys: dict[str, Any], expected: str, tmp_path: Path) -> None:
    parts(adapter("seq_bn"), tmp_path)
    with pytest.raises(UserError, match=expected):
        attached(make(**{"sources": tmp_path / "part_*", **keys}))


# From the command line


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["ah_fusion", *(pytest.param(way, marks=pytest.mark.slow) for way in ("ah_stack", "ah_average", "ah_parallel"))],
)
def test_sources_are_trained_put_together_and_tested(
    method: str, cli: Callable[..., Outcome], sample: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        part = f"tasks.target.mask_pattern={i} 2"
        assert cli("tasks=[target]", "method=ah_seq_bn", part, f"save_path=part_{i}", *sample).code == 0
    told = cli(
        "tasks=[target]", f"method={method}", "method.sources='part_*'", "save_path=whole", "action=[train,test]", *sample
    )
    assert told.code == 0, told.err
    assert "part_1" in told.out
    trained = SavedRun(tmp_path / "whole").results
    for i in (1, 2):
        shutil.rmtree(tmp_path / f"part_{i}")
    load = ("action=test", "method=ah_load", "heads.load=true", "load_path=whole", "save_path=tested")
    told = cli("tasks=[target]", *load, *sample)
    assert told.code == 0, told.err
    tested = {key: value for key, value in trained.items() if key.startswith("test_")}
    with (tmp_path / "tested" / "results.csv").open(newline="") as file:
        assert {row["metric"]: float(row["value"]) for row in csv.DictReader(file)} == tested
