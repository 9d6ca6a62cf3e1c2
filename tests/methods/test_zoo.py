"""Every method on every encoder: trained, saved, loaded, merged, put together with others; the tables of that."""

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import ROOT

from scripts import zoo_table

# What a method is asked and rightly refuses: by outcome, the methods that do not refuse.
MERGED = {"ah_lora16", "ah_dora", "ah_vera", "ah_ia3", "full"}  # and all of PEFT's
NOT_STACKED = {"ah_dora", "ah_reft", "ah_seq_bn_inv", "ah_double_seq_bn_inv"}
NOT_AVERAGED = NOT_STACKED | {"ah_prefix", "ah_mam", "ah_unipelt"}
FUSED = {"bottleneck", "ah_seq_bn", "ah_double_seq_bn", "ah_par_bn", "ah_scaled_par_bn", "ah_compacter"}
SOURCES = {"peft_lora16", "peft_rslora16", "bottleneck"}  # what AdapterHub's library takes beside its own
WAY_OUT = r"type method=|type export\.format=|, method=(?:ah|peft)_|train it with method=|load it with method=|name sources"


@cache
def row(name: str, kind: str) -> zoo_table.Row:
    with TemporaryDirectory() as folder:
        way = zoo_table.composed if name in zoo_table.COMPOSED else zoo_table.trial
        return way(name, kind, Path(folder))


def expected(name: str) -> dict[str, bool]:
    source = name.startswith("ah_") or name in SOURCES
    return {
        **{"train": True, "reload exact": True, "into weights": name in MERGED or name.startswith("peft_")},
        **{"stack": source and name not in NOT_STACKED, "average": source and name not in NOT_AVERAGED},
        **{"parallel": source, "fuse": name in FUSED},
    }


def every(names: list[str], fast: set[str]) -> pytest.MarkDecorator:
    """Each on each encoder; all but some of them on a BERT are slow."""
    tried = [(name, kind) for name in names for kind in zoo_table.ENCODERS]
    slow: Any = pytest.mark.slow
    return pytest.mark.parametrize(
        ("typed", "kind"),
        [pytest.param(*pair, marks=() if pair[0] in fast and pair[1] == "bert" else slow) for pair in tried],
    )


# a kind each; the others' own tests, adapterhub/test_kinds_of_adapter.py among them, are fast
OFTEN = {"ah_lora16", "ah_seq_bn", "ah_prefix", "ah_dora", "ah_reft", "full", "mtl_lora", "peft_lora16"}


@every(zoo_table.methods(), OFTEN)
def test_what_a_method_can_do(typed: str, kind: str) -> None:
    name, outcomes = typed.split()[0], row(typed, kind).outcomes
    assert set(outcomes) == set(zoo_table.COLUMNS)
    for trial, can in expected(name).items():
        if can:
            assert outcomes[trial] == "yes", trial
            continue  # else a reason and a way out, never a wrong number
        assert re.search(WAY_OUT, outcomes[trial]), trial
        if trial in zoo_table.TOGETHER:
            assert outcomes[trial].startswith(f"method={zoo_table.TOGETHER[trial].split()[0]} on encoder={kind}: "), trial
        else:
            assert name in outcomes[trial] and kind in outcomes[trial], trial


@every(list(zoo_table.COMPOSED), {"lora_fusion", "ah_merge16", "peft_merge16"})
def test_what_becomes_of_saved_runs_put_together(typed: str, kind: str) -> None:
    name, outcomes = typed.split()[0], row(typed, kind).outcomes
    assert outcomes["train"] == ("-" if name in ("ah_average", "ah_parallel") else "yes")  # heads alone
    assert outcomes["reload exact"] == "yes"
    if name in ("ah_merge16", "peft_merge16", "full_merge"):
        assert outcomes["into weights"] == "yes"
    else:
        assert re.search(WAY_OUT, outcomes["into weights"])
        assert name in outcomes["into weights"] and f"/{kind}" in outcomes["into weights"]


def test_every_yaml_is_tried() -> None:
    tried = {typed.split()[0] for typed in (*zoo_table.methods(), *zoo_table.COMPOSED)}
    assert {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")} - tried == {
        *("ah", "peft"),  # any kind: those that have no file are tried in the tests of both libraries
        *("ah_load", "peft_load", "bank_load", "mtl_load", "bottleneck_load"),  # which load what the others save
    }


@pytest.mark.slow
def test_the_tables_in_the_docs_are_what_they_can_do() -> None:
    """docs/methods.org has, at `#+name: zoo` and `zoo_together`, what `scripts/zoo_table.py` prints, but for spaces."""
    alone, together = (
        [row(name, kind) for name in names for kind in zoo_table.ENCODERS]
        for names in (zoo_table.methods(), zoo_table.COMPOSED)
    )
    assert _cells(_printed("zoo")) == _cells(zoo_table.table(alone, zoo_table.COLUMNS, {}))
    assert _cells(_printed("zoo_together")) == _cells(zoo_table.table(together, zoo_table.ALONE, zoo_table.COMPOSED))


def _printed(name: str) -> str:
    page = (ROOT / "docs" / "methods.org").read_text(encoding="utf-8")
    found = re.search(rf"^#\+name: {name}\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    assert found, f"docs/methods.org has no table under #+name: {name}; put there what `uv run scripts/zoo_table.py` prints"
    return found[1]


def _cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if not line.startswith("|-")
    ]
