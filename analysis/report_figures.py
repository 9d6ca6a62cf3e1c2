"""Draws the figures of a report, in colours that colour-blind readers tell apart, and makes them fit to stand in a page."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from pictures import content, pyplot
from table import Table

from hatemtl.harmless import shown

# Okabe and Ito (2008), but for yellow, which is too faint on white; https://jfly.uni-koeln.de/color/
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000"]
LINES = ["-", "--", "-.", ":"]  # of more systems than colours the same colour has another line
HATCHES = [None, "////", "....", "xxxx"]  # and other bars
MARKERS = "osD^vP*X"
FORMATS = ("svg", "pdf", "png")
ACROSS = 4.6  # inches: on a telephone letters are still read
LONG = 26  # letters of a name in a picture


class Value(NamedTuple):
    """A mean and the ends of its interval, NaN where there is none."""

    mean: float
    low: float = math.nan
    high: float = math.nan


Values = Mapping[str, Mapping[str, Value]]  # by label or metric, then by system


@dataclass(frozen=True)
class Figure:
    """A picture with its numbers and the command that makes it. draw: gives a file's bytes by its format.

    themed: whether its black and white may change places where the page is dark.
    """

    key: str
    title: str
    text: str
    draw: Callable[[str], bytes]
    table: Table
    command: str
    themed: bool = True

    def file(self, format: str) -> bytes:
        """The picture as a file of its own, its letters drawn, so that it looks the same everywhere."""
        return _styled(self.draw, format, "path")

    def inline(self) -> Markup:
        """The picture as an element of a page: letters are text, ids are its own, and its title is read aloud."""
        svg = _styled(self.draw, "svg", "none").decode()
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        found = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
        used = {name: f"{self.key}-{n}" for n, name in enumerate(dict.fromkeys(a or b for a, b in found))}

        def own(found: re.Match[str]) -> str:  # two pictures of one page would share ids
            return f'{found[1]} id="{used[found[2]]}"' if found[2] in used else found[1]

        svg = re.sub(r'(<[^<>]*?) id="([^"]*)"', own, svg)
        svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda found: f"{found[1]}{used.get(found[2], found[2])}", svg)
        svg = re.sub(r'(<text style="[^"<>]*?)font-family: [^;"<>]*;? ?', r"\1", svg)  # the page has its own
        svg = _unwrapped(re.sub(r">\s+<", "><", re.sub(r' (?:d|x|y|transform|points)="[^"]*"', _rounded, svg)))
        if self.themed:  # colours of the page, which reach what a <use> repeats, as its own rules do not
            svg = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", svg)
            svg = re.sub(r"(fill|stroke): #ffffff", r"\1: var(--paper)", svg)
        width = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
        size = f"min-width: {0.93 * width:.0f}px; max-width: min(36rem, {1.74 * width:.0f}px)"  # .7 of its size to 1.3
        readable = f'role="img" aria-label="{escape(self.title)}" style="{size}" '
        return Markup(svg.replace("<svg ", f"<svg {readable}", 1))


def _rounded(attribute: re.Match[str]) -> str:
    """Places in hundredths of a point, which is a third of what Matplotlib writes."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", re.sub(r"\s*\n\s*", " ", attribute[0]))


def _unwrapped(svg: str) -> str:
    """The same without groups that say nothing of what is in them."""
    kept: list[bool] = []

    def tag(found: re.Match[str]) -> str:
        if found[0] == "</g>":
            return found[0] if kept.pop() else ""
        kept.append(found[0] != "<g>")
        return found[0] if kept[-1] else ""

    return re.sub(r"<g>|<g [^>]*[^/>]>|</g>", tag, svg)


def _styled(draw: Callable[[str], bytes], format: str, letters: str) -> bytes:
    style = {
        "axes.prop_cycle": pyplot().cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "pdf.fonttype": 42,  # letters that journals take
        "svg.fonttype": letters,
        "svg.hashsalt": "report",
        "text.parse_math": False,  # a label with $ is no formula
    }
    with pyplot().rc_context(style):
        return draw(format)


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}


def _brief(name: str) -> str:
    """A name that leaves room for what it names; whole in the table behind the picture."""
    return shown(name if len(name) <= LONG else f"{name[: LONG - 1]}…")


def _legend(axis: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    told = [*map(_brief, names)]
    columns = max(1, min(len(told), 36 // (max(map(len, told)) + 4)))
    place = {"loc": "lower center", "bbox_to_anchor": (0.4, 1), "ncols": columns}
    axis.legend(handles, told, frameon=False, fontsize="small", columnspacing=1.2, **place)


def bars(names: Sequence[str], values: Values, x: str, format: str) -> bytes:
    """A group of bars for each label, a bar a system, with its interval. names: of all systems, each of which has a look."""
    width = 0.8 / len(names)
    figure, axis = pyplot().subplots(figsize=(ACROSS, 1.3 + max(0.15 * len(names) + 0.1, 0.4) * len(values)))
    handles = []
    for i, name in enumerate(names):
        there = [(place, of[name]) for place, of in enumerate(values.values()) if name in of]
        places = [place + (i - (len(names) - 1) / 2) * width for place, _ in there]
        known = [of for _, of in there]
        reach = [[max(0.0, of.mean - of.low) for of in known], [max(0.0, of.high - of.mean) for of in known]]
        reach = [[0.0 if math.isnan(part) else part for part in side] for side in reach]
        lines = {"xerr": reach} if any(map(any, reach)) else {}
        handles.append(
            axis.barh(
                places,
                [of.mean for of in known],
                width,
                color=_look(i)["color"],
                hatch=HATCHES[i // len(COLOURS) % len(HATCHES)],
                edgecolor="#ffffff",
                linewidth=0,
                **lines,
                error_kw={"elinewidth": 1.2, "capsize": 2, "ecolor": "#000000"},
            )
        )
    axis.set_yticks(range(len(values)), [*map(_brief, values)])
    axis.set_ylim(len(values) - 0.5, -0.5)
    if all(0 <= of.mean <= 1 for row in values.values() for of in row.values()):  # shares, whose intervals may reach further
        left, right = axis.get_xlim()
        axis.set_xlim(max(left, 0), min(right, 1))
    axis.set_xlabel(x)
    _legend(axis, handles, names)
    return content(figure, format)


def curves(
    names: Sequence[str],
    series: Mapping[str, Sequence[Mapping[int, float]]],
    means: Mapping[str, Mapping[int, float]],
    x: str,
    y: str,
    format: str,
) -> bytes:
    """A line a system, the mean over its seeds, above a faint one for each seed."""
    figure, axis = pyplot().subplots(figsize=(ACROSS, 3.4))
    handles = []
    for name, runs in series.items():
        i = names.index(name)
        if len(runs) > 1:
            for run in runs:
                axis.plot([*run], [*run.values()], linewidth=0.6, alpha=0.4, **_look(i))
        of = means[name]
        handles += axis.plot(
            [*of], [*of.values()], linewidth=1.8, marker=MARKERS[i % len(MARKERS)], markersize=3, **_look(i)
        )
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel=x, ylabel=y)
    _legend(axis, handles, [*series])
    return content(figure, format)


def quality_for_cost(names: Sequence[str], points: Mapping[str, tuple[float, Value]], y: str, format: str) -> bytes:
    """A point a system, with the interval of its quality: what was paid to the right, what came of it upwards."""
    figure, axis = pyplot().subplots(figsize=(ACROSS, 3.4))
    handles = []
    for name, (paid, of) in points.items():
        i = names.index(name)
        handles += axis.plot([paid], [of.mean], MARKERS[i % len(MARKERS)], color=_look(i)["color"], markersize=7)
        if not math.isnan(of.low):
            axis.vlines(paid, of.low, of.high, color=_look(i)["color"], linewidth=1)
    minutes = [paid for paid, _ in points.values()]
    if max(minutes) > 20 * min(minutes):
        axis.set_xscale("log", subs=[])
        axis.xaxis.set_major_locator(pyplot().matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
    else:
        axis.set_xlim(0, 1.1 * max(minutes))
    axis.set(xlabel="minutes a run, with the runs it started from", ylabel=y)
    _legend(axis, handles, [*points])
    return content(figure, format)
