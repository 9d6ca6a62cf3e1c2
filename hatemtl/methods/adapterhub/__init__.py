"""Needs AdapterHub's library, which goes with transformers 4.57 alone; the rest of the house does without it."""

from importlib.metadata import Distribution

from hatemtl.errors import UserError

if not any(Distribution.discover(name="adapters")):  # to import it says nothing: folders of this name hold saved runs
    raise UserError(
        "AdapterHub's methods (method=ah_…) and runs need the package adapters, which is not installed; type `uv sync`, or "
        "without a checkout install the wheel with its extra, 'WHEEL[adapterhub]', or for a new LoRA type "
        "method=peft_lora16, for a merge method=peft_merge16"
    )
