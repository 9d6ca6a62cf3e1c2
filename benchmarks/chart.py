"""Small charts as SVG, drawn by hand so that a benchmark needs no plotting library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.readings import Line, Spread

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
INK = "#222222"


def bars(panels: Mapping[str, Mapping[str, Spread]], *, axis: str) -> str:
    """Horizontal bars on a logarithmic scale around 1, whiskers from least to greatest: panel → name → spread."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    values = [v for panel in panels.values() for s in panel.values() for v in s] or [1.0]
    low, high = math.log2(min(*values, 1.0)), math.log2(max(*values, 2.0))
    left, width, row = 330, 420, 20

    def x(value: float) -> float:
        return left + width * (math.log2(value) - low) / (high - low)

    out, y = [], 10
    for title, panel in panels.items():
        out.append(_text(left, y + 12, title, weight="bold"))
        y += row
        for name, (middle, least, greatest) in panel.items():
            start, end = sorted((x(1.0), x(middle)))
            centre = y + row / 2 - 2
            out += [
                _text(left - 8, centre + 4, name, anchor="end"),
                f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="{row - 5}" '
                f'fill="{COLOURS[names.index(name) % len(COLOURS)]}"/>',
                _line(x(least), centre, x(greatest), centre),
                _text(max(x(greatest), x(1.0)) + 6, centre + 4, f"{middle:.2f}"),
            ]
            y += row
        y += row // 2
    for power in range(math.ceil(low), math.floor(high) + 1):
        out += [
            _line(x(2.0**power), 10, x(2.0**power), y, colour="#cccccc"),
            _text(x(2.0**power), y + 14, f"{2.0**power:g}", anchor="middle"),
        ]
    out.append(_text(left + width / 2, y + 32, axis, anchor="middle"))
    return _svg(left + width + 70, y + 44, out)


def lines(panels: Mapping[str, tuple[Sequence[float], Sequence[float], Line]], *, columns: int = 2) -> str:
    """Points and the straight line through them, a panel each: "y against x" → (x, y, line)."""
    size, gap, out = (300, 180), 70, []
    for i, (title, (xs, ys, line)) in enumerate(panels.items()):
        left, top = gap + (i % columns) * (size[0] + gap), 30 + (i // columns) * (size[1] + gap)
        widest, tallest = max(xs), max(*ys, line.intercept + line.slope * max(xs)) or 1.0

        def place(
            x: float, y: float, left: int = left, top: int = top, w: float = widest, t: float = tallest
        ) -> tuple[float, float]:
            return left + size[0] * x / w, top + size[1] * (1 - max(y, 0.0) / t)

        out += [
            _text(left, top - 10, title, weight="bold"),
            _line(*place(0, 0), *place(widest, 0)),
            _line(*place(0, 0), *place(0, tallest)),
            _line(*place(0, line.intercept), *place(widest, line.intercept + line.slope * widest), colour=COLOURS[1]),
            *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{COLOURS[0]}"/>' for px, py in map(place, xs, ys)),
            _text(left + size[0], top + size[1] + 16, f"{widest:g}", anchor="end"),
            _text(left - 6, top + 8, f"{tallest:.3g}", anchor="end"),
            _text(left, top + size[1] + 32, f"{line.slope:.3g} x + {line.intercept:.3g}, R² {line.r2:.4f}"),
        ]
    rows = -(-len(panels) // columns)
    return _svg(gap + columns * (size[0] + gap), 30 + rows * (size[1] + gap), out)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{INK}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, *, colour: str = INK) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _svg(width: float, height: float, content: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(content) + "\n</svg>\n"
    )
