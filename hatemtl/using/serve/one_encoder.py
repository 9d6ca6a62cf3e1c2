"""Puts saved runs side by side on one encoder, which is loaded once: LoRAs in a bank, whatever else around its weights.

In the bank a row of a batch has an adapter of its own: the gates of `methods.bank.lora_bank` are set, not trained, to 1 for
the row's own source and to 0 for all others. Each other run is a copy of the encoder's modules with what it trained in
them; weights that it left as they are take their place in memory once.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hatemtl.command.request import Request
from hatemtl.encoders.pretrained import Encoder, Transformer
from hatemtl.errors import UserError
from hatemtl.methods import lora_formats
from hatemtl.methods.bank.lora_bank import LIBRARY, Gating, banks, fill
from hatemtl.methods.base import Attached, Method
from hatemtl.saved_runs.saved_run import SavedRun
from hatemtl.using.int8 import KEY, shrink
from hatemtl.using.predictor import Predictor

SMALL = 1024  # numbers: tensors of fewer are not worth looking for twice


@dataclass(frozen=True, kw_only=True)
class Loaded(Encoder):
    """Gives an encoder that is loaded already. apart: whether each model of it is a copy, which others may change."""

    loaded: Transformer
    apart: bool

    def model(self, *, dropout: bool, seed: int, pooler: bool = False) -> Transformer:
        return copy.deepcopy(self.loaded) if self.apart else self.loaded


@dataclass(frozen=True, kw_only=True)
class Beside(Method):
    """Leaves the encoder as it is, for the bank comes beside its layers when all runs are there."""

    library = LIBRARY

    def attach(self, model: Transformer, *, name: str, seed: int) -> Attached:
        return Attached(model)


class RowGate(nn.Module):
    """Lets each row of a batch through one source of a LoRA bank: 1 for its own, 0 for all others."""

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.each = torch.eye(sources)
        self.chosen = self.each[:1, None]

    @contextmanager
    def reading(self, rows: Tensor | int) -> Iterator[None]:
        """Inside, row i of a batch (B, T, in) is read with source rows[i], or every row with the same one."""
        before, self.chosen = self.chosen, (self.each[rows] if isinstance(rows, Tensor) else self.each[[rows]])[:, None]
        try:
            yield
        finally:
            self.chosen = before

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        return self.chosen


@dataclass(frozen=True)
class OnOneEncoder:
    """Holds saved runs by name. rows: which source of the bank each is that is in it; gate: of that bank.

    int8: whether they multiply in it.
    """

    predictors: Mapping[str, Predictor]
    rows: Mapping[str, int]
    gate: RowGate | None
    int8: bool


def together(requests: Mapping[str, Request]) -> OnOneEncoder:
    """Loads the saved runs that these requests use, by name. Raises UserError where they are not of one encoder."""
    saved = {name: request.used_run("serve") for name, request in requests.items()}
    check_encoders([*saved.values()])
    name, request = next(iter(requests.items()))
    int8 = request.trainer.int8
    if len(requests) == 1:
        return OnOneEncoder({name: Predictor(request, saved[name])}, {}, None, int8)
    if request.encoder.quantize is not None:
        raise UserError(
            f"encoder.quantize={request.encoder.quantize}: several are served on float weights; type encoder.quantize=null"
        )
    model = request.encoder.model(dropout=False, seed=request.seed)
    alike = {name for name in requests if _in_bank(saved[name], requests[name], model, request.trainer.dtype)}
    if int8 and (others := [name for name in requests if name not in alike]):
        raise UserError(
            f"{KEY} takes several runs of plain LoRAs alone, and {others[0]} is of another kind; type "
            f"load_path={saved[others[0]].folder} alone, or leave it out"
        )
    predictors: dict[str, Predictor] = {}
    for name, request in sorted(requests.items(), key=lambda item: item[0] in alike):  # copies are taken of it as it is
        known = Loaded(**vars(request.encoder), loaded=model, apart=name not in alike)
        one = replace(request, encoder=known)
        if name in alike:  # what is one network's to change is all networks'
            one = replace(one, trainer=_exact(request), method=Beside(learning_rate=0.0, body_dropout=False))
        predictors[name] = Predictor(one, saved[name])
    gate, rows = None, {name: row for row, name in enumerate(name for name in requests if name in alike)}
    if rows:
        dtype = torch.float32 if int8 else next(iter(requests.values())).trainer.dtype
        gate = _fill(model, {name: saved[name] for name in rows}, dtype, int8=int8)
        for name in rows:
            predictors[name].network.module.through.dtype = dtype
            predictors[name].network.module.to(predictors[name].request.trainer.device)
        gate.each = gate.each.to(predictors[next(iter(rows))].request.trainer.device)
    once(weight for predictor in predictors.values() for weight in predictor.network.module.encoder.parameters())
    return OnOneEncoder({name: predictors[name] for name in requests}, rows, gate, int8)


def check_encoders(runs: Sequence[SavedRun]) -> None:
    """Raises UserError where these saved runs were not all trained on the same pretrained encoder."""
    first = runs[0]
    for run in runs[1:]:
        if run.record["encoder"] != first.record["encoder"]:
            one, other = (f"{of.folder} on {of.record['encoder_source']} ({of.record['encoder']})" for of in (first, run))
            raise UserError(
                f"load_path: these runs were trained on different encoders, {one} and {other}, and one is loaded for all; "
                f"serve them by two commands, the second with serve.port=0"
            )


def _in_bank(run: SavedRun, request: Request, model: Transformer, dtype: torch.dtype) -> bool:
    """Tells whether the run is one plain LoRA, in that number format, of layers whose inputs have a row a post."""
    rows = not getattr(model.config, "relative_attention", False)  # DeBERTa's layers read positions too, once for all posts
    plain = run.record["library"] in lora_formats.FILES and lora_formats.is_lora(run)
    return rows and plain and request.trainer.dtype is dtype


def _exact(request: Request) -> Any:
    return replace(request.trainer, precision="32")


def _fill(model: Transformer, runs: Mapping[str, SavedRun], dtype: torch.dtype, *, int8: bool) -> RowGate:
    updates = {name: lora_formats.read(run, model) for name, run in runs.items()}
    if int8:
        shrink(model)
    fill(model, updates, gating=Gating(), name="served", seed=0)
    gate = RowGate(len(updates))
    for bank in banks(model).values():
        bank.gate = gate
    for weight in model.requires_grad_(False).parameters():
        weight.data = weight.data.to(dtype)
    return gate


def once(weights: Iterable[nn.Parameter]) -> None:
    """Gives weights that hold the same numbers the same place in memory."""
    places: dict[Any, Tensor] = {}
    for weight in weights:
        if weight.numel() >= SMALL:
            numbers = weight.data.contiguous().cpu().view(torch.uint8).numpy()
            mark = weight.shape, weight.dtype, weight.device, hashlib.blake2b(numbers.tobytes()).digest()
            weight.data = places.setdefault(mark, weight.data)
