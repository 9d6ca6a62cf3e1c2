"""Shows how far the updates of saved LoRAs get in one another's way, before they are merged.

Of every two sources: the cosine of their updates ΔW; the principal angles, in degrees, between the subspaces that they
write to (columns) and read from (rows); the share of entries that they move in opposite directions, each counting alike and
by its magnitude. Of the mean of all: the share that is left of the sources' mean energy ‖ΔW‖² (1 where all agree, 1/n where
they are orthogonal, 0 where they cancel), and the share of its own energy that a cut to a rank loses.

Over all layers, sums run over the layers: large updates count for more. A layer that a source does not adapt is an update
of zero. With --output: pairs.csv (a row a layer and pair), layers.csv (a row a layer) and interference.png (cosines).
"""

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

# Small factorisations, many of them: threads that wait for one another take 20 times as long where the cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from heatmap import Panel, drawn
from loras import Source, read_sources
from overlap import Angles, Mean, Pair, compare, kept, lost, mean_of, take_apart
from results import ResultsError, write_whole
from table import SUFFIXES, Table

from hatemtl.harmless import guarded

EXAMPLES = """examples:
  uv run analysis/interference.py "adapters/small/lora16/target_part_*"
  uv run analysis/interference.py "adapters/small/lora16/target_part_*" --rank 8 --output adapters/small/lora16/interference
  uv run analysis/interference.py adapters/label adapters/target adapters/peft/davidson --format markdown
"""
SUMMARY = ["cosine", "column angle", "row angle", "conflicts", "by magnitude", "norm of first", "norm of second"]


def examine(sources: Sequence[Source]) -> tuple[list[Pair], list[Mean]]:
    """Every pair on every layer, and the mean of every layer. One layer at a time is held as dense matrices."""
    pairs: list[Pair] = []
    means: list[Mean] = []
    for layer in sorted({layer for source in sources for layer in source.layers}, key=_in_order):
        adapted = [source.layers[layer] for source in sources if layer in source.layers]
        nothing = adapted[0].nothing()
        updates = [(source.name, take_apart(source.layers.get(layer, nothing))) for source in sources]
        pairs += [compare(layer, first, second, a, b) for (first, a), (second, b) in combinations(updates, 2)]
        means.append(mean_of(layer, adapted, len(sources)))
    return pairs, means


def _in_order(layer: str) -> list[str | int]:
    """A key that puts layer 10 after layer 2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]


def cosine_over(pairs: Iterable[Pair]) -> float | None:
    """The cosine of two sources' updates of all these layers, each source's taken as one vector."""
    inner, *squares = (
        sum(values) for values in zip(*((p.inner_product, p.norm_first**2, p.norm_second**2) for p in pairs), strict=True)
    )
    return inner / (squares[0] ** 0.5 * squares[1] ** 0.5) if all(squares) else None


def summary(pairs: Sequence[Pair]) -> list[float | None]:
    """The columns of SUMMARY for one pair of sources over its layers; means are weighted by ‖ΔW₁‖·‖ΔW₂‖."""

    def weighted(values: Iterable[float | None]) -> float | None:
        known = [(v, p.norm_first * p.norm_second) for v, p in zip(values, pairs, strict=True) if v is not None]
        total = sum(weight for _, weight in known)
        return sum(value * weight for value, weight in known) / total if total else None

    return [
        cosine_over(pairs),
        weighted(pair.columns.mean for pair in pairs),
        weighted(pair.rows.mean for pair in pairs),
        weighted(pair.conflicts for pair in pairs),
        weighted(pair.conflicts_by_magnitude for pair in pairs),
        sum(pair.norm_first**2 for pair in pairs) ** 0.5,
        sum(pair.norm_second**2 for pair in pairs) ** 0.5,
    ]


def by_sources(pairs: Iterable[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """The pairs of layers of every pair of sources."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((pair.first, pair.second), []).append(pair)
    return found


def ranks_shown(means: Iterable[Mean], asked: int) -> list[int]:
    """The powers of two that lose something on some layer, and the rank that was asked for."""
    full = max(int(np.count_nonzero(mean.spectrum)) for mean in means)
    return sorted({asked, *(2**i for i in range(full.bit_length()) if 2**i < full)})


def mean_rows(means: Sequence[Mean], ranks: Sequence[int]) -> dict[str, list[float | None]]:
    """What the mean keeps and loses: over all layers, on the layer with least, on that with most."""
    shares = [share for share in (kept([mean]) for mean in means) if share is not None]
    ends = [min(shares), max(shares)] if shares else [None, None]
    rows: dict[str, list[float | None]] = {"energy left in the mean": [kept(means), *ends]}
    for rank in ranks:
        each = [lost([mean], rank) for mean in means]
        rows[f"of it lost at rank {rank}"] = [lost(means, rank), min(each), max(each)]
    return rows


def pairs_csv(pairs: Iterable[Pair]) -> bytes:
    header: list[str] = []
    for name in Pair._fields:
        header += [f"{name[:-1]}_angle_{kind}" for kind in Angles._fields] if name in ("columns", "rows") else [name]
    return _csv([header, *([*pair[:9], *pair.columns, *pair.rows, *pair[11:]] for pair in pairs)])


def layers_csv(means: Iterable[Mean], ranks: Sequence[int]) -> bytes:
    header = ["layer", "sources", "energy", "left_in_mean", "rank_of_mean", *(f"lost_at_rank_{rank}" for rank in ranks)]
    rows = (
        [m.layer, m.sources, m.energy, kept([m]), np.count_nonzero(m.spectrum), *(lost([m], rank) for rank in ranks)]
        for m in means
    )
    return _csv([header, *rows])


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    # None becomes an empty cell
    csv.writer(text, lineterminator="\n").writerows([guarded(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def heat_map(names: Sequence[str], pairs: Sequence[Pair]) -> bytes:
    """Cosines of sources × sources over all layers, and of layers × pairs, as a PNG."""
    number = {name: str(i) for i, name in enumerate(names, 1)}
    whole = {both: cosine_over(of) for both, of in by_sources(pairs).items()}
    whole |= {(b, a): cosine for (a, b), cosine in whole.items()}
    between = {f"{number[a]}  {a}": [1.0 if a == b else whole[a, b] for b in names] for a in names}
    layers: dict[str, list[float | None]] = {}
    for pair in pairs:
        layers.setdefault(pair.layer, []).append(pair.cosine)
    columns = [f"{number[a]}-{number[b]}" for a, b in combinations(names, 2)]
    titles = (
        "cosine of the updates, over all layers",
        f"cosine by layer; columns: pairs {columns[0]} to {columns[-1]}",
    )
    return drawn([Panel(titles[0], list(number.values()), between), Panel(titles[1], columns, layers)])


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="saved run with a LoRA, or a quoted glob of them")
    parser.add_argument("--rank", type=int, default=16, metavar="R", help="cut the mean to this too (default: %(default)s)")
    parser.add_argument("--format", choices=[*SUFFIXES.values()], help="of what is printed; piped: org")
    parser.add_argument("--digits", type=int, choices=range(18), metavar="N", help="decimals (default: 3; csv: all)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write two CSVs and a heat map there as well")
    args = parser.parse_args(argv)
    try:
        if args.rank < 1:
            raise ResultsError(f"--rank {args.rank}: expected a whole number from 1")
        sources = read_sources(args.sources)
        pairs, means = examine(sources)
        ranks = ranks_shown(means, args.rank)
        rows = {f"{a} - {b}": summary(of) for (a, b), of in by_sources(pairs).items()}
        if args.output is not None:
            write_whole(args.output / "pairs.csv", pairs_csv(pairs))
            write_whole(args.output / "layers.csv", layers_csv(means, ranks))
            write_whole(args.output / "interference.png", heat_map([source.name for source in sources], pairs))
        Table(SUMMARY, rows, args.digits, corner="sources").show(args.format, None, [])
        print()
        columns = ["all layers", "least", "most"]
        Table(columns, mean_rows(means, ranks), args.digits, corner="mean of all").show(args.format, None, [])
    except (ResultsError, OSError) as error:
        print(f"interference.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
