"""PEFT's adapters: its LoRA the same network as AdapterHub's, every kind trained, saved, loaded and merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from broken import WAYS, damage
from methods.test_base import KINDS, RATES, encoder, hidden, record, save, trained
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from hatemtl.errors import UserError
from hatemtl.methods.base import LOADERS, components
from hatemtl.methods.peft_adapters.library import KINDS as OF_PEFT
from hatemtl.methods.peft_adapters.library import REFUSED, WEIGHTS, LoadPEFT, PEFTAdapter, PEFTLoRA, fold

every_kind = pytest.mark.parametrize("kind", KINDS)
SEPARATE = [kind for kind in KINDS if kind != "modernbert"]  # q, k and v are layers of their own


def lora(**other: Any) -> PEFTLoRA:
    return PEFTLoRA(**{"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None, "leave_out": [], **RATES, **other})


def hub_lora(**other: Any) -> Any:
    """AdapterHub's LoRA of the same layers; skips the test where that library is missing."""
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubLoRA

    where = {"attention": ["q", "k", "v"], "intermediate": True, "output": True, "leave_out": []}
    return AdapterHubLoRA(**{"rank": 4, "alpha": 8, "dropout": 0.0, **where, **RATES, **other})


def load(path: Path) -> LoadPEFT:
    return LoadPEFT(path=str(path), **RATES)


def attached(method: Any, kind: str = "bert", *, name: str = "run", seed: int = 0) -> Any:
    return method.attach(encoder(kind), name=name, seed=seed).model


def factors(model: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A and B by layer."""
    layers = {path: layer for path, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}
    return {path: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for path, layer in layers.items()}


def As(model: nn.Module) -> dict[str, Tensor]:
    return {path: A.detach() for path, (A, _) in factors(model).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Training


@every_kind
def test_only_the_lora_is_trained(kind: str) -> None:
    model = attached(lora(), kind)
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in trained(model))
    assert len(trained(model)) == 2 * len(factors(model)) == 4 * (3 if kind == "modernbert" else 5)
    body, adapter = components(lora(), model)
    assert (body.trained, adapter.name, adapter.active) == (0, "default", True)
    assert adapter.trained == adapter.parameters == sum(p.numel() for p in trained(model).values())
    assert body.parameters == sum(p.numel() for p in encoder(kind).parameters())

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # A has no gradient before B has moved from zero
        model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[..., :5].square().sum().backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained(model))


@every_kind
def test_a_new_lora_changes_nothing_yet(kind: str) -> None:
    assert torch.equal(hidden(attached(lora(dropout=0.5), kind)), hidden(encoder(kind)))


@every_kind
def test_A_depends_on_seed_and_layer_alone(kind: str) -> None:
    model = encoder(kind)
    before = torch.get_rng_state()
    first = As(lora().attach(model, name="run", seed=0).model)
    assert torch.equal(before, torch.get_rng_state())
    assert equal(first, As(attached(lora(alpha=2, dropout=0.3), kind, name="other")))
    assert not equal(first, As(attached(lora(), kind, seed=1)))
    assert len({tuple(A.flatten()[:16].tolist()) for A in first.values()}) == len(first)
    larger = As(attached(lora(rank=8), kind))
    assert equal(first, {path: A[:4] for path, A in larger.items()})


@pytest.mark.parametrize("kind", SEPARATE)
def test_both_libraries_build_the_same_network(kind: str) -> None:
    from hatemtl.methods.adapterhub import library as ah_library

    ours, theirs = attached(lora(), kind), attached(hub_lora(), kind)
    updates = ah_library.updates(theirs, "run")
    assert equal(As(ours), {path: update.A for path, update in updates.items()})
    with torch.no_grad():
        for i, (path, (_, B)) in enumerate(factors(ours).items()):
            B.copy_(torch.randn(B.shape, generator=torch.Generator().manual_seed(i)))
            updates[path].B.copy_(B)
    assert not torch.allclose(hidden(ours), hidden(encoder(kind)), atol=1e-2)
    torch.testing.assert_close(hidden(ours), hidden(theirs), atol=1e-6, rtol=1e-5)


def test_targets_choose_the_layers() -> None:
    model = attached(lora(targets=r".*layer\.1\..*(query|value)"))
    assert set(As(model)) == {f"encoder.layer.1.attention.self.{name}" for name in ("query", "value")}
    with pytest.raises(UserError, match=r"method.targets='.\*qurey': .*not found"):
        attached(lora(targets=".*qurey"))
    bare = DistilBertModel(DistilBertConfig(vocab_size=20, dim=32, hidden_dim=48, n_layers=1, n_heads=4))
    with pytest.raises(UserError, match=r"method.targets: no default for distilbert; type method.targets="):
        lora().attach(bare, name="run", seed=0)
    with pytest.raises(UserError, match="method.rank=0"):
        lora(rank=0)


def test_a_pattern_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match="method.targets"):
        attached(lora(targets=".*(query"))


# Loading


@every_kind
def test_what_is_saved_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    model = save(lora(), tmp_path / "run.v1", kind)
    assert not torch.allclose(hidden(model), hidden(encoder(kind)), atol=1e-3)
    files = {path.name for path in (tmp_path / "run.v1" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    body = encoder(kind)
    torch.rand(9)  # another process has drawn something else by now
    before = torch.get_rng_state()
    loaded = load(tmp_path / "run.v1").attach(body, name="other", seed=5).model
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(hidden(loaded), hidden(model))
    assert set(trained(loaded)) == set(trained(model))


def test_the_settings_come_with_the_weights(tmp_path: Path) -> None:
    save(lora(rank=3, alpha=12, dropout=0.25), tmp_path / "run")
    loaded: Any = attached(load(tmp_path / "run"))
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12, 0.25)
    first = load_file(tmp_path / "run" / WEIGHTS)
    load(tmp_path / "run").library.save(loaded, "run", tmp_path / "again")
    assert equal(first, load_file(tmp_path / "again" / WEIGHTS))


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(lora(), tmp_path / "run")
    torch.save(load_file(tmp_path / "run" / WEIGHTS), tmp_path / "run" / "adapter" / "adapter_model.bin")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    assert torch.equal(hidden(attached(load(tmp_path / "run"))), hidden(model))
    (tmp_path / "run" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"has no adapter/adapter_model.safetensors \(its method: peft_lora16\)"):
        attached(load(tmp_path / "run"))


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_adapter_is_told(way: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    damage(tmp_path / "run" / WEIGHTS, way)
    with pytest.raises(UserError, match=str(tmp_path / "run")):
        attached(load(tmp_path / "run"))


def test_a_run_to_load_must_be_named_and_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="type load_path=FOLDER"):
        LoadPEFT(path=None, **RATES).starts_from()
    with pytest.raises(UserError, match=f"load it with method={LOADERS['adapterhub']}"):
        load(record(tmp_path / "run", "adapterhub")).starts_from()
    save(lora(), tmp_path / "good")
    assert [run.folder for run in load(tmp_path / "good").starts_from()] == [tmp_path / "good"]


# Other kinds

# Options that fit layers 32 wide, where the defaults do not.
NARROW: dict[str, dict[str, Any]] = {
    "C3AConfig": {"block_size": 16},
    "MissConfig": {"r": 8},
    "RoadConfig": {"group_size": 16},
    "ShiraConfig": {"r": 4},
    "VBLoRAConfig": {"vector_length": 16, "num_vectors": 16},
    "WaveFTConfig": {"n_frequency": 200},
}
# What conf/method/peft_*.yaml names, each as it is there but for widths.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4}),
    "dora": ("LoraConfig", {"r": 4, "use_dora": True}),
    "rslora": ("LoraConfig", {"r": 4, "use_rslora": True}),
    "pissa": ("LoraConfig", {"r": 4, "init_lora_weights": "pissa"}),
    "ia3": ("IA3Config", {}),
    "vera": ("VeraConfig", {"r": 16}),
    "oft": ("OFTConfig", {"oft_block_size": 16}),
}
LIKE_BERT = ["bert", "electra", "roberta"]
OTHERS = sorted(name for name in OF_PEFT.keys() - REFUSED.keys())


def adapter(kind: str, options: dict[str, Any] | None = None, **other: Any) -> PEFTAdapter:
    return PEFTAdapter(**{"kind": kind, "options": options, "targets": None, "leave_out": [], **RATES, **other})


def round_trip(kind: str, options: dict[str, Any], body: str, folder: Path) -> None:
    """Trains a few steps, saves, loads in a process that has drawn other numbers, merges: all say the same."""
    method, bare = adapter(kind, options), hidden(encoder(body))
    model: Any = attached(method, body)
    assert set(trained(model)) and all(".default" in name for name in trained(model))
    parts = components(method, model)
    assert parts[0].trained == 0 and parts[1].trained == sum(p.numel() for p in trained(model).values())
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.5)
    for _ in range(3):
        model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[..., :5].square().sum().backward()
        assert all(parameter.grad is not None for parameter in trained(model).values())
        nn.utils.clip_grad_norm_(trained(model).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        hidden(model)  # an evaluation between two steps
    said = hidden(model)
    assert not torch.allclose(said, bare, atol=1e-6)
    record(folder, "peft")
    method.library.save(model, "run", folder)
    again = encoder(body)
    torch.rand(9)
    loaded: Any = load(folder).attach(again, name="other", seed=5).model
    assert torch.equal(hidden(loaded), said)
    assert set(trained(loaded)) == set(trained(model))
    if kind == "LilyConfig":
        with pytest.raises(UserError, match=rf"LilyConfig on {body} cannot be merged .*type export.format=peft"):
            fold(loaded)
    else:
        torch.testing.assert_close(hidden(fold(loaded)), said, atol=2e-4 if kind == "FourierFTConfig" else 1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", LIKE_BERT)
@pytest.mark.parametrize("name", NAMED)
def test_what_has_a_name_comes_back_as_it_was(name: str, body: str, tmp_path: Path) -> None:
    round_trip(*NAMED[name], body, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("body", LIKE_BERT)
@pytest.mark.parametrize("kind", OTHERS)
def test_every_kind_comes_back_as_it_was(kind: str, body: str, tmp_path: Path) -> None:
    round_trip(kind, NARROW.get(kind, {}), body, tmp_path / "run")


@pytest.mark.parametrize("name", NAMED)
def test_a_named_kind_learns_in_bfloat16(name: str) -> None:
    method = adapter(*NAMED[name])
    model: Any = attached(method)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    single = hidden(attached(method))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(hidden(model).float(), single, atol=0.1, rtol=0.1)
        loss = model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state.float()[..., :5].square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in trained(model).values())


def test_a_lora_by_name_is_the_lora() -> None:
    named, own = attached(adapter("LoraConfig", {"r": 4, "lora_alpha": 8})), attached(lora())
    assert equal(As(named), As(own))
    assert [type(m.forward).__name__ for m in named.modules()] == [type(m.forward).__name__ for m in own.modules()]


def test_only_plain_loras_dora_and_ia3_are_computed_by_our_own_layers() -> None:
    def own(method: PEFTAdapter) -> set[str]:
        found = {type(module.forward).__name__ for module in attached(method).modules()}
        return found & {"DoRALinear", "LoRALinear", "ScaledLinear", "Stack"}

    assert own(adapter("LoraConfig")) == {"LoRALinear", "Stack"}
    assert own(adapter("LoraConfig", {"use_rslora": True})) == {"LoRALinear", "Stack"}
    assert own(adapter("LoraConfig", {"use_dora": True})) == {"DoRALinear", "Stack"}
    assert own(adapter("LoraConfig", {"lora_dropout": 0.1})) == set()
    assert "Stack" not in own(adapter("LoraConfig", {"bias": "all"}))  # which computes no gradient for a bias
    assert own(adapter("IA3Config")) == {"ScaledLinear", "Stack"}
    assert own(adapter("VeraConfig", {"r": 16})) == set()


def test_a_scaled_lora_computes_as_the_library_does() -> None:
    """rsLoRA and PiSSA through LoRALinear and Stack, against PEFT's own forward."""
    for options in ({"r": 4, "use_rslora": True}, {"r": 4, "init_lora_weights": "pissa"}):
        model: Any = attached(adapter("LoraConfig", options))
        with torch.no_grad():
            for parameter in trained(model).values():
                parameter += 0.05
        ours = hidden(model)
        for module in model.modules():
            module.__dict__.pop("forward", None)
        torch.testing.assert_close(ours, hidden(model), atol=1e-5, rtol=1e-5)


def test_leaving_out_layers_and_choosing_targets_works_for_every_kind() -> None:
    model = attached(adapter("IA3Config", leave_out=[0]))
    assert all(".layer.1." in name for name in trained(model))
    model = attached(adapter("OFTConfig", {"oft_block_size": 16}, targets=r".*query"))
    assert len(trained(model)) == 2 and all(".query." in name for name in trained(model))
    assert all("LayerNorm" in name for name in trained(attached(adapter("LNTuningConfig"))))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("LoRAConfig", None, "method.kind=LoRAConfig: did you mean .*'LoraConfig'"),
        ("PrefixTuningConfig", None, "virtual tokens .* type method=peft_lora16"),
        ("PromptEncoderConfig", None, "virtual tokens"),
        *((kind, None, f"method.kind={kind}: .*type method=peft_lora16") for kind in REFUSED),
        ("LoraConfig", {"lora_alfa": 8}, "method.options.lora_alfa: no key of LoraConfig .*did you mean 'lora_alpha'"),
        ("LoraConfig", {"target_modules": ["query"]}, "method.options.target_modules: type method.targets="),
        ("LoraConfig", {"use_dora": "maybe"}, "method.options.use_dora=maybe: expected true or false"),
        ("IA3Config", {"modules_to_save": ["x"]}, "heads are trained and saved"),
        ("LoraConfig", {"megatron_config": {}}, "method.options.megatron_config: it makes PEFT import a module"),
        ("LoraConfig", {"runtime_config": {}}, "method.options.runtime_config: no key of LoraConfig to be set here"),
    ],
)
def test_a_kind_that_cannot_be_is_told(kind: str, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapter(kind, options)


def test_what_the_library_refuses_names_kind_encoder_and_way_out() -> None:
    broken: list[tuple[str, dict[str, Any]]] = [("C3AConfig", {}), ("LoraConfig", {"r": 0}), ("VeraConfig", {"r": 0})]
    for kind, options in (*broken, ("IA3Config", {"feedforward_modules": 5})):
        with pytest.raises(UserError, match=rf"{kind} on bert with .*type method=peft_lora16"):
            attached(adapter(kind, options))
    bare = DistilBertModel(DistilBertConfig(vocab_size=20, dim=32, hidden_dim=48, n_layers=1, n_heads=4))
    with pytest.raises(UserError, match="no default for distilbert"):
        adapter("IA3Config").attach(bare, name="run", seed=0)
