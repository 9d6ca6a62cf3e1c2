"""Shows which source of a LoRA bank answers for which label: the gates' mean weights over the posts that carry it.

Reads fusion.csv, which a run of method=lora_fusion or lora_gate leaves when it is tested. Rows are labels, a mean over all
layers, or with --by layer the layers; the first row, every post, is what the others are to be compared with: with equal
rows the gates tell no label from another. A post counts for each label it carries.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from heatmap import Panel, drawn
from results import ResultsError, chosen, write_whole
from table import Table, add_output_options

from hatemtl.harmless import unguarded

EXAMPLES = """examples:
  uv run analysis/fusion_map.py adapters/small/lora16/target_fusion
  uv run analysis/fusion_map.py adapters/small/lora16/target_fusion --layer "*.layer.5.*" --output fusion.svg
  uv run analysis/fusion_map.py adapters/small/lora16/target_fusion --by layer --label women --format markdown
"""
COLUMNS = ["task", "label", "layer", "source", "weight", "posts"]
EVERY = "*"  # in place of a label: all posts of the task


class Weight(NamedTuple):
    """The mean weight of one source in one layer, over the posts of one label."""

    task: str
    label: str
    layer: str
    source: str
    weight: float
    posts: int


def read(run: Path) -> list[Weight]:
    """The rows of a run's fusion.csv.

    Raises ResultsError where there is none, or where it is not what a run leaves.
    """
    path = run / "fusion.csv" if run.is_dir() else run
    if not path.is_file():
        raise ResultsError(
            f"{path}: there is no such file; expected a tested run of method=lora_fusion or lora_gate; test it: "
            f"uv run main.py action=test method=bank_load heads.load=true load_path={run}"
        )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ResultsError(f"{path}: expected the columns {','.join(COLUMNS)}")
        rows = []
        for row in reader:
            try:
                weight, posts = float(row["weight"]), int(row["posts"])
            except (ValueError, TypeError):
                raise ResultsError(f"{path}:{reader.line_num}: expected a weight and a number of posts") from None
            task, label, layer, source = (unguarded(row[name]) for name in COLUMNS[:4])
            rows.append(Weight(task, label, layer, source, weight, posts))
    if not rows:
        raise ResultsError(f"{path}: holds no rows; test the run again")
    return rows


def averaged(rows: Sequence[Weight], by: str) -> dict[str, list[float]]:
    """The mean weight of every source, by label with the number of its posts, or by layer, in the order of the file."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        name = row.layer if by == "layer" else f"{'every post' if row.label == EVERY else row.label} ({row.posts})"
        cells.setdefault((name, row.source), []).append(row.weight)
    names, sources = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return {name: [fmean(cells[name, source]) for source in sources] for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("run", type=Path, metavar="RUN", help="tested run, or its fusion.csv")
    parser.add_argument("--by", choices=["label", "layer"], default="label", help="what the rows are (default: %(default)s)")
    parser.add_argument("--task", help="needed where the run has several")
    parser.add_argument("--layer", metavar="GLOB", help="only these layers")
    parser.add_argument("--label", help="with --by layer: over the posts of this label (default: over every post)")
    add_output_options(parser, stage=False)
    args = parser.parse_args(argv)
    try:
        rows = read(args.run)
        task = chosen("task", args.task, list(dict.fromkeys(row.task for row in rows)))
        rows = [row for row in rows if row.task == task]
        layers = list(dict.fromkeys(row.layer for row in rows))
        if args.layer is not None:
            rows = [row for row in rows if fnmatchcase(row.layer, args.layer)]
            if not rows:
                raise ResultsError(f"--layer {args.layer!r} matches none; the layers are {', '.join(layers)}")
        if args.by == "layer":
            label = chosen("label", args.label or EVERY, list(dict.fromkeys(row.label for row in rows)))
            rows = [row for row in rows if row.label == label]
        elif args.label is not None:
            raise ResultsError("--label: labels are the rows already; type --by layer --label NAME")
        table, sources = averaged(rows, args.by), list(dict.fromkeys(row.source for row in rows))
        if args.output is not None and args.output.suffix == ".svg" and args.format is None:
            values = [value for row in table.values() for value in row]
            panel = Panel(f"{args.by}: weight of each source", sources, table)
            digits = 3 if args.digits is None else args.digits
            picture = drawn([panel], format="svg", colours="Blues", low=min(values), high=max(values), digits=digits)
            write_whole(args.output, picture)
        else:
            inputs = [args.run / "fusion.csv" if args.run.is_dir() else args.run]
            Table(sources, table, digits=args.digits, corner=args.by).show(args.format, args.output, inputs)
    except (ResultsError, OSError) as error:
        print(f"fusion_map.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
