"""Peaks are told beside the Trainer's, and the parts of an arm's memory beside each other."""

import ctypes

import pytest

from benchmarks.long_runs import Found, allocated, report


def test_an_arm_is_told_beside_the_trainer() -> None:
    parts = {"libraries": 500_000_000, "all of it": 900_000_000}
    found = {"eager": Found(100, 10.0, 2 << 30, {}), "fast": Found(200, 10.0, 3 << 30, parts)}
    peaks, _, kept = report(found).partition("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in peaks.splitlines()[2:]]
    assert rows[0] == ["Trainer, tuned, eager attention", "2.00", "100.0", "1.00", "1.00"]
    assert rows[1] == ["hatemtl", "3.00", "50.0", "1.50", "2.00"]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in kept.splitlines()[2:]] == [
        ["libraries", "500"],
        ["all of it", "900"],
    ]
    assert report({"eager": found["eager"]}).splitlines()[2:] == [peaks.splitlines()[2]]  # which has no parts


def test_what_the_allocator_gives_out_is_counted() -> None:
    before, _ = allocated()
    if not before:
        pytest.skip("no glibc")
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    place = libc.malloc(50_000_000)
    assert allocated()[0] - before >= 50_000_000
    libc.free(place)
    assert allocated()[0] - before < 10_000_000
