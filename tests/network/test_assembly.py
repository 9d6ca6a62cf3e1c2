"""The network: what would be silently wrong is refused, and no draw depends on what else is drawn."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from hatemtl.corpora.sample import Sample
from hatemtl.encoders.pretrained import Encoder
from hatemtl.errors import UserError
from hatemtl.heads.masked import MaskedHead
from hatemtl.heads.multiclass import MulticlassHead
from hatemtl.heads.multilabel import MultilabelHead
from hatemtl.heads.tokens import TokensHead
from hatemtl.labels import LabelSpace, Part
from hatemtl.methods.full import Full
from hatemtl.methods.peft_adapters.library import LoadPEFT, PEFTLoRA
from hatemtl.network import initial_heads
from hatemtl.network.assembly import Network, assemble, check_method
from hatemtl.network.initial_heads import check_heads
from hatemtl.objective.optimization import Optimization
from hatemtl.objective.weighting import Sum
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record
from hatemtl.tasks import Task

SPACES = {
    "label": LabelSpace("multiclass", ("good", "bad", "odd")),
    "target": LabelSpace("multilabel", ("a", "b", "c", "d")),
    "rationale": LabelSpace("tokens", ("rationale",)),
}
HEADS = {
    "label": partial(MulticlassHead, pooling="cls", layers=1, dropout=0.1, label_smoothing=0.0, balance=0.0),
    "target": partial(MultilabelHead, pooling="attention", layers=2, dropout=0.1, threshold=0.5, balance=0.0),
    "rationale": partial(TokensHead, layers=1, dropout=0.1, threshold=0.5, balance=0.0),
}
RATES = {"learning_rate": 1e-3, "body_dropout": False}
OPTIMIZATION = Optimization(
    encoder_lr=1e-3, head_lr=1e-3, weight_decay=0.0, heads_first=0, warmup=0, epochs=1,
    schedule="linear", clip=None, accumulate=1, patience=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder of two narrow layers."""
    folder = tmp_path_factory.mktemp("encoder")
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**size, vocab_size=30, max_position_embeddings=16)).save_pretrained(folder)
    return folder


def lora() -> PEFTLoRA:
    return PEFTLoRA(rank=2, alpha=2, dropout=0.0, targets=".*query", leave_out=[], **RATES)


def hub_lora() -> Any:
    """One that is called as the run is."""
    from hatemtl.methods.adapterhub.train_and_load import AdapterHubLoRA

    where: dict[str, Any] = {"attention": ["q"], "intermediate": False, "output": False, "leave_out": []}
    return AdapterHubLoRA(rank=2, alpha=2, dropout=0.0, **where, **RATES)


def tasks(*names: str, **other: Any) -> dict[str, Task]:
    """Tasks of these names; `other` replaces arguments of the heads."""
    kept = {"mask_pattern": other.pop("mask_pattern", None), "weight": 1.0}
    heads = {name: partial(HEADS[name], **{k: v for k, v in other.items() if k in HEADS[name].keywords}) for name in names}
    return {name: Task(corpus=Sample(size=100), column=name, head=heads[name], **kept) for name in names}


def network(source: Path, *names: str, **other: Any) -> Network:
    """A network with heads for these tasks."""
    given = tasks(*names)
    settings: dict[str, Any] = {
        "encoder": Encoder(source=str(source), max_length=16, attention="eager", random=None),
        "method": lora(),
        "tasks": given,
        "spaces": {name: SPACES[name] for name in names},
        "weighting": Sum,
        "optimization": OPTIMIZATION,
        "seed": 0,
        "name": "run",
        "heads_from": None,
    }
    return assemble(**{**settings, **other})


def save(network: Network, folder: Path, *, mask_pattern: str | None = None) -> SavedRun:
    """The saved run that this network would leave."""
    heads = network.module.heads
    trained = {name: {"mask_pattern": mask_pattern, "head": HEADS[name].keywords} for name in heads}
    write_config(folder, {"tasks": trained, "encoder": {"max_length": 16}})
    write_labels(folder, {name: network.module.head(name).space for name in heads})
    write_record(
        folder,
        {
            "method": "ah_lora16", "library": network.method.library.name, "encoder": network.mark,
            "encoder_source": "someone/encoder", "sources": {},
        },
    )  # fmt: skip
    network.method.library.save(network.module.encoder, network.name, folder)
    save_file(heads.state_dict(), folder / "heads.safetensors")
    return SavedRun(folder)


def weights(network: Network, task: str) -> dict[str, torch.Tensor]:
    return dict(network.module.head(task).state_dict())  # type: ignore[attr-defined]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Draws


def test_a_head_is_drawn_by_its_task_and_the_seed_alone(source: Path) -> None:
    first = network(source, "label", "target", "rationale")
    torch.rand(5)
    alone = network(source, "target", method=Full(path=None, **RATES))
    turned = network(source, "target", "label")
    assert same(weights(first, "target"), weights(alone, "target"))
    assert same(weights(first, "target"), weights(turned, "target"))
    assert same(weights(first, "label"), weights(turned, "label"))
    assert not same(weights(first, "target"), weights(network(source, "target", seed=1), "target"))
    given = {"one": tasks("label")["label"], "two": tasks("label")["label"]}
    two = network(source, tasks=given, spaces=dict.fromkeys(given, SPACES["label"]))
    assert not same(weights(two, "one"), weights(two, "two"))


def test_the_encoder_is_the_same_whatever_the_tasks(source: Path) -> None:
    one, three = network(source, "label", name="a"), network(source, "label", "target", "rationale", name="b")
    assert same(one.module.encoder.state_dict(), three.module.encoder.state_dict())


# What is told


def test_parts_name_everything_and_count_it_once(source: Path) -> None:
    built = network(source, "label", "target", name="run.v1", method=hub_lora())
    assert built.name == "run_v1"  # a dot would be a path inside the model
    parts = {part.name: part for part in built.parts()}
    assert {name: part.kind for name, part in parts.items()} == {
        "encoder": "body", "run_v1": "adapter", "label": "head", "target": "head",
    }  # fmt: skip
    assert sum(part.parameters for part in parts.values()) == sum(p.numel() for p in built.module.parameters())
    trained = sum(p.numel() for p in built.module.parameters() if p.requires_grad)
    assert sum(part.trained for part in parts.values()) == trained
    assert parts["encoder"].trained == 0
    assert parts["label"].trained == parts["label"].parameters == 3 * 16 + 3
    assert all(part.active for part in parts.values())


@pytest.mark.parametrize("name", ["half", "keys", "training"])
def test_a_save_path_may_end_in_any_name(name: str, source: Path) -> None:
    built = network(source, "label", name=name, method=hub_lora())
    assert built.name in {part.name for part in built.parts()}


# Saved runs


def test_a_label_starts_alike_in_a_part_and_in_the_whole_and_like_no_other(source: Path) -> None:
    encoder = Encoder(source=str(source), max_length=16, attention="eager", random=None)
    model, whole = encoder.model(dropout=False, seed=0), SPACES["target"]

    def last(space: LabelSpace, seed: int = 0) -> Tensor:
        head = initial_heads.fresh(model, tasks("target"), {"target": space}, seed)["target"]
        return torch.cat([head.layers[-1].weight, head.layers[-1].bias[:, None]], dim=1)

    of = dict(zip(whole.names, last(whole), strict=True))
    assert len({tuple(row.tolist()) for row in of.values()}) == len(whole)
    for part in ("1 2", "2 2"):
        space = whole.part(Part.parse(part))
        assert torch.equal(last(space), torch.stack([of[label] for label in space.names]))
    assert not torch.equal(last(whole, seed=1), last(whole))
    assert last(whole).abs().max() <= model.config.hidden_size**-0.5


def test_heads_come_from_the_saved_run(source: Path, tmp_path: Path) -> None:
    built = network(source, "label", "target", "rationale", seed=3)
    saved = save(built, tmp_path / "run")
    fresh = network(source, "target", "label")
    loaded = network(source, "target", "label", heads_from=saved, method=LoadPEFT(path=str(saved.folder), **RATES))
    for task in ("label", "target"):
        assert same(weights(loaded, task), weights(built, task))
        assert not same(weights(loaded, task), weights(fresh, task))
    assert list(loaded.module.heads) == ["target", "label"]
    assert loaded.mark == built.mark


def test_a_source_of_another_encoder_is_refused(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "label"), tmp_path / "run")
    other = BertModel.from_pretrained(source)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.weight += 1e-3
    other.save_pretrained(tmp_path / "other")
    encoder = Encoder(source=str(tmp_path / "other"), max_length=16, attention="eager", random=None)
    with pytest.raises(UserError, match=r"run was trained on another encoder: someone/encoder .*, and this run has .*other"):
        network(source, "label", encoder=encoder, method=LoadPEFT(path=str(saved.folder), **RATES))


def test_heads_with_other_labels_are_refused(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    for names in (("a", "b", "c"), ("b", "a", "c", "d")):  # the order of labels is that of the outputs
        spaces = {"target": LabelSpace("multilabel", names)}
        with pytest.raises(UserError, match=r"knows a, b, c, d, but the corpus has .*corpus@tasks.target.corpus=NAME"):
            network(source, "target", spaces=spaces, heads_from=saved)


def test_a_head_of_another_part_is_refused(source: Path, tmp_path: Path) -> None:
    part = SPACES["target"].part(Part.parse("1 2"))
    built = network(source, "target", spaces={"target": part})
    saved = save(built, tmp_path / "part", mask_pattern="1 2")
    whole = save(network(source, "target"), tmp_path / "whole")
    check_heads(saved, tasks("target", mask_pattern="1 2"))
    with pytest.raises(UserError, match=r"'1 2' \(labels a, c\), this run asks for '2 2'; .*mask_pattern=\"1 2\"$"):
        check_heads(saved, tasks("target", mask_pattern="2 2"))
    with pytest.raises(UserError, match=r"this run asks for None; type tasks.target.mask_pattern=\"1 2\"$"):
        check_heads(saved, tasks("target"))
    with pytest.raises(UserError, match=r"this run asks for '1 2'; type tasks.target.mask_pattern=null$"):
        check_heads(whole, tasks("target", mask_pattern="1 2"))
    with pytest.raises(UserError, match="asks for None"):  # assemble asks too
        network(source, "target", heads_from=saved)


def test_a_head_that_was_never_trained_is_refused(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target", "rationale"), tmp_path / "run")
    with pytest.raises(UserError, match=r"no trained head for task 'label'; type tasks=\[target,rationale\]"):
        network(source, "target", "label", heads_from=saved)


@pytest.mark.parametrize("other", [{"layers": 1}, {"pooling": "mean"}], ids=str)
def test_heads_that_are_built_otherwise_are_refused(other: dict[str, Any], source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    key = next(iter(other))
    with pytest.raises(UserError, match=rf"has {key}=.*; type tasks.target.head.{key}={HEADS['target'].keywords[key]}"):
        network(source, "target", tasks=tasks("target", **other), heads_from=saved)


def test_head_weights_that_are_not_there_are_told(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    path = tmp_path / "run" / "heads.safetensors"
    kept = load_file(path)
    save_file({key: value for key, value in kept.items() if not key.endswith("query.bias")}, path)
    with pytest.raises(UserError, match="the head for task 'target' is built otherwise .*query.bias"):
        network(source, "target", heads_from=saved)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match="has no heads.safetensors"):
        network(source, "target", heads_from=saved)


def test_heads_stand_on_the_encoder_side_that_they_were_trained_with(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    other = save(network(source, "target"), tmp_path / "other")
    encoder = Encoder(source=str(source), max_length=16, attention="eager", random=None)
    for method in (lora(), Full(path=None, **RATES), LoadPEFT(path=str(other.folder), **RATES)):
        with pytest.raises(UserError, match="does not load the encoder side of .*run, .*; type method=peft_load"):
            check_method(saved, method, encoder)
    check_method(saved, LoadPEFT(path=str(saved.folder), **RATES), encoder)
    with pytest.raises(UserError, match="type encoder.max_length=16"):
        check_method(saved, LoadPEFT(path=str(saved.folder), **RATES), replace(encoder, max_length=12))
    full = save(network(source, "target", method=Full(path=None, **RATES)), tmp_path / "full")
    with pytest.raises(UserError, match="type method=full"):
        check_method(full, lora(), encoder)
    check_method(full, Full(path=str(full.folder), **RATES), encoder)


def test_a_head_that_pools_or_cuts_otherwise_is_refused_and_one_that_only_trained_otherwise_is_not(
    source: Path, tmp_path: Path
) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    check_heads(saved, tasks("target", dropout=0.5, balance=1.0, threshold=0.9))
    with pytest.raises(UserError, match="type tasks.target.head.pooling=attention"):
        check_heads(saved, tasks("target", pooling="mean"))


def test_tuned_thresholds_come_with_the_heads_that_are_used_and_a_number_takes_their_place(
    source: Path, tmp_path: Path
) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    tuned, cuts = tasks("target", threshold="tuned"), [0.25, 0.5, 0.75, 0.1]
    with pytest.raises(UserError, match=r"has no tuned thresholds; tune them by .* method=peft_load, or type a number"):
        network(source, "target", tasks=tuned, heads_from=saved)
    head = {**HEADS["target"].keywords, "threshold": "tuned"}
    write_config(saved.folder, {"tasks": {"target": {"head": head}}, "encoder": {"max_length": 16}})
    write_labels(saved.folder, {"target": SPACES["target"]})
    with pytest.raises(UserError, match="has no tuned thresholds"):
        network(source, "target", tasks=tuned, heads_from=saved)
    write_labels(saved.folder, {"target": SPACES["target"]}, {"target": cuts})
    found = network(source, "target", tasks=tuned, heads_from=saved)
    assert found.module.head("target").written_thresholds() == cuts and not found.notes
    to_train = network(source, "target", tasks=tuned, heads_from=saved, posts=lambda split, number: [])
    assert to_train.module.head("target").written_thresholds() == [0.5] * 4, "it finds its own"
    typed = network(source, tasks=tasks("target", threshold=0.3), spaces={"target": SPACES["target"]}, heads_from=saved)
    assert typed.module.head("target").written_thresholds() == [0.3] * 4
    (note,) = typed.notes
    assert note.endswith("=tuned, and this run predicts from 0.3; tasks.target.head.threshold=tuned would keep to it")


@pytest.fixture
def parts(source: Path, tmp_path: Path) -> list[SavedRun]:
    """Two runs that know all labels of one task and a part each of another's."""
    runs, given = [], tasks("label", "target", pooling="mean", layers=1)
    for i in (1, 2):
        spaces = {"label": SPACES["label"], "target": SPACES["target"].part(Part(i, 2))}
        runs.append(save(network(source, tasks=given, spaces=spaces, seed=i), tmp_path / f"part_{i}"))
        trained = {name: {"mask_pattern": None, "head": task.head_settings} for name, task in given.items()}
        write_config(runs[-1].folder, {"tasks": trained, "encoder": {"max_length": 16}})
    return runs


def merged(source: Path, runs: list[SavedRun], how: Any, *names: str) -> Any:
    """Heads for these tasks that start from those of the runs."""
    given = tasks(*names, pooling="mean", layers=1)
    heads = network(source, tasks=given, spaces={name: SPACES[name] for name in names}).module.heads
    initial_heads.merge(heads, runs, given, how)  # type: ignore[arg-type]
    return heads


@pytest.mark.parametrize("how", ["concat", "refit"])
def test_tasks_that_are_whole_and_tasks_that_are_cut_are_merged_at_once(
    how: str, source: Path, parts: list[SavedRun]
) -> None:
    states, heads = (
        [load_file(run.folder / "heads.safetensors") for run in parts],
        merged(source, parts, how, "label", "target"),
    )
    key = "layers.1.weight"
    torch.testing.assert_close(heads["label"].state_dict()[key], (states[0][f"label.{key}"] + states[1][f"label.{key}"]) / 2)
    rows = [states[i][f"target.{key}"][row] for row in (0, 1) for i in (0, 1)]
    assert torch.equal(heads["target"].state_dict()[key], torch.stack(rows))


def test_heads_that_make_no_one_head_are_told_with_a_way_out(source: Path, parts: list[SavedRun]) -> None:
    with pytest.raises(UserError, match="part_1 for task 'target' knows a, c, .*type heads.merge=concat for parts"):
        merged(source, parts, "mean", "label", "target")
    twice = [*parts, SavedRun(shutil.copytree(parts[0].folder, parts[0].folder.with_name("again")))]
    for how, out in (("concat", "heads.merge=refit"), ("refit", "merge=mean")):
        with pytest.raises(UserError, match=f"heads.merge={how}: .* both trained for the label 'a' .*or type {out}"):
            merged(source, twice, how, "target")
        with pytest.raises(UserError, match=f"heads.merge={how}: no source has a head .*type tasks=.*, or {out}"):
            merged(source, twice, how, "rationale")


def test_a_source_whose_head_diverged_or_is_of_another_kind_is_named(source: Path, parts: list[SavedRun]) -> None:
    path = parts[1].folder / "heads.safetensors"
    whole = load_file(path)
    save_file(whole | {"label.layers.1.bias": torch.full((3,), torch.nan)}, path)
    with pytest.raises(UserError, match=r"part_2/heads.safetensors: label.layers.1.bias .*no finite number"):
        merged(source, parts, "mean", "label")
    save_file(whole, path)
    write_labels(parts[1].folder, {"target": LabelSpace("multiclass", ("b", "d"))})
    with pytest.raises(
        UserError, match=r"part_2: its head for task 'target' is for multiclass labels.*tasks.target.\* keys"
    ):
        merged(source, parts, "concat", "target")


def test_a_head_that_guesses_tokens_says_nothing_of_labels(source: Path, tmp_path: Path) -> None:
    given = {"mlm": Task(corpus=Sample(size=100), column=None, head=partial(MaskedHead, share=0.15))}
    write_config(tmp_path, {"tasks": {"mlm": {"head": {"share": 0.15}}}})
    write_labels(tmp_path, {"mlm": LabelSpace("masked", ("tokens",))})
    write_record(tmp_path, dict.fromkeys(("method", "library", "encoder", "encoder_source"), "full"))
    save_file({"mlm.bias": torch.zeros(30)}, tmp_path / "heads.safetensors")
    with pytest.raises(UserError, match="merge=fisher .* task 'mlm' guesses masked tokens; type merge=mean"):
        initial_heads.of_run(SavedRun(tmp_path), tasks=given, hidden_size=16)


def test_a_source_from_over_other_widths_is_noted(source: Path, tmp_path: Path) -> None:
    saved = save(network(source, "target"), tmp_path / "run")
    assert network(source, "target", method=LoadPEFT(path=str(saved.folder), **RATES)).notes == ()
    config = saved.config
    write_config(saved.folder, {**config, "encoder": {**config["encoder"], "quantize": "8bit"}})
    loaded = network(source, "target", method=LoadPEFT(path=str(saved.folder), **RATES), heads_from=saved)
    assert len(loaded.notes) == 1 and "over 8bit weights of this encoder and stands over float ones here" in loaded.notes[0]
