"""Copies what verdicts are made of from a study's saved runs: small enough to be published, without weights and logs.

Of every finished run below STUDY it copies the configuration, the record, labels, results and predictions (post ids, gold
and scores: no texts), and names FOLDER where they name STUDY. Scripts of analysis/ that need these alone read
the copies as they read runs; learning curves, steps, searches and what a fusion looks at stay with the runs.
"""

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from results import PREDICTIONS, ResultsError, again, parquet_table, read_results, write_whole

EXAMPLES = """examples:
  uv run analysis/evidence.py adapters/small/lora16 --to evidence/partition
"""

SAID = ("config.yaml", "run.json", "labels.json", "results.csv")


def predictions(path: Path) -> bytes:
    """Gives the same predictions in fewer bytes: lists of float32 where these are the very same numbers."""
    import pyarrow as pa
    from pyarrow import compute, parquet

    table = parquet_table(path, "test the run again, with action=test").replace_schema_metadata(None)
    for i, field in enumerate(table.schema):
        if pa.types.is_list(field.type) and pa.types.is_float64(field.type.value_type):
            small = table.column(i).cast(pa.list_(pa.float32()), safe=False)
            numbers, same = (compute.list_flatten(column).combine_chunks() for column in (table.column(i), small))
            if numbers.equals(same.cast(pa.float64())):
                table = table.set_column(i, pa.field(field.name, small.type), small)
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd", compression_level=19)
    return file.getvalue()


def copy(study: Path, to: Path) -> int:
    """Copies every finished run below a study; gives how many bytes that takes. Raises ResultsError where there is none."""
    if to.absolute() == study.absolute() or study.absolute() in to.absolute().parents or study == Path():
        raise ResultsError(f"{study}, --to {to}: expected a study's own folder, and one that is not in it for its copies")
    paths = [path for path in sorted(study.glob("**/results.csv")) if "/." not in f"/{path.relative_to(study)}"]
    runs = [read_results(path) for path in paths]
    if not runs:
        raise ResultsError(f"{study}: no finished run below it; expected the folder that a study's runs were saved in")
    # a path of a run below it, whole: after a quote, a space, = or an opening bracket, and before a slash
    either = b"|".join(re.escape(bytes(of)) for of in (study.absolute(), study))
    named = re.compile(rb"(?<![^\s\"'=\[,])(?:" + either + rb")(?=/)")
    copies: dict[Path, bytes] = {}
    for run in runs:
        folder = run.path.parent
        if not all((folder / name).is_file() for name in (*SAID, PREDICTIONS)):
            raise ResultsError(f"{folder}: expected {', '.join(SAID)} and {PREDICTIONS} in it; test it: {again(run)}")
        into = to / folder.relative_to(study)
        copies[into / PREDICTIONS] = predictions(folder / PREDICTIONS)
        for name in SAID:
            copies[into / name] = (folder / name).read_bytes()
            if name != "results.csv":
                copies[into / name] = named.sub(lambda _: bytes(to), copies[into / name])
    for path, content in copies.items():  # only now: a study is copied whole or not at all
        write_whole(path, content)
    return sum(map(len, copies.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; 2 where the user has something to mend."""
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=verbatim)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder that holds the study's saved runs")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the copies go, each by its own path")
    args = parser.parse_args(argv)
    try:
        size = copy(args.study, args.to)
    except (ResultsError, OSError) as error:
        print(f"evidence.py: {error}", file=sys.stderr)
        return 2
    print(f"{args.to}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
