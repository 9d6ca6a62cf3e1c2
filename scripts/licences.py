"""Lists the licence of every package that hatemtl needs, and of what these need, as each states it: name, version, licence.

  uv run scripts/licences.py                 # those installed of pyproject.toml's dependencies
  uv run scripts/licences.py --extra mtl dev # and of extras, or of groups such as dev

Exits with 1 where one states none, or a strong copyleft, and is not among those that were read by hand.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Under which a program that is given away together with the package has to be given away alike; not LGPL and MPL.
STRONG = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
READ_BY_HAND = {
    "axe-playwright-python": "MIT, in its LICENSE alone",
    "cuda-toolkit": "NVIDIA's, of a package that holds nothing and names the others",
    "quadprog": "GPL 2 or later, of the extra mtl alone: it is installed by who asks for it, and no wheel of ours holds it",
}


def required(extras: Iterable[str]) -> list[Requirement]:
    """Reads the requirements of pyproject.toml, with those of extras and groups of these names."""
    content = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    project, groups = content["project"], content["dependency-groups"]
    more = [word for name in extras for word in {**project["optional-dependencies"], **groups}[name]]
    return [Requirement(word) for word in [*project["dependencies"], *more]]


def installed(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """Finds the distributions that are installed of these and of all that they need, by name."""
    found: dict[str, Distribution] = {}
    asked = {(canonicalize_name(each.name), frozenset(each.extras)) for each in requirements}
    seen: set[tuple[str, frozenset[str]]] = set()
    while asked:
        seen.add(one := asked.pop())
        name, extras = one
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another system, or an extra that is not here
            continue
        for word in found[name].requires or ():
            need = Requirement(word)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                asked |= {(canonicalize_name(need.name), frozenset(need.extras))} - seen
    return dict(sorted(found.items()))


def licence(of: Distribution) -> str:
    """Gives the licence that a distribution states: as an expression, by classifiers, or in a line of its own."""
    said = of.metadata.get("License-Expression")
    classified = [line.rpartition(" :: ")[2] for line in of.metadata.get_all("Classifier", []) if "License :: " in line]
    line = (of.metadata.get("License") or "").strip().splitlines()[:1]
    return said or " OR ".join(classified) or "".join(line)[:60]


def rows(extras: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Lists name, version and licence of each."""
    for name, each in installed(required(extras)).items():
        yield name, each.version, licence(each)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 where one has to be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", nargs="*", default=[], metavar="NAME", help="of pyproject.toml: extras or groups")
    given = parser.parse_args(arguments)
    table, wrong = [*rows(given.extra)], []
    wide = max(len(name) for name, *_ in table)
    for name, version, stated in table:
        by_hand = READ_BY_HAND.get(name)
        print(f"{name:{wide}}  {version:16}  {stated or '(states none)'}{f' ({by_hand})' if by_hand else ''}")
        if by_hand is None and (not stated or STRONG.search(stated)):
            wrong.append(f"{name}: {stated or 'states none'}")
    print(f"{len(table)} packages", file=sys.stderr)
    for line in wrong:
        print(f"error: {line}; read it, and either leave the package out or tell of it in READ_BY_HAND", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
