"""Opens the door to hatemtl's own layers: who uses them knows nothing else of this folder.

They compute plain LoRAs, DoRA and (IA)³ of any encoder, and whole layers of BERT and its kin where these, plain
bottlenecks, or the layers' own weights are all that is trained: docs/fast.org says when. The libraries keep the parameters
and save them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.encoders.fast.adapted import Adapted
from hatemtl.encoders.fast.layers import Bottleneck
from hatemtl.encoders.fast.stack import Stack, stacks

# How far hidden states, or the gradients of all factors, may lie from the library's, relative to these. In float32 2e-6 was
# seen, in bf16, where the library's own rounding is as large, 0.025, which grows with depth.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.2}
INT8 = 0.2
BATCH, WARM, STEPS = (32, 64), 2, 5  # posts and their places, and steps of it, by which `choose` judges
_verified: dict[tuple[Any, ...], str] = {}  # what was found in this process, by the kind of model; "" where all was well
_slower: dict[tuple[Any, ...], bool] = {}  # than the library's


def accelerate(
    model: nn.Module, adapted: Sequence[Adapted] = (), bottlenecks: Sequence[Bottleneck] = (), *, own: bool = False
) -> None:
    """Lets these adapted layers be computed here, and whole layers where nothing else is trained, in place of any before.

    bottlenecks: those of such layers.
    own: whether the model is as its library loaded it, nothing added, and its own weights are trained.
    """
    restore(model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    given: list[Adapted | Bottleneck] = [*adapted, *bottlenecks]
    by_owner = {id(bottleneck.owner): bottleneck for bottleneck in bottlenecks}
    alone = own or (given and trained == {id(factor) for adapter in given for factor in adapter.factors})
    steps: Iterator[Adapted | Stack] = chain(adapted, stacks(model, by_owner) if alone else ())
    for ours in steps:  # a stack is made of what computes when its turn comes: adapted layers
        ours.before, ours.owner.forward = ours.owner.__dict__.get("forward"), ours


def restore(model: nn.Module) -> None:
    """Lets every module compute as it did before `accelerate`; what others put in the place of a `forward` stays."""
    for module in model.modules():
        ours = module.__dict__.get("forward")
        if isinstance(ours, Adapted | Stack):
            del module.forward
            if ours.before is not None:
                module.forward = ours.before


@contextmanager
def merged(model: nn.Module, dtype: torch.dtype = torch.float32, *, int8: bool = False) -> Iterator[bool]:
    """Merges each adapter computed here into the weight under it, inside, while nothing is trained; says if there is any.

    dtype: that layers whose own weights are trained compute in. Afterwards all is as before, to the last bit: to merge and
    unmerge as the libraries do would change the frozen weights.
    """
    try:
        yield merge(model, dtype, int8=int8)
    finally:
        unmerge(model)


def merge(model: nn.Module, dtype: torch.dtype = torch.float32, *, int8: bool = False) -> bool:
    """Merges each adapter computed here into the weight under it, until `unmerge`; says if there is any.

    int8: whether whole layers that are computed here, on a CPU, multiply in it from then on.
    """
    found = _found(model)
    for ours in found:
        ours.merge(dtype, int8=int8)
    return bool(found)


def unmerge(model: nn.Module) -> None:
    """Lets each adapter be computed beside its weight again."""
    for ours in _found(model):
        ours.unmerge()


def _found(model: nn.Module) -> list[Adapted | Stack]:
    """Lists what computes here: adapted layers, then the stacks that are made of them."""
    found = [module.forward for module in model.modules()]
    return [ours for kind in (Adapted, Stack) for ours in found if isinstance(ours, kind)]


def is_fast(model: nn.Module) -> bool:
    """Tells whether whole layers of the model are computed here: those are as fast as compiled code."""
    return any(isinstance(module.forward, Stack) for module in model.modules())


def verify(model: nn.Module, dtype: torch.dtype, *, device: torch.device | None = None, int8: bool = False) -> str | None:
    """Compares hidden states and gradients with the library's, once a process for each kind of model and number format.

    dtype: of the computation, and of frozen weights. device: where the model will be. int8: whether what is merged is
    multiplied in it. Where they differ, the library computes from now on; gives what a user should know of that. No weight
    changes, no draw: dropout is off.
    """
    if not _found(model):
        return None
    device = device or next(model.parameters()).device
    key = (*_kind(model), dtype, int8, device)
    if key not in _verified:
        with _still(model, device):
            _verified[key] = _difference(model, dtype, int8=int8)
    if _verified[key]:
        restore(model)
    return _verified[key] or None


def choose(
    model: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    *,
    learns: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Lets the library compute whole layers where it takes less time, once a process as `verify`.

    learns: whether a step of training is timed; else the reading of posts, ours merged. For devices other than a CPU, where
    ours are the faster ones. No weight changes, no draw.
    """
    if not is_fast(model) or (learns and not any(parameter.requires_grad for parameter in model.parameters())):
        return
    key = (*_kind(model), dtype, device, learns)
    if key not in _slower:
        with _still(model, device):
            with nullcontext() if learns else merged(model, dtype):
                mine = _seconds(model, dtype, clock, learns=learns)
            with _by_the_library(model):
                _slower[key] = _seconds(model, dtype, clock, learns=learns) < mine
    if _slower[key]:
        restore(model)


def _adapters(model: nn.Module) -> tuple[list[Adapted], list[Bottleneck]]:
    """Lists those that are computed here."""
    found = _found(model)
    bottlenecks = [bottleneck for ours in found if isinstance(ours, Stack) for bottleneck in ours.bottlenecks]
    return [ours for ours in found if isinstance(ours, Adapted)], bottlenecks


def _kind(model: nn.Module) -> tuple[Any, ...]:
    """Gives what models have in common that are computed here alike."""
    adapted, bottlenecks = _adapters(model)
    layers = sum(len(ours.layers) for ours in _found(model) if isinstance(ours, Stack))
    config: Any = model.config
    kinds: set[Any] = {(type(one.owner), type(one), getattr(one, "enters", False)) for one in adapted}
    kinds |= {(type(b.owner), b.activation, b.reads) for b in bottlenecks}
    sizes = [(name, *parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # of its attention config.json says nothing
    named = config.to_json_string(), config._attn_implementation
    return *named, len(adapted), len(bottlenecks), frozenset(kinds), layers, tuple(sizes)


@contextmanager
def _still(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Has the model on the device, and without dropout, inside."""
    here, modes = next(model.parameters()).device, [(module, module.training) for module in model.modules()]
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(here)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _by_the_library(model: nn.Module) -> Iterator[None]:
    """Lets the library compute, inside."""
    adapted, bottlenecks = _adapters(model)
    restore(model)
    try:
        yield
    finally:
        accelerate(model, adapted, bottlenecks, own=not (adapted or bottlenecks))


def _seconds(model: nn.Module, dtype: torch.dtype, clock: Callable[[], float], *, learns: bool) -> float:
    """Gives the median of a step's forward, and backward where it learns, of a batch of short posts."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config: Any = model.config
    device, (posts, longest) = next(model.parameters()).device, BATCH
    longest = min(longest, getattr(config, "max_position_embeddings", longest + 2) - 2)  # RoBERTa counts from 2
    ids = 3 + torch.arange(posts * longest, device=device).view(posts, longest) % (config.vocab_size - 3)
    lengths = torch.linspace(longest // 8, longest, posts, device=device).long()
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    taken = []
    for _ in range(WARM + STEPS):
        begun = clock()
        with torch.set_grad_enabled(learns), torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            made = [model(input_ids=ids, attention_mask=mask).last_hidden_state]
        if learns:
            made = [*torch.autograd.grad(made[0].float().square().mean(), trained, allow_unused=True)]
        float(sum(tensor.flatten()[0] for tensor in made if tensor is not None))  # waits until all is computed
        taken.append(clock() - begun)
    return sorted(taken[WARM:])[STEPS // 2]


def _difference(model: nn.Module, dtype: torch.dtype, *, int8: bool) -> str:
    """Says how our layers differ from the library's, "" where they do not."""
    adapted, bottlenecks = _adapters(model)
    given: list[Adapted | Bottleneck] = [*adapted, *bottlenecks]
    factors = [factor for adapter in given for factor in adapter.factors]
    trained = factors or [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [factor.detach().clone() for factor in factors]
    instead = "so the library's compute, more slowly, as by trainer.fast=false"
    sizes = [factor.numel() for factor in factors]
    scales = [size for adapter in given for size in adapter.sizes]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # to wait for others takes longer than these small products, many times so on a busy machine
    try:  # every B may be zero, so all factors hold made-up numbers meanwhile
        for factor, numbers, scale in zip(factors, _made_up(sum(sizes)).split(sizes), scales, strict=True):
            factor.data.copy_(scale * numbers.view(factor.shape))
        try:
            ours = _said(model, trained, dtype, int8=int8)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            return f"hatemtl's own layers fail on this encoder ({type(error).__name__}: {reason}), {instead}"
        with _by_the_library(model):
            theirs = _said(model, trained, dtype, int8=False)
    finally:
        torch.set_num_threads(threads)
        for factor, numbers in zip(factors, before, strict=True):
            factor.data.copy_(numbers)
    off = [float((mine - exact).norm() / exact.norm()) for mine, exact in zip(ours, theirs, strict=True)]
    if all(share <= (INT8 if int8 else TOLERANCES.get(dtype, 1e-4)) for share in off):
        return ""
    return f"hatemtl's own layers differ from the library's on this encoder (by {max(off):.1g} of what it says), {instead}"


def _said(
    model: nn.Module, trained: Sequence[nn.Parameter], dtype: torch.dtype, *, int8: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of two posts of few tokens, the same with adapters merged, and gradients of what is trained."""
    config: Any = model.config
    long = max(8, getattr(config, "local_attention", 0) // 2 + 2)  # so that local attention leaves something out
    device, long = trained[0].device, min(long, getattr(config, "max_position_embeddings", 10) - 2)  # RoBERTa counts from 2
    short = long - long // 4
    ids = 3 + torch.arange(2 * long, device=device).view(2, long) % (config.vocab_size - 3)
    mask = torch.arange(long, device=device) < torch.tensor([[long], [short]], device=device)

    def hidden() -> Tensor:
        both = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return torch.cat([both[0], both[1, :short]])

    with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        with torch.enable_grad():
            apart = hidden()
        with torch.no_grad(), merged(model, dtype, int8=int8) as other:
            together = hidden() if other else apart.detach()
    loss = (apart.flatten() * _made_up(apart.numel()).to(apart)).sum()
    gradients = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return apart.detach(), together, torch.cat([gradient.flatten() for gradient in gradients])


def _made_up(count: int) -> Tensor:
    """So many numbers in ±1 without a pattern, and without a draw: n²·φ modulo 1 is spread evenly (Weyl 1916)."""
    return torch.arange(count, dtype=torch.float64).square() * ((5**0.5 - 1) / 2) % 1 * 2 - 1
