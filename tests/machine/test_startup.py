"""What a start leaves off and what it keeps: the search for garbage, memory, compiled code."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hatemtl.machine.startup import keep_memory, started, starting

KEPT = {"THP_MEM_ALLOC_ENABLE": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}


def test_garbage_is_searched_for_again_once_the_run_is_built_and_after_it() -> None:
    with starting():
        assert not gc.isenabled()
        started()
        assert gc.isenabled()
        assert gc.get_freeze_count()
    assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_a_run_that_fails_while_it_is_built_leaves_no_trace() -> None:
    with pytest.raises(ValueError), starting():
        raise ValueError
    assert gc.isenabled()


def test_without_starting_nothing_is_frozen() -> None:
    started()
    assert not gc.get_freeze_count()


def test_what_is_kept_can_be_chosen_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    keep_memory()
    assert {name: os.environ[name] for name in KEPT} == KEPT
    for name in KEPT:
        monkeypatch.setenv(name, "0")
    keep_memory()
    assert {os.environ[name] for name in KEPT} == {"0"}


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
