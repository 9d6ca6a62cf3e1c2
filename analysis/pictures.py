"""Draws pictures without a window, and writes them whole."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import write_whole


def pyplot() -> Any:
    """Matplotlib's pyplot, which is slow to import."""
    import matplotlib

    matplotlib.use("Agg")  # a picture and no window
    import matplotlib.pyplot

    return matplotlib.pyplot


def content(figure: Any, format: str) -> bytes:
    """What a file of the figure holds; the figure is closed."""
    file = io.BytesIO()
    figure.tight_layout()
    figure.savefig(file, format=format, dpi=120)
    pyplot().close(figure)
    return file.getvalue()


def draws(output: Path | None, suffixes: Sequence[str], drawn: Callable[..., bytes]) -> bool:
    """Whether `output` is named as a picture, .svg or so, and then writes what `drawn(format=...)` gives."""
    if output is None or output.suffix not in suffixes:
        return False
    write_whole(output, drawn(format=output.suffix.removeprefix(".")))
    return True
