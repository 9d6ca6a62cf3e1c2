"""The command line: `uv run main.py group=option key=value`. See README.org."""

import _signal  # type: ignore[import-not-found]  # signal itself takes long enough to be interrupted in
import os
import sys

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # which nohup sets
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))  # until `watch`, a moment later

from typing import NoReturn

from hatemtl.machine.interruption import Interrupted, interruptible, watch

if __name__ == "__main__":
    watch()
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print its own errors and exit with 1

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hatemtl.errors import UserError
from hatemtl.harmless import shown
from hatemtl.machine.startup import starting


def fail(error: Exception | str) -> NoReturn:
    """Says what is wrong, without a stack, and exits with 2."""
    print(f"error: {shown(str(error), lines=True)}", file=sys.stderr)
    sys.exit(2)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Hands the composed configuration to hatemtl."""
    try:
        with starting():
            from hatemtl.run import run

            with interruptible():
                run(cfg)
    except (UserError, OmegaConfBaseException) as error:
        fail(error)
    except MemoryError:
        fail("out of memory before anything began; close other programs, or allow more (ulimit -v)")


if __name__ == "__main__":
    from hatemtl.command.suggestions import arguments, explain, is_mistyped

    try:
        sys.argv[1:] = arguments(sys.argv[1:])
        main()
    except UserError as error:
        fail(error)
    except Interrupted as stop:
        print(f"interrupted {stop}".rstrip(), file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not is_mistyped(error):
            raise
        fail(explain(error, sys.argv[1:]))
    except OSError as error:  # Hydra makes a folder for several runs
        if error.filename is None or not {"-m", "--multirun"} & {*sys.argv}:
            raise
        fail(f"{error.filename}: {error.strerror}; type hydra.sweep.dir=FOLDER of another place")
