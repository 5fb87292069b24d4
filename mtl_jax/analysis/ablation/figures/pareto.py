"""The scores of two tasks against each other, setting by setting, with the Pareto front."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import describe_choices
from mtl_jax.analysis.ablation.summary import main_split

MAX_PAIRS = 6


def draw_front(
    summary: Mapping[str, Any], combination: Mapping[str, Any], folder: pathlib.Path, number: int
) -> plotting.Picture:
    """A panel for each pair of tasks: all settings of one combination of choices, those of the front joined."""
    pairs = list(itertools.combinations(summary["scores"], 2))[:MAX_PAIRS]
    split, shape = main_split(summary), plotting.grid_shape(len(pairs))
    figure, axes = plotting.panels(*shape, height=3.4)
    for pair, panel in zip(pairs, axes.flat, strict=False):
        _panel(panel, summary, combination, pair, split)
    plotting.hide_empty(axes.flat[len(pairs) :])
    rest = describe_choices(combination["choices"])
    caption = (
        f"Scores of pairs of tasks on {split} over the settings{f', {rest}' if rest else ''}, means over seeds. "
        "Filled: settings that no other beats for all tasks on dev (the Pareto front); lines: limits."
    )
    return plotting.Picture(plotting.save(figure, folder / f"pareto_{number}.png"), caption)


def _panel(
    axes: Axes, summary: Mapping[str, Any], combination: Mapping[str, Any], pair: tuple[str, str], split: str
) -> None:
    def at(point: Mapping[str, Any]) -> tuple[float, float] | None:
        values = [
            point["tasks"].get(task, {}).get(split, {}).get(summary["scores"][task], {}).get("mean") for task in pair
        ]
        return None if None in values else (values[0], values[1])

    points = [(place, point) for point in combination["points"] if (place := at(point)) is not None]
    for place, point in points:
        face = plotting.PALETTE[0] if point["front"] else "none"
        axes.plot(*place, "o", color=plotting.PALETTE[0], markerfacecolor=face, markersize=6)
    front = sorted(place for place, point in points if point["front"])
    axes.plot([x for x, _ in front], [y for _, y in front], "-", color=plotting.PALETTE[0], linewidth=1.0, alpha=0.6)
    for end, tuned in combination["ends"].items():
        if tuned is not None and (place := at(tuned)) is not None:
            colour, style = plotting.END_STYLES[end]
            axes.axvline(place[0], color=colour, linestyle=style, linewidth=0.9, label=plotting.END_NAMES[end])
            axes.axhline(place[1], color=colour, linestyle=style, linewidth=0.9)
    axes.set(xlabel=f"{pair[0]} ({summary['scores'][pair[0]]})", ylabel=f"{pair[1]} ({summary['scores'][pair[1]]})")
