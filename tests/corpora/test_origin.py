"""Origins: every corpus says who may use it and whom to cite, so that a card of a model can."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

from hatemtl import corpora
from hatemtl.corpora.base import Corpus
from hatemtl.corpora.joint import Joint
from hatemtl.corpora.origin import Origin, origins
from hatemtl.corpora.sample import Sample
from hatemtl.corpora.table import Table


def classes() -> Iterator[type[Corpus]]:
    for found in pkgutil.iter_modules(corpora.__path__):
        module = importlib.import_module(f"{corpora.__name__}.{found.name}")
        for _, made in inspect.getmembers(module, inspect.isclass):
            if issubclass(made, Corpus) and made.__module__ == module.__name__ and not inspect.isabstract(made):
                yield made


@pytest.mark.parametrize("made", [made for made in classes() if made not in (Joint, Table)], ids=lambda made: made.__name__)
def test_every_corpus_says_its_licence_and_whom_to_cite(made: type[Any]) -> None:
    (said,) = origins(object.__new__(made))
    assert said.name == made.__module__.rpartition(".")[2]
    assert said.licence and "Cite" not in said.licence and "Source" not in said.licence
    assert made is Sample or (said.cite and any(year in said.cite for year in map(str, range(2005, 2027))))
    assert said.hub is None or said.hub.count("/") == 1


def test_a_table_says_nothing_and_a_joint_corpus_what_its_parts_say() -> None:
    assert [*origins(object.__new__(Table))] == [Origin("table")]
    joint = Joint(corpora={"a": Sample(), "b": object.__new__(Table)}, column="label")
    assert [each.name for each in origins(joint)] == ["sample", "table"]
    choices = {"corpus@tasks.a.corpus.corpora.b": "lenta", "corpus@tasks.a.corpus.corpora.a": "other"}
    assert [each.name for each in origins(joint, choices, "tasks.a.corpus")] == ["sample", "lenta"]
    (lenta,) = origins(object.__new__(Table), {"corpus@tasks.a.corpus": "lenta"}, "tasks.a.corpus")
    assert lenta == Origin("lenta")
