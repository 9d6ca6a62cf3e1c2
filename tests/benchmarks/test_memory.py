"""Posts are as long as they are said to be, and a peak is that of the one command that is measured."""

import csv
import mmap
import subprocess
import sys

import pytest
from conftest import ROOT
from invented import minilm

from benchmarks.machine import most_memory, resident
from benchmarks.memory import LENGTHS, METHODS, peak, posts, report


@pytest.mark.parametrize("name", LENGTHS)
def test_posts_have_the_lengths_that_are_promised(name: str) -> None:
    least, most = LENGTHS[name]
    rows = list(csv.DictReader(posts(least, most, train=200, val=10)))
    lengths = [len(minilm()(row["text"])["input_ids"]) for row in rows]
    assert least == min(lengths) or min(lengths) < least + 20
    for split in ("train", "val", "test"):
        assert max(length for length, row in zip(lengths, rows, strict=True) if row["split"] == split) == most
    assert {row["label"] for row in rows} == {"a", "b"}


@pytest.mark.slow  # processes of their own
def test_a_peak_is_of_one_command_alone() -> None:
    measured = (  # in a small process, since a command's peak is never below that of who starts it
        "from benchmarks.memory import peak\n"
        "for code in (\"len(b'x' * (300 << 20))\", '0'):\n"
        "    print(peak(['-c', f'x = {code}'], threads=1))\n"
    )
    ended = subprocess.run([sys.executable, "-c", measured], cwd=ROOT, capture_output=True, text=True, check=True)
    large, small = map(int, ended.stdout.split())
    assert 300 << 20 < large < 400 << 20
    assert small < 100 << 20  # not the greatest of all so far


@pytest.mark.slow
def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        peak(["-c", "raise SystemExit(3)"], threads=1)


def test_the_report_has_a_row_for_every_way() -> None:
    peaks = {(a, b, m): (i + 1) << 30 for i, (a, b, m) in enumerate((a, b, m) for a in "xy" for b in "c" for m in METHODS)}
    lines = report(peaks).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["x", "c", "1.0", "2.0"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["y", "c", "3.0", "4.0"]


@pytest.mark.skipif(sys.platform != "linux", reason="by /proc")
def test_the_most_memory_is_counted_from_when_it_is_asked_for() -> None:
    def take(size: int) -> None:
        with mmap.mmap(-1, size) as taken:  # which goes back to the system, whatever the allocator keeps
            taken.write(b"1" * size)

    take(1 << 28)
    earlier = resident("VmHWM")
    most = most_memory("cpu")
    low = most()
    take(1 << 26)
    assert low < earlier - (1 << 27) and (1 << 26) * 0.9 < most() - low < 1 << 28
