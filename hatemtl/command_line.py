"""Composes what was typed with Hydra, runs it, and tells what was wrong of it without a stack."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hatemtl.command.suggestions import arguments, explain, is_mistyped
from hatemtl.command.words import CONF
from hatemtl.errors import UserError
from hatemtl.harmless import shown
from hatemtl.machine.interruption import Interrupted, interruptible
from hatemtl.machine.startup import starting

RUNS = "adapters"  # where save_path is unless told otherwise; and AdapterHub's library


def answer() -> None:
    """Runs the words of the command line. Exits with 2 where they, or what they name, are wrong, with 130 at Ctrl-C."""
    try:
        os.getcwd()
    except FileNotFoundError:
        _fail("the folder that you are in was removed; type cd FOLDER, of one that is there")
    origin = getattr(PathFinder.find_spec(RUNS), "origin", None)
    if origin in {str(folder / RUNS / "__init__.py") for folder in (CONF.parent, Path.cwd())}:
        _fail(f"{origin} is code in a folder of saved runs, and would be taken for the library {RUNS}; remove it")
    try:
        sys.argv[1:] = arguments(sys.argv[1:])
        _composed()
    except UserError as error:
        _fail(error)
    except Interrupted as stop:
        print(f"interrupted {stop}".rstrip(), file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        _explain(error)
    except OSError as error:  # Hydra makes a folder for several runs
        if error.filename is None or not {"-m", "--multirun"} & {*sys.argv}:
            raise
        _fail(f"{error.filename}: {error.strerror}; type hydra.sweep.dir=FOLDER of another place")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _composed(cfg: DictConfig) -> None:
    try:
        with starting():
            from hatemtl.run import run

            with interruptible():
                run(cfg)
    except UserError as error:
        _fail(error)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # a saved run that is used is composed in here
        _explain(error)
    except MemoryError:
        _fail("out of memory before anything began; close other programs, or allow more (ulimit -v)")


def _explain(error: Exception) -> NoReturn:
    if not is_mistyped(error):
        raise error
    _fail(explain(error, sys.argv[1:]))


def _fail(error: Exception | str) -> NoReturn:
    print(f"error: {shown(str(error), lines=True)}", file=sys.stderr)
    sys.exit(2)
