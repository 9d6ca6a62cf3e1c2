"""AdapterHub's LoRA: trained, saved, loaded and merged, on an encoder of every architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import SeqBnConfig
from broken import WAYS, damage
from methods.peft_adapters.test_train_and_load import lora as peft_lora
from methods.test_base import KINDS, RATES, encoder, hidden, record, save, trained
from safetensors.torch import load_file
from torch import Tensor, nn

from hatemtl.errors import UserError
from hatemtl.merging.base import Merge, merge_factors
from hatemtl.merging.lora import LoRAUpdate
from hatemtl.merging.mean import Linear, Mean
from hatemtl.methods.adapterhub import several_adapters
from hatemtl.methods.adapterhub.library import WEIGHTS, active, loras, updates
from hatemtl.methods.adapterhub.merged import MergedAdapters
from hatemtl.methods.adapterhub.train_and_load import AdapterHubLoRA, LoadAdapterHub
from hatemtl.methods.base import components
from hatemtl.methods.merged import MergedWeights

every_kind = pytest.mark.parametrize("kind", KINDS)


def lora(**other: Any) -> AdapterHubLoRA:
    where = {"attention": ["q", "k", "v"], "intermediate": True, "output": True, "leave_out": []}
    return AdapterHubLoRA(**{"rank": 4, "alpha": 8, "dropout": 0.0, **where, **RATES, **other})


def load(path: Path) -> LoadAdapterHub:
    return LoadAdapterHub(path=str(path), **RATES)


MEAN = Mean(weights=None)


def merge(sources: str | Path, how: Merge = MEAN, rank: int | None = None) -> MergedAdapters:
    return MergedAdapters(sources=str(sources), merge=how, rank=rank, **RATES)


def attached(method: Any, kind: str = "bert", *, name: str = "run", seed: int = 0) -> Any:
    return method.attach(encoder(kind), name=name, seed=seed).model


def As(model: nn.Module, name: str = "run") -> dict[str, Tensor]:
    """A by layer, and by projection where several share a matrix."""
    return {path: update.A for path, update in updates(model, name).items()}


def dense(model: nn.Module, name: str) -> dict[str, Tensor]:
    return {path: update.dense() for path, update in updates(model, name).items()}


def mean(*of: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of dense updates; a layer that one does not adapt counts as zero."""
    return {path: sum(d[path] for d in of if path in d) / len(of) for path in {p for d in of for p in d}}  # type: ignore[misc]


def equal(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=atol, rtol=0) for key in a)


@torch.no_grad()
def added(kind: str, changes: dict[str, Tensor]) -> nn.Module:
    """The bare encoder with dense updates added to its weights; no library of adapters has a part in it."""
    model = encoder(kind)
    for path, change in changes.items():
        layer, _, projection = path.rpartition(".")
        if projection in "qkv":
            rows = model.get_submodule(layer).weight.chunk(3)["qkv".index(projection)]
        else:
            rows = model.get_submodule(path).weight
        rows += change.to(rows.dtype)
    return model


# Training


@every_kind
def test_only_the_lora_is_trained(kind: str) -> None:
    model = attached(lora(), kind)
    shapes = {path: module.weight.shape for path, module, _ in loras(model, "run")}
    # an A of 4 rows and a B of 4 columns; q, k and v have an A each where they share a matrix
    count = sum(4 * (rows + width * (3 if path.endswith("Wqkv") else 1)) for path, (rows, width) in shapes.items())
    assert sum(parameter.numel() for parameter in trained(model).values()) == count
    assert all(".loras.run.lora_" in name for name in trained(model))
    assert len(shapes) == 2 * (3 if kind == "modernbert" else 5)
    assert active(model) == ["run"]

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):  # A has no gradient before B has moved from zero
        model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[..., :5].square().sum().backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained(model))


def test_which_layers_carry_a_lora() -> None:
    def paths(**settings: Any) -> set[str]:
        return {path.removeprefix("encoder.layer.0.") for path in As(attached(lora(**settings))) if "layer.0" in path}

    assert paths(attention=["q"], intermediate=False, output=False) == {"attention.self.query"}
    assert paths(attention=["v", "k"], intermediate=False) == {"attention.self.key", "attention.self.value", "output.dense"}
    assert paths(attention=[], output=False) == {"intermediate.dense"}


@every_kind
def test_a_new_lora_changes_nothing_yet(kind: str) -> None:
    assert torch.equal(hidden(attached(lora(dropout=0.5), kind)), hidden(encoder(kind)))


def test_the_update_is_scaled_by_alpha_over_rank() -> None:
    model = attached(lora(rank=4, alpha=6, attention=["q"], intermediate=False, output=False))
    for _, _, factors in loras(model, "run"):
        nn.init.normal_(factors.lora_B, std=0.3)
    path, _, factors = next(iter(loras(model, "run")))
    change = dense(model, "run")[path]
    torch.testing.assert_close(change, 1.5 * (factors.lora_B.double() @ factors.lora_A.double()).detach())
    torch.testing.assert_close(hidden(model), hidden(added("bert", dense(model, "run"))), atol=1e-5, rtol=1e-4)


@every_kind
def test_A_depends_on_seed_and_layer_alone(kind: str) -> None:
    first = As(attached(lora(), kind))
    assert equal(first, As(attached(lora(alpha=2, dropout=0.3), kind, name="other"), "other"), atol=0)
    assert not equal(first, As(attached(lora(), kind, seed=1)))
    assert len({tuple(A.flatten()[:16].tolist()) for A in first.values()}) == len(first)
    assert all(A.abs().max() <= A.shape[1] ** -0.5 for A in first.values())


@every_kind
def test_a_smaller_lora_starts_as_a_part_of_a_larger_one(kind: str) -> None:
    whole = As(attached(lora(rank=16), kind))
    assert equal(As(attached(lora(rank=8), kind)), {path: A[:8] for path, A in whole.items()}, atol=0)
    some = As(attached(lora(rank=16, attention=["v"], intermediate=False), kind))
    assert 0 < len(some) < len(whole)
    assert equal(some, {path: whole[path] for path in some}, atol=0)


@pytest.mark.parametrize("way", ["train", "load", "merge"])
def test_no_other_draw_moves(way: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run_a")
    method = {"train": lora(), "load": load(tmp_path / "run_a"), "merge": merge(tmp_path / "run_*")}[way]
    model = encoder()
    before = torch.get_rng_state()
    method.attach(model, name="run", seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rank": 0}, "method.rank=0: expected a whole number from 1; type method.rank=16"),
        ({"alpha": 0}, "method.alpha=0: expected a number above 0; type method.alpha=4"),
        ({"attention": ["q", "o"]}, r"method.attention=\['q', 'o'\]: expected some of q, k, v"),
        ({"attention": [], "intermediate": False, "output": False}, "LoRA on no layer at all"),
        ({"dropout": 1.5}, "method.dropout=1.5"),
        ({"dropout": float("nan")}, "method.dropout=nan: expected a probability below 1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_told(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        lora(**settings)


@pytest.mark.parametrize("name", ["target_part_1", "läuft so, oder?", "lora_A", "1"])
def test_a_run_may_have_any_name(name: str, tmp_path: Path) -> None:
    model = save(lora(), tmp_path / "run", name=name)
    assert active(model) == [name]
    assert {component.name for component in components(lora(), model)} == {"encoder", name}
    assert torch.equal(hidden(attached(load(tmp_path / "run"), name=name)), hidden(model))


# Loading


@every_kind
def test_what_is_saved_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    model = save(lora(), tmp_path / "run.v1", kind)
    assert not torch.allclose(hidden(model), hidden(encoder(kind)), atol=1e-3)
    files = {path.name for path in (tmp_path / "run.v1" / "adapter").iterdir()}
    assert files - {"adapter_interface.json"} == {"adapter_config.json", "adapter.safetensors"}
    body = encoder(kind)
    torch.rand(9)  # another process has drawn something else by now
    loaded = load(tmp_path / "run.v1").attach(body, name="other", seed=5).model
    assert torch.equal(hidden(loaded), hidden(model))
    assert active(loaded) == ["other"]
    assert set(trained(loaded)) == {name.replace(".run.", ".other.") for name in trained(model)}
    assert all(update.scale == 2 for update in updates(loaded, "other").values())


def test_a_loaded_run_is_saved_as_it_was(tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    (tmp_path / "again").mkdir()
    load(tmp_path / "run").library.save(attached(load(tmp_path / "run"), name="run"), "run", tmp_path / "again")
    first, again = (load_file(tmp_path / name / WEIGHTS) for name in ("run", "again"))
    assert equal(first, again, atol=0)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(lora(), tmp_path / "run_a")
    torch.save(load_file(tmp_path / "run_a" / WEIGHTS), tmp_path / "run_a" / "adapter" / "pytorch_adapter.bin")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    assert torch.equal(hidden(attached(load(tmp_path / "run_a"))), hidden(model))  # not even beside the safetensors
    (tmp_path / "run_a" / WEIGHTS).unlink()
    for method in (load(tmp_path / "run_a"), merge(tmp_path / "run_*")):
        with pytest.raises(UserError, match=r"has no adapter/adapter.safetensors \(its method: ah_lora16\)"):
            attached(method)


@pytest.mark.parametrize("way", WAYS)
def test_a_broken_adapter_is_told(way: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "run")
    damage(tmp_path / "run" / WEIGHTS, way)
    with pytest.raises(UserError, match=str(tmp_path / "run")):
        attached(load(tmp_path / "run"))


def test_a_run_to_load_must_be_named_and_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="type load_path=FOLDER"):
        LoadAdapterHub(path=None, **RATES).starts_from()
    with pytest.raises(UserError):
        LoadAdapterHub(path="", **RATES).starts_from()
    with pytest.raises(UserError, match="load it with method=peft_load"):
        load(record(tmp_path / "run", "peft")).starts_from()
    save(lora(), tmp_path / "good")
    assert [run.folder for run in load(tmp_path / "good").starts_from()] == [tmp_path / "good"]


# Merging


@every_kind
def test_a_lossless_merge_is_the_mean_of_the_updates(kind: str, tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / f"part_{i}", kind, change=i) for i in (1, 2, 3)]
    merged = attached(merge(tmp_path / "part_*"), kind, name="merged")
    expected = mean(*(dense(source, "run") for source in sources))
    assert equal(dense(merged, "merged"), expected)
    assert {update.rank for update in updates(merged, "merged").values()} == {12}
    for i, source in enumerate(sources, start=1):
        assert equal(dense(merged, f"part_{i}"), dense(source, "run"), atol=0)


@every_kind
def test_a_merged_encoder_computes_with_that_mean(kind: str, tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / f"part_{i}", kind, change=i) for i in (1, 2)]
    merged = attached(merge(tmp_path / "part_*"), kind, name="merged")
    reference = added(kind, mean(*(dense(source, "run") for source in sources)))
    assert not torch.allclose(hidden(reference), hidden(encoder(kind)), atol=1e-2)
    torch.testing.assert_close(hidden(merged), hidden(reference), atol=1e-5, rtol=1e-4)


@every_kind
def test_merging_one_source_gives_it_back(kind: str, tmp_path: Path) -> None:
    source = save(lora(), tmp_path / "only", kind)
    body = encoder(kind)
    torch.rand(9)
    merged = merge(tmp_path / "only").attach(body, name="merged", seed=5).model
    torch.testing.assert_close(hidden(merged), hidden(source), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("how", "rank"), [(MEAN, 3), (Linear(), None)], ids=repr)
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_what_the_merge_says_is_what_is_attached(how: Merge, rank: int | None, kind: str, tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / f"part_{i}", kind, change=i) for i in (1, 2)]
    said = merge_factors(how, [updates(source, "run") for source in sources], rank)[0]
    merged = attached(merge(tmp_path / "part_*", how, rank), kind, name="merged")
    assert equal(dense(merged, "merged"), {path: update.dense() for path, update in said.items()})
    assert {update.rank for update in updates(merged, "merged").values()} == {update.rank for update in said.values()}


def test_only_the_merged_lora_is_trained_and_active(tmp_path: Path) -> None:
    for i in (1, 2):
        save(lora(), tmp_path / f"part_{i}", change=i)
    method = merge(tmp_path / "part_*")
    model = attached(method, name="merged")
    assert active(model) == ["merged"]
    assert trained(model)
    assert all(".loras.merged." in name for name in trained(model))
    parts = {component.name: component for component in components(method, model)}
    assert set(parts) == {"encoder", "part_1", "part_2", "merged"}
    assert {name for name, part in parts.items() if part.active} == {"encoder", "merged"}
    assert {name for name, part in parts.items() if part.trained} == {"merged"}
    assert parts["merged"].parameters == 2 * parts["part_1"].parameters
    method.library.save(model, "merged", record(tmp_path / "run", "adapterhub"))
    assert all(".merged." in key for key in load_file(tmp_path / "run" / WEIGHTS))


@every_kind
def test_sources_may_differ_in_rank_and_alpha(kind: str, tmp_path: Path) -> None:
    first = save(lora(rank=8, alpha=16), tmp_path / "part_1", kind)
    second = save(lora(rank=2, alpha=1), tmp_path / "part_2", kind, change=2)
    expected = mean(dense(first, "run"), dense(second, "run"))
    assert equal(dense(attached(merge(tmp_path / "part_*"), kind, name="merged"), "merged"), expected)
    with pytest.raises(UserError, match="use merge=mean, which takes any"):
        attached(merge(tmp_path / "part_*", Linear()), kind, name="merged")


@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_sources_may_differ_in_their_layers(kind: str, rank: int | None, tmp_path: Path) -> None:
    sources = [
        save(lora(), tmp_path / "part_1", kind),
        save(lora(attention=["q", "v"], intermediate=False), tmp_path / "part_2", kind, change=2),
    ]
    said = merge_factors(MEAN, [updates(source, "run") for source in sources], rank)[0]
    merged = attached(merge(tmp_path / "part_*", rank=rank), kind, name="merged")
    assert equal(dense(merged, "merged"), {path: update.dense() for path, update in said.items()})
    if rank is None:
        assert equal(dense(merged, "merged"), mean(*(dense(source, "run") for source in sources)))
    for update in updates(merged, "merged").values():
        assert update.A.any(dim=1).all()  # with zeros in A under zeros in B, a part of the LoRA could never learn


def test_layers_that_a_source_leaves_alone_are_noted(tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    save(lora(attention=["q", "v"], output=False), tmp_path / "part_2", change=2)
    save(peft_lora(targets=r".*(query|key|value|intermediate\.dense)|.*layer\.0\.output\.dense"), tmp_path / "part_3")
    for method in (merge(tmp_path / "part_*"), MergedWeights(sources=str(tmp_path / "part_*"), merge=MEAN, **RATES)):
        second, third = method.attach(encoder(), name="merged", seed=0).notes
        assert "part_2 does not adapt encoder.layer.0.attention.self.key, encoder.layer.0.output.dense and 2 more" in second
        assert "part_3 does not adapt encoder.layer.1.output.dense, which another source does" in third
        assert second.endswith("counted as zero")
    assert merge(tmp_path / "part_1").attach(encoder(), name="merged", seed=0).notes == ()


def test_the_merged_lora_is_the_same_in_any_order(tmp_path: Path) -> None:
    for folder, dropouts in (("a", (0.1, 0.0)), ("b", (0.0, 0.1))):
        for i, dropout in enumerate(dropouts):
            save(lora(dropout=dropout), tmp_path / folder / f"part_{i}")
    one, other = (attached(merge(tmp_path / folder / "part_*"), name="m").adapters_config.get("m") for folder in "ab")
    assert one == other
    assert one.dropout == 0


def test_names_of_sources_may_meet(tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / seed / "part.1", change=i) for i, seed in enumerate(("a", "b"))]
    merged = attached(merge(tmp_path / "*" / "part.1"), name="merged")
    assert {component.name for component in components(lora(), merged)} == {"encoder", "part_1", "part_1_2", "merged"}
    assert equal(dense(merged, "merged"), mean(*(dense(source, "run") for source in sources)))
    merged = attached(merge(tmp_path / "a" / "part.1"), name="part_1")  # the run's own name
    assert {component.name for component in components(lora(), merged)} == {"encoder", "part_1_2", "part_1"}
    assert equal(dense(merged, "part_1"), dense(sources[0], "run"))


@pytest.mark.parametrize("name", ["half", "update", "training"])
def test_a_source_may_have_any_name(name: str, tmp_path: Path) -> None:
    source = save(lora(), tmp_path / name)
    assert equal(dense(attached(merge(tmp_path / name), name="merged"), "merged"), dense(source, "run"))


def test_names_of_sources_and_their_parents_may_meet(tmp_path: Path) -> None:
    sources = [save(lora(), tmp_path / seed / "lora" / "target", change=i) for i, seed in enumerate(("a", "b", "c"))]
    merged = attached(merge(tmp_path / "*" / "lora" / "target"), name="merged")
    assert len(components(lora(), merged)) == 5
    assert equal(dense(merged, "merged"), mean(*(dense(source, "run") for source in sources)))


def test_sources_are_finished_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("part_2", "part_10", "part_1", ".part_3.unfinished"):
        record(tmp_path / name, "adapterhub")
    (tmp_path / "part_notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert [run.folder.name for run in merge("part_*").starts_from()] == ["part_1", "part_10", "part_2"]
    with pytest.raises(UserError, match=rf"method.sources='prat_\*' matches no saved run \(from {tmp_path}\)"):
        merge("prat_*").starts_from()
    with pytest.raises(UserError, match="needs the saved runs to start from; type method.sources="):
        merge("").starts_from()
    (tmp_path / "part_1" / "run.json").unlink()
    with pytest.raises(UserError, match="part_1: not a saved run, run.json is missing"):
        merge("part_*").starts_from()


@pytest.mark.parametrize(("library", "loader"), [("bank", "bank_load"), ("full", "full")])
def test_a_source_of_another_library_is_refused(library: str, loader: str, tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    record(tmp_path / "part_2", library)
    with pytest.raises(UserError, match=rf"part_2 was saved by .* \({library}\), .*; load it with method={loader}"):
        merge(tmp_path / "part_*").starts_from()


def test_a_lora_and_an_adapter_of_another_kind_are_not_merged(tmp_path: Path) -> None:
    save(lora(), tmp_path / "part_1")
    model = attached(lora())
    model.add_adapter("bottleneck", config=SeqBnConfig())
    several_adapters.save(model, "bottleneck", record(tmp_path / "part_2", "adapterhub"))
    assert json.loads((tmp_path / "part_2" / "adapter" / "adapter_config.json").read_text())["config"]["original_ln_after"]
    with pytest.raises(UserError, match="part_1 and part_2 are adapters of different configurations"):
        attached(merge(tmp_path / "part_*"), name="merged")


def test_updates_of_q_k_and_v_in_one_matrix_are_told_apart() -> None:
    """ModernBERT's Wqkv: the update of v adds to the last third of its rows."""
    model = attached(lora(attention=["q", "v"], intermediate=False, output=False), "modernbert")
    found = updates(model, "run")
    assert set(found) == {f"layers.{i}.attn.Wqkv.{projection}" for i in (0, 1) for projection in "qv"}
    _, layer, factors = next(iter(loras(model, "run")))
    nn.init.normal_(factors.lora_B)
    states = torch.randn(1, 5, 32)
    bare = nn.functional.linear(states, layer.weight, layer.bias)
    q, k, v = (layer(states) - bare).detach().chunk(3, dim=-1)
    assert k.abs().max() == 0
    for projection, output in (("q", q), ("v", v)):
        update: LoRAUpdate = updates(model, "run")[f"layers.0.attn.Wqkv.{projection}"]
        torch.testing.assert_close(output, (states.double() @ update.dense().T).float(), atol=1e-5, rtol=1e-4)
