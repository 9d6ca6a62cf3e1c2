"""Needs AdapterHub's library, which goes with transformers 4.57 alone; the rest of the house does without it."""

from importlib.metadata import PackageNotFoundError, version

from hatemtl.errors import UserError

try:
    version("adapters")  # a folder of this name, that of saved runs, would be found as a package
except PackageNotFoundError as error:
    raise UserError(
        "AdapterHub's methods (method=ah_…) and runs need the package adapters, which is not installed; type "
        "`uv sync`, or where there is no checkout `pip install 'hatemtl[adapterhub]'`, or for a new LoRA method=peft_lora16"
    ) from error
