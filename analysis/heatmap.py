"""Heat maps of numbers by row and column, as a picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pictures import content, pyplot

NUMBERED = 30  # columns; of more, cells are narrow and without their number


class Panel(NamedTuple):
    """One heat map: a title, the columns' names, and a row of values for each name; None where there is none."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float | None]]


def drawn(
    panels: Sequence[Panel],
    *,
    format: str = "png",
    colours: str = "RdBu_r",
    low: float = -1.0,
    high: float = 1.0,
    digits: int = 2,
) -> bytes:
    """The panels, one below the other, from `low` to `high` in Matplotlib's `colours`; grey where there is no value."""
    plt = pyplot()
    rows = [len(panel.rows) for panel in panels]
    across = max(0.6 if len(panel.columns) <= NUMBERED else 0.15 for panel in panels) * max(len(p.columns) for p in panels)
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(3 + across, 1.2 * len(panels) + 0.3 * sum(rows)), height_ratios=rows, squeeze=False
    )
    shades = plt.get_cmap(colours).with_extremes(bad="#e1e1e1")
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        values = [[float("nan") if value is None else value for value in row] for row in panel.rows.values()]
        edges = [[i - 0.5 for i in range(n + 1)] for n in (len(panel.columns), len(panel.rows))]
        axis.pcolormesh(*edges, values, cmap=shades, vmin=low, vmax=high)  # paths: a page that forbids images shows them too
        axis.invert_yaxis()
        axis.set_title(panel.title, loc="left", fontsize=9)
        axis.set_yticks(range(len(panel.rows)), list(panel.rows), fontsize=8)
        if len(panel.columns) > NUMBERED:
            axis.set_xticks([])
            continue
        axis.set_xticks(range(len(panel.columns)), list(panel.columns), fontsize=8)
        for i, row in enumerate(panel.rows.values()):
            for j, value in enumerate(row):
                if value is not None:
                    dark = sum(shades((value - low) / ((high - low) or 1))[:3]) < 1.5
                    axis.text(
                        j, i, f"{value:.{digits}f}", ha="center", va="center", color="white" if dark else "black", size=7
                    )
    return content(figure, format)
