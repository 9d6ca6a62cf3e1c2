"""Gathers what a merge must know of posts, from each source as it computes: inputs' second moments, Fisher information."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.encoders.fast import restore
from hatemtl.encoders.pretrained import Transformer
from hatemtl.errors import UserError
from hatemtl.merging.informed import fisher, gram, packed
from hatemtl.methods import full, lora_formats
from hatemtl.methods.base import Method
from hatemtl.network.forward import Forward
from hatemtl.network.merge_search import Search, search
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.seeds import generator

Statistics = dict[str, Tensor]  # by layer
Heads = Mapping[str, Any]  # by task
HeadsOf = Callable[[SavedRun], Heads]  # those that a source was trained with
TOKENS = 256  # with padding, that are computed at once where a backward follows: until then all that layers make is kept


def informed(
    method: Method, model: Transformer, heads: Heads, trained: HeadsOf, posts: Callable[[str, int], list[Batch]], seed: int
) -> tuple[Method, Search]:
    """Gives the method with a merge that knows what it must, and what a search for weights found and tried.

    heads: of the merged network. posts: batches of so many posts of a split. seed: the run's.
    """
    given: Any = method  # whose class has the keyword `merge`
    merge: Any = method.merge
    runs, told = method.starts_from(), Search()
    full_runs, adapter_hub = any(run.record["library"] == "full" for run in runs), method.library.name == "adapterhub"
    library = "full" if full_runs else "adapterhub" if adapter_hub else "peft"  # by whose names the method merges
    if merge.needs == "search":
        found, tried = search(merge, model, runs, heads, posts("val", merge.posts))
        told = Search(tried, found, steps=merge.steps if merge.search == "gradient" else 0)
    elif adapter_hub and not all(map(lora_formats.is_lora, runs)):
        by_parameter = of_adapters(merge.needs, method, model, trained, posts("train", merge.posts), seed)
        return replace(given, merge=replace(merge, statistics=by_parameter)), told
    else:
        found = statistics(merge.needs, model, runs, trained, posts("train", merge.posts))
    return replace(given, merge=replace(merge, statistics=[named(some, model, library) for some in found])), told


def statistics(
    kind: str, model: Transformer, runs: Sequence[SavedRun], heads: HeadsOf, batches: Sequence[Batch]
) -> list[Statistics]:
    """Gathers for each source, by layer: `gram`, second moments of the layer's inputs, `packed`, or `fisher`, of W's shape.

    In single precision, and one Gram matrix for layers that read the same: those of four sources are all kept at once.
    The pretrained encoder computes as one source after the other and is as it was at the end. Raises UserError where a
    source is neither a LoRA nor a full encoder.
    """
    found = []
    model.requires_grad_(False)
    if any(run.record["library"] == "full" for run in runs):
        layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    else:
        layers = [*dict.fromkeys(path for run in runs for path in lora_formats.read(run, model))]
    for run in runs:
        with as_source(model, run):
            if kind == "gram":
                found.append(_grams(model, layers, batches))
            else:
                found.append(_fishers(model, layers, heads(run), batches, generator(run.record["seed"], "fisher")))
    model.requires_grad_(True)
    return found


def of_adapters(
    kind: str, method: Method, model: Transformer, heads: HeadsOf, batches: Sequence[Batch], seed: int
) -> list[Statistics]:
    """Gathers as `statistics` where the sources are no LoRAs, by the names of the parameters that the method merges.

    `gram` is of the linear layers among them, `fisher` of every entry. Raises UserError where they cannot be merged.
    """
    found = []
    sources = method.each(model, seed=seed, linear=kind == "gram")
    for run, (adapted, own) in zip(method.starts_from(), sources, strict=True):
        restore(adapted)  # no one has verified what is faster
        if kind == "gram":
            keys = {id(weight): key for key, weight in own.items()}
            linear = {path: keys.get(id(m.weight)) for path, m in adapted.named_modules() if isinstance(m, nn.Linear)}
            layers = {path: key for path, key in linear.items() if key is not None}
            found.append({layers[path]: value for path, value in _grams(adapted, [*layers], batches).items()})
        else:
            found.append(_entry_fishers(adapted, own, heads(run), batches, generator(run.record["seed"], "fisher")))
    return found


@contextmanager
def as_source(model: Transformer, run: SavedRun) -> Iterator[None]:
    """Lets the pretrained encoder compute as the source does, inside: its weights are the source's, exactly."""
    whole, state = run.record["library"] == "full", model.state_dict()
    updates = {} if whole else {f"{path}.weight": update.dense() for path, update in lora_formats.read(run, model).items()}
    after = run.tensors(full.WEIGHTS) if whole else {key: state[key] + more.to(state[key]) for key, more in updates.items()}
    before = {key: weight.clone() for key, weight in state.items() if key in after}
    model.load_state_dict(after, strict=whole)
    try:
        yield
    finally:
        model.load_state_dict(before, strict=False)


def named(some: Statistics, model: Transformer, library: str) -> Statistics:
    """Gives the statistics under the names that a method of this library merges by.

    Those of a fully trained encoder are of parameters; AdapterHub tells q, k and v apart where they share a matrix.
    """
    if library == "full":
        return {f"{path}.weight": value for path, value in some.items()}
    found = {}
    for path, value in some.items():
        rows, columns = model.get_submodule(path).weight.shape  # type: ignore[misc]
        if library != "adapterhub" or rows != 3 * columns or "qkv" not in path.lower():
            found[path] = value
            continue
        parts = value.chunk(3) if value.shape == (rows, columns) else [value] * 3
        found |= {f"{path}.{name}": part for name, part in zip("qkv", parts, strict=True)}
    return found


@torch.no_grad()
def _grams(model: Transformer, layers: Sequence[str], batches: Sequence[Batch]) -> Statistics:
    sums: Statistics = {}
    first: dict[str, str] = {}  # by layer, that which reads the same before it, or itself: q, k and v read one tensor
    mask: Tensor
    read: tuple[Tensor | None, str] = None, ""
    seen = set[str]()

    def add(module: nn.Module, arguments: tuple[Tensor, ...], *, path: str) -> None:
        nonlocal read
        if path in seen:
            return  # DeBERTa's layers read the posts first, then positions, which no post owns
        seen.add(path)
        if arguments[0] is not read[0]:
            read = arguments[0], path
        if first.setdefault(path, read[1]) == path:
            inputs = packed(gram(arguments[0][mask].float()))
            sums[path] = sums[path].add_(inputs) if path in sums else inputs

    with ExitStack() as hooks:
        for path in layers:
            hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(partial(add, path=path)))
        forward = Forward(model.eval(), {})
        for batch in _pieces(batches, 4 * TOKENS):
            mask = batch.attention_mask.bool()
            seen.clear()
            forward.encode(batch)
    tokens = sum(batch.tokens for batch in batches)
    means = {path: total.div_(tokens) for path, total in sums.items()}
    return {path: means[own] for path, own in first.items()}


def _fishers(
    model: Transformer, layers: Sequence[str], heads: Heads, batches: Sequence[Batch], draw: torch.Generator
) -> Statistics:
    """The mean over posts of the squared gradient of log p(y | post), y drawn from the source's own prediction."""
    sums = {path: torch.zeros_like(model.get_parameter(f"{path}.weight"), dtype=torch.float32) for path in layers}

    def watch(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor, *, path: str) -> None:
        inputs = arguments[0].detach()
        if len(inputs) != len(batch.input_ids) or not output.requires_grad:
            return  # as in _grams

        def add(gradient: Tensor) -> None:
            if batch.owner is None:
                sums[path] += fisher(inputs, gradient)
            else:  # one post, whose sequences are read together
                sums[path] += fisher(inputs.flatten(0, 1)[None], gradient.flatten(0, 1)[None])

        output.register_hook(add)

    with ExitStack() as hooks:
        # a gradient has to get to the layers, whose weights are frozen
        embeddings = model.get_input_embeddings()
        hooks.enter_context(embeddings.register_forward_hook(lambda module, arguments, output: output.requires_grad_()))
        for path in layers:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(partial(watch, path=path)))
        forward = Forward(model.eval(), nn.ModuleDict(heads).eval())
        for batch in _pieces(batches, 1 if any(batch.owner is not None for batch in batches) else TOKENS):
            _surprise(forward, batch, draw).backward()
    posts = sum(map(len, batches))
    return {path: total.div_(posts) for path, total in sums.items()}


def _entry_fishers(
    model: nn.Module, own: Mapping[str, nn.Parameter], heads: Heads, batches: Sequence[Batch], draw: torch.Generator
) -> Statistics:
    """As `_fishers`, of parameters of any shape that are used in any way: so posts are read one by one."""
    trained = {key: parameter for key, parameter in own.items() if parameter.requires_grad}
    sums = {key: torch.zeros_like(parameter, dtype=torch.float32) for key, parameter in trained.items()}
    forward = Forward(model.eval(), nn.ModuleDict(heads).eval())
    for post in _pieces(batches, 1):
        surprise = _surprise(forward, post, draw)
        gradients = torch.autograd.grad(surprise, [*trained.values()], materialize_grads=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient.square()
    posts = sum(map(len, batches))
    return {key: total.div_(posts) for key, total in sums.items()}


def _surprise(forward: Forward, batch: Batch, draw: torch.Generator) -> Tensor:
    """-log p(y | post), summed over posts and the tasks that they have, for labels y drawn from the predictions."""
    logits = forward(batch)
    found = [head.surprise(logits[task][batch.has[task]], draw) for task, head in forward.heads.items()]
    if other := [head.kind for head, surprise in zip(forward.heads.values(), found, strict=True) if surprise is None]:
        raise UserError(
            f"merge=fisher knows heads for multiclass, multilabel, choice and span labels, not for {other[0]} ones; type "
            f"merge=mean"
        )
    return torch.stack(found).sum()


def _pieces(batches: Sequence[Batch], tokens: int) -> Iterator[Batch]:
    """The batches in pieces of so many tokens, padding included, or of one post, with its sequences."""
    for batch in batches:
        several = -(-len(batch.input_ids) // len(batch))  # sequences a post, rounded up
        posts = max(1, tokens // (batch.input_ids.shape[1] * several))
        yield from (batch.some(start, start + posts) for start in range(0, len(batch), posts))
