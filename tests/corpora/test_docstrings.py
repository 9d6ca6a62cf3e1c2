"""The head of every corpus' file says what the README promises of it: layout, splits, licence and citation."""

import importlib
import re
from typing import Any

import pytest
import yaml
from conftest import ROOT

# made of others, made up, the user's own, tables that their YAMLs describe
OURS = ("joint", "sample", "table", "squad", "lenta")
CORPORA = sorted(path.stem for path in (ROOT / "conf" / "corpus").glob("*.yaml") if path.stem not in OURS)


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_says_layout_splits_licence_and_how_to_cite_it(name: str) -> None:
    target: Any = yaml.safe_load((ROOT / "conf" / "corpus" / f"{name}.yaml").read_text())["_target_"]
    module = importlib.import_module(target.rpartition(".")[0])
    said = " ".join((module.__doc__ or "").split())
    assert re.search(r"\b(Layout|Files)\b[^.]*:|\bFiles, as\b", said), "no layout"
    assert re.search(r"[Ss]plits?\b|`test`", said), "no splits"
    assert re.search(r"Licence: \w", said), "no licence"
    assert re.search(r'Cite [A-Z].*? \((19|20)\d\d\), "', said), "no citation"
