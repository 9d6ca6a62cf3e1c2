"""Every AdapterHub method on every encoder: trained, saved, loaded, merged, combined; and README's table of that."""

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT

from scripts import zoo_table

# What a method is asked and rightly refuses: by outcome, the methods that do not refuse.
MERGED = {"ah_lora16", "ah_dora", "ah_vera", "ah_ia3"}
NOT_STACKED = {"ah_dora", "ah_reft", "ah_seq_bn_inv", "ah_double_seq_bn_inv"}
NOT_AVERAGED = NOT_STACKED | {"ah_prefix", "ah_mam", "ah_unipelt"}
FUSED = {"ah_seq_bn", "ah_double_seq_bn", "ah_par_bn", "ah_scaled_par_bn", "ah_compacter"}


@cache
def row(name: str, kind: str) -> zoo_table.Row:
    with TemporaryDirectory() as folder:
        return zoo_table.trial(name, kind, Path(folder))


def expected(name: str) -> dict[str, bool]:
    return {
        **{"train": True, "reload exact": True, "into weights": name in MERGED, "stack": name not in NOT_STACKED},
        **{"average": name not in NOT_AVERAGED, "parallel": True, "fuse": name in FUSED},
    }


@pytest.mark.parametrize(
    "kind", [kind if kind == "bert" else pytest.param(kind, marks=pytest.mark.slow) for kind in zoo_table.ENCODERS]
)
@pytest.mark.parametrize("name", zoo_table.methods())
def test_what_a_method_can_do(name: str, kind: str) -> None:
    outcomes = row(name, kind).outcomes
    assert set(outcomes) == set(zoo_table.COLUMNS)
    for trial, can in expected(name).items():
        if can:
            assert outcomes[trial] == "yes", trial
        else:  # a reason and a way out, never a wrong number
            assert re.search(r"type method=|method=ah_|name sources", outcomes[trial]), trial
            assert kind in outcomes[trial], trial


def test_every_yaml_is_tried() -> None:
    assert {path.stem for path in (ROOT / "conf" / "method").glob("ah_*.yaml")} - set(zoo_table.methods()) == {
        *("ah_load", "ah_merge16", "ah_stack", "ah_average", "ah_parallel", "ah_fusion"),
    }


@pytest.mark.slow
def test_the_table_in_the_readme_is_what_they_can_do() -> None:
    """README.org has, under `#+name: zoo`, what `uv run scripts/zoo_table.py` prints; spaces do not count."""
    readme = (ROOT / "README.org").read_text(encoding="utf-8")
    found = re.search(r"^#\+name: zoo\n((?:\|.*\n)+)", readme, flags=re.MULTILINE)
    assert found, "README.org has no table under #+name: zoo; put there what `uv run scripts/zoo_table.py` prints"
    rows = [row(name, kind) for name in zoo_table.methods() for kind in zoo_table.ENCODERS]
    assert _cells(found[1]) == _cells(zoo_table.table(rows))


def _cells(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if not line.startswith("|-")
    ]
