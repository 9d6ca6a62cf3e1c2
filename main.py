"""The command line: `uv run main.py group=option key=value`. See README.org."""

import os
import sys
from typing import NoReturn

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

            run(cfg)
    except (UserError, OmegaConfBaseException) as error:
        fail(error)


if __name__ == "__main__":
    from hatemtl.command.suggestions import arguments, explain, is_mistyped

    try:
        sys.argv[1:] = arguments(sys.argv[1:])
        main()
    except UserError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not is_mistyped(error):
            raise
        fail(explain(error, sys.argv[1:]))
