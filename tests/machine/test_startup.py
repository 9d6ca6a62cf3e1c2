"""What a start leaves off and what it keeps: the search for garbage, memory, compiled code."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hatemtl.machine import startup
from hatemtl.machine.startup import ASLEEP, SPINS, bound_memory, free_cores, keep_memory, share_cores, started, starting

ROOT = Path(__file__).parents[2]
KEPT = {"THP_MEM_ALLOC_ENABLE": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "2048", "LRU_CACHE_CAPACITY": "32"}


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether objects were frozen or let go, in turn; those of the tests themselves stay frozen."""
    calls: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(True))
    monkeypatch.setattr(gc, "unfreeze", lambda: calls.append(False))
    return calls


def test_garbage_is_searched_for_again_once_the_run_is_built_and_after_it(frozen: list[bool]) -> None:
    with starting():
        assert not gc.isenabled()
        started()
        assert gc.isenabled()
        assert frozen == [True]
    assert gc.isenabled()
    assert frozen == [True, False]


def test_a_run_that_fails_while_it_is_built_leaves_no_trace(frozen: list[bool]) -> None:
    with pytest.raises(ValueError), starting():
        raise ValueError
    assert gc.isenabled()
    assert frozen == [False]


def test_without_starting_nothing_is_frozen(frozen: list[bool]) -> None:
    started()
    assert frozen == []


def test_what_is_kept_can_be_chosen_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    keep_memory()
    assert {name: os.environ[name] for name in KEPT} == KEPT
    for name in KEPT:
        monkeypatch.setenv(name, "0")
    keep_memory()
    assert {os.environ[name] for name in KEPT} == {"0"}


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """How threads wait, and how many there are, is not in the environment; what is put there goes with the test."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("unsaid")
def test_threads_wait_as_the_environment_says_else_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_BEGAN", None)  # nobody else is watched
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize(
    ("others", "threads", "spins"),
    [
        (0.0, None, SPINS),
        (0.4, None, SPINS),
        (0.6, None, ASLEEP),
        (2.0, None, ASLEEP),
        (1.2, "2", SPINS),
        (2.8, "2", ASLEEP),
        (2.8, "9", ASLEEP),
        (0.6, "two", ASLEEP),
        (0.6, "0", ASLEEP),
    ],
)
@pytest.mark.usefixtures("unsaid")
def test_threads_sleep_at_once_where_one_would_have_to_share_its_core(
    others: float, threads: str | None, spins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """others: the cores, of four, that they keep at work."""
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(startup, "_BEGAN", (0.0, 7.0))
    monkeypatch.setattr(startup, "_others", lambda: (10.0, 7.0 + 10 * others))
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == spins
    assert free_cores() == max(1, 4 - round(others))


@pytest.mark.slow  # starts of its own
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux counts what its cores work")
def test_a_start_sees_who_keeps_its_cores_at_work() -> None:
    """One of the cores that it may use is kept busy by another process that may use no other."""
    core = min(os.sched_getaffinity(0))
    script = (
        "import os\n"
        f"os.sched_setaffinity(0, {{{core}}})\n"
        "from hatemtl.machine.startup import share_cores\n"
        "share_cores()\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    turns = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", turns])
    try:
        run = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, cwd=ROOT)
    finally:
        other.kill()
        other.wait()
    assert run.stdout.strip() == ASLEEP, run.stderr


@pytest.mark.slow  # a start of its own
def test_a_start_says_it_before_anything_loads_the_library_that_reads_it() -> None:
    script = (
        "from hatemtl.machine import startup\n"
        "from hatemtl.machine.startup import starting\n"
        "import sys\n"
        "startup._BEGAN = None\n"  # nobody else is watched
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
        "with starting():\n"
        "    import torch, os\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    run = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == SPINS, run.stderr


@pytest.mark.slow  # a start of its own
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="reads Linux's own count")
def test_large_tensors_of_a_run_stand_on_large_pages() -> None:
    """If nothing makes a tensor before the environment is set: torch looks at it once."""
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this machine has no large pages")
    script = (
        "from hatemtl.machine.startup import starting\n"
        "with starting():\n"
        "    import hatemtl.run, torch\n"
        "    x = torch.ones(64 << 20)\n"
        "    print(open('/proc/self/smaps_rollup').read().split('AnonHugePages:')[1].split()[0])\n"
    )
    free = {name: value for name, value in os.environ.items() if name not in KEPT}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=free, check=True)
    assert int(ended.stdout.split()[-1]) >= 200 << 10  # KiB, of the 256 MiB


@pytest.mark.parametrize(("typed", "kept"), [(None, "256"), ("512", "512")])
def test_memory_is_bounded_but_by_what_was_typed(typed: str | None, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    if typed is not None:
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", typed)
    keep_memory()
    bound_memory()
    assert (os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"]) == (kept, "32")
    keep_memory()  # the allocator of this process is as it was


CODE = """
import os, sys
import torch
from hatemtl.machine.startup import bound_memory, keep_memory

def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))) // 1024

torch.set_num_threads(1)
(bound_memory if sys.argv[1] == "lean" else keep_memory)()
weight = torch.randn(1536, 384, dtype=torch.bfloat16)
for rows in range(300, 340):  # what the libraries take once
    torch.nn.functional.linear(torch.randn(rows, 384, dtype=torch.bfloat16), weight)
before = resident()
for rows in range(340, 640):
    torch.nn.functional.linear(torch.randn(rows, 384, dtype=torch.bfloat16), weight)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists() or not torch.cpu._is_avx512_bf16_supported(), reason="Linux, with bf16")
def test_shapes_that_come_once_are_not_kept_where_memory_is_to_be_lean() -> None:
    """A process each, since the libraries look at the environment once; torch is imported before, as in a run."""
    taken = {}
    for kind in ("lean", "fast"):
        environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
        command = [sys.executable, "-c", CODE, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        taken[kind] = int(done.stdout)
    assert taken["fast"] > 100  # megabytes; so the test sees what it is about
    assert taken["lean"] < taken["fast"] / 2
