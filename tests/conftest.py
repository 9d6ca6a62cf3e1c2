"""What every test may use: the command line in this process, the real data where they are."""

import gc
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

os.environ["HATEMTL_CACHE"] = tempfile.mkdtemp(prefix="hatemtl-tests-")  # not the user's
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the network; a test of the hub lays out its own cache

import pytest
import yaml

gc.disable()  # until all is imported
yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]  # the same in C: Hydra reads some thirty files for each command
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's job in the background; what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
ADAPTERHUB = any(Distribution.discover(name="adapters"))
ADAPTER = f"adapter/adapter{'' if ADAPTERHUB else '_model'}.safetensors"  # of the default method


def _connect(self: socket.socket, address: Any, connect: Any = socket.socket.connect) -> Any:
    """Connects to this machine alone; a datagram's socket sends nothing when it connects."""
    inet = self.family in (socket.AF_INET, socket.AF_INET6) and self.type & socket.SOCK_STREAM
    if inet and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"a test reaches the network: {address}")
    return connect(self, address)


socket.socket.connect = _connect  # type: ignore[method-assign, assignment]


class Missing:
    """Skips each test, and each file of tests, that imports AdapterHub's library or what needs it."""

    @staticmethod
    def find_spec(name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name in ("adapters", "hatemtl.methods.adapterhub"):
            pytest.skip("AdapterHub is not installed", allow_module_level=True)
        return None


if not ADAPTERHUB:
    sys.meta_path.insert(0, Missing)  # type: ignore[arg-type]


def pytest_collection_finish() -> None:
    gc.freeze()  # all that was imported: else every collection of garbage goes through it
    gc.set_threshold(700, 10, 20)  # the last: half as often through all the rest
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _machine() -> None:
    import torch  # here and below: what distributes the tests needs none of it
    from composed import compose_options_once

    from hatemtl.machine import flops

    torch.set_num_threads(1)  # two workers share two cores
    flops.PEAK_SIZES, flops.PEAK_SECONDS = {"cpu": (256,)}, 0.01  # every training measures it, most of a second
    compose_options_once()


@dataclass
class Outcome:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


def main(*arguments: str) -> int:
    """Runs `main.py` with these arguments in this process, as a shell would; its exit code."""
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    if not ADAPTERHUB and not any(word.startswith(("method=", "load_path=", "experiment=", "-")) for word in arguments):
        arguments = (*arguments, "method=peft_lora16")  # the network that the default makes
    mode = Hydra.get_mode

    def unless_typed(self: Hydra, config_name: str | None, overrides: list[str]) -> object:
        """Hydra composes all once more for hydra.mode, which no file of conf/ sets: None, as there."""
        return mode(self, config_name, overrides) if any("hydra" in word for word in overrides) else None

    GlobalHydra.instance().clear()
    kept = signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["main.py", *arguments])
            patch.setattr(Hydra, "get_mode", unless_typed)
            patch.setattr(gc, "freeze", lambda: None)  # a command's end would let go of what is frozen here
            patch.setattr(gc, "unfreeze", lambda: None)
            runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
        return 0
    except SystemExit as error:
        return int(error.code or 0)
    finally:  # they are pytest's again, and no test after it was typed
        signal.signal(signal.SIGINT, kept[0])
        sys.unraisablehook = kept[1]
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `main.py` as `main` does, with what it prints."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(*arguments)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def adapterhub() -> None:
    """For tests that look into what AdapterHub saved: skipped where it is not installed."""
    if not ADAPTERHUB:
        pytest.skip("AdapterHub is not installed")


@pytest.fixture
def sample() -> list[str]:
    """Overrides for a run that takes seconds: the tiny encoder and few made-up posts."""
    return [
        "encoder=tiny",
        "corpus@tasks.target.corpus=sample",
        "tasks.target.corpus.size=300",
        "optimization.epochs=1",
    ]


@pytest.fixture
def data() -> Path:
    """The folder with the real corpora; the test is skipped where it is missing."""
    if not (DATA / "hatexplain" / "dataset.json").exists():
        pytest.skip("../shared/data is not here")
    return DATA


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache on a machine without network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        forget_sessions()  # opened while online; below, those opened while offline
        yield cache
    forget_sessions()


def forget_sessions() -> None:
    """Lets the hub's client open new sessions, by the name that its version has for it."""
    from huggingface_hub.utils import _http

    forget: Any = getattr(_http, "close_session", None) or _http.reset_sessions
    forget()
