import unicodedata
from dataclasses import fields

import pytest
from invented import ODD, TEXTS, as_posts, byte_level, minilm

from hatemtl.batches.tokenized_posts import TokenizedPosts
from hatemtl.corpora.preprocess import AS_IS, WITHIN, Preprocess
from hatemtl.corpora.sample import Sample

KEYS = [field.name for field in fields(Preprocess)]
ALL = Preprocess(**dict.fromkeys(KEYS, True))


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("users", "RT @anna: me@home.net @ b @_x", "RT <user>: me@home.net @ b <user>"),
        ("urls", "(see https://a.b/c?d=1), WWW.e.org! awww.so http://", "(see <url>), <url>! awww.so http://"),
        (
            "numbers",
            "at 12:30, 1,000.5 or 3% of B12, 2nd -7",
            "at <number>, <number> or <number>% of B12, 2nd -<number>",
        ),
        ("case", "Loud ÄPFEL", "loud äpfel"),
        ("elongation", "sooo Cooool, wwwhy good ... 1111", "soo Cool, wwhy good ... 1111"),
        ("emoji", "so😂😂fun ❤️! 1️⃣", "so_face_with_tears_of_joy_face_with_tears_of_joy_fun heavy_black_heart! 1️⃣"),
        ("emoji", "🤷🏽‍♀️ 🇩🇪🇫🇷 (🔥)", "shrug_medium_skin_tone_female_sign flag_de_flag_fr (fire)"),
    ],
)
def test_each_key_rewrites_its_own_and_nothing_else(key: str, text: str, read: str) -> None:
    assert Preprocess(**{key: True})(text).replace(WITHIN, "_") == read
    assert AS_IS(text) == text


@pytest.mark.parametrize("rewrite", [*(Preprocess(**{key: True}) for key in KEYS), ALL], ids=[*KEYS, "all"])
def test_every_word_stays_one_and_none_vanishes(rewrite: Preprocess) -> None:
    symbols = " ".join(f"a{chr(c)}b" for c in [*range(0x2000, 0x3400), *range(0x1F000, 0x1FB00)] if chr(c).isprintable())
    for text in [*TEXTS, *ODD, *Sample(size=100).load().texts, "@a https://b 1 😂 \u200d x\ufe0f 🇩 👍🏿", symbols]:
        words, read = text.split(" "), rewrite(text).split(" ")
        assert len(read) == len(words)
        assert [bool(word) for word in read] == [bool(word) for word in words]


def test_what_was_rewritten_once_stays_as_it_is() -> None:
    for text in [*TEXTS, "@Anna SOOOO https://b.c 12 😂"]:
        assert ALL(ALL(text)) == ALL(text)


def test_the_zero_width_joiner_of_a_script_stays() -> None:
    text = "\u0915\u094d\u200d\u0937"  # of Devanagari, where it changes what is read
    assert ALL(text) == text
    assert unicodedata.category("\u200d") == "Cf"


@pytest.mark.parametrize("tokenizer", [minilm, byte_level], ids=["wordpiece", "byte-level"])
def test_words_stand_where_they_stood_for_the_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    posts = as_posts(["oh 😂😂 no", "@anna 12 ok", "so😂 fun"])
    pool = TokenizedPosts(tokenizer(), 64, [posts], preprocess=ALL)
    assert pool.texts == posts.texts, "what is shown is what was written"
    for row in range(3):
        words = [int(word) for word in pool.begins[slice(*pool.span(row))] if word >= 0]
        assert words == [*range(posts.texts[row].count(" ") + 1)]
    if tokenizer is minilm:
        read = minilm().convert_ids_to_tokens(pool.tokens[slice(*pool.span(2))])
        assert read == ["[CLS]", "so", "face", "with", "tears", "of", "joy", "fun", "[SEP]"]
        cut = TokenizedPosts(minilm(), 6, [posts], preprocess=ALL)
        assert cut.cut[1].tolist() == [2, 2, 1], "words are cut off where the rewritten posts are too long"
