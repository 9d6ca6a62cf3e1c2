import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invented import ODD, TEXTS, as_posts, byte_level, every_tokenizer, minilm
from safetensors import safe_open
from safetensors.numpy import save_file

from hatemtl.batches import token_cache
from hatemtl.batches.token_cache import Tokens, cached, fingerprint, tokenize, word_begins
from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.encoders.pretrained import Tokenizer
from hatemtl.errors import UserError


def slot(pool: TokenizedPosts, row: int) -> slice:
    """Where a post's tokens stand in the pool."""
    return slice(pool.offsets[row], pool.offsets[row + 1])


# The alignment of words to word pieces


@every_tokenizer
@pytest.mark.parametrize("max_length", [128, 6, 3])
def test_words_begin_where_the_tokenizer_itself_says(make: Callable[[], Tokenizer], max_length: int) -> None:
    """The tokenizer's own account: `word_ids()` of the words given one by one."""
    tokenizer = make()
    pool = TokenizedPosts(tokenizer, max_length, [as_posts(TEXTS)])
    for row, text in enumerate(TEXTS):
        split = tokenizer(text.split(" "), is_split_into_words=True, truncation=True, max_length=max_length)
        assert pool.tokens[slot(pool, row)].tolist() == split["input_ids"]  # the reference reads the same tokens
        spans = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
        expected, before = [], None
        for word, (start, end) in zip(split.word_ids(), spans, strict=True):
            # a piece that is the space before a word and no letter of it may have a span of nothing: the next one begins
            first = word is not None and word != before and end > start
            expected.append(word if first else -1)
            before = word if first else before
        assert pool.begins[slot(pool, row)].tolist() == expected


@every_tokenizer
def test_the_texts_have_words_of_several_pieces(make: Callable[[], Tokenizer]) -> None:
    """Without them the test above would say little."""
    pool = TokenizedPosts(make(), 512, [as_posts(TEXTS)])
    assert (pool.begins >= 0).sum() + 2 * len(TEXTS) < len(pool.tokens)


@every_tokenizer
def test_every_word_begins_once_and_in_order(make: Callable[[], Tokenizer]) -> None:
    pool = TokenizedPosts(make(), 512, [as_posts(TEXTS)])
    for row, text in enumerate(TEXTS):
        begins = pool.begins[slot(pool, row)]
        assert begins[begins >= 0].tolist() == list(range(len(text.split(" "))))


@every_tokenizer
def test_where_spaces_double_every_word_that_has_letters_still_begins_at_its_own_token(
    make: Callable[[], Tokenizer],
) -> None:
    tokenizer = make()
    pool = TokenizedPosts(tokenizer, 512, [as_posts(ODD)])
    for row, text in enumerate(ODD):
        begins, ids = pool.begins[slot(pool, row)], pool.tokens[slot(pool, row)]
        seen = begins[begins >= 0].tolist()
        assert seen == sorted(set(seen))
        words = text.split(" ")
        assert set(seen) >= {i for i, word in enumerate(words) if word.isalpha()}
        for word in (i for i in seen if words[i].isalpha()):
            first = tokenizer.decode(ids[begins == word]).strip()
            assert words[word].startswith(first)  # of nothing too: a piece may be the space before the word


@every_tokenizer
def test_a_post_of_nothing_has_no_word(make: Callable[[], Tokenizer]) -> None:
    pool = TokenizedPosts(make(), 512, [as_posts(["", "here"])])
    assert (pool.begins[slot(pool, 0)] == -1).all()
    assert pool.begins[slot(pool, 1)].max() == 0


def test_the_pieces_of_one_word_by_hand() -> None:
    pool = TokenizedPosts(minilm(), 128, [as_posts(["fizzlewits are here"])])
    pieces = minilm().convert_ids_to_tokens(pool.tokens.tolist())
    assert pieces[0] == "[CLS]"
    assert pieces[-3:] == ["are", "here", "[SEP]"]
    assert pool.begins.tolist() == [-1, 0] + [-1] * (len(pieces) - 5) + [1, 2, -1]


@pytest.mark.parametrize(
    ("text", "spans", "begins"),
    [
        ("ab c", [(0, 0), (0, 1), (1, 2), (3, 4), (0, 0)], [-1, 0, -1, 1, -1]),
        ("ab c", [(0, 1), (1, 1), (1, 2), (2, 4)], [0, -1, -1, 1]),  # a piece of nothing within a word
        ("a  b", [(0, 1), (1, 4)], [0, 2]),  # a piece that takes in both spaces before its word
        ("a  b", [(0, 1), (1, 2), (2, 4)], [0, 1, 2]),  # a piece for the word of nothing between them
        (" a", [(0, 2)], [1]),
        ("", [(0, 0), (0, 0)], [-1, -1]),
        ("", [], []),
    ],
)
def test_words_begin_by_their_spans_by_hand(text: str, spans: list[tuple[int, int]], begins: list[int]) -> None:
    assert word_begins([text], np.array([len(spans)]), np.array(spans, dtype=np.int64).reshape(-1, 2)).tolist() == begins


def one_by_one(text: str, spans: list[tuple[int, int]]) -> np.ndarray:
    """The reference: a post alone, its spaces looked up for each of its tokens."""
    starts, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    spaces = np.flatnonzero(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) == ord(" "))
    words = np.where(ends > starts, np.searchsorted(spaces, ends - 1, side="right"), -1)
    seen = np.maximum.accumulate(np.concatenate([[-1], words[:-1]])) if len(words) else words
    return np.where(words > seen, words, -1).astype(np.int32)


def written(draw: np.random.Generator, posts: int) -> list[str]:
    """Posts of letters, digits beyond the first plane of Unicode and many spaces; some of nothing."""
    alphabet = ["a", "b", "é", "e\u0301", "😂", "👩‍👩‍👧", "単", "\u200d", "\t", "\u00a0", "!"] + 8 * [" "]
    return ["".join(draw.choice(alphabet, draw.integers(0, 30))) for _ in range(posts)]


@pytest.mark.parametrize("seed", range(20))
def test_posts_all_at_once_are_as_one_by_one_whatever_their_spans(seed: int) -> None:
    draw = np.random.default_rng(seed)
    texts, spans = written(draw, 40), []
    for text in texts:  # in order or not, overlapping, of nothing
        span = np.sort(draw.integers(0, len(text) + 1, (draw.integers(0, 12), 2)), axis=1)
        spans.append(span[np.argsort(span[:, 0])] if draw.random() < 0.7 else span)
    lengths = np.array([len(span) for span in spans])
    expected = np.concatenate([one_by_one(text, span.tolist()) for text, span in zip(texts, spans, strict=True)])
    assert word_begins(texts, lengths, np.concatenate(spans)).tolist() == expected.tolist()


@every_tokenizer
@pytest.mark.parametrize("max_length", [128, 7, 3])
def test_tokenizing_in_chunks_changes_nothing(
    make: Callable[[], Tokenizer], max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, *ODD, *written(np.random.default_rng(0), 60)]
    monkeypatch.setattr(token_cache, "CHUNK", 7)
    tokens = tokenize(make(), max_length, texts)
    assert tokens.fit(len(texts))
    for row, text in enumerate(texts):
        alone = make()(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        here = slice(tokens.offsets[row], tokens.offsets[row + 1])
        assert tokens.ids[here].tolist() == alone["input_ids"]
        assert tokens.begins[here].tolist() == one_by_one(text, alone["offset_mapping"]).tolist()


# Two texts


FIRST = ["you dronk", "two  spaces", "fizzlewits are here and there", "", "fine"]
SECOND = ["hyperglumpishtwaddlers everywhere you look", None, "x", "so it is", ""]


@every_tokenizer
@pytest.mark.parametrize("max_length", [128, 9, 6])
def test_two_texts_are_the_tokenizers_own_pair(
    make: Callable[[], Tokenizer], max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "CHUNK", 2)
    tokenizer = make()
    tokens = tokenize(tokenizer, max_length, FIRST, SECOND)
    assert tokens.fit(len(FIRST))
    for row, (text, second) in enumerate(zip(FIRST, SECOND, strict=True)):
        given = [text] if second is None else [(text, second)]  # called with an empty second, it would take it for none
        how = {"truncation": "longest_first", "max_length": max_length, "return_token_type_ids": True}
        own = tokenizer(given, **how)
        here = slice(tokens.offsets[row], tokens.offsets[row + 1])
        assert tokens.ids[here].tolist() == own["input_ids"][0]
        length = len(own["input_ids"][0])
        assert (tokens.second is None) == ("token_type_ids" not in tokenizer.model_input_names)
        second_at = length if tokens.second is None else tokens.second[row]  # of an encoder without segments
        assert (np.arange(length) >= second_at).astype(int).tolist() == own["token_type_ids"][0]
        begins = tokens.begins[here]
        assert {own.sequence_ids(0)[i] for i in np.flatnonzero(begins >= 0)} <= {0}
        seen = begins[begins >= 0].tolist()
        assert seen == sorted(set(seen))
        assert set(seen) <= set(range(len(text.split(" "))))


def test_word_pieces_have_a_second_segment_by_hand() -> None:
    tokens = tokenize(minilm(), 128, ["you dronk", "fine"], ["ok then", None])
    pieces = minilm().convert_ids_to_tokens(tokens.ids.tolist())
    start = pieces.index("[SEP]") + 1
    assert pieces[start : start + 3] == ["ok", "then", "[SEP]"]
    assert tokens.second.tolist() == [start, 3]
    assert tokens.begins.tolist() == [-1, 0, 1] + [-1] * (len(pieces) - 6) + [-1, 0, -1]


def test_a_tokenizer_that_tells_no_segments_apart_has_none() -> None:
    tokenizer = byte_level()
    before = tokenizer.model_input_names
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    try:
        assert tokenize(tokenizer, 128, FIRST, SECOND).second is None
    finally:
        tokenizer.model_input_names = before


def test_texts_with_and_without_a_second_one_join() -> None:
    alone, paired = tokenize(minilm(), 128, TEXTS), tokenize(minilm(), 128, FIRST, SECOND)
    assert alone.second is None
    both = Tokens.join([alone, paired])
    assert both.fit(len(TEXTS) + len(FIRST))
    assert both.second.tolist() == [*np.diff(alone.offsets).tolist(), *paired.second.tolist()]


def test_a_length_without_room_for_two_texts_is_refused() -> None:
    with pytest.raises(UserError, match="encoder.max_length=4: expected room for two texts.*encoder.max_length=5"):
        tokenize(minilm(), 4, FIRST, SECOND)


def test_no_posts_are_no_tokens() -> None:
    tokens = tokenize(minilm(), 128, [])
    assert tokens.fit(0)
    assert len(tokens.ids) == 0


# The file


def same(one: Tokens, other: Tokens) -> bool:
    return one.arrays.keys() == other.arrays.keys() and all(
        np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of posts that were tokenized."""
    numbers: list[int] = []

    def counted(tokenizer: Tokenizer, max_length: int, texts: list[str], seconds: Any = None, **how: bool) -> Tokens:
        numbers.append(len(texts))
        return tokenize(tokenizer, max_length, texts, seconds, **how)

    monkeypatch.setattr(token_cache, "tokenize", counted)
    return numbers


def test_posts_are_tokenized_once(tmp_path: Path, calls: list[int]) -> None:
    first, second = (cached(minilm(), 128, TEXTS, tmp_path / "new" / "folder") for _ in range(2))
    assert same(first, second)
    assert same(first, tokenize(minilm(), 128, TEXTS))
    assert calls == [len(TEXTS)]
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".safetensors"]  # nothing half written


def test_two_texts_are_tokenized_once(tmp_path: Path, calls: list[int]) -> None:
    first, again = (cached(minilm(), 128, FIRST, tmp_path, SECOND) for _ in range(2))
    assert same(first, again)
    assert same(first, tokenize(minilm(), 128, FIRST, SECOND))
    assert calls == [len(FIRST)]
    path = next(tmp_path.iterdir())
    flip(path)
    assert same(cached(minilm(), 128, FIRST, tmp_path, SECOND), first)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        cached(minilm(), 128, TEXTS, None)
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_the_home_folder_may_be_given_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cached(minilm(), 128, TEXTS, Path("~/kept"))
    assert len(list((tmp_path / "kept").iterdir())) == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in a token, and still a file that can be read
    path.write_bytes(content)


def rewritten(path: Path, **changes: Any) -> None:
    with safe_open(path, framework="numpy") as file:
        arrays, notes = {name: file.get_tensor(name) for name in ("ids", "offsets", "begins")}, file.metadata()
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    if set(arrays) == {"ids", "offsets", "begins"}:
        notes["checksum"] = token_cache._checksum(Tokens(**arrays))  # as one would who means it
    save_file(arrays, path, metadata=notes)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "no such format": lambda path: path.write_bytes(b"\x80\x04these are no tensors at all" * 9),
    "flipped": flip,
    "of another post": lambda path: shutil.copy(other(path.parent), path),
    "without notes": lambda path: save_file({"ids": np.zeros(1, np.int32)}, path),
    "an array missing": lambda path: rewritten(path, begins=None),
    "an array more": lambda path: rewritten(path, more=np.zeros(3)),
    "of another type": lambda path: rewritten(path, ids=np.zeros(3, np.float64)),
    "of another shape": lambda path: rewritten(path, ids=np.zeros((2, 2), np.int32)),
    "of no size": lambda path: rewritten(path, offsets=np.zeros(0, np.int64)),
    "of fewer posts": lambda path: rewritten(path, offsets=np.array([0, 4])),
    "of offsets that go back": lambda path: rewritten(
        path, offsets=np.array([0, 9, 3, 4]), **{name: np.zeros(4, np.int32) for name in ("ids", "begins")}
    ),
}


def other(folder: Path) -> Path:
    cached(minilm(), 128, ["quite", "other", "posts"], folder / "other")
    return next((folder / "other").iterdir())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_not_what_it_should_be_is_made_anew(damage: Callable[[Path], object], tmp_path: Path) -> None:
    texts = TEXTS[:3]
    good = cached(minilm(), 128, texts, tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    content = path.read_bytes()
    damage(path)
    assert path.read_bytes() != content
    assert same(cached(minilm(), 128, texts, tmp_path), good)
    assert token_cache._read(path, path.stem, 3) is not None  # and replaced


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert same(cached(minilm(), 128, TEXTS, folder), tokenize(minilm(), 128, TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_place_of_the_file_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / f"{fingerprint(minilm(), 128, TEXTS)}.safetensors"
    path.mkdir()
    assert same(cached(minilm(), 128, TEXTS, tmp_path), tokenize(minilm(), 128, TEXTS))
    assert list(tmp_path.iterdir()) == [path]


# The fingerprint


def fresh() -> Tokenizer:
    minilm.cache_clear()
    return minilm()


def test_the_fingerprint_is_the_same_for_the_same() -> None:
    tokenizer = fresh()
    first = fingerprint(tokenizer, 128, TEXTS)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5)  # a call leaves its settings in the tokenizer
    assert fingerprint(tokenizer, 128, TEXTS) == first
    assert fingerprint(fresh(), 128, list(TEXTS)) == first


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process() -> None:
    imports = "from invented import *; from hatemtl.batches.token_cache import fingerprint"
    code = f"{imports}; print(fingerprint(minilm(), 128, TEXTS))"
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])}
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | paths, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == fingerprint(minilm(), 128, TEXTS)


def test_whatever_may_change_a_token_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_left(tokenizer: Tokenizer) -> None:
        tokenizer.truncation_side = "left"

    def cased(tokenizer: Tokenizer) -> None:
        tokenizer.backend_tokenizer.normalizer.lowercase = False

    def with_a_token(tokenizer: Tokenizer) -> None:
        tokenizer.add_tokens(["dronk"])

    def with_another_mask(tokenizer: Tokenizer) -> None:
        tokenizer.mask_token = "[UNK]"

    def specials_as_text(tokenizer: Tokenizer) -> None:
        tokenizer.split_special_tokens = True

    marks = [fingerprint(minilm(), 128, TEXTS), fingerprint(minilm(), 127, TEXTS), fingerprint(byte_level(), 128, TEXTS)]
    for change in (cut_left, cased, with_a_token, with_another_mask, specials_as_text):
        tokenizer = fresh()
        change(tokenizer)
        marks.append(fingerprint(tokenizer, 128, TEXTS))
    minilm.cache_clear()
    for texts in ([], TEXTS[::-1], TEXTS[:-1], [*TEXTS, ""], ["".join(TEXTS)], [TEXTS[0] + TEXTS[1][0], TEXTS[1][1:]]):
        marks.append(fingerprint(minilm(), 128, texts))
    for seconds in ([None] * 3, ["", None, None], ["ab", "c", None], ["a", "bc", None], [None, "ab", "c"]):
        marks.append(fingerprint(minilm(), 128, TEXTS[:3], seconds))
    marks.append(fingerprint(minilm(), 128, TEXTS[:3]))
    monkeypatch.setattr(token_cache, "FORMAT", "0")
    marks.append(fingerprint(minilm(), 128, TEXTS))
    monkeypatch.setattr(token_cache, "version", lambda library: "0")
    marks.append(fingerprint(minilm(), 128, TEXTS))
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 16 for mark in marks)


def test_places_in_second_texts_are_kept_apart_from_tokens_without(tmp_path: Path, calls: list[int]) -> None:
    texts, seconds = ["what?", "who?", "no"], ["a choir", "the soup", None]
    plain, located = (
        [cached(minilm(), 16, texts, tmp_path, seconds, located=located) for _ in range(2)] for located in (False, True)
    )
    assert calls == [3, 3] and len([*tmp_path.iterdir()]) == 2
    for kept, made in ((plain[1], plain[0]), (located[1], located[0])):
        assert kept.arrays.keys() == made.arrays.keys()
        for name, array in made.arrays.items():
            np.testing.assert_array_equal(kept.arrays[name], array)
    assert plain[0].where is None and located[0].where is not None
    shown = [(i, a, b) for i in range(3) for a, b in located[0].where[slice(*located[0].offsets[i : i + 2])] if b > a]
    assert [str(seconds[i])[a:b] for i, a, b in shown] == ["a", "choir", "the", "soup"]
