"""Leaves out of a published run what is of the author's machine: folders, addresses, and keys that made no model."""

import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

# Of the configuration, what made the model or says how it is read; not where it was logged, submitted, served or sent.
PUBLISHED = (
    *("choices", "tasks", "encoder", "method", "merge", "heads", "optimization", "weighting", "regulariser", "sampling"),
    *("batching", "augmentation", "unlabelled", "preprocess", "data", "folds", "trainer", "seed", "evaluations"),
)
# Of run.json, what says how a model came about.
TOLD = (
    *("method", "library", "encoder", "tokenizer", "data", "leaks", "seed", "precision", "epochs", "steps", "best_epoch"),
    *("parameters", "trained_parameters", "git_commit", "versions", "ledger"),
)
PLACES = ("dir", "cache", "save_path", "load_path", "sources")  # keys whose values are folders of this machine
WORDS = ("names", "labels", "mask_pattern", "hateful", "separator", "delimiter")  # keys whose values are none, however spelt
# How a place begins, at the beginning of a text or of a part of one; and an address with a user's name in it.
PLACE = re.compile(
    r"(?:^|[\s'\",;=(\[:])(?:/[\w.*?]|~(?:\w*[/\\]|$)|\.\.(?:/|\\|$)|file:|[A-Za-z]:[\\/]|\\\\\w)|\w://[^/\s]*@"
)


def is_place(text: str) -> bool:
    """Tells whether a text holds a path from a root, a home or a folder above, or an address with a user's name.

    >>> [is_place(text) for text in ("/home/me/x", "'~/a_?'", "file:///x", "C:\\\\Users\\\\me", "https://me:pw@host.org/x")]
    [True, True, True, True, True]
    >>> [is_place(text) for text in ("owner/name", "package:gt_x/model", "https://host.org/x", "and/or", "/", "1 4")]
    [False, False, False, False, False, False]
    """
    return PLACE.search(text) is not None


def settings(config: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Gives the configuration as it is published, still one that loads the run. base: what others load the encoder by."""
    kept: dict[str, Any] = without_places({key: config[key] for key in PUBLISHED if key in config})
    if isinstance(method := kept.get("method"), dict):
        method.pop("path", None)  # a loader's, which reads load_path
    if isinstance(encoder := config.get("encoder"), Mapping) and "source" in encoder:
        kept["encoder"].pop("source", None)
        if (source := shared_source(str(encoder["source"]), base)) is not None:
            kept["encoder"]["source"] = source
    return kept


def record(told: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Gives what is published of run.json."""
    source = str(told["encoder_source"])
    kept: dict[str, Any] = without_places({key: told[key] for key in TOLD if key in told})
    return {**kept, "encoder_source": shared_source(source, base) or last(source)}


def shared_source(source: str, base: str | None) -> str | None:
    """Names the encoder as others have it: one of a package as hatemtl does, others by `base`; None where it is nobody's."""
    if source.startswith("package:"):
        return source
    return next((name for name in (base, source) if name is not None and not _is_folder(name)), None)


def _is_folder(name: str) -> bool:
    return is_place(name) or name.startswith(".") or Path(name).exists()


def last(path: str) -> str:
    """Names a folder without where it lies, on whatever system that is.

    >>> last("/home/me/encoder"), last("C:\\\\Users\\\\me\\\\encoder")
    ('encoder', 'encoder')
    """
    return PureWindowsPath(path).name or "encoder"


def without_places(value: Any) -> Any:
    """Gives the values without the places of this machine: whoever loads the run has their own."""
    if isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            if key in PLACES or (key not in WORDS and isinstance(item, str) and is_place(item)):
                continue
            found[key] = item if key in WORDS else without_places(item)
            if item and found[key] == []:  # nothing but places
                del found[key]
        return found
    if isinstance(value, list):
        return [without_places(item) for item in value if not (isinstance(item, str) and is_place(item))]
    return value


def without_folder(text: str, folder: Path) -> str:
    """Names the saved run in a text without saying where it lies.

    >>> without_folder("/home/me/runs/a has no adapter", Path("/home/me/runs/a"))
    'the run has no adapter'
    """
    for name in sorted({str(folder.resolve()), str(folder)}, key=len, reverse=True):
        if len(Path(name).parts) > 1:  # a bare name may be any word
            text = re.sub(rf"(?<![\w./~-]){re.escape(name)}(?![\w-])", "the run", text)
    return text
