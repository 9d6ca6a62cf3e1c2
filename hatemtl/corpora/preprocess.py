"""Rewrites the words of a post before they are tokenized. It stands alone: a copy of it lies beside what is exported.

Every word stays one word, so that annotations of words stay where they are.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields

WITHIN = "\u00a0"  # a space to a tokenizer, and none to `text.split(" ")`, which counts words
USER, URL, NUMBER = "<user>", "<url>", "<number>"  # as HateXplain's posts have them

_URL = re.compile(r"(?:https?://|(?<!\w)www\.)\S*[^\s.,;:!?'\")\]}…]", re.IGNORECASE)
_USER = re.compile(r"(?<![\w@.])@\w+")
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,:/]\d+)*(?!\w)")
_LONG = re.compile(r"([^\W\d_])\1{2,}", re.IGNORECASE)
# A run of symbols and what joins or varies them: variation selectors, the zero-width joiner, skin tones, a keycap, tags.
_SYMBOL = (
    r"[\u2139\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    r"\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_EMOJI = re.compile(rf"{_SYMBOL}(?:{_SYMBOL}|[\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f])*")
# The names of Unicode's annotations (CLDR), where those of the characters say something else.
_TONES = {chr(0x1F3FB + i): tone for i, tone in enumerate(("light", "medium-light", "medium", "medium-dark", "dark"))}
_FLAG = 0x1F1E6  # regional indicator A; two make a country's flag


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Rewrites posts, the same for every corpus of a run and for whatever its saved run reads.

    urls, users, numbers: links, @names and numbers that stand alone become <url>, <user> and <number>.
    emoji: each becomes its Unicode name, "face with tears of joy", as parts of one word. elongation: three and more of one
    letter become two. case: letters become small.
    """

    users: bool = False
    urls: bool = False
    numbers: bool = False
    case: bool = False
    elongation: bool = False
    emoji: bool = False

    @property
    def asked(self) -> list[str]:
        """Names what is rewritten; nothing by default."""
        return [field.name for field in fields(self) if getattr(self, field.name)]

    def __call__(self, text: str) -> str:
        """Rewrites one text.

        >>> everything = Preprocess(users=True, urls=True, numbers=True, case=True, elongation=True, emoji=True)
        >>> everything("@Anna: SOOO good 😂, see https://a.b/c. 24/7 in B12").replace(WITHIN, "_")
        '<user>: soo good face_with_tears_of_joy, see <url>. <number> in b12'
        """
        text = _URL.sub(URL, text) if self.urls else text
        text = _USER.sub(USER, text) if self.users else text
        text = _NUMBER.sub(NUMBER, text) if self.numbers else text
        text = _EMOJI.sub(_named, text) if self.emoji else text
        text = _LONG.sub(r"\1\1", text) if self.elongation else text
        return text.lower() if self.case else text


AS_IS = Preprocess()


def _named(found: re.Match[str]) -> str:
    """Names a run of emojis, and parts it from the letters and digits that it touches within its word."""
    text, (begin, end) = found.string, found.span()
    name = WITHIN.join(_names(found[0]))
    if not name:  # of no name in this Python's Unicode, or symbols that are drawn as text
        return found[0]
    before = WITHIN if begin and text[begin - 1].isalnum() else ""
    return before + name + (WITHIN if end < len(text) and text[end].isalnum() else "")


def _names(run: str) -> Iterator[str]:
    flag = ""
    for character in run:
        if _FLAG <= ord(character) < _FLAG + 26:
            flag += chr(ord("a") + ord(character) - _FLAG)
            if len(flag) == 2:
                yield from ("flag", flag)
                flag = ""
        elif character in _TONES:
            yield from (_TONES[character], "skin", "tone")
        elif unicodedata.category(character) not in ("Mn", "Me", "Cf"):
            yield from unicodedata.name(character, character).lower().split()
