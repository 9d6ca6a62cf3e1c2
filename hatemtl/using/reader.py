"""Lets evaluations ask a network: of the validation posts, of other posts, of some tokens of a post alone, or why."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hatemtl.batches.batch import Batch
from hatemtl.batches.datamodule import DataModule
from hatemtl.batches.token_cache import tokenize
from hatemtl.batches.tokenized_posts import WHOLE, TokenizedPosts, loader
from hatemtl.corpora.base import Posts
from hatemtl.errors import UserError
from hatemtl.evaluations.base import UNJUDGED, Predicted, Stage, Tokens
from hatemtl.network.forward import Forward
from hatemtl.network.module import MultitaskModule
from hatemtl.network.predictions import Predictions
from hatemtl.using.int8 import KEY


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
        self.kept: dict[Hashable, Any] = {}

    @property
    def through(self) -> Forward:
        return self.module.through

    @property
    def pad(self) -> int:
        return self.data.pool.pad

    def _predicted(self, stage: Stage) -> dict[str, Predicted]:
        pool, spaces = self.data.pool, self.data.spaces
        kept = {task: Predictions() for task, space in spaces.items() if space.about not in UNJUDGED}
        batches = self.data.val_dataloader() if stage == "val" else self.data.test_dataloader()
        for batch, logits in through(self.module.to(self.settings.device), self.settings, batches, kept):
            for task, of_task in logits.items():
                kept[task].add(batch.posts, self.module.head(task).scores(of_task), batch.targets[task], batch.has[task])
        return {task: of_task.whole(stage, self.module.head(task), pool.at_words) for task, of_task in kept.items()}

    def scores(self, task: str, posts: Posts) -> np.ndarray:
        pool = TokenizedPosts(self.data.pool.tokenizer, self.max_length, [posts], preprocess=self.data.preprocess)
        pool.count(self.data.lexicons)
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
        ids, words = self._words(pool.tokens, pool.begins, *pool.offsets[first : first + 2])
        if self.paired[post]:
            raise UserError(f"post {pool.ids[post]!r} is read with a second text, of whose tokens no word is known")
        if len(ids) < self.max_length:
            return Tokens(ids, words, words[:0])
        whole = tokenize(pool.tokenizer, WHOLE, [pool.preprocess(pool.texts[post])])
        every, pieces = np.unique(self._words(whole.ids, whole.begins, 0, len(whole.ids))[1], return_counts=True)
        cut = np.repeat(every, pieces - (words[:, None] == every).sum(axis=0))
        return Tokens(ids, words, cut[cut >= 0])

    def _words(self, ids: np.ndarray, begins: np.ndarray, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of one sequence, and the word that each is of."""
        ids, begins = ids[first:end], begins[first:end]
        special = np.isin(ids, self._ends) & (begins < 0)
        return ids, np.where(special, -1, np.maximum.accumulate(begins))

    @cached_property
    def _ends(self) -> list[int]:
        """The ids of the tokens that the tokenizer puts around a text."""
        known = self.data.pool.tokenizer
        some = (known.cls_token_id, known.sep_token_id, known.bos_token_id, known.eos_token_id)
        return [token for token in some if token is not None]

    @cached_property
    def paired(self) -> np.ndarray:
        each = [self.data.corpora[corpus] for corpus, _ in self.data.parts]
        return np.concatenate([[bool(pair) for pair in posts.pairs or [()] * len(posts)] for posts in each])

    def named(self, post: int) -> tuple[str, int]:
        pool = self.data.pool
        return pool.ids[post], pool.texts[post].count(" ") + 1

    def text(self, post: int) -> str:
        return self.data.pool.texts[post]

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

    @contextmanager
    def gradients(self) -> Iterator[None]:
        if self.settings.int8:
            raise UserError(f"{KEY} computes no gradients, of which these explanations are made; leave one of them out")
        self.module.to(self.settings.device)
        with self.settings.arithmetic(), self.through.gradients():
            yield

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]
