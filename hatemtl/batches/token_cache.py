"""Turns texts, alone or in pairs, into token ids: once, flat, kept on disk under a fingerprint of all they depend on."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError
from hatemtl.saved_runs import writing

FORMAT = "1"  # of the file and of what its arrays mean; another number makes all files anew
CHUNK = 2000  # texts that are tokenized at a time: Python's lists of their tokens take some thirty times the arrays' place
Seconds = list[str | None] | None  # the text that each is read with, if any; None where none is


@dataclass(frozen=True)
class Tokens:
    """S sequences of token ids, one behind the other: a text each, or a text and a second one.

    ids: (all tokens,) int32. offsets: (S + 1,) int64, where each sequence starts. begins: (all tokens,) int32, the index of
    the word (of `text.split(" ")`) that begins at a token, -1 where none does: later pieces, specials, the second text.
    second: (S,) int32, at which of its tokens a sequence's second segment starts, its length if it has none; None where no
    sequence has, or the tokenizer tells no segments apart.
    where: (all tokens, 2) int32, of a second text's token its first character there and one past its last, 0 and 0 of any
    other; None where nobody asked for it.
    """

    ids: np.ndarray
    offsets: np.ndarray
    begins: np.ndarray
    second: np.ndarray | None = None
    where: np.ndarray | None = None

    @classmethod
    def join(cls, parts: list["Tokens"]) -> "Tokens":
        """Joins the sequences of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        none, lengths = np.zeros(0, np.int32), [np.diff(part.offsets) for part in parts]
        seconds = [of if part.second is None else part.second for part, of in zip(parts, lengths, strict=True)]
        places = [np.zeros((len(part.ids), 2), np.int32) if part.where is None else part.where for part in parts]
        return cls(
            np.concatenate([none, *(part.ids for part in parts)]),
            np.concatenate([[0], *lengths]).cumsum(),
            np.concatenate([none, *(part.begins for part in parts)]),
            np.concatenate(seconds).astype(np.int32) if any(part.second is not None for part in parts) else None,
            np.concatenate(places) if any(part.where is not None for part in parts) else None,
        )

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in vars(self).items() if array is not None}

    def fit(self, sequences: int) -> bool:
        """Tells whether the arrays have the formats and sizes of so many sequences."""
        formats = {"ids": ("int32", 1), "offsets": ("int64", 1), "begins": ("int32", 1), "second": ("int32", 1)}
        formats["where"] = ("int32", 2)
        if any((array.dtype.name, array.ndim) != formats[name] for name, array in self.arrays.items()):
            return False
        lengths = np.diff(self.offsets)
        sizes = len(lengths) == sequences and len(self.ids) == len(self.begins) == lengths.sum()
        segments = self.second is None or (len(self.second) == sequences and bool((self.second <= lengths).all()))
        located = self.where is None or self.where.shape == (len(self.ids), 2)
        return bool(sizes and segments and located and self.offsets[0] == 0 and (lengths >= 0).all())


def cached(
    tokenizer: Tokenizer,
    max_length: int,
    texts: list[str],
    cache: Path | None,
    seconds: Seconds = None,
    *,
    located: bool = False,
) -> Tokens:
    """Takes the texts' tokens from the folder `cache` if they are there; else makes them, and puts them there.

    located: whether `Tokens.where` is wanted, of texts with second ones.
    A file that is broken or another's is made anew, and a folder that cannot be written is no cache: neither is an error.
    """
    if cache is None:
        return tokenize(tokenizer, max_length, texts, seconds, located=located)
    mark = fingerprint(tokenizer, max_length, texts, seconds, located=located)
    path = cache.expanduser() / f"{mark}.safetensors"
    tokens = _read(path, mark, len(texts))
    if tokens is None:
        tokens = tokenize(tokenizer, max_length, texts, seconds, located=located)
        arrays, notes = tokens.arrays, {"fingerprint": mark, "checksum": _checksum(tokens)}
        with suppress(OSError, SafetensorError):  # the folder cannot be written, or the disk is full
            writing.write(path, lambda temporary: save_file(arrays, temporary, metadata=notes))
    return tokens


def tokenize(
    tokenizer: Tokenizer, max_length: int, texts: list[str], seconds: Seconds = None, *, located: bool = False
) -> Tokens:
    """Makes the texts' tokens, special ones included, cut at `max_length`: of two texts the longer first.

    Raises UserError where `max_length` has no room for two texts.
    """
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if seconds is not None and max_length < least:
        raise UserError(
            f"encoder.max_length={max_length}: expected room for two texts and the tokens around them; type "
            f"encoder.max_length={least} or more"
        )
    chunks = zip(_chunks(texts), repeat(None) if seconds is None else _chunks(seconds), strict=False)
    return Tokens.join([_chunk(tokenizer, max_length, *chunk, located=located) for chunk in chunks])


def fingerprint(
    tokenizer: Tokenizer, max_length: int, texts: list[str], seconds: Seconds = None, *, located: bool = False
) -> str:
    """Gives sixteen hex digits that change with whatever changes a token: texts, tokenizer, `max_length`, the libraries."""
    # its state in Rust tells all but which cut and padding it was last called with; every call sets both
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    settings = (
        FORMAT,
        max_length,
        *(version(library) for library in ("tokenizers", "transformers")),
        type(tokenizer).__qualname__,
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        tokenizer.truncation_side,
        tokenizer.split_special_tokens,
        tokenizer.backend_tokenizer.to_str(),
    )
    digest = hashlib.sha256("\x1f".join(map(str, settings)).encode())
    for chunk in _chunks(texts):
        digest.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).tobytes())  # where one ends and the next begins
        digest.update("".join(chunk).encode())
    if seconds is not None:
        digest.update("\x1f".join(["seconds", *tokenizer.model_input_names, *(["where"] if located else [])]).encode())
        for some in _chunks(seconds):
            digest.update(np.array([-1 if text is None else len(text) for text in some], np.int64).tobytes())
            digest.update("".join(text or "" for text in some).encode())
    return digest.hexdigest()[:16]


def word_begins(texts: list[str], lengths: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Gives (all tokens,) int32: the index of the word (`text.split(" ")`) that begins at each token, -1 where none does.

    lengths: (N,) tokens of each text. spans: (all tokens, 2), the first character of each in its text and one past the last.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
    spaces = np.concatenate([[0], (characters == ord(" ")).cumsum()])  # among so many first characters of them all
    post = np.repeat(np.arange(len(texts)), lengths)
    start, (first, end) = (sizes.cumsum() - sizes)[post], spans.T
    # up to the last character, since some tokenizers count the space before a word into its first piece
    words = np.where(end > first, spaces[start + end] - spaces[start], -1)
    rank = words + post * (len(characters) + 2)  # any word of a post lies above all words of the posts before it
    seen = np.maximum.accumulate(np.concatenate([[-1], rank]))[:-1]
    return np.where((words >= 0) & (rank > seen), words, -1).astype(np.int32)


def _chunks(texts: list[Any]) -> Iterator[list[Any]]:
    return (texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK))


def _chunk(tokenizer: Tokenizer, max_length: int, texts: list[str], seconds: Seconds, *, located: bool) -> Tokens:
    pairs: list[Any] = texts
    if seconds is not None:
        pairs = [text if second is None else (text, second) for text, second in zip(texts, seconds, strict=True)]
    encoded = tokenizer(
        pairs,
        truncation="longest_first",
        max_length=max_length,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=seconds is not None,
    )
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int64, len(texts))
    flat, places = chain.from_iterable, int(lengths.sum())
    ids = np.fromiter(flat(encoded["input_ids"]), np.int32, places)
    spans = np.fromiter(flat(flat(encoded["offset_mapping"])), np.int64, 2 * places).reshape(-1, 2)
    offsets, second, where = np.concatenate([[0], lengths.cumsum()]), None, None
    if seconds is not None:
        later = np.fromiter((s == 1 for i in range(len(texts)) for s in encoded.sequence_ids(i)), bool, places)
        where = np.where(later[:, None], spans, 0).astype(np.int32) if located else None
        spans[later] = 0
        if "token_type_ids" in tokenizer.model_input_names:
            types = np.fromiter(flat(encoded["token_type_ids"]), np.int64, places)
            second = (lengths - np.diff(np.concatenate([[0], types.cumsum()])[offsets])).astype(np.int32)
    return Tokens(ids, offsets, word_begins(texts, lengths, spans), second, where)


def _checksum(tokens: Tokens) -> str:
    digest = hashlib.sha256()
    for array in tokens.arrays.values():
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _read(path: Path, mark: str, sequences: int) -> Tokens | None:
    """Reads the file's tokens, if it is whole and of this fingerprint."""
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            tokens = Tokens(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError):  # not there or not to be read; broken; of other arrays
        return None
    whole = notes.get("fingerprint") == mark and notes.get("checksum") == _checksum(tokens)
    return tokens if whole and tokens.fit(sequences) else None
