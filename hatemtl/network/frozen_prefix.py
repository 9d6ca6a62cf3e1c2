"""Computes the frozen layers below the first trained one once: what they make of a post is the same in every epoch."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hatemtl.batches.batch import Batch
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.encoders.partway import EnoughError, run_until, states
from hatemtl.errors import UserError
from hatemtl.saved_runs.writing import write


class Prefix:
    """The layers of an encoder below its first trained one, whose hidden states of a post are the same in every epoch.

    Once installed, these layers compute nothing where `current` holds their states, (B, T, D): the last gives them, once.
    Raises UserError where no layer is free of training, or where dropout makes every pass another.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder, self.layers = encoder, frozen_layers(encoder)
        if not self.layers:
            raise UserError(
                "data.cache_prefix=true: the lowest layer is trained, so nothing stays the same; leave layers without an "
                "adapter, type method=peft_lora16 method.leave_out=[0,1,2], or data.cache_prefix=false"
            )
        above = {*nn.ModuleList(_layers(encoder)[len(self.layers) :]).modules()}
        if any(isinstance(m, nn.Dropout) and m.p > 0 for m in encoder.modules() if m not in above):
            raise UserError("data.cache_prefix=true: dropout makes every pass another; type method.body_dropout=false")
        self.current: Tensor | None = None
        self.others: int | None = None  # what a layer gives beside hidden states; None where these are no tuple's

    def fill(self, pool: TokenizedPosts, batches: Sequence[np.ndarray], folder: Path, mark: str) -> None:
        """Computes the hidden states of these rows, unless `folder` holds them, and gives them to the pool.

        mark: the fingerprint of the pretrained encoder. The file is mapped, not read: it may be larger than memory.
        """
        weights = [weight for layer in self.layers for weight in layer.parameters()]  # a frozen adapter's may be among them
        device, dtype = weights[0].device, weights[0].dtype
        shape = len(pool.tokens), self._below(pool[batches[0]].to(device)).shape[-1]
        config: Any = self.encoder.config
        libraries = torch.__version__, version("transformers")
        how = 1, mark, len(self.layers), dtype, shape, device.type, config._attn_implementation, *libraries
        digest = hashlib.sha256(f"{how} {config.to_json_string(use_diff=False)}".encode())
        firsts = pool.firsts if len(pool.firsts) < len(pool.offsets) else None  # as where every post is one sequence
        for array in (pool.tokens, pool.offsets, np.sort(np.concatenate(batches)), pool.second, firsts):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        for weight in weights:
            digest.update(weight.detach().flatten()[:: max(1, weight.numel() // 1024)].float().cpu().numpy().tobytes())
        path, size = folder / f"prefix-{digest.hexdigest()[:32]}.bin", shape[0] * shape[1]
        room = size * dtype.itemsize
        if not path.is_file() or path.stat().st_size != room:

            def compute(temporary: Path) -> None:
                with temporary.open("wb") as file:
                    if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without a word
                        os.posix_fallocate(file.fileno(), 0, room)
                filled = torch.from_file(str(temporary), shared=True, size=size, dtype=dtype).view(shape)
                for rows in batches:
                    batch, places = pool[rows], torch.cat([torch.arange(*pool.span(row)) for row in rows])
                    filled[places] = self._below(batch.to(device)).cpu()[batch.attention_mask.bool()].to(dtype)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())

            try:
                write(path, compute)
            except OSError as error:
                raise UserError(
                    f"data.cache={folder}: {room / 1e9:.1f} GB cannot be written there ({error}); type data.cache=FOLDER, "
                    f"or data.cache_prefix=false"
                ) from error
        pool.prefix = torch.from_file(str(path), size=size, dtype=dtype).view(shape)

    def _below(self, batch: Batch) -> Tensor:
        found: list[Tensor] = []

        def stop(module: nn.Module, arguments: Any, output: Any) -> None:
            found.append(states(output))
            self.others = len(output) - 1 if isinstance(output, tuple) else None
            raise EnoughError

        handle, training = self.layers[-1].register_forward_hook(stop), self.encoder.training
        try:
            kind, dtype = batch.input_ids.device.type, next(self.layers[0].parameters()).dtype
            with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype is torch.bfloat16):
                run_until(self.encoder.eval(), batch.inputs, handle)
        finally:
            self.encoder.train(training)
        return found[0]

    def install(self) -> None:
        """Lets the layers pass on what is `current`, from now on; without it they compute, as of posts that are no run's."""
        for layer in self.layers:
            layer.forward = partial(self._recalled, layer.forward, last=layer is self.layers[-1])

    def _recalled(self, own: Any, *arguments: Any, last: bool, **keywords: Any) -> Any:
        known = self.current
        if known is None:
            return own(*arguments, **keywords)
        if last:
            self.current = None
        # nothing of what else a layer could give
        return known if self.others is None else (known, *[None] * self.others)


def _layers(encoder: nn.Module) -> list[nn.Module]:
    depth: int = encoder.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    stacks = [list(m) for m in encoder.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return max(stacks, key=lambda stack: sum(p.numel() for layer in stack for p in layer.parameters()))


def frozen_layers(encoder: nn.Module) -> list[nn.Module]:
    """Finds the layers from the lowest up to the first with a trained weight; none where the embeddings are trained."""

    def trained(module: nn.Module) -> set[int]:
        return {id(p) for p in module.parameters() if p.requires_grad}

    layers = _layers(encoder)
    if trained(encoder) - set().union(*map(trained, layers)):
        return []
    return list(itertools.takewhile(lambda layer: not trained(layer), layers))
