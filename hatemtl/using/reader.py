"""Lets evaluations ask a network: of the validation posts, of other posts, of some tokens of a post alone, or why."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.tokenized_posts import TokenizedPosts, loader
from hatemtl.corpora.base import Posts
from hatemtl.evaluations.base import Predicted, Stage, Tokens
from hatemtl.network.forward import Forward
from hatemtl.network.module import MultitaskModule, Predictions


def through(
    module: MultitaskModule, settings: Any, batches: Iterable[Batch], tasks: Iterable[str] | None = None
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Passes batches through a network that learns nothing: each with the logits of these tasks, or of all.

    settings: `training.trainer_settings.TrainerSettings`.
    """
    asked = None if tasks is None else [*tasks]
    with settings.arithmetic(), module.through.inference():
        for batch in batches:
            here = batch.to(settings.device)
            yield here, module.through(here, asked)


class Reader:
    """Asks a network, whose data module's posts were tested, what an evaluation wants to know: `evaluations.base.Reader`."""

    def __init__(self, module: MultitaskModule, settings: Any, data: DataModule, max_length: int) -> None:
        self.module, self.settings, self.data, self.max_length = module, settings, data, max_length
        self.predicted = cache(self._predicted)

    @property
    def through(self) -> Forward:
        return self.module.through

    def _predicted(self, stage: Stage) -> dict[str, Predicted]:
        pool, spaces = self.data.pool, self.data.spaces
        kept = {task: Predictions() for task, space in spaces.items() if space.about != "masked tokens"}
        batches = self.data.val_dataloader() if stage == "val" else self.data.test_dataloader()
        for batch, logits in through(self.module.to(self.settings.device), self.settings, batches, kept):
            for task, of_task in logits.items():
                kept[task].add(batch.posts, self.module.head(task).scores(of_task), batch.targets[task], batch.has[task])
        return {task: of_task.whole(stage, self.module.head(task), pool.at_words) for task, of_task in kept.items()}

    def scores(self, task: str, posts: Posts) -> np.ndarray:
        pool = TokenizedPosts(self.data.pool.tokenizer, self.max_length, [posts])
        found: np.ndarray | None = None
        batches = loader(pool, self.data.batching.in_order(pool.lengths))
        for batch, logits in through(self.module.to(self.settings.device), self.settings, batches, [task]):
            scores = self.module.head(task).scores(logits[task]).float().cpu().numpy()
            found = np.zeros((len(pool), scores.shape[1]), np.float32) if found is None else found
            found[batch.posts.cpu().numpy()] = scores
        assert found is not None
        return found

    def tokens(self, post: int) -> Tokens:
        pool, first = self.data.pool, self.data.pool.firsts[post]
        here = slice(pool.offsets[first], pool.offsets[first + 1])
        ids, begins = pool.tokens[here], pool.begins[here]
        special = np.isin(ids, pool.tokenizer.convert_tokens_to_ids(_ends(pool.tokenizer))) & (begins < 0)
        return Tokens(ids, np.where(special, -1, np.maximum.accumulate(begins)))

    def batches(self, ids: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
        lengths, pad = np.fromiter(map(len, ids), np.int64, len(ids)), self.data.pool.pad
        for places in self.data.batching.in_order(lengths) if len(ids) else []:
            rows = [torch.from_numpy(np.asarray(ids[place], np.int64)) for place in places]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
            inside = torch.arange(padded.shape[1]) < torch.from_numpy(lengths[places])[:, None]
            batch = Batch(padded, inside.long(), {}, {}, torch.from_numpy(np.asarray(places, np.int64)))
            yield np.asarray(places), batch.to(self.settings.device)

    @contextmanager
    def inference(self) -> Iterator[None]:
        self.module.to(self.settings.device)
        with self.settings.arithmetic(), self.through.inference():
            yield


def _ends(tokenizer: Any) -> list[str]:
    """The tokens that a tokenizer puts around a text."""
    some = (tokenizer.cls_token, tokenizer.sep_token, tokenizer.bos_token, tokenizer.eos_token)
    return [token for token in some if token is not None]
