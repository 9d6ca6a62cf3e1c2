"""Searches as a test asks for them."""

from typing import Any

from hatemtl.tuning.settings import Tuning


def tuning(**given: Any) -> Tuning:
    base = {"space": {"a": [1, 2]}, "by": None, "sampler": "tpe", "pruner": "none", "trials": 4}
    return Tuning(**{**base, "minutes": None, "seeds": None, "again": 0, **given})
