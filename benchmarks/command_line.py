"""What the scripts here are asked in the same words."""

import argparse
import os
from pathlib import Path


def parser(about: str | None, *, posts: bool, quick: str) -> argparse.ArgumentParser:
    """A command line with --threads, --device, --out and --quick, whose help is `quick`; with `posts`, also --posts."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if posts:
        made.add_argument("--posts", default="sample", help="`sample`, or a folder holding hatexplain/, as ../shared/data")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each process")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    made.add_argument("--quick", action="store_true", help=f"{quick}: to try the script, not to report")
    return made


OWN_TIME = "seconds of one thread's processor instead of the clock's, for a machine at work; sets --threads 1"


def leave(out: Path, name: str, text: str) -> None:
    """Prints a report and keeps it as `name`.org in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.org").write_text(f"{text}\n", encoding="utf-8")
    print(text)
