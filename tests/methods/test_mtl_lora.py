"""MTL-LoRA: each task reads the encoder through a LoRA of its own, whatever else a batch is read for."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Outcome
from methods.test_base import KINDS, RATES, encoder, hidden, record, trained
from safetensors.torch import load_file, save_file
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.errors import UserError
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.labels import LabelSpace
from hatemtl.methods import beside
from hatemtl.methods.base import components
from hatemtl.methods.mtl_lora import LoadMTLLoRA, Mixture, MTLLoRA, reading
from hatemtl.network.module import MultitaskModule
from hatemtl.objective.weighting import Sum

every_kind = pytest.mark.parametrize("kind", KINDS)
WEIGHTS, SETTINGS = "adapter/mtl_lora.safetensors", "adapter/mtl_lora.json"
TASKS = ["label", "target"]


def lora(**other: Any) -> MTLLoRA:
    where = {"tasks": TASKS, "rank": 4, "alpha": 6, "ups": 2, "temperature": 0.5}
    return MTLLoRA(**{**where, **RATES, **other})


def load(path: Path, *tasks: str) -> LoadMTLLoRA:
    return LoadMTLLoRA(path=str(path), tasks=tasks or TASKS, **RATES)


def attached(method: Any, kind: str = "bert", *, name: str = "run", seed: int = 0) -> Any:
    return method.attach(encoder(kind), name=name, seed=seed).model


@torch.no_grad()
def moved(model: Any) -> Any:
    draw = torch.Generator().manual_seed(5)
    for parameter in trained(model).values():
        parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return model


def read_for(model: Any, task: str) -> Tensor:
    with reading(model, task):
        return hidden(model)


def network(model: Any) -> MultitaskModule:
    """Two heads on the encoder."""
    spaces = {"label": LabelSpace("multiclass", ("x", "y", "z")), "target": LabelSpace("multilabel", ("a", "b"))}
    shared = {"hidden_size": 32, "pooling": "mean", "layers": 1, "dropout": 0.0, "balance": 0.0}
    heads = {
        "label": MulticlassHead(space=spaces["label"], label_smoothing=0.0, **shared),  # type: ignore[arg-type]
        "target": MultilabelHead(space=spaces["target"], threshold=0.5, **shared),  # type: ignore[arg-type]
    }
    optimization: Any = None
    return MultitaskModule(
        model, heads, weights={"label": 1.0, "target": 1.0}, weighting=Sum, optimization=optimization, seed=0
    )


def batch(only: str | None = None) -> Batch:
    """Three posts: with a label, with both, with targets."""
    return Batch(
        input_ids=torch.randint(3, 20, (3, 9), generator=torch.Generator().manual_seed(1)),
        attention_mask=torch.ones(3, 9, dtype=torch.long),
        targets={"label": torch.tensor([0, 2, 0]), "target": torch.tensor([[0, 0], [1, 0], [1, 1.0]])},
        has={"label": torch.tensor([True, True, False]), "target": torch.tensor([False, True, True])},
        posts=torch.arange(3),
        only=only,
    )


@every_kind
def test_each_layer_computes_its_formula(kind: str) -> None:
    model = moved(attached(lora(ups=3), kind))
    assert len(beside.found(model, Mixture)) == 2 * (3 if kind == "modernbert" else 5)
    for number, task in enumerate(TASKS):
        reference = encoder(kind)
        with torch.no_grad():
            for path, mixture in beside.found(model, Mixture).items():
                shares = (mixture.choice[number] / 0.5).softmax(0)
                up = sum((share * B for share, B in zip(shares, mixture.B, strict=True)), torch.zeros(()))
                reference.get_submodule(path).weight += 6 / 4 * up @ mixture.transform[number] @ mixture.A
        assert not torch.allclose(hidden(reference), hidden(encoder(kind)), atol=1e-2)
        torch.testing.assert_close(read_for(model, task), hidden(reference), atol=1e-5, rtol=1e-4)


@every_kind
def test_a_new_one_changes_nothing_yet_and_all_of_it_learns(kind: str) -> None:
    model = attached(lora(), kind)
    assert torch.equal(read_for(model, "label"), hidden(encoder(kind)))
    body, adapter = components(lora(), model)
    assert (body.trained, adapter.name, adapter.trained, adapter.active) == (0, "run", adapter.parameters, True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.1, eps=1e-30)  # whose steps are as large for small gradients
    for _ in range(4):  # all but B have no gradient before B has moved from zero, at first all alike
        for task in TASKS:
            with reading(model, task):
                model.train()(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[..., :5].square().sum().backward()
        optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained(model))
    for mixture in beside.found(model, Mixture).values():
        assert not torch.allclose(mixture.B[0], mixture.B[1])


def test_draws_depend_on_seed_and_layer_alone() -> None:
    body = encoder()
    before = torch.get_rng_state()
    first = trained(lora().attach(body, name="run", seed=0).model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], other) for name, other in trained(attached(lora())).items())
    other = trained(attached(lora(), seed=1))
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith((".A", ".choice")))


def test_every_head_reads_through_the_lora_of_its_task() -> None:
    """Also on a post with labels of both, and a loss reaches what belongs to its own task alone."""
    module = network(moved(attached(lora())))
    given = batch()
    both = module(given)
    for number, task in enumerate(TASKS):
        with torch.no_grad(), reading(module.encoder, task):
            states = module.encoder(**given.inputs).last_hidden_state
            expected = module.heads[task](states, given.attention_mask)
        torch.testing.assert_close(both[task], expected)
        assert torch.equal(module(batch(only=task))[task], both[task])
        assert list(module(batch(only=task))) == [task]
        module.zero_grad()
        module.losses(given, module(given))[task].backward()
        for mixture in beside.found(module.encoder, Mixture).values():
            for own in (mixture.transform, mixture.choice):
                assert own.grad is not None
                assert own.grad[number].abs().sum() > 0
                assert own.grad[1 - number].abs().sum() == 0


def test_other_methods_still_run_the_encoder_once() -> None:
    calls = []
    for model, passes in ((encoder(), 1), (attached(lora()), 2)):
        module = network(model)
        model.register_forward_hook(lambda *_: calls.append(1))
        calls.clear()
        module.losses(batch(), module(batch()))
        assert len(calls) == passes


@every_kind
def test_what_is_saved_is_what_is_loaded(kind: str, tmp_path: Path) -> None:
    model = moved(attached(lora(), kind))
    lora().library.save(model, "run", record(tmp_path / "run", "mtl_lora"))
    loaded = attached(load(tmp_path / "run"), kind, name="other", seed=7)
    for task in TASKS:
        assert torch.equal(read_for(loaded, task), read_for(model, task))
    assert torch.equal(read_for(attached(load(tmp_path / "run", "target"), kind), "target"), read_for(model, "target"))
    assert set(trained(loaded)) == {name.replace(".run.", ".other.") for name in trained(model)}


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    lora().library.save(attached(lora()), "run", record(tmp_path / "run", "mtl_lora"))
    with pytest.raises(UserError, match=r"was trained for label, target, not for 'traget'; did you mean 'target'\?"):
        attached(load(tmp_path / "run", "traget"))
    with pytest.raises(UserError, match=r"run/adapter/mtl_lora.safetensors and this encoder do not fit"):
        attached(load(tmp_path / "run"), "modernbert")
    with pytest.raises(UserError, match="type load_path=FOLDER"):
        LoadMTLLoRA(path=None, tasks=TASKS, **RATES).starts_from()
    with pytest.raises(UserError, match="load it with method=peft_load"):
        load(record(tmp_path / "peft", "peft")).starts_from()
    tensors = load_file(tmp_path / "run" / WEIGHTS)
    save_file(dict(list(tensors.items())[1:]), tmp_path / "run" / WEIGHTS)
    with pytest.raises(UserError, match="overwrite=true"):
        attached(load(tmp_path / "run"))
    (tmp_path / "run" / SETTINGS).write_text("{}")
    with pytest.raises(UserError, match="mtl_lora.json cannot be read"):
        attached(load(tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        *(({"rank": 0}, "method.rank=0"), ({"ups": 0}, "method.ups=0"), ({"alpha": -1}, "method.alpha=-1")),
        ({"temperature": 0}, "method.temperature=0: .*type method.temperature=1"),
        ({"temperature": float("inf")}, "method.temperature=inf"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_told(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        lora(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["joint", "per_task"])
def test_two_tasks_train_and_test_by_the_command_line(
    step: str, cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora = [f"corpus@tasks.{task}.corpus=sample" for task in TASKS]
    sizes = [f"tasks.{task}.corpus.size=200" for task in TASKS]
    run = partial(cli, "encoder=tiny", "tasks=[label,target]", *corpora, *sizes, "optimization.epochs=1")
    outcome = run("method=mtl_lora", f"sampling.step={step}", "save_path=both", "action=[train,test]")
    assert outcome.code == 0, outcome.err
    before = (tmp_path / "both" / "results.csv").read_text()
    assert json.loads((tmp_path / "both" / "run.json").read_text())["library"] == "mtl_lora"
    outcome = run("method=mtl_load", "heads.load=true", "load_path=both", "action=test")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "both" / "results.csv").read_text() == before
