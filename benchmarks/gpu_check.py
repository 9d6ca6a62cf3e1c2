"""What gpu_check.sh asks: how many GPUs there are, whether two runs gave the same scores, what a run took.

And it makes encoders without weights, for runs that draw them.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def apart(run: Path, other: Path) -> float:
    """The largest difference between two runs' scores of a post; nan where one is, or they are of other posts or tasks."""
    import numpy as np
    import pandas as pd

    a, b = (
        pd.read_parquet(folder / "predictions.parquet").sort_values(["task", "post_id"], kind="stable")
        for folder in (run, other)
    )
    if not len(a) or [*zip(a.task, a.post_id, strict=True)] != [*zip(b.task, b.post_id, strict=True)]:
        return float("nan")
    return float(np.max([np.abs(np.subtract(x, y)).max() for x, y in zip(a.scores, b.scores, strict=True)]))


def verdict(what: str, off: float, limit: float, *, other_code: bool = False) -> tuple[str, bool]:
    """What is said of such a difference, and whether it is well. other_code: two ways to compute, which round otherwise."""
    well = off <= limit and not (other_code and off == 0)
    why = "" if well else ": one code computed both" if off == 0 else ": other posts, or no numbers" if off != off else ""
    return f"{what}: scores differ by {off:.1e} at most, {limit:.0e} allowed: {'well' if well else f'WRONG{why}'}", well


def took(record: Mapping[str, Any]) -> str:
    """Posts a second of a run's training, and the memory it took, by its run.json."""
    rates = f"{record['examples_per_second']:.0f} posts/s, {record['tokens_per_second']:.0f} tokens/s"
    most = record["ledger"]["peak_memory_bytes"] / 2**20
    return f"{rates}, {most:.0f} MiB at most, {record['precision']}, {record['machine']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    asks = parser.add_subparsers(dest="ask", required=True)
    asks.add_parser("gpus")
    same = asks.add_parser("same")
    same.add_argument("what")
    same.add_argument("runs", type=Path, nargs=2)
    same.add_argument("limit", type=float)
    same.add_argument("--other-code", action="store_true", help="fails too where nothing differs")
    asks.add_parser("took").add_argument("run", type=Path)
    made = asks.add_parser("encoders")
    made.add_argument("folder", type=Path)
    made.add_argument("names", nargs="+")
    given = parser.parse_args()
    if given.ask == "gpus":
        import torch

        print(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    elif given.ask == "same":
        text, well = verdict(given.what, apart(*given.runs), given.limit, other_code=given.other_code)
        print(text)
        sys.exit(not well)
    elif given.ask == "took":
        print(took(json.loads((given.run / "run.json").read_text(encoding="utf-8"))))
    else:
        from benchmarks.encoders import described

        for name in given.names:
            described(name, given.folder)


if __name__ == "__main__":
    main()
