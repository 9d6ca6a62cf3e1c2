"""Asks saved runs on one encoder about texts: posts of all runs in one batch where their adapters are in the bank."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hatemtl.batches.batch import Batch
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.errors import UserError, did_you_mean
from hatemtl.evaluations import explainers
from hatemtl.using.int8 import KEY
from hatemtl.using.predictor import Predictor, Scored
from hatemtl.using.reader import Reader
from hatemtl.using.serve.one_encoder import OnOneEncoder

By = Literal["gradient_input", "integrated_gradients"]
STEPS = 20  # of integrated gradients
Found = dict[str, list[list[float]]]


class Runs:
    """Reads texts with saved runs by name, asked by one thread."""

    def __init__(self, loaded: OnOneEncoder) -> None:
        self.predictors, self.rows, self.gate, self.int8 = loaded.predictors, loaded.rows, loaded.gate, loaded.int8

    def said(self, asked: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Scored]]]:
        """Gives what every task of each run says of the texts that this run is asked about."""
        pools = {name: self.predictors[name].pool(texts) for name, texts in asked.items()}
        found: dict[str, Found] = {
            name: {task: [[]] * len(pool) for task in self.predictors[name].spaces} for name, pool in pools.items()
        }
        joint = [name for name in asked if name in self.rows]
        for names in [*([joint] if joint else []), *([name] for name in asked if name not in self.rows)]:
            self._pass({name: pools[name] for name in names}, found)
        return {name: self.predictors[name].named(pool, found[name]) for name, pool in pools.items()}

    def _pass(self, pools: Mapping[str, TokenizedPosts], found: Mapping[str, Found]) -> None:
        """Passes the posts of these pools through the encoder together, from short to long."""
        names, first = [*pools], self.predictors[self._first({*pools})]
        of = np.repeat(np.arange(len(names)), [len(pools[name]) for name in names])
        rows = np.concatenate([np.arange(len(pools[name])) for name in names])
        lengths = np.concatenate([pools[name].lengths for name in names])
        for places in first.request.batching.in_order(lengths):
            batches = {}
            for number in np.unique(of[places]):
                name, mine = names[number], rows[places][of[places] == number]
                batches[name] = pools[name][mine].to(first.device)
            with first.reading(sum(batch.tokens for batch in batches.values())):
                for name, logits in self._logits(batches).items():
                    self.predictors[name].keep(found[name], pools[name], batches[name], logits)

    def _logits(self, batches: Mapping[str, Batch]) -> dict[str, dict[str, Tensor]]:
        """Computes the logits of all tasks of each run for its own posts."""
        forwards = {name: self.predictors[name].network.module.through for name in batches}
        if self.gate is None or not {*batches} <= {*self.rows}:
            return {name: forwards[name](batch) for name, batch in batches.items()}
        whole = _joined([*batches.values()], self.predictors[next(iter(batches))].tokenizer.pad_token_id)
        each = [self.rows[name] for name in batches]
        sizes = torch.tensor([len(batch) for batch in batches.values()])
        with self.gate.reading(torch.tensor(each).repeat_interleave(sizes).to(whole.input_ids.device)):
            hidden = next(iter(forwards.values())).encode(whole).split(sizes.tolist())
        return {
            name: forwards[name].read(mine[:, : batch.input_ids.shape[1]], batch, self.predictors[name].spaces)
            for (name, batch), mine in zip(batches.items(), hidden, strict=True)
        }

    def why(self, name: str, text: str, task: str, label: str, by: By) -> list[tuple[str, float]]:
        """Gives each word's share in the score of a label, the sum of its tokens'; words beyond max_length have 0."""
        predictor = self.predictors[name]
        space = predictor.spaces[task]
        if self.int8:
            raise UserError(f"{KEY} computes no gradients, of which attributions are made; serve without it")
        if space.about == "words":
            raise UserError(f"task {task!r} marks words itself; ask about the label of another task")
        if label not in space.names:
            raise UserError(f"task {task!r} has no label {label!r}; {did_you_mean(label, space.names)}")
        pool = predictor.pool([text])
        reader = _reader(predictor, pool)
        tokens, labels = reader.tokens(0), np.array([space.names.index(label)])
        with nullcontext() if self.gate is None or name not in self.rows else self.gate.reading(self.rows[name]):
            if by == "gradient_input":
                (found,) = explainers.gradient_input(reader, task, [tokens], labels)
            else:
                (found,) = explainers.integrated_gradients(reader, task, [tokens], labels, steps=STEPS)
        words = pool.texts[0].split(" ")
        mine = tokens.words >= 0
        shares = np.bincount(tokens.words[mine], weights=found[mine], minlength=len(words))
        return [*zip(words, shares.tolist(), strict=True)]

    def _first(self, names: set[str]) -> str:
        """Picks the run by whose settings these are read: in the bank always the same."""
        return next(iter(self.rows if names <= {*self.rows} else names))


def _joined(batches: Sequence[Batch], pad: int) -> Batch:
    """Puts batches of texts one behind the other, as wide as the widest; no task's annotations."""
    width = max(batch.input_ids.shape[1] for batch in batches)

    def cat(tensors: Sequence[Tensor], value: int) -> Tensor:
        return torch.cat([F.pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in tensors])

    ids, mask = cat([batch.input_ids for batch in batches], pad), cat([batch.attention_mask for batch in batches], 0)
    return Batch(ids, mask, {}, {}, torch.cat([batch.posts for batch in batches]))


def _reader(predictor: Predictor, pool: TokenizedPosts) -> Reader:
    data: Any = SimpleNamespace(pool=pool, batching=predictor.request.batching)  # all that explaining reads of posts' data
    reader = Reader(predictor.network.module, predictor.request.trainer, data, predictor.network.encoder.max_length)
    reader.paired = np.zeros(len(pool), dtype=bool)
    return reader
