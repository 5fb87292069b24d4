"""Figures of an ablation against a choice: the chosen settings, and the gains of sharing over the limits."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import LIMIT_NAMES, describe_choices
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.ablation.summary import main_split


def draw_gains(
    grid: Grid, summary: Mapping[str, Any], combinations: Sequence[Mapping[str, Any]], choice: str, folder: pathlib.Path
) -> list[plotting.Picture]:
    """The chosen settings, and the gains of sharing over each limit, against the alternatives of a choice."""
    split = main_split(summary)
    ends = dict.fromkeys(end for c in combinations for end in c["comparison"])
    strengths = [name for name in summary["strengths"] if name in grid.sweeps]
    kinds = [("chosen", name) for name in strengths] + [("gain", end) for end in ends]
    lines = [name for name in grid.choices if name != choice]
    line = lines[-1] if lines else None
    if not kinds:
        kinds = [("score", "")]
    alternatives = grid.choices[choice]
    numbers = plotting.as_numbers(alternatives)
    places = dict(zip(alternatives, numbers or range(len(alternatives)), strict=True))
    ticks = [name.replace("$", r"\$") for name in alternatives]
    pictures = []
    groups: dict[str, list] = collections.defaultdict(list)
    for combination in combinations:
        rest = {n: v for n, v in combination["choices"].items() if n not in (choice, line)}
        groups[describe_choices(rest)].append(combination)
    for number, (rest, group) in enumerate(groups.items()):
        figure, axes = plotting.panels(*plotting.grid_shape(len(kinds)), height=3.2)
        names = list(dict.fromkeys(c["choices"].get(line, "") for c in group))
        for (kind, name), panel in zip(kinds, axes.flat, strict=False):
            _set_axes(panel, kind, name, split, grid)
            for i, (alternative, colour) in enumerate(zip(names, plotting.colours_by_name(names), strict=True)):
                shift = 0.0 if numbers else 0.08 * (i - (len(names) - 1) / 2)  # bars side by side
                values = [
                    (places[c["choices"][choice]] + shift, _value(c, kind, name, split))
                    for c in group
                    if c["choices"].get(line, "") == alternative
                ]
                label = f"{line} {alternative}" if line else "soft sharing" if strengths else "chosen on dev"
                _line(panel, values, ("-" if numbers else "") + plotting.MARKERS[i % 8], colour, label)
            if numbers and min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
                panel.set_xscale("log")
                panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticks(list(places.values()), ticks, rotation=0 if numbers else 20)
            panel.set_xlabel(choice)
        plotting.hide_empty(axes.flat[len(kinds) :])
        figure.suptitle(rest, fontsize=11, parse_math=False) if rest else None
        gain = " minus that of each limit, paired by seed" if ends else ""
        caption = (
            f"The setting chosen on dev against {choice}{f', {rest}' if rest else ''}: "
            f"{'its values, and ' if strengths else ''}its mean score on {split}{gain}, with 95 % intervals."
        )
        file = folder / f"choice_{plotting.file_name(choice)}_{number}.png"
        pictures.append(plotting.Picture(plotting.save(figure, file), caption))
    return pictures


def _value(combination: Mapping[str, Any], kind: str, name: str, split: str) -> Mapping[str, Any] | None:
    """The interval of one combination in a panel, or None."""
    if combination["chosen"] is None:
        return None
    point = combination["points"][combination["chosen"]]
    if kind == "chosen":
        low, high = point["ranges"].get(name, (None, None))
        return {"mean": point["values"].get(name), "low": low, "high": high}
    if kind == "gain":
        return combination["comparison"].get(name, {}).get("average", {}).get(split)
    return point["average"].get(split)


def _line(
    axes: Axes,
    values: Sequence[tuple[float, Mapping[str, Any] | None]],
    style: str,
    colour: plotting.Colour,
    label: str,
) -> None:
    known = sorted((place, v["mean"], v["low"], v["high"]) for place, v in values if v and v["mean"] is not None)
    for place in {place for place, _ in values} - {k[0] for k in known}:
        plotting.mark_missing(axes, place, None, {})
    bottom = axes.get_ylim()[0] if axes.get_yscale() == "log" else -math.inf
    means = [max(k[1], bottom) for k in known]  # a chosen λ = 0 is drawn at the bottom of a log axis
    axes.plot([k[0] for k in known], means, style, color=colour, markersize=5, label=label, clip_on=False)
    for place, _, low, high in known:
        if low is not None:
            axes.vlines(place, low, high, color=colour, linewidth=1.2)


def _set_axes(axes: Axes, kind: str, name: str, split: str, grid: Grid) -> None:
    if kind == "chosen":
        axes.set_ylabel(f"chosen {name}")
        values = [v for v in grid.sweeps[name]["values"] if v is not None and v > 0]
        if grid.sweeps[name]["scale"] == "log" and values:
            axes.set(yscale="log", ylim=(min(values) / 2, max(values) * 2))
            axes.axhspan(min(values), max(values), color="black", alpha=0.05, linewidth=0, label="swept")
    elif kind == "gain":
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_ylabel(f"gain over {LIMIT_NAMES[name]} ({split})")
    else:
        axes.set_ylabel(f"mean score ({split})")
