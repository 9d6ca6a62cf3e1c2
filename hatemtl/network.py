"""The network of a run: encoder, method and heads put together, with everything checked that would be silently wrong."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hatemtl.artifacts import SavedRun
from hatemtl.batch import Batch
from hatemtl.datamodule import DataModule
from hatemtl.encoder import Encoder, Tokenizer, Transformer, fingerprint, keep_trainable, vocabulary
from hatemtl.errors import UserError
from hatemtl.labels import LabelSpace, Part
from hatemtl.merging import heads as merged_heads
from hatemtl.merging.base import NeedsStatistics
from hatemtl.merging.learned import Learned
from hatemtl.methods.base import LOADERS, Component, Method, components, module_name
from hatemtl.methods.calibration import informed
from hatemtl.methods.coefficients import Search
from hatemtl.module import MultitaskModule, Weighting
from hatemtl.optimization import Optimization
from hatemtl.prefix import Prefix
from hatemtl.seeds import seeded
from hatemtl.startup import started
from hatemtl.tasks import Task
from hatemtl.trainer import TrainerSettings

# Keys of a head that matter while it is trained alone.
TRAINING_ONLY = ("dropout", "label_smoothing", "balance", "loss", "primary")


HeadsMerge = Literal["fresh", "concat", "mean", "refit"]


@dataclass(frozen=True)
class Network:
    """The module of a run, and what its saved run must say of it.

    mark: the fingerprint of the pretrained encoder. name: under which the method's adapter stands. notes: what a user
    should know of it. search: for a merge's weights.
    """

    module: MultitaskModule
    encoder: Encoder
    method: Method
    mark: str
    name: str
    notes: tuple[str, ...] = ()
    search: Search = field(default_factory=Search)

    def store(self, dtype: torch.dtype) -> None:
        """Keeps the body's frozen weights in the type of the computation: no cast at every step, half the memory in bf16."""
        if not self.method.stores_bf16:
            return
        pattern = self.method.adapter_pattern
        for name, parameter in self.module.encoder.named_parameters():
            frozen = not parameter.requires_grad and parameter.is_floating_point()  # a quantized weight stays as it is
            if frozen and not (pattern and pattern.search(name)):
                parameter.data = parameter.data.to(dtype)

    @property
    def lost(self) -> dict[str, float]:
        """The share of a merge's energy ‖ΔW‖² that its cut to a rank lost, by layer; empty where nothing was merged."""
        return getattr(self.module.encoder, "energy_lost", {})

    def merged(self) -> list[dict[str, object]]:
        """A row a layer of a merge: what was lost, and the weight of each source where they were searched for."""
        rows: list[dict[str, object]] = []
        for layer, lost in self.lost.items():
            weights = {f"weight_{n}": float(of.get(layer, 0)) for n, of in enumerate(self.search.found, 1)}
            rows.append({"layer": layer, "lost": lost, **weights})
        return rows

    def parts(self) -> list[Component]:
        """The body, each adapter and each head, with their parameters."""
        heads = [
            Component(
                name=task,
                kind="head",
                parameters=sum(p.numel() for p in head.parameters()),
                trained=sum(p.numel() for p in head.parameters() if p.requires_grad),
                active=True,
            )
            for task, head in self.module.heads.items()
        ]
        return components(self.method, self.module.encoder) + heads


def assemble(
    *,
    encoder: Encoder,
    method: Method,
    tasks: Mapping[str, Task],
    spaces: Mapping[str, LabelSpace],
    weighting: Weighting,
    optimization: Optimization,
    seed: int,
    name: str,
    heads_from: SavedRun | None,
    heads_merge: HeadsMerge = "fresh",
    posts: Callable[[str, int], list[Batch]] | None = None,
) -> Network:
    """Builds the network; heads start from `heads_from`, from those of the method's sources, or fresh by their own draws.

    posts: batches of so many posts of a split, for a merge that has to know some; None where none are at hand.

    Raises UserError where a head is of another kind than its labels, a source was trained on another encoder, or a saved
    head is not the one asked for.
    """
    for task, space in spaces.items():
        if tasks[task].kind != space.kind:
            raise UserError(
                f"task {task!r} has a head for {tasks[task].kind} labels, but those of its column are {space.kind}; type "
                f"head@tasks.{task}.head={space.kind}"
            )
    model = encoder.model(dropout=method.body_dropout, seed=seed)
    mark = fingerprint(model)
    notes = {}
    for source in [*method.starts_from(), *([heads_from] if heads_from else [])]:
        _same_encoder(source, mark, encoder)
        bits = source.config["encoder"].get("quantize")  # a run from before there was such a key had none
        if bits != encoder.quantize:
            notes[source.folder] = (
                f"{source.folder} was trained over {bits or 'float'} weights of this encoder and stands over "
                f"{encoder.quantize or 'float'} ones here: its scores will differ a little"
            )
    if encoder.quantize is not None and not method.quantizable:
        raise UserError(
            f"encoder.quantize={encoder.quantize}: {type(method).__name__} ({method.library}) needs the weights of "
            f"{encoder.source} as floats; type encoder.quantize=null, or method=ah_lora16"
        )
    merge = getattr(method, "merge", None)
    searched = isinstance(merge, Learned) and posts is not None
    heads = _fresh_heads(model, tasks, spaces, seed)
    if heads_from is not None:
        _load_heads(heads, heads_from, tasks)
    elif heads_merge in ("concat", "mean") or (heads_merge == "refit" and searched):  # a search needs some already
        _merge_heads(heads, method.starts_from(), tasks, heads_merge)
    elif searched:
        raise UserError(
            "merge=learned searches with the heads of the sources, and heads.merge=fresh draws new ones; type "
            "heads.merge=concat for parts, or heads.merge=mean"
        )
    told = Search()
    if isinstance(merge, NeedsStatistics) and posts is not None:
        trained = partial(_heads_of, tasks=tasks, hidden_size=model.config.hidden_size)
        method, told = informed(method, model, heads, trained, posts)
    name = module_name(name)
    attached = method.attach(encoder.quantized(model), name=name, seed=seed)
    keep_trainable(attached)
    module = MultitaskModule(
        attached,
        heads,
        weights={task: tasks[task].weight for task in spaces},
        weighting=weighting,
        optimization=optimization,
        seed=seed,
    )
    return Network(module, encoder, method, mark, name, tuple(notes.values()), told)


def prepare(
    network: Network, data: DataModule, settings: TrainerSettings, *, epochs: int, cache: Path | None, cache_prefix: bool
) -> None:
    """Makes network and data ready to train so many epochs: tokens, compiled code, frozen layers' states, labels' counts.

    cache: the folder that keeps the first three. Raises UserError where cache_prefix has no such folder, or nothing to keep,
    or a source was trained on other tokens.
    """
    module, tokenizer = network.module, network.encoder.tokenizer()
    for source in network.method.starts_from():
        check_tokenizer(source, tokenizer)
    data.tokenize(tokenizer, network.encoder.max_length, cache)
    if network.encoder.quantize is None or settings.compile is True:  # no one has seen that it pays for quantized layers
        module.compiled = settings.compiled(module.encoder, tokens=data.training_tokens(epochs), cache=cache)
    if cache_prefix:
        if cache is None:
            raise UserError("data.cache_prefix=true needs a folder to keep them in; type data.cache=FOLDER")
        if data.pool.masks:
            raise UserError("data.cache_prefix=true: a masked post is another each epoch; type data.cache_prefix=false")
        if network.encoder.quantize is not None:
            raise UserError(
                "data.cache_prefix=true: what quantized layers make of a post is not kept; type data.cache_prefix=false, or "
                "encoder.quantize=null"
            )
        started()  # it may take long
        batches = data.batching.in_order(data.pool.lengths)
        module.prefix = Prefix.cached(module.encoder, data.pool, batches, cache, mark=network.mark, device=settings.device)
    for task in data.tasks:
        module.head(task).observe(data.observed(task))


def check_encoder(saved: SavedRun, model: Transformer, encoder: Encoder) -> None:
    """Raises UserError where the saved run was trained on another encoder than this one, whose model is given."""
    _same_encoder(saved, fingerprint(model), encoder)


def check_tokenizer(saved: SavedRun, tokenizer: Tokenizer) -> None:
    """Raises UserError where the saved run read its posts through another tokenizer: its weights know other token ids."""
    if saved.record.get("tokenizer", mark := vocabulary(tokenizer)) != mark:
        raise UserError(
            f"{saved.folder} was trained with another tokenizer ({saved.record['tokenizer']}) than this encoder's ({mark}); "
            f"type encoder=NAME of the one that it was trained on ({saved.record['encoder_source']})"
        )


def _same_encoder(saved: SavedRun, mark: str, encoder: Encoder) -> None:
    if saved.record["encoder"] != mark:
        raise UserError(
            f"{saved.folder} was trained on another encoder: {saved.record['encoder_source']} "
            f"({saved.record['encoder']}), and this run has {encoder.source} ({mark}); type encoder=NAME of the former"
        )


def _fresh_heads(
    model: Transformer, tasks: Mapping[str, Task], spaces: Mapping[str, LabelSpace], seed: int
) -> dict[str, Any]:
    """A head for every task, each drawn by itself."""
    heads = {}
    for task, space in spaces.items():
        embedding = {"embedding": model.get_input_embeddings()} if space.kind == "masked" else {}
        with seeded(seed, "head", task):
            heads[task] = tasks[task].head(hidden_size=model.config.hidden_size, space=space, **embedding)
    return heads


def _heads_of(run: SavedRun, *, tasks: Mapping[str, Task], hidden_size: int) -> dict[str, Any]:
    """The heads of a saved run for those of the tasks that it was trained on."""
    weights, found = run.tensors("heads.safetensors"), {}
    for task in [task for task in tasks if task in run.labels]:
        head: Any = tasks[task].head(hidden_size=hidden_size, space=run.labels[task])
        _check_settings(run, task, tasks[task], f"method.sources: {run.folder}")
        _load_head(head, {key: value for key, value in weights.items() if key.startswith(f"{task}.")}, task, str(run.folder))
        found[task] = head
    if not found:
        raise UserError(f"{run.folder} has no head for {', '.join(tasks)}; type tasks=[{','.join(run.labels)}]")
    return found


def _load_heads(heads: Mapping[str, Any], saved: SavedRun, tasks: Mapping[str, Task]) -> None:
    check_heads(saved, tasks)
    for task, head in heads.items():
        if head.space != saved.labels[task]:
            raise UserError(
                f"load_path={saved.folder}: its head for task {task!r} knows {', '.join(saved.labels[task].names)}, but the "
                f"corpus has {', '.join(head.space.names)}; type the corpus@tasks.{task}.corpus=NAME that it was trained on"
            )
    weights = saved.tensors("heads.safetensors")
    try:
        nn.ModuleDict(heads).load_state_dict({key: value for key, value in weights.items() if key.split(".")[0] in heads})
    except RuntimeError as error:
        raise UserError(
            f"load_path={saved.folder}: its heads are built otherwise ({str(error).splitlines()[-1].strip()}); "
            f"give the tasks.*.head.* keys of {saved.folder / 'config.yaml'}"
        ) from error


def _merge_heads(heads: Mapping[str, Any], runs: list[SavedRun], tasks: Mapping[str, Task], how: HeadsMerge) -> None:
    """Gives every head what the sources' heads for its task make together."""
    if not runs:
        raise UserError(
            f"heads.merge={how} needs saved runs whose heads to merge, and this method starts from none; type "
            f"method=ah_merge16 method.sources=\"'adapters/run_*'\", or heads.merge=fresh"
        )
    for task, head in heads.items():
        sources = {}
        for run in runs:
            if task not in run.labels:
                continue
            _check_settings(run, task, tasks[task], f"method.sources: {run.folder}")
            weights = run.tensors("heads.safetensors")
            state = {key.removeprefix(f"{task}."): value for key, value in weights.items() if key.startswith(f"{task}.")}
            sources[str(run.folder)] = run.labels[task], state
        if not sources:
            raise UserError(
                f"heads.merge={how}: no source has a head for task {task!r}, they have {', '.join(runs[0].labels)}; type "
                f"heads.merge=refit, or tasks=[{','.join(runs[0].labels)}]"
            )
        alike = all(known == head.space for known, _ in sources.values())
        merge = merged_heads.mean if how == "mean" or (how == "refit" and alike) else merged_heads.concat
        _load_head(head, merge(task, sources, head.space), task, "the sources")


def _load_head(head: Any, state: Mapping[str, Tensor], task: str, owner: str) -> None:
    """Loads the weights of one head. Raises UserError where they are of another one; `owner` has them."""
    try:
        head.load_state_dict({key.removeprefix(f"{task}."): value for key, value in state.items()})
    except RuntimeError as error:
        raise UserError(
            f"{owner}: the head for task {task!r} is built otherwise ({str(error).splitlines()[-1].strip()}); give the "
            f"tasks.{task}.head.* keys that it was trained with"
        ) from error


def check_heads(saved: SavedRun, tasks: Mapping[str, Task]) -> None:
    """Raises UserError where the saved run has no trained head for a task, or has one for another part of its labels."""
    for name, task in tasks.items():
        if name not in saved.labels:
            raise UserError(
                f"load_path={saved.folder} has no trained head for task {name!r}; type tasks=[{','.join(saved.labels)}]"
            )
        trained = saved.config["tasks"][name]
        pattern = trained.get("mask_pattern")  # a task may leave it out
        if _part(pattern) != _part(task.mask_pattern):
            raise UserError(
                f"load_path={saved.folder}: its head for task {name!r} was trained with mask_pattern={pattern!r} (labels "
                f"{', '.join(saved.labels[name].names)}), this run asks for {task.mask_pattern!r}; type tasks.{name}."
                + ("mask_pattern=null" if pattern is None else f'mask_pattern="{pattern}"')
            )
        _check_settings(saved, name, task, f"load_path={saved.folder}")


def _check_settings(saved: SavedRun, name: str, task: Task, given: str) -> None:
    """Raises UserError where the saved head computes otherwise than the task's; `given` is what names it."""
    trained = saved.config["tasks"][name]["head"]
    for key, value in task.head_settings.items():
        if key not in TRAINING_ONLY and trained.get(key) != value:
            raise UserError(
                f"{given}: its head for task {name!r} has {key}={trained.get(key)}, this run asks for {value}; "
                f"type tasks.{name}.head.{key}={trained.get(key)}"
            )


def _part(pattern: str | None) -> Part | None:
    return None if pattern is None else Part.parse(pattern)


def check_method(saved: SavedRun, method: Method, encoder: Encoder) -> None:
    """Raises UserError where the encoder side under the saved heads would be another than the one trained with them."""
    if [source.folder.resolve() for source in method.starts_from()] != [saved.folder.resolve()]:
        raise UserError(
            f"the given method does not load the encoder side of {saved.folder}, which its heads were trained with; "
            f"type method={LOADERS[saved.record['library']]}"
        )
    length = saved.config["encoder"]["max_length"]
    if encoder.max_length != length:
        raise UserError(
            f"load_path={saved.folder} was trained with encoder.max_length={length}, this run has {encoder.max_length}; "
            f"type encoder.max_length={length}"
        )
