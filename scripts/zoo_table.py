"""What every AdapterHub method can do, tried on small random encoders: `uv run scripts/zoo_table.py` prints README's table.

Each method is that of its YAML in conf/method, on a BERT, an ELECTRA and a RoBERTa: trained as a run trains (the frozen
weights in bf16 under autocast), saved, loaded, merged into the weights, stacked on, fused. Parameters are those it trains
on MiniLM's shape (6 layers, 384 wide), without loading it.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

from hatemtl.artifacts import write_config, write_labels, write_record
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace
from hatemtl.methods import adapter_hub, ah_library, composition

CONF = Path(__file__).parents[1] / "conf" / "method"
CLASSES = {"LoRA": adapter_hub.LoRA, "Adapter": adapter_hub.Adapter}
SHAPE: dict[str, Any] = {
    **{"vocab_size": 20, "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "attn_implementation": "eager"},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
MINILM = {
    "vocab_size": 30522,
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
}
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**SHAPE)),
    "electra": lambda: ElectraModel(ElectraConfig(**SHAPE, embedding_size=64)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SHAPE)),
}
COLUMNS = ("train", "reload exact", "into weights", "stack", "average", "parallel", "fuse")
RATES = {"learning_rate": 1e-3, "body_dropout": False}


@dataclass(frozen=True)
class Row:
    """A method on an encoder: what came of each trial, `yes`, or why not."""

    method: str
    encoder: str
    outcomes: dict[str, str]


def methods() -> list[str]:
    """The YAMLs that train one new adapter."""
    found = [path.stem for path in sorted(CONF.glob("ah_*.yaml")) if _node(path.stem)["_target_"].split(".")[-1] in CLASSES]
    return sorted(found, key=lambda name: (name != "ah_lora16", name))


def method(name: str) -> Any:
    """The method as its YAML has it."""
    node = _node(name)
    return CLASSES[node.pop("_target_").split(".")[-1]](**node)


def _node(name: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return node


def encoder(kind: str) -> Any:
    """A small random encoder, as `Encoder.model` gives one."""
    torch.manual_seed(0)
    model = ENCODERS[kind]().eval()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.get_extended_attention_mask = partial(model.get_extended_attention_mask, dtype=torch.float32)
    return model


def said(model: nn.Module) -> Tensor:
    """The hidden states of three posts, one of them padded, in evaluation."""
    tokens = torch.randint(3, 20, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]


def train(method: Any, model: nn.Module, *, steps: int = 3) -> list[str]:
    """Trains as a run does, body in bf16 under autocast, then float32 again; gives what was trained without any gradient."""
    kept = {}
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad and not method.adapter_pattern.search(key):
            kept[key], parameter.data = parameter.data, parameter.data.bfloat16()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    still = set(trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=method.learning_rate) if trained else None
    draw = torch.Generator().manual_seed(2)
    for _ in range(steps if trained else 0):
        tokens = torch.randint(3, 20, (4, 12), generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.train()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        loss = (hidden.float() * torch.randn(hidden.shape, generator=draw)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        still -= {key for key in still if trained[key].grad is not None and bool(trained[key].grad.any())}
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
    for key, parameter in model.named_parameters():
        if key in kept:
            parameter.data = kept[key]
    return sorted(still)


def save(method: Any, model: nn.Module, name: str, folder: Path) -> Path:
    """A saved run of what `method` made of the model."""
    write_config(folder, {"tasks": {"target": {"mask_pattern": None}}})
    write_labels(folder, {"target": LabelSpace("multilabel", ("a", "b"))})
    record = {"method": folder.name, "library": method.library, "encoder": "", "encoder_source": "", "sources": {}}
    write_record(folder, record)
    method.save(model, name, folder)
    return folder


def trial(name: str, kind: str, folder: Path) -> Row:
    """Everything that the table says of a method on an encoder; sources are two runs of it that differ by their seed."""
    how, outcomes = method(name), {}
    for seed, run in ((0, "part_1"), (1, "part_2")):
        model = how.attach(encoder(kind), name=run, seed=seed)
        if still := train(how, model):
            outcomes["train"] = f"without gradient: {', '.join(still)}"
        save(how, model, run, folder / run)
    outcomes.setdefault("train", "yes")
    loaded = adapter_hub.Load(path=str(folder / "part_2"), **RATES).attach(encoder(kind), name="other", seed=9)
    outcomes["reload exact"] = "yes" if torch.equal(said(loaded), said(model)) else _far(said(loaded), said(model))
    outcomes["into weights"] = _tried(lambda: _merged(loaded))
    two = {"sources": str(folder / "part_*"), **RATES}
    combined = {
        "stack": lambda: composition.Stacked(
            **{**two, "sources": str(folder / "part_1")}, config=None, reduction_factor=None
        ),
        "average": lambda: composition.Averaged(**two, weights=None, where="layers"),
        "parallel": lambda: composition.Averaged(**two, weights=None, where="end"),
        "fuse": lambda: composition.Fusion(**two, query=True, key=True, value=False, width=16, dropout=0.0),
    }
    for column, make in combined.items():
        outcomes[column] = _tried(partial(_together, make(), kind, folder / column))
    return Row(name, kind, outcomes)


def _tried(what: Callable[[], str]) -> str:
    try:
        return what()
    except UserError as error:
        return str(error)


def _far(a: Tensor, b: Tensor) -> str:
    return f"off by {float((a - b).abs().max()):.1g}"


def _merged(model: nn.Module) -> str:
    before = said(model)
    after = said(ah_library.fold(model, "other"))
    return "yes" if torch.allclose(before, after, atol=2e-5, rtol=1e-4) else _far(before, after)


def _together(how: Any, kind: str, folder: Path) -> str:
    """Trains the sources at work together, saves them as one run and loads that."""
    model = how.attach(encoder(kind), name="whole", seed=3)
    if still := train(how, model):
        return f"without gradient: {', '.join(still)}"
    save(how, model, "whole", folder)
    again = adapter_hub.Load(path=str(folder), **RATES).attach(encoder(kind), name="again", seed=9)
    return "yes" if torch.equal(said(again), said(model)) else _far(said(again), said(model))


def parameters(name: str) -> tuple[int, float]:
    """How many parameters the method trains over MiniLM's shape, and their share of the encoder's."""
    with torch.device("meta"):
        body = BertModel(BertConfig(**{**SHAPE, **MINILM, "max_position_embeddings": 512}), add_pooling_layer=False)
    whole = sum(parameter.numel() for parameter in body.parameters())
    model = BertModel(BertConfig(**{**SHAPE, **MINILM, "vocab_size": 20}), add_pooling_layer=False)
    attached = method(name).attach(model, name="run", seed=0)
    trained = sum(parameter.numel() for parameter in attached.parameters() if parameter.requires_grad)
    return trained, trained / whole


def table(rows: list[Row]) -> str:
    """The org table: a line a method; a trial that no encoder passes is `no`, one that some do names those."""
    lines = ["| method | parameters | share | " + " | ".join(COLUMNS) + " |", "|-" + "+-" * (2 + len(COLUMNS)) + "|"]
    for name in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == name]
        count, share = parameters(name)
        cells = []
        for column in COLUMNS:
            good = [row.encoder for row in mine if row.outcomes[column] == "yes"]
            cells.append("yes" if len(good) == len(mine) else " ".join(good) or "no")
        lines.append(f"| ~{name}~ | {count:,} | {share:.2%} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, then every refusal once, with its reason."""
    logging.getLogger("adapters").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for name in methods():
        for kind in ENCODERS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(trial(name, kind, Path(folder)))
    print(table(rows))
    for row in rows:
        for column, outcome in row.outcomes.items():
            if outcome != "yes" and row.encoder == "bert":
                print(f"{row.method}, {column}: {outcome}")


if __name__ == "__main__":
    main()
