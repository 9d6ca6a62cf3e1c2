"""Saved LoRAs are read as their libraries mean them; what is none, or is broken, is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import damage
from loras import WEIGHTS, read_source, read_sources
from results import ResultsError
from safetensors.numpy import load_file, save_file
from saved_loras import QUERY, VALUE, adapter_hub, draw, peft

Save = Callable[..., Path]
both = pytest.mark.parametrize("save", [adapter_hub, peft])


def dense(run: Path) -> dict[str, Any]:
    return {layer: lora.dense() for layer, lora in read_source(run, "run").layers.items()}


def weights(run: Path) -> Path:
    return run / WEIGHTS[json.loads((run / "run.json").read_text())["library"]]


@both
@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (3, -2.0), (1, 1.0)])
def test_an_update_is_its_scaled_product(save: Save, tmp_path: Path, rank: int, alpha: float) -> None:
    layers = {QUERY: draw(rank), VALUE: draw(rank, seed=1)}
    found = dense(save(tmp_path / "run.v1", layers, alpha=alpha))
    assert list(found) == [QUERY, VALUE]
    for layer, (A, B) in layers.items():
        np.testing.assert_allclose(found[layer], alpha / rank * B.astype(float) @ A.astype(float), atol=1e-12)


def test_the_scale_of_rslora(tmp_path: Path) -> None:
    A, B = draw(4)
    found = dense(peft(tmp_path / "run", {QUERY: (A, B)}, alpha=8, use_rslora=True))
    np.testing.assert_allclose(found[QUERY], 4.0 * B.astype(float) @ A)  # 8 / √4


def test_ranks_and_alphas_of_their_own(tmp_path: Path) -> None:
    """PEFT's patterns match the end of a layer's name; the first that matches counts."""
    third = "encoder.layer.1.attention.self.query"
    layers = {QUERY: draw(2), VALUE: draw(4, seed=1), third: draw(2, seed=2)}
    patterns = {"rank_pattern": {"value": 4}, "alpha_pattern": {r"layer\.1\..*query": 6, "query": 10}}
    found = dense(peft(tmp_path / "run", layers, alpha=2, **patterns))
    for layer, scale in ((QUERY, 5.0), (VALUE, 0.5), (third, 3.0)):
        A, B = layers[layer]
        np.testing.assert_allclose(found[layer], scale * B.astype(float) @ A.astype(float), atol=1e-12)


def test_query_key_and_value_in_one_weight_are_the_same_in_both_libraries(tmp_path: Path) -> None:
    """AdapterHub stacks a LoRA for each; PEFT has one A for all three."""
    layer = "layers.0.attn.Wqkv"
    A, B = draw(2, out=24)
    hub = adapter_hub(tmp_path / "hub", {layer: (np.vstack([A] * 3), B)}, alpha=4)
    found, other = dense(hub), dense(peft(tmp_path / "peft", {layer: (A, B)}, alpha=4))
    assert list(found) == [f"{layer}.{name}" for name in "qkv"]
    for name, rows in zip("qkv", np.split(2.0 * B.astype(float) @ A.astype(float), 3), strict=True):
        np.testing.assert_allclose(found[f"{layer}.{name}"], rows, atol=1e-12)
        np.testing.assert_allclose(other[f"{layer}.{name}"], rows, atol=1e-12)


def test_some_of_query_key_and_value_in_one_weight(tmp_path: Path) -> None:
    A, B = draw(4, out=16)  # of rank 2, for v and q; the library keeps the order q, k, v
    run = adapter_hub(tmp_path / "run", {"layers.0.attn.Wqkv": (A, B[:, :2])}, alpha=2, attn_matrices=["v", "q"])
    found = dense(run)
    assert list(found) == ["layers.0.attn.Wqkv.q", "layers.0.attn.Wqkv.v"]
    np.testing.assert_allclose(found["layers.0.attn.Wqkv.v"], B[8:, :2].astype(float) @ A[2:].astype(float), atol=1e-12)


@both
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_every_number_format(save: Save, tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    run = save(tmp_path / "run", {QUERY: draw(2)}, alpha=2)
    tensors = {key: torch.from_numpy(x).to(getattr(torch, kind)) for key, x in load_file(weights(run)).items()}
    save_tensors(tensors, weights(run))
    A, B = (x.double() for _, x in sorted(tensors.items()))
    np.testing.assert_array_equal(dense(run)[QUERY], (B @ A).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_what_adapter_hub_saves(kind: str, tmp_path: Path) -> None:
    """Against what AdapterHub itself adds to the weights."""
    import adapters
    from adapters import LoRAConfig
    from methods.test_base import encoder

    model: Any = encoder(kind)
    adapters.init(model)
    config = LoRAConfig(r=3, alpha=6, attn_matrices=["q", "v"], intermediate_lora=True, output_lora=True)
    model.add_adapter("part", config=config)
    check(model, tmp_path, "adapterhub", lambda path: model.save_adapter(path, "part", use_safetensors=True))
    adapted = {name: module for name, module in model.named_modules() if "part" in getattr(module, "loras", {})}
    before = {name: module.weight.detach().clone() for name, module in adapted.items()}
    model.merge_adapter("part")
    same({name: (adapted[name].weight - weight).detach() for name, weight in before.items()}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves(kind: str, rslora: bool, tmp_path: Path) -> None:
    """Against PEFT's own delta weights."""
    from methods.test_base import encoder
    from peft import LoraConfig, get_peft_model

    first, second = ("query", "value") if kind == "bert" else ("Wqkv", "Wi")
    patterns = {"rank_pattern": {second: 5}, "alpha_pattern": {rf"0\..*{first}": 7, first: 9}}
    config = LoraConfig(r=3, lora_alpha=6, target_modules=[first, second], use_rslora=rslora, **patterns)  # type: ignore[arg-type]
    model: Any = get_peft_model(encoder(kind), config)
    check(model, tmp_path, "peft", model.save_pretrained)
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    same({name: module.get_delta_weight("default").detach() for name, module in layers.items()}, tmp_path)


def check(model: Any, folder: Path, library: str, save: Callable[[str], object]) -> None:
    """Fills a model's LoRA with random numbers, and saves it as a run."""
    import torch

    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    save(str(folder / "adapter"))
    (folder / "run.json").write_text(json.dumps({"library": library, "method": "x"}))


def same(expected: dict[str, Any], folder: Path) -> None:
    """The saved run's updates are these, by layer, those of one weight one above the other."""
    found = dense(folder)
    for layer, delta in expected.items():
        if layer in found:
            np.testing.assert_allclose(found[layer], delta.numpy(), atol=1e-5)
            continue
        for name, rows in zip("qkv", np.split(delta.numpy(), 3), strict=True):
            np.testing.assert_allclose(found.get(f"{layer}.{name}", np.zeros_like(rows)), rows, atol=1e-5)
    assert {layer.removesuffix(f".{layer[-1]}") if layer[-2] == "." else layer for layer in found} == set(expected)


# Several


def two(tmp_path: Path, **second: Any) -> list[str]:
    adapter_hub(tmp_path / "part_1", {QUERY: draw(2)}, alpha=2)
    peft(tmp_path / "part_2", **{"layers": {QUERY: draw(3, seed=1)}, "alpha": 3, **second})
    return [str(tmp_path / "part_*")]


def test_sources_of_both_libraries_meet_on_a_layer(tmp_path: Path) -> None:
    first, second = read_sources(two(tmp_path))
    assert (first.name, second.name) == ("part_1", "part_2")
    assert list(first.layers) == list(second.layers) == [QUERY]


def test_a_run_is_read_once(tmp_path: Path) -> None:
    patterns = two(tmp_path)
    (tmp_path / "part_1" / "results.csv").write_text("metric,value\n")
    names = [source.name for source in read_sources([str(tmp_path / "part_1" / "results.csv"), *patterns])]
    assert names == ["part_1", "part_2"]


def test_a_glob_may_meet_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = two(tmp_path)
    (tmp_path / "part_1.log").write_text("epoch 1\n")
    assert [source.name for source in read_sources(patterns)] == ["part_1", "part_2"]
    assert "part_1.log is left out: it is no saved run" in capsys.readouterr().err
    with pytest.raises(ResultsError, match="no saved run is named; name two or more runs"):
        read_sources([str(tmp_path / "*.log")])


def test_no_source_and_a_source_alone_are_told(tmp_path: Path) -> None:
    two(tmp_path)
    with pytest.raises(ResultsError, match=r"matches nothing; .*holds part_1, part_2"):
        read_sources([str(tmp_path / "run_*")])
    with pytest.raises(ResultsError, match=r"part_1 alone: .*name two or more"):
        read_sources([str(tmp_path / "part_1")])
    with pytest.raises(ResultsError, match=r"no run.json in it; expected a saved run"):
        read_sources([str(tmp_path / "part_1" / "adapter"), str(tmp_path / "part_2")])


def test_another_encoder_is_told_by_its_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"part_1 on someone/mark \(mark\), part_2 on someone/other \(other\)"):
        read_sources(two(tmp_path, encoder="other"))


def test_another_width_is_told_without_fingerprints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patterns = two(tmp_path, encoder=None, layers={QUERY: draw(2, out=16, into=16)})
    with pytest.raises(ResultsError, match=r"query is \(12, 8\) in part_1, but \(16, 16\) in part_2.*different width"):
        read_sources(patterns)
    assert "was not checked: no fingerprint of it in run.json of part_2" in capsys.readouterr().err


def test_sources_that_meet_on_no_layer_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_sources(two(tmp_path, layers={VALUE: draw(2)}))
    assert f"part_2 adapts no layer that another source adapts, such as {VALUE}" in capsys.readouterr().err


# What is no LoRA, or a broken one


@pytest.mark.parametrize(
    ("save", "config", "told"),
    [
        (adapter_hub, {"architecture": None}, "architecture=bottleneck"),
        (adapter_hub, {"architecture": "prefix_tuning"}, "architecture=prefix_tuning"),
        (adapter_hub, {"composition_mode": "scale"}, "composition_mode=scale"),
        (adapter_hub, {"use_dora": True}, "use_dora"),
        (adapter_hub, {"use_gating": True}, "use_gating"),
        (adapter_hub, {"vera_d": 0.1}, "vera_d"),
        (peft, {"peft_type": "IA3"}, "peft_type=IA3"),
        (peft, {"use_dora": True}, "use_dora"),
        (peft, {"fan_in_fan_out": True}, "fan_in_fan_out"),
        (peft, {"layer_replication": [[0, 2]]}, "layer_replication"),
        (peft, {"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        (peft, {"arrow_config": {"top_k": 1}}, "arrow_config"),
        (peft, {"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_another_adapter_is_named(save: Save, config: dict[str, Any], told: str, tmp_path: Path) -> None:
    run = save(tmp_path / "run", {QUERY: draw(2)}, alpha=2, **config)
    with pytest.raises(ResultsError, match=rf"run: its adapter is no plain LoRA \({told}\).*leave it out"):
        read_source(run, "run")


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_encoder_alone_is_plain(start: Any, tmp_path: Path) -> None:
    run = peft(
        tmp_path / "run", {QUERY: draw(2)}, alpha=2, init_lora_weights=start, layer_replication=None, arrow_config=None
    )
    assert list(dense(run)) == [QUERY]


def test_a_full_model_is_named(tmp_path: Path) -> None:
    run = adapter_hub(tmp_path / "run", {QUERY: draw(2)}, alpha=2)
    (run / "run.json").write_text(json.dumps({"library": "full", "method": "full"}))
    with pytest.raises(ResultsError, match="method=full left no LoRA in it; expected runs of ah_lora16 or peft_lora16"):
        read_source(run, "run")


@both
@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("no configuration", "has no adapter/adapter_config.json; train it again with overwrite=true"),
        ("weights cut off", "cannot be read .*copy it again, or train it again"),
        ("a tensor is missing", "lacks lora_A or lora_B of encoder.layer.0"),
    ],
)
def test_a_broken_adapter_is_told(save: Save, way: str, told: str, tmp_path: Path) -> None:
    run = save(tmp_path / "run", {QUERY: draw(8, 32, 32), VALUE: draw(8, 32, 32)}, alpha=2)
    damage(weights(run), way)
    with pytest.raises(ResultsError, match=told):
        read_source(run, "run")


@both
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told_with_its_layer(save: Save, value: float, tmp_path: Path) -> None:
    A, B = draw(2)
    B[3, 1] = value
    run = save(tmp_path / "run", {VALUE: draw(2), QUERY: (A, B)}, alpha=2)
    with pytest.raises(ResultsError, match=r"query.*lora_B.* no finite number: its training diverged; leave it out"):
        read_source(run, "run")


@both
def test_other_changes(save: Save, tmp_path: Path) -> None:
    """No weights, weights that are no part of a LoRA, a configuration of another rank, a configuration that is none."""
    run = save(tmp_path / "run", {QUERY: draw(2)}, alpha=2)
    whole = load_file(weights(run))

    def told(text: str) -> None:
        with pytest.raises(ResultsError, match=text):
            read_source(run, "run")

    save_file({**whole, "embeddings.weight": np.ones((2, 2), dtype="f4")}, weights(run))
    told("embeddings.weight is no part of a plain LoRA; leave .*run out")
    save_file({key: x.astype(int) for key, x in whole.items()}, weights(run))
    told(r"I64 of shape \(2, 8\); expected a matrix of floats")
    save_file({key: x[0] for key, x in whole.items()}, weights(run))
    told(r"F32 of shape \(8,\); expected a matrix of floats")
    save_file({}, weights(run))
    told("holds no weights; train it again")
    weights(run).unlink()
    told("run has no adapter/adapter.*safetensors; train it again")
    save_file(whole, weights(run))
    config = run / "adapter" / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"r": 2', '"r": 4'))
    told(r"query has A of shape \(2, 8\) and B of shape \(12, 2\), which do not fit .*\(r=4\)")
    config.write_text(text.replace('"r": 2', '"r": "2"'))
    told("r='2'; expected a number")
    config.write_text("{")
    told("adapter_config.json: not valid JSON")
    config.write_text("{}")
    told("no 'config' in it" if save is adapter_hub else "peft_type=None")
