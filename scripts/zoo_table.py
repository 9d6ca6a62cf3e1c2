"""What methods can do, tried on small random encoders: `uv run scripts/zoo_table.py` prints the tables of docs/methods.org.

Each method is that of its YAML in conf/method, on a BERT, an ELECTRA and a RoBERTa: put together and trained as a run does
it (the frozen weights in bf16 under autocast), saved, loaded, merged into the weights, put to work beside another of its
kind. Parameters are those it trains on MiniLM's shape (6 layers, 384 wide), without loading it.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ElectraConfig, RobertaConfig

from hatemtl.command.configuration import build
from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.errors import Refusal, UserError
from hatemtl.labels import LabelSpace
from hatemtl.methods.base import LOADERS
from hatemtl.methods.mtl_lora import reading, reads_by_task
from hatemtl.network.assembly import Network, assemble
from hatemtl.objective.weighting import Sum
from hatemtl.saved_runs.saved_run import SavedRun, write_config, write_labels, write_record
from hatemtl.using import merged_encoder

CONF = Path(__file__).parents[1] / "conf"
SHAPE: dict[str, Any] = {
    **{"vocab_size": 20, "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4},
    **{"max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
ENCODERS = {
    "bert": BertConfig(**SHAPE),
    "electra": ElectraConfig(**SHAPE, embedding_size=64),
    "roberta": RobertaConfig(**SHAPE),
}
TASKS = ("label", "target")  # of a run, which MTL-LoRA tells apart
ANY = ("ah", "peft")  # whatever kind a key says
KEYS = {"ah_par_bn": ("method.reduction_factor=6", "method.reduction_factor=16")}  # tried beside those of the YAML
# At full width the biases of keys have no gradient: they shift the scores of all sources alike.
NARROW = "ah_fusion method.width=16 method.value=false"
# What puts two saved runs to work together, and the methods of these.
COMPOSED = {
    "ah_stack": ("ah_lora16", "peft_lora16"),
    "ah_average": ("ah_lora16", "peft_lora16"),
    "ah_parallel": ("ah_lora16", "peft_lora16"),
    NARROW: ("ah_seq_bn", "ah_seq_bn"),
    NARROW.replace("ah_", "bottleneck_"): ("bottleneck", "ah_seq_bn"),
    "lora_fusion": ("ah_lora16", "peft_lora16"),
    "lora_gate": ("ah_lora16", "peft_lora16"),
    "ah_merge16": ("ah_lora16", "peft_lora16"),
    "peft_merge16": ("ah_lora16", "peft_lora16"),
    "full_merge": ("ah_lora16", "peft_lora16"),
}
TOGETHER = {"stack": "ah_stack", "average": "ah_average", "parallel": "ah_parallel", "fuse": NARROW}
ALONE = ("train", "reload exact", "into weights")
COLUMNS = (*ALONE, *TOGETHER)


@dataclass(frozen=True)
class Row:
    """A method on an encoder: what came of each trial, `yes`, `-` where there is nothing to try, or why not."""

    method: str
    encoder: str
    outcomes: dict[str, str]


class Small(Encoder):
    """An encoder with the same random weights whatever the seed of a run, as if they were pretrained."""

    def model(self, *, dropout: bool, seed: int, pooler: bool = False) -> Transformer:
        return super().model(dropout=dropout, seed=0, pooler=pooler)


def encoder(kind: str, folder: Path) -> Small:
    """That of ENCODERS; `folder` gets its configuration."""
    ENCODERS[kind].save_pretrained(folder / kind)
    return _small(folder / kind)


def _small(folder: Path) -> Small:
    return Small(source=str(folder), max_length=16, attention="eager", random={})


def methods() -> list[str]:
    """Every method that trains something new on one encoder, as a user types it: a YAML, and keys that are tried beside."""
    composing = {typed.split()[0] for typed in COMPOSED}
    every = {path.stem for path in (CONF / "method").glob("*.yaml") if not path.stem.endswith("_load")}
    names = sorted(every - composing - set(ANY))
    typed = [[name, *(f"{name} {key}" for key in KEYS.get(name, ()))] for name in names]
    return sorted((row for rows in typed for row in rows), key=lambda row: row != "ah_lora16")


def method(typed: str, **keys: Any) -> Any:
    """The method that a user typed, as its YAML has it but for the keys after it and these."""
    name, *others = typed.split()
    cfg = OmegaConf.create(
        {"load_path": None, "tasks": dict.fromkeys(TASKS), "method": _yaml("method", name), "merge": _yaml("merge", "mean")}
    )
    cfg.merge_with_dotlist(others)
    cfg.method.update(keys)
    return build(cfg.method)


@cache
def _yaml(group: str, name: str) -> Any:
    return OmegaConf.load(CONF / group / f"{name}.yaml")


def network(how: Any, body: Encoder, name: str, *, seed: int) -> Network:
    """As a run puts it together, without heads. Raises Refusal where the method cannot stand on the encoder."""
    shared: Any = {"weighting": Sum, "optimization": None, "heads_from": None}
    return assemble(encoder=body, method=how, tasks={}, spaces={}, seed=seed, name=name, **shared)


def states(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """What the encoder makes of the posts' tokens, the padding left out; where that depends on it, for each task in turn."""
    if not reads_by_task(model):
        return model(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()]
    found = []
    for task in TASKS:
        with reading(model, task):
            found.append(model(input_ids=tokens, attention_mask=mask).last_hidden_state[mask.bool()])
    return torch.cat(found)


@torch.no_grad()
def said(model: nn.Module) -> Tensor:
    """The hidden states of three posts, one of them padded, in evaluation."""
    tokens = torch.randint(3, 20, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 7:] = 0
    return states(model.eval(), tokens, mask)


def train(run: Network, *, posts: int, steps: int = 3) -> str:
    """Trains a few steps on posts drawn by that number: `yes`, `-` where nothing is trained, or what stayed as it was."""
    model = run.module.encoder
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        return "-"
    kept = {key: parameter.data for key, parameter in model.named_parameters() if not parameter.requires_grad}
    before = said(model)
    run.store(torch.bfloat16)
    optimizer = torch.optim.AdamW(trained.values(), lr=run.method.learning_rate)
    still, draw = set(trained), torch.Generator().manual_seed(posts)
    for _ in range(steps):
        tokens = torch.randint(3, 20, (4, 12), generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = states(model.train(), tokens, torch.ones_like(tokens))
        loss = (hidden.float() * torch.randn(hidden.shape, generator=draw)).sum()
        loss.backward()
        still -= {key for key in still if (gradient := trained[key].grad) is not None and bool(gradient.any())}
        optimizer.step()
        optimizer.zero_grad()
    for key, parameter in model.named_parameters():
        parameter.data = kept.get(key, parameter.data)  # float32 again, for what follows compares to the last bit
    if still:
        return f"without gradient: {', '.join(sorted(still))}"
    return "nothing that can be seen" if torch.equal(before, said(model)) else "yes"


def save(run: Network, option: str, folder: Path, *, seed: int) -> None:
    """Leaves what `training.py` would leave of a run of this option, but for heads and results."""
    write_config(folder, {"tasks": {task: {"mask_pattern": None} for task in TASKS}, "encoder": {"quantize": None}})
    write_labels(folder, {task: LabelSpace("multilabel", ("a", "b")) for task in TASKS})
    record = {
        "method": option,
        "library": run.method.library.name,
        "encoder": run.mark,
        "encoder_source": run.encoder.source,
    }
    write_record(folder, {**record, "sources": {}, "seed": seed})
    run.method.library.save(run.module.encoder, run.name, folder)


def walk(typed: str, body: Encoder, folder: Path, **keys: Any) -> dict[str, str]:
    """Trains, saves and loads again; the outcome of `train` and `reload exact`. Raises Refusal as `network` does."""
    run = network(method(typed, **keys), body, folder.name, seed=0)
    outcomes = {"train": train(run, posts=2)}
    save(run, typed.split()[0], folder, seed=0)
    one, two = said(run.module.encoder), said(loaded(folder, body))
    return {**outcomes, "reload exact": "yes" if torch.equal(one, two) else _far(one, two)}


def loaded(folder: Path, body: Encoder) -> nn.Module:
    """The encoder as the saved run left it, in a run of another name and seed."""
    how = method(LOADERS[SavedRun(folder).record["library"]], path=str(folder))
    return network(how, body, "other", seed=9).module.encoder


def merged(folder: Path, body: Encoder) -> str:
    """What came of merging what a saved run trained into the encoder's weights."""
    try:
        plain = merged_encoder.merged(SavedRun(folder), body, seed=0)
    except UserError as error:
        return str(error)
    one, two, bare = said(plain), said(loaded(folder, body)), said(body.model(dropout=False, seed=0))
    if torch.allclose(two, bare, atol=2e-5, rtol=1e-4):
        return "trained nothing that could be seen"
    return "yes" if torch.allclose(one, two, atol=2e-5, rtol=1e-4) else _far(one, two)


def trial(typed: str, kind: str, folder: Path) -> Row:
    """Everything that the first table says of a method on an encoder; sources are two runs of it on different posts."""
    body = encoder(kind, folder)
    first = network(method(typed), body, "part_1", seed=0)
    train(first, posts=1)
    save(first, typed.split()[0], folder / "part_1", seed=0)
    outcomes = walk(typed, body, folder / "part_2")
    outcomes["into weights"] = merged(folder / "part_2", body)
    for column, way in TOGETHER.items():
        found = composition(way, kind, body, folder / column, folder / ("part_1" if way == "ah_stack" else "part_*"))
        outcomes[column] = next((outcome for outcome in found.values() if outcome not in ("yes", "-")), "yes")
    return Row(typed, kind, outcomes)


def composition(way: str, kind: str, body: Encoder, folder: Path, sources: Path) -> dict[str, str]:
    """`walk` of a method on these saved runs; where it is refused, that as the user is told it."""
    try:
        return walk(way, body, folder, sources=str(sources))
    except Refusal as error:
        return dict.fromkeys(ALONE, str(error.named(way.split()[0], kind)))


def composed(way: str, kind: str, folder: Path) -> Row:
    """Everything that the second table says of a method that puts saved runs to work together."""
    body = encoder(kind, folder)
    for number, source in enumerate(COMPOSED[way], 1):
        part = network(method(source), body, f"part_{number}", seed=0)
        train(part, posts=number)
        save(part, source, folder / f"part_{number}", seed=0)
    outcomes = composition(way, kind, body, folder / "whole", folder / "part_*")
    return Row(way, kind, {**outcomes, "into weights": merged(folder / "whole", body)})


def _far(a: Tensor, b: Tensor) -> str:
    return f"off by {float((a - b).abs().max()):.1g}"


def parameters(typed: str, sources: Sequence[str] = ()) -> tuple[int, float]:
    """How many parameters the method trains over MiniLM's shape, and their share of the encoder's."""
    with torch.device("meta"):
        shape = {**SHAPE, **MINILM, "vocab_size": 30522, "max_position_embeddings": 512}
        whole = sum(parameter.numel() for parameter in BertModel(BertConfig(**shape), add_pooling_layer=False).parameters())
    with tempfile.TemporaryDirectory() as place:
        folder, keys = Path(place), {}
        BertConfig(**{**SHAPE, **MINILM}).save_pretrained(folder)  # with few words, which no adapter looks at
        for number, source in enumerate(sources, 1):
            part, keys = folder / f"part_{number}", {"sources": str(folder / "part_*")}
            run = network(method(source), _small(folder), part.name, seed=0)
            for parameter in run.module.encoder.parameters():
                if parameter.requires_grad:  # as trained: a merge leaves out the directions of a LoRA that says nothing
                    nn.init.normal_(parameter)
            save(run, source, part, seed=0)
        found = list(network(method(typed, **keys), _small(folder), "run", seed=0).module.encoder.parameters())
    everything = all(parameter.requires_grad for parameter in found)
    trained = whole if everything else sum(parameter.numel() for parameter in found if parameter.requires_grad)
    return trained, trained / whole


def table(rows: list[Row], columns: Sequence[str], sources: Mapping[str, Sequence[str]]) -> str:
    """The org table: a line a method; a trial that no encoder passes is `no`, one that some do names those.

    sources: the methods of the saved runs that a method puts to work together, in a column of their own; empty for none.
    """
    names = ["method", *(["sources"] if sources else []), "parameters", "share", *columns]
    lines = [f"| {' | '.join(names)} |", f"|{'+'.join('-' * len(names))}|"]
    for name in dict.fromkeys(row.method for row in rows):
        mine = [row.outcomes for row in rows if row.method == name]
        of = sources.get(name, ())
        count, share = parameters(name, of)
        cells = [f"~{name}~", *([" and ".join(f"~{each}~" for each in dict.fromkeys(of))] if of else [])]
        cells += [f"{count:,}", f"{share:.2%}"]
        for column in columns:
            good = [row.encoder for row in rows if row.method == name and row.outcomes[column] == "yes"]
            nothing = all(outcomes[column] == "-" for outcomes in mine)
            cells.append("yes" if len(good) == len(mine) else "-" if nothing else " ".join(good) or "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the tables, then every refusal on a BERT, with its reason."""
    logging.getLogger("adapters").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    alone, together = (
        [_row(try_, name, kind) for name in names for kind in ENCODERS]
        for try_, names in ((trial, methods()), (composed, list(COMPOSED)))
    )
    print(table(alone, COLUMNS, {}))
    print(table(together, ALONE, COMPOSED))
    for row in (row for row in [*alone, *together] if row.encoder == "bert"):
        for column, outcome in row.outcomes.items():
            if outcome not in ("yes", "-"):
                print(f"{row.method}, {column}: {outcome}")


def _row(try_: Callable[[str, str, Path], Row], name: str, kind: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        return try_(name, kind, Path(folder))


if __name__ == "__main__":
    main()
