"""The LoRA bank: starts as the exact average of its sources, trains its gates alone, and is one saved run."""

import csv
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import damage
from conftest import Outcome
from methods.peft_adapters.test_merged import merge
from methods.peft_adapters.test_train_and_load import As, hub_lora, load, lora
from methods.test_base import KINDS, RATES, encoder, hidden, record, save, saved, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.methods.bank.lora_bank import (
    AttentionGate,
    Gating,
    LoadBank,
    LoRABank,
    LoRAFusion,
    LoRAGate,
    banks,
    spread,
)
from hatemtl.methods.base import components
from hatemtl.methods.lora_formats import FILES, read
from hatemtl.saved_runs.saved_run import SavedRun

WEIGHTS, SETTINGS = "adapter/bank.safetensors", "adapter/bank.json"
every_kind = pytest.mark.parametrize("kind", KINDS)
GATINGS: dict[str, dict[str, Any]] = {
    "attention": {},
    "static": {"input": False, "softmax": True},
    "input": {"input": True, "softmax": True},
    "static, of any sum": {"input": False, "softmax": False},
    "input, of any sum": {"input": True, "softmax": False},
}
every_gating = pytest.mark.parametrize("gating", GATINGS)


def method(sources: Path, gating: str = "attention", /, **other: Any) -> Any:
    if gating == "attention":
        return LoRAFusion(**{"sources": str(sources), "key_width": 3, **RATES, **other})
    return LoRAGate(**{"sources": str(sources), **GATINGS[gating], **RATES, **other})


def attached(way: Any, kind: str = "bert", *, name: str = "run", seed: int = 0) -> Any:
    return way.attach(encoder(kind), name=name, seed=seed).model


def parts(folder: Path, kind: str = "bert", n: int = 3, way: Any = None) -> None:
    """Saved LoRAs part_1 to part_n."""
    for i in range(1, n + 1):
        saved(way or lora(), folder / f"part_{i}", kind, change=i)


def source_names(model: nn.Module) -> list[str]:
    (names,) = {bank.sources for bank in banks(model).values()}
    return list(names)


def stored(way: Any, model: nn.Module, folder: Path) -> Path:
    """The saved run that this method leaves."""
    record(folder, "bank")
    way.library.save(model, "run", folder)
    return folder


@torch.no_grad()
def moved(model: Any, by: float = 0.3) -> Any:
    draw = torch.Generator().manual_seed(5)
    for parameter in trained(model).values():
        parameter += by * torch.randn(parameter.shape, generator=draw)
    return model


# The start


@every_kind
@every_gating
def test_it_starts_as_the_exact_average(kind: str, gating: str, tmp_path: Path) -> None:
    parts(tmp_path, kind)
    model = attached(method(tmp_path / "part_*", gating), kind)
    average = attached(merge(tmp_path), kind, name="merged")
    assert not torch.allclose(hidden(average), hidden(encoder(kind)), atol=1e-2)
    torch.testing.assert_close(hidden(model), hidden(average), atol=1e-5, rtol=1e-5)


@every_kind
@every_gating
def test_one_source_is_given_back(kind: str, gating: str, tmp_path: Path) -> None:
    source = save(lora(), tmp_path / "part_1", kind)
    model = attached(method(tmp_path / "part_1", gating), kind)
    torch.testing.assert_close(hidden(model), hidden(source), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@every_gating
def test_sources_may_differ_in_rank_scale_and_layers(kind: str, gating: str, tmp_path: Path) -> None:
    save(lora(rank=8, alpha=4), tmp_path / "part_1", kind)
    save(lora(targets=r".*(query|value|attn\.Wqkv|layer\.\d+\.output\.dense)"), tmp_path / "part_2", kind, change=2)
    save(lora(rank=2, leave_out=[0]), tmp_path / "part_3", kind, change=3)
    model = attached(method(tmp_path / "part_*", gating), kind)
    average = attached(merge(tmp_path), kind, name="merged")
    torch.testing.assert_close(hidden(model), hidden(average), atol=1e-5, rtol=1e-5)
    assert 0 in {rank for bank in banks(model).values() for rank in bank.ranks}
    hidden(moved(model))


def test_layers_that_no_source_adapts_have_no_bank(tmp_path: Path) -> None:
    parts(tmp_path, way=lora(targets=".*query", leave_out=[0]))
    assert set(banks(attached(method(tmp_path / "part_*")))) == {"encoder.layer.1.attention.self.query"}


def test_sources_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for i, name in enumerate(("part_b", "part_a", "part.c")):
        save(lora(), tmp_path / name, change=i)
    save(lora(), tmp_path / "other" / "part_a", change=9)
    model = attached(method(tmp_path / "part*"))
    assert source_names(model) == ["part_c", "part_a", "part_b"]  # "." stands before "_"
    layer, bank = next(iter(banks(model).items()))
    for A, folder in zip(bank.A.split(4), ("part.c", "part_a", "part_b"), strict=True):
        assert torch.equal(A, As(attached(load(tmp_path / folder)))[layer])
    assert source_names(attached(method(tmp_path / "*" / "part_a"))) == ["part_a"]
    shutil.copytree(tmp_path / "other", tmp_path / "third")
    assert source_names(attached(method(tmp_path / "*" / "part_a"))) == ["part_a", "part_a_2"]


# Gates


@every_kind
@every_gating
def test_only_the_gates_are_trained_and_every_one_learns(kind: str, gating: str, tmp_path: Path) -> None:
    parts(tmp_path, kind)
    way = method(tmp_path / "part_*", gating)
    model = attached(way, kind)
    assert all(".banks.run.gate." in name and p.dtype is torch.float32 for name, p in trained(model).items())
    body, bank = components(way, model)
    assert (body.trained, bank.name, bank.active) == (0, "run", True)
    assert bank.trained == sum(p.numel() for p in trained(model).values())
    assert body.parameters == sum(p.numel() for p in encoder(kind).parameters())

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.1, eps=1e-30)  # whose steps are as large for small gradients
    for _ in range(2):  # keys have no gradient before the queries have moved from zero
        model.train()(input_ids=torch.tensor([[3, 4, 5, 9]])).last_hidden_state[..., :5].square().sum().backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained(model))


@every_gating
def test_a_gates_weights_sum_to_one_unless_told_otherwise(gating: str, tmp_path: Path) -> None:
    parts(tmp_path)
    model = moved(attached(method(tmp_path / "part_*", gating)), by=2.0)
    seen = []
    for bank in banks(model).values():
        bank.gate.register_forward_hook(lambda gate, x, weights: seen.append(weights))
    hidden(model)
    assert len(seen) == 10
    for weights in seen:
        assert weights.dtype is torch.float32
        assert weights.shape == ((3,) if "static" in gating else (3, 12, 3))
        summed = torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert summed is ("any sum" not in gating)
        assert weights.std(dim=-1).max() > 0.01  # they have left the average


def reference(bank: LoRABank, gate: dict[str, Tensor], x: Tensor, softmax: bool) -> Tensor:
    """The bank's update of rows x (M, in), source by source, as the formulas are written."""
    ranks, width = list(bank.ranks), x.shape[1]
    As, Bs = bank.A.double().split(ranks), bank.B.double().split(ranks, dim=1)
    if "query" in gate:
        q = x @ gate["query"].T / width**0.5
        Ks = gate["key"].split(ranks, dim=1)
        keys = [x @ A.T @ K.T + c for A, K, c in zip(As, Ks, gate["key_bias"], strict=True)]
        weights = torch.stack([(q * key).sum(-1) / q.shape[1] ** 0.5 for key in keys], dim=-1).softmax(-1)
    else:
        logits = (gate["bias"] + (x @ gate["weight"].T / width**0.5 if "weight" in gate else 0)).expand(len(x), -1)
        weights = logits.softmax(-1) if softmax else logits + 1 / len(ranks)
    return sum((weights[:, n, None] * (x @ As[n].T @ Bs[n].T) for n in range(len(ranks))), torch.zeros(()))


@every_gating
def test_values_and_gradients_are_those_of_the_formula(gating: str) -> None:
    """Of the gate's weights, and of the input, through which the layers below learn."""
    draw, ranks, softmax = torch.Generator().manual_seed(0), [3, 0, 2], "any sum" not in gating
    given = Gating(key_width=2) if gating == "attention" else Gating(**GATINGS[gating])
    A, B = torch.randn(5, 6, generator=draw), torch.randn(7, 5, generator=draw)
    bank = LoRABank(A, B, ranks, ["a", "b", "c"], given, seed=0, layer="layer")
    gate = bank.gate
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(generator=draw)
    x, towards = torch.randn(2, 4, 6, generator=draw), torch.randn(2, 4, 7, generator=draw)
    exact = {name: parameter.detach().double().requires_grad_() for name, parameter in gate.named_parameters()}
    rows = x.double().view(8, 6).requires_grad_()
    expected = reference(bank, exact, rows, softmax)
    (expected * towards.view(8, 7)).sum().backward()
    y = bank(x.requires_grad_(), torch.ones(2, 4, 7))
    (y * towards).sum().backward()
    torch.testing.assert_close(y.view(8, 7).double(), 1 + expected, atol=1e-5, rtol=1e-5)
    assert x.grad is not None and rows.grad is not None
    torch.testing.assert_close(x.grad.view(8, 6).double(), rows.grad, atol=1e-4, rtol=1e-4)
    for name, parameter in gate.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, atol=1e-4, rtol=1e-4)


def test_attention_starts_even_with_keys_that_are_drawn() -> None:
    gate = AttentionGate([4, 0, 2], 6, key_width=64, draw=torch.Generator().manual_seed(0))
    assert torch.equal(gate(torch.randn(5, 6), torch.randn(5, 6)), torch.full((5, 3), 1 / 3))
    assert 0 < gate.key[:, :4].abs().max() <= 0.5 < gate.key[:, 4:].abs().max() <= 2**-0.5


def test_spread_tells_whose_row_is_whose() -> None:
    assert spread([2, 0, 1]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_draws_depend_on_seed_and_layer_alone(tmp_path: Path) -> None:
    parts(tmp_path)
    body = encoder()
    before = torch.get_rng_state()
    first = trained(method(tmp_path / "part_*").attach(body, name="run", seed=0).model)
    assert torch.equal(before, torch.get_rng_state())
    again = trained(attached(method(tmp_path / "part_*")))
    other = trained(attached(method(tmp_path / "part_*"), seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    keys = [name for name in first if name.endswith("gate.key")]
    assert keys and not any(torch.equal(first[name], other[name]) for name in keys)
    assert len({tuple(first[name].flatten()[:8].tolist()) for name in keys}) == len(keys)


# Precision


@every_gating
def test_a_body_in_bf16_computes_about_the_same_and_trains(gating: str, tmp_path: Path) -> None:
    parts(tmp_path)
    model = moved(attached(method(tmp_path / "part_*", gating)))
    exact, half = hidden(model), deepcopy(model)
    for parameter in half.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        near = hidden(half)
        half.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state.float().square().sum().backward()
    assert float((near.float() - exact).norm() / exact.norm()) < 0.03
    assert {bank.A.dtype for bank in banks(half).values()} == {torch.bfloat16}
    for name, parameter in trained(half).items():
        assert parameter.dtype is torch.float32 and parameter.grad is not None, name


# Saved and loaded


@every_kind
@every_gating
def test_what_is_saved_is_what_is_loaded_without_the_sources(kind: str, gating: str, tmp_path: Path) -> None:
    parts(tmp_path, kind)
    way = method(tmp_path / "part_*", gating)
    model = moved(attached(way, kind))
    folder = stored(way, model, tmp_path / "fused")
    for part in tmp_path.glob("part_*"):
        shutil.rmtree(part)
    body = encoder(kind)
    torch.rand(9)  # another process has drawn something else by now
    loaded = LoadBank(path=str(folder), **RATES).attach(body, name="other", seed=5).model
    assert torch.equal(hidden(loaded), hidden(model))
    assert source_names(loaded) == ["part_1", "part_2", "part_3"]
    assert set(trained(loaded)) == {name.replace(".run.", ".other.") for name in trained(model)}
    again = stored(way, loaded, tmp_path / "again")
    assert (again / SETTINGS).read_text() == (folder / SETTINGS).read_text()
    first, second = load_file(folder / WEIGHTS), load_file(again / WEIGHTS)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_bank_in_bf16_is_saved_exactly(tmp_path: Path) -> None:
    parts(tmp_path)
    way = method(tmp_path / "part_*")
    model = moved(attached(way))
    for bank in banks(model).values():
        bank.A.data, bank.B.data = bank.A.data.bfloat16(), bank.B.data.bfloat16()
    loaded = attached(LoadBank(path=str(stored(way, model, tmp_path / "fused")), **RATES))
    assert torch.equal(hidden(loaded), hidden(model))


@pytest.mark.parametrize("way", ["no settings", "weights cut off", "a tensor is missing", "other gate"])
def test_a_broken_bank_is_told(way: str, tmp_path: Path) -> None:
    parts(tmp_path)
    model = attached(method(tmp_path / "part_*"))
    folder = stored(method(tmp_path / "part_*"), model, tmp_path / "fused")
    if way == "no settings":
        (folder / SETTINGS).unlink()
    elif way == "weights cut off":
        damage(folder / WEIGHTS, way)
    elif way == "a tensor is missing":
        tensors = load_file(folder / WEIGHTS)
        tensors.pop(next(key for key in tensors if key.endswith("/B")))
        save_file(tensors, folder / WEIGHTS)
    else:
        content = json.loads((folder / SETTINGS).read_text())
        content["gate"]["key_width"] = None
        (folder / SETTINGS).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{folder}.*overwrite=true"):
        attached(LoadBank(path=str(folder), **RATES))


def test_a_bank_for_a_wider_encoder_is_told(tmp_path: Path) -> None:
    parts(tmp_path)
    folder = stored(method(tmp_path / "part_*"), attached(method(tmp_path / "part_*")), tmp_path / "fused")
    with pytest.raises(UserError, match="fused"):
        attached(LoadBank(path=str(folder), **RATES), "modernbert")


# Sources


@every_kind
def test_a_source_is_read_as_its_library_reads_it(kind: str, tmp_path: Path) -> None:
    from hatemtl.methods.adapterhub.library import updates

    for i, where in enumerate(({}, {"attention": ["q", "v"]}, {"attention": ["v"], "output": False}, {"attention": []})):
        model = save(hub_lora(alpha=6, **where), tmp_path / f"part_{i}", kind)
        bare = encoder(kind)
        found = read(SavedRun(tmp_path / f"part_{i}"), bare)
        theirs: dict[str, Tensor] = {}
        for path, update in updates(model, "run").items():
            layer, _, projection = path.rpartition(".")
            if projection not in ("q", "k", "v"):
                theirs[path] = update.dense()
                continue
            whole = theirs.setdefault(layer, torch.zeros(bare.get_submodule(layer).weight.shape, dtype=torch.double))
            whole.chunk(3)["qkv".index(projection)].copy_(update.dense())
        assert found.keys() == theirs.keys()
        for path, update in found.items():
            torch.testing.assert_close(update.dense(), theirs[path])


def as_peft(source: Path, folder: Path, **config: Any) -> Path:
    """The same LoRA as PEFT writes it, but for keys that say nothing."""
    record(folder, "peft")
    tensors = {
        f"base_model.model.{key.split('.loras.')[0]}.{key[-6:]}.weight": value
        for key, value in load_file(source / FILES["adapterhub"]).items()
    }
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True, "use_dora": False, **config}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(given))
    return folder


def test_sources_of_both_libraries_go_together(tmp_path: Path) -> None:
    parts(tmp_path, n=2, way=hub_lora())
    expected = hidden(attached(method(tmp_path / "part_*")))
    as_peft(tmp_path / "part_1", tmp_path / "mixed" / "part_1")
    shutil.copytree(tmp_path / "part_2", tmp_path / "mixed" / "part_2")
    assert torch.equal(hidden(attached(method(tmp_path / "mixed" / "*"))), expected)
    rooted = as_peft(tmp_path / "part_1", tmp_path / "rooted", lora_alpha=4, use_rslora=True)  # 4 / √4 = 8 / 4
    shutil.rmtree(tmp_path / "mixed" / "part_1")
    shutil.move(rooted, tmp_path / "mixed" / "part_1")
    assert torch.equal(hidden(attached(method(tmp_path / "mixed" / "*"))), expected)
    found = read(SavedRun(as_peft(tmp_path / "part_1", tmp_path / "own", alpha_pattern={r"0\..*\.query": 3})), encoder())
    assert [path for path, update in found.items() if update.scale == 0.75] == ["encoder.layer.0.attention.self.query"]


@pytest.mark.slow
@every_kind
def test_a_source_is_read_as_peft_reads_it(kind: str, tmp_path: Path) -> None:
    from methods.peft_adapters.test_train_and_load import lora as peft_lora

    source = save(peft_lora(), tmp_path / "part_1", kind)
    torch.testing.assert_close(hidden(attached(method(tmp_path / "part_1"), kind)), hidden(source), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"use_dora": True}, "no plain one .use_dora=True"),
        ({"kasa_config": {"beta": 1}}, r"no plain one \(kasa_config="),
        ({"monteclora_config": {"num_samples": 2}}, r"no plain one \(monteclora_config="),
        ({"of_a_later_version": True}, r"no plain one \(of_a_later_version=True"),
        ({"alpha_pattern": ["x"]}, "adapter_config.json cannot be read"),
        ({"lora_alpha": "x"}, "adapter_config.json cannot be read"),
        ({"peft_type": "IA3"}, r"its adapter is no LoRA \(IA3\)"),
        ({"init_lora_weights": "pissa"}, "started by pissa, which changes the encoder's own weights"),
        ({"init_lora_weights": None}, "started by None"),
    ],
    ids=str,
)
def test_a_source_that_is_no_plain_lora_is_told(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    parts(tmp_path, n=1, way=hub_lora())
    as_peft(tmp_path / "part_1", tmp_path / "part_2", **config)
    with pytest.raises(UserError, match=f"part_2.*{expected}"):
        attached(method(tmp_path / "part_*"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"use_gating": True}, "use_gating=True"),
        ({"n_tasks": 3}, "no plain one .n_tasks=3"),
        ({"attn_matrices": 5}, "adapter_config.json cannot be read"),
        ({"architecture": "prefix_tuning"}, r"its adapter is no LoRA \(prefix_tuning\)"),
        ({"composition_mode": "scale"}, r"its adapter is no LoRA \(lora\)"),
    ],
    ids=str,
)
def test_another_adapter_of_adapterhub_is_told(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    parts(tmp_path, n=2, way=hub_lora())
    path = tmp_path / "part_2" / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text())
    content["config"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"part_2.*{expected}"):
        attached(method(tmp_path / "part_*"))


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"config": ["lora"]}'])
def test_a_source_whose_configuration_is_none_is_told(content: str, tmp_path: Path) -> None:
    parts(tmp_path, n=2)
    (tmp_path / "part_2" / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"part_2/adapter/adapter_config.json.*overwrite=true"):
        attached(method(tmp_path / "part_*"))


@pytest.mark.parametrize("way", ["no configuration", "weights cut off", "a tensor is missing"])
def test_a_broken_source_is_told(way: str, tmp_path: Path) -> None:
    parts(tmp_path, n=2)
    damage(tmp_path / "part_2" / FILES["peft"], way)
    with pytest.raises(UserError, match="part_2"):
        attached(method(tmp_path / "part_*"))


def test_a_source_for_another_encoder_is_told(tmp_path: Path) -> None:
    """`network.assemble` has compared fingerprints before; this is for what it does not see."""
    parts(tmp_path, "electra", n=1)
    save(lora(), tmp_path / "part_2", "modernbert")
    with pytest.raises(UserError, match="part_2: this encoder has no linear layer layers.0"):
        attached(method(tmp_path / "part_*"), "electra")


@pytest.mark.parametrize("gating", ["attention", "static"])
def test_sources_must_be_named_be_there_and_be_loras(gating: str, tmp_path: Path) -> None:
    parts(tmp_path, n=1)
    with pytest.raises(UserError, match="needs the saved runs to start from; type method.sources="):
        method(tmp_path, gating, sources="").starts_from()
    with pytest.raises(UserError, match="matches no saved run"):
        method(tmp_path / "prat_*", gating).starts_from()
    record(tmp_path / "part_2", "full")
    with pytest.raises(UserError, match=r"part_2 was saved by full \(full\), expected .*; load it with method=full"):
        method(tmp_path / "part_*", gating).starts_from()
    with pytest.raises(UserError, match="load it with method=peft_load"):
        LoadBank(path=str(tmp_path / "part_1"), **RATES).starts_from()
    with pytest.raises(UserError, match="type load_path=FOLDER"):
        LoadBank(path=None, **RATES).starts_from()


def test_settings_that_make_no_sense_are_told() -> None:
    with pytest.raises(UserError, match="method.key_width=0: expected a whole number from 1"):
        LoRAFusion(sources="x", key_width=0, **RATES)


# By the command line


@pytest.mark.slow
def test_parts_are_fused_tested_and_loaded(
    cli: Callable[..., Outcome], sample: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [*sample, "tasks=[target]"]
    for i in (1, 2):
        outcome = cli(*small, f'tasks.target.mask_pattern="{i} 2"', f"save_path=runs/part_{i}")
        assert outcome.code == 0, outcome.err
    for way in ("lora_fusion", "lora_gate"):
        fuse = [*small, f"method={way}", "method.sources='runs/part_*'", f"save_path=runs/{way}", "action=[train,test]"]
        outcome = cli(*fuse)
        assert outcome.code == 0, outcome.err
        folder = tmp_path / "runs" / way
        first = (folder / "results.csv").read_text()
        assert "test_target_macro_f1" in first
        assert json.loads((folder / "run.json").read_text())["library"] == "bank"
        with (folder / "fusion.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["source"] for row in rows} == {"part_1", "part_2"}
        assert {row["task"] for row in rows} == {"target"}
        sums: dict[tuple[str, str], float] = {}
        for row in rows:
            key = row["label"], row["layer"]
            sums[key] = sums.get(key, 0.0) + float(row["weight"])
        assert all(abs(total - 1) < 1e-4 for total in sums.values())
        posts = len(json.loads((folder / "labels.json").read_text())["target"]["names"])
        assert len({label for label, _ in sums}) <= posts + 1

    outcome = cli(*small, "method=lora_gate", "method.sources='runs/*'", "save_path=runs/all")
    assert outcome.code == 2
    assert "load it with method=bank_load" in outcome.err
    outcome = cli(
        *small, "method=lora_gate", "method.sources='runs/part_*'", "save_path=runs/x", "encoder.random.hidden_size=32"
    )
    assert outcome.code == 2
    assert "was trained on another encoder" in outcome.err
    for i in (1, 2):
        shutil.rmtree(tmp_path / "runs" / f"part_{i}")
    load = ["action=test", "method=bank_load", "heads.load=true", "load_path=runs/lora_fusion"]
    before = (tmp_path / "runs" / "lora_fusion" / "results.csv").read_text()
    outcome = cli(*small, *load)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "runs" / "lora_fusion" / "results.csv").read_text() == before
