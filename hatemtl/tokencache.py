"""Posts as token ids: made once, flat, and kept on disk under a fingerprint of all that they depend on."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hatemtl import artifacts
from hatemtl.encoder import Tokenizer

FORMAT = "1"  # of the file and of what its arrays mean; another number makes all files anew
CHUNK = 2000  # posts that are tokenized at a time: Python's lists of their tokens take some thirty times the arrays' place


@dataclass(frozen=True)
class Tokens:
    """N posts as token ids, one behind the other.

    ids: (all tokens,) int32. offsets: (N + 1,) int64, where each post's tokens start. begins: (all tokens,) int32, the
    index of the word (of `text.split(" ")`) that begins at a token, -1 where none does: later pieces and specials.
    """

    ids: np.ndarray
    offsets: np.ndarray
    begins: np.ndarray

    @classmethod
    def join(cls, parts: list["Tokens"]) -> "Tokens":
        """The posts of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)])
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
            np.concatenate([[0], lengths.cumsum()]),
            np.concatenate([np.zeros(0, np.int32), *(part.begins for part in parts)]),
        )

    def fit(self, posts: int) -> bool:
        """Whether the arrays have the formats and sizes of so many posts."""
        arrays = self.ids, self.offsets, self.begins
        if [(array.dtype.name, array.ndim) for array in arrays] != [("int32", 1), ("int64", 1), ("int32", 1)]:
            return False
        lengths = np.diff(self.offsets)
        sizes = len(lengths) == posts and len(self.ids) == len(self.begins) == lengths.sum()
        return bool(sizes and self.offsets[0] == 0 and (lengths >= 0).all())


def cached(tokenizer: Tokenizer, max_length: int, texts: list[str], cache: Path | None) -> Tokens:
    """The posts' tokens, from the folder `cache` if they are there; else they are made, and put there.

    A file that is broken or another's is made anew, and a folder that cannot be written is no cache: neither is an error.
    """
    if cache is None:
        return tokenize(tokenizer, max_length, texts)
    mark = fingerprint(tokenizer, max_length, texts)
    path = cache.expanduser() / f"{mark}.safetensors"
    tokens = _read(path, mark, len(texts))
    if tokens is None:
        tokens = tokenize(tokenizer, max_length, texts)
        _write(path, mark, tokens)
    return tokens


def tokenize(tokenizer: Tokenizer, max_length: int, texts: list[str]) -> Tokens:
    """The posts' tokens, cut at `max_length`, special ones included."""
    return Tokens.join([_chunk(tokenizer, max_length, chunk) for chunk in _chunks(texts)])


def fingerprint(tokenizer: Tokenizer, max_length: int, texts: list[str]) -> str:
    """Sixteen hex digits that change with whatever changes a token: texts, tokenizer, `max_length`, the libraries."""
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
    return digest.hexdigest()[:16]


def word_begins(texts: list[str], lengths: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(all tokens,) int32: the index of the word (`text.split(" ")`) that begins at each token, -1 where none does.

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


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    return (texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK))


def _chunk(tokenizer: Tokenizer, max_length: int, texts: list[str]) -> Tokens:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int64, len(texts))
    flat, places = chain.from_iterable, int(lengths.sum())
    ids = np.fromiter(flat(encoded["input_ids"]), np.int32, places)
    spans = np.fromiter(flat(flat(encoded["offset_mapping"])), np.int64, 2 * places).reshape(-1, 2)
    return Tokens(ids, np.concatenate([[0], lengths.cumsum()]), word_begins(texts, lengths, spans))


def _checksum(tokens: Tokens) -> str:
    digest = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.begins):
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _write(path: Path, mark: str, tokens: Tokens) -> None:
    arrays, notes = vars(tokens), {"fingerprint": mark, "checksum": _checksum(tokens)}
    try:
        artifacts.write(path, lambda temporary: save_file(arrays, temporary, metadata=notes))
    except (OSError, SafetensorError):  # the folder cannot be written, or the disk is full
        return


def _read(path: Path, mark: str, posts: int) -> Tokens | None:
    """What the file holds, if it is whole and of this fingerprint."""
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            names = file.keys()
            tokens = Tokens(**{name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError, TypeError):  # not there or not to be read; broken; of other arrays
        return None
    whole = notes.get("fingerprint") == mark and notes.get("checksum") == _checksum(tokens)
    return tokens if whole and tokens.fit(posts) else None
