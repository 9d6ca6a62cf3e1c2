"""Silences what a user can do nothing about."""

import logging
import os
import warnings


def quiet() -> None:
    """Silences the notices, bars and warnings of the libraries below."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "transformers",
        "adapters",
        "bitsandbytes",
        "datasets",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*Unsupported layer type.*proceed at your own risk.*",  # PEFT, of layers that it tunes itself
        ".*srun.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*`weights_only` was.*",
        ".*Previous log files in this directory will be deleted.*",  # of a run that ended before its first line
    ):
        warnings.filterwarnings("ignore", message=message)
