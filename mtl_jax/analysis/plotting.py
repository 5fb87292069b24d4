"""Common parts of the figures: axes, colours, bands, and marks for missing values."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mtl_jax import unicode

# Okabe & Ito (2008): distinguishable with any colour vision; the markers help in grey
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vP*X"
END_STYLES = {"single": ("#000000", ":"), "tied": ("#D55E00", "-."), "hard": ("#0072B2", "-")}
END_NAMES = {"single": "single-task (λ = 0)", "tied": "tied columns (λ → ∞)", "hard": "hard sharing"}
LIMITS = {-1: ("single", "0"), 1: ("tied", "∞"), 2: ("hard", "hard")}  # position beyond the values of λ -> limit, tick
REFERENCE = "#CC79A7"
BAND = 0.15  # opacity
WIDTH = 12.0  # inches of a figure, which a report shows at the width of its text
DPI = 120


Colour = str | tuple[float, ...]
Point = Mapping[str, Any]  # of a summary, see `summary.summarise`
Pick = Callable[[Point], Mapping[str, Any] | None]


class Picture(NamedTuple):
    """A figure: its PNG, and its caption."""

    file: pathlib.Path
    caption: str


class Scale(NamedTuple):
    """A horizontal axis for a sweep. On a log axis the value 0 is drawn one step left of the smallest.

    label   text of the axis
    log     whether it is logarithmic
    values  all values, ascending
    """

    label: str
    log: bool
    values: tuple[float, ...]

    def beyond(self, direction: int) -> float:
        """The position of a limit, this many steps below (−1) or above (+1, +2) the values."""
        low, high = self._bounds()
        count = max(len([v for v in self.values if v > 0 or not self.log]) - 1, 1)
        if self.log:
            return (low if direction < 0 else high) * max((high / low) ** (1.3 / count), 1.6) ** direction
        return (low if direction < 0 else high) + direction * (1.3 * (high - low) / count or 1.0)

    def place(self, value: float | None) -> float:
        """The position of a value; None is infinity, as in JSON."""
        if value is None or value == math.inf:
            return self.beyond(1)
        return self.beyond(-1) if self.log and value <= 0 else value

    def _bounds(self) -> tuple[float, float]:
        shown = [v for v in self.values if v > 0] if self.log else self.values
        return min(shown), max(shown)

    def apply(self, axes: Axes, ends: Mapping[int, str]) -> None:
        """Sets scale, label and ticks of axes; `ends`: {direction: tick label `beyond` the values}."""
        axes.set_xlabel(self.label)
        if self.log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        labels = self._ticks()
        if self.log and min(self.values) <= 0:
            labels[self.beyond(-1)] = "0"
        labels |= {self.beyond(direction): text for direction, text in ends.items()}
        axes.set_xticks(list(labels), list(labels.values()))

    def _ticks(self) -> dict[float, str]:
        """At decades, at quarters of a linear axis, or at some of the values if there are too few decades."""
        low, high = self._bounds()
        if not self.log:
            quarters = [low + i * (high - low) / 4 for i in range(5)] if high > low else [low]
            return {x: f"{x:.3g}" for x in quarters}
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < 1:
            shown = [v for v in self.values if v > 0]
            return {x: f"{x:.2g}" for x in shown[:: math.ceil(len(shown) / 4)]}
        return {10.0**e: f"$10^{{{e}}}$" for e in range(first, last + 1, math.ceil((last - first + 1) / 4))}


def scale(name: str, sweep: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Scale:
    """The axis of a sweep over the values of points."""
    values = sorted({point["values"][name] for point in points if name in point["values"]})
    label = f"{name}  ({sweep['field']})"
    return Scale(label, sweep["scale"] == "log" and any(v > 0 for v in values), tuple(values))


def colours_by_name(names: Sequence[str]) -> list[Colour]:
    """A colour for each name: along a ramp if they are numbers, else from the palette."""
    ramp = matplotlib.colormaps["viridis"]
    if len(names) > len(PALETTE) or (len(names) > 1 and as_numbers(names)):
        return [ramp(0.85 * i / max(len(names) - 1, 1)) for i in range(len(names))]
    return list(PALETTE[: len(names)])


def as_numbers(names: Sequence[str]) -> list[float] | None:
    """The names as finite numbers, or None if one is not."""
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def panels(rows: int, columns: int, height: float = 2.9) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns]."""
    if rows == columns == 1:
        height = 4.2
    figure = Figure(figsize=(min(WIDTH, 3.6 + 4.4 * columns), 0.5 + height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, file: pathlib.Path) -> pathlib.Path:
    """Adds one legend below all panels and writes the PNG. Returns the file."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_parse_math(False)  # names of tasks may contain a "$"
        if not axes.images:
            axes.grid(alpha=0.25)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        columns = max(1, min(len(entries), int(figure.get_figwidth() // 2.4)))
        legend = figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DPI)
    return file


def line(
    axes: Axes,
    x: Scale,
    points: Sequence[Point],
    pick: Pick,
    *,
    colour: Colour,
    label: str,
    marker: str = "o",
    joined: bool = True,
) -> None:
    """A line through points with its 95 % band; hollow where a seed is missing, marks at the bottom for lost lanes.

    Args:
      axes: of the panel.
      x: the axis of the sweep; `x.label` begins with its name.
      points: of a summary, ascending.
      pick: (point) -> the interval to draw, or None.
      colour, label, marker: of the line.
      joined: False where neighbours are unrelated (random settings).
    """
    name = x.label.split("  ")[0]
    shown = [(x.place(point["values"][name]), pick(point), point) for point in points]
    known = [(place, value, point) for place, value, point in shown if value and value["mean"] is not None]
    axes.plot(
        [k[0] for k in known],
        [k[1]["mean"] for k in known],
        color=colour,
        linewidth=1.4 if joined else 0.0,
        label=label,
        marker=marker,
        markersize=5,
        zorder=3,
    )
    banded = [(place, value["low"], value["high"]) for place, value, _ in known if value["low"] is not None]
    if joined and len(banded) > 1:
        axes.fill_between(*zip(*banded, strict=True), color=colour, alpha=BAND, linewidth=0)
    else:
        for place, low, high in banded:
            axes.vlines(place, low, high, color=colour, linewidth=1)
    for place, value, point in known:
        if not point["eligible"]:
            axes.plot(
                place,
                value["mean"],
                marker,
                color=colour,
                markerfacecolor="white",
                markersize=5,
                zorder=4,
                label="some seeds missing",
            )
        if name in point["ranges"]:
            axes.hlines(value["mean"], *map(x.place, point["ranges"][name]), color=colour, linewidth=1)
    for place, value, point in shown:
        mark_missing(axes, place, value, point["statuses"])


def mark_missing(axes: Axes, place: float, value: Mapping[str, Any] | None, statuses: Mapping[str, int]) -> None:
    """Marks at the bottom of the panel for lanes without a final score."""
    marks = []
    if statuses.get("frozen: not finite"):
        marks.append(("x", "#D55E00", "lanes frozen (not finite)"))
    if statuses.get("dropped"):
        marks.append(("v", "#7F7F7F", "lanes dropped (halving)"))
    if not marks and (value is None or value["mean"] is None):
        marks.append(("_", "#000000", "no value"))
    for i, (marker, colour, label) in enumerate(marks):
        axes.plot(
            place,
            0.03 + 0.06 * i,
            marker,
            color=colour,
            markersize=6,
            markeredgewidth=1.6,
            label=label,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
            zorder=5,
        )


def end_lines(axes: Axes, x: Scale, ends: Mapping[str, Point | None], pick: Pick, limits: bool) -> dict[int, str]:
    """The limits as horizontal lines with bands; those of λ also as points beyond its values.

    Returns:
      {direction: tick label beyond the values}, for `Scale.apply`.
    """
    beyond = {}
    for end, point in ends.items():
        value = point and pick(point)
        if not value or value["mean"] is None:
            continue
        colour, style = END_STYLES[end]
        axes.axhline(value["mean"], color=colour, linestyle=style, linewidth=1.3, label=END_NAMES[end], zorder=2)
        if value["low"] is not None:
            axes.axhspan(value["low"], value["high"], color=colour, alpha=0.5 * BAND, linewidth=0)
        if limits and end in ("single", "tied"):
            direction = -1 if end == "single" else 1
            beyond[direction] = LIMITS[direction][1]
            _limit(axes, x.beyond(direction), value, colour, "D")
    return beyond


def _limit(axes: Axes, place: float, value: Mapping[str, Any], colour: Colour, marker: str) -> None:
    half = 0.0 if value["low"] is None else value["high"] - value["mean"]
    axes.errorbar(place, value["mean"], half, fmt=marker, color=colour, markersize=5, capsize=2, zorder=4)


def end_points(
    axes: Axes, x: Scale, ends: Mapping[str, Point | None], pick: Pick, colour: Colour, marker: str
) -> dict[int, str]:
    """The limits as points beyond the values of λ, in the colour of their line: for panels of several lines."""
    beyond = {}
    for direction, (end, text) in LIMITS.items():
        value = ends.get(end) and pick(ends[end])
        if value and value["mean"] is not None:
            beyond[direction] = text
            _limit(axes, x.beyond(direction), value, colour, marker)
    return beyond


def grid_shape(count: int, max_columns: int = 4) -> tuple[int, int]:
    """Rows and columns for `count` panels."""
    columns = min(count, max_columns)
    return math.ceil(count / columns), columns


def hide_empty(axes: Sequence[Axes]) -> None:
    """Hides empty panels."""
    for panel in axes:
        panel.set_axis_off()


def file_name(name: str) -> str:
    """A name as part of a file name."""
    return unicode.file_name(name)
