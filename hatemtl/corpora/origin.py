"""Tells where a corpus is from, who may use it and whom to cite, as the head of its file says."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hatemtl.corpora.base import Corpus
from hatemtl.corpora.joint import Joint
from hatemtl.corpora.table import Table


class Origin(NamedTuple):
    """A corpus as it is cited. hub: the name of its copy there, if there is one. None: nobody has said."""

    name: str
    licence: str | None = None
    source: str | None = None
    cite: str | None = None
    hub: str | None = None


def origins(corpus: Corpus, choices: Mapping[str, str] | None = None, key: str = "") -> Iterator[Origin]:
    """Gives the origin of a corpus, or of each that a joint one is made of.

    choices: the options of groups by which the corpus at `key` was chosen; a table is named after its own.

    >>> from hatemtl.corpora.davidson import Davidson
    >>> davidson, = origins(Davidson(dir="", fractions=[0.8, 0.1, 0.1]))
    >>> davidson.name, davidson.licence, davidson.hub
    ('davidson', 'MIT', 'tdavidson/hate_speech_offensive')
    """
    if isinstance(corpus, Joint):
        for name, each in corpus.corpora.items():
            yield from origins(each, choices, f"{key}.corpora.{name}")
        return
    module = sys.modules[type(corpus).__module__]
    said = " ".join((module.__doc__ or "").split())
    name = module.__name__.rpartition(".")[2]
    if isinstance(corpus, Table):  # whoever wrote its option knows what it holds
        name = (choices or {}).get(f"corpus@{key}", name)
    begun = re.search(r"Licence: (.+)$", said)
    licence, source, cite = _parts(begun[1]) if begun else (None, None, None)
    hub = re.search(r"\b[Tt]he hub(?:'s copy)?[: (]+([\w-]+/[\w.-]*\w)", said)
    yield Origin(name, licence, source, cite, hub[1] if hub else None)


def _parts(said: str) -> tuple[str | None, str | None, str | None]:
    found = {"Licence": said}
    for begin in ("Source: ", "Cite "):
        for key, text in list(found.items()):
            before, mark, after = text.partition(f" {begin}")
            if mark:
                found[key], found[begin.strip(": ")] = before, after
    licence, source, cite = (found.get(key, "").strip().removesuffix(".") or None for key in ("Licence", "Source", "Cite"))
    return licence, source, cite
