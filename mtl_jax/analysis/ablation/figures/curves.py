"""Training curves of an ablation: loss and dev score by step, coloured by the value of a sweep."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import describe_choices
from mtl_jax.analysis.ablation.records import COUNTED_STATUSES, Grid, Lane
from mtl_jax.analysis.ablation.summary import profile

MAX_COLUMNS = 4  # combinations in one figure


def draw_curves(
    grid: Grid, combinations: Sequence[Mapping[str, Any]], sweep: str | None, folder: pathlib.Path
) -> list[plotting.Picture]:
    """Rows: mean loss and mean score of the tasks; columns: combinations of choices, if they were logged."""
    pictures = []
    for first in range(0, len(combinations), MAX_COLUMNS):
        part = combinations[first : first + MAX_COLUMNS]
        figure, axes = plotting.panels(2, len(part), height=3.1)
        values = [p["values"][sweep] for c in part for p in c["points"]] if sweep else [0.0]
        log = bool(sweep) and grid.sweeps[sweep]["scale"] == "log" and max(values) > 0
        values = [v for v in values if v > 0] if log else values
        norm = (LogNorm if log else Normalize)(min(values), max(values), clip=True)
        colours = ScalarMappable(norm, matplotlib.colormaps["viridis"].resampled(256))
        drawn = [_column(axes[:, i], grid, c, sweep, colours) for i, c in enumerate(part)]
        if not any(drawn):
            continue
        if sweep:
            figure.colorbar(colours, ax=axes, label=sweep, shrink=0.7, pad=0.01)
        caption = (
            f"Mean training loss and mean dev score of the tasks by step{f', coloured by {sweep}' if sweep else ''}; "
            "means over seeds. Lanes that froze or were dropped are thin and end in a mark."
        )
        name = f"curves_{plotting.file_name(sweep or '')}_{first // MAX_COLUMNS}.png"
        pictures.append(plotting.Picture(plotting.save(figure, folder / name), caption))
    return pictures


def _column(
    axes: np.ndarray, grid: Grid, combination: Mapping[str, Any], sweep: str | None, colours: ScalarMappable
) -> bool:
    """Draws one combination of choices; False if there is nothing to draw."""
    shown = profile(combination["points"], *([sweep] if sweep else []))[0]
    drawn = False
    for panel, (field, label) in zip(axes, (("loss", "training loss"), ("dev", "score (dev)")), strict=True):
        for point in shown:
            colour = colours.to_rgba(point["values"][sweep] if sweep else 0.0)
            lanes = [grid.lanes[i] for i in point["lanes"]]
            counted = [_curve(grid, lane, field) for lane in lanes if lane.status in COUNTED_STATUSES]
            drawn |= _plot(panel, _mean(counted), color=colour, linewidth=1.4)
            for lane in lanes:
                if lane.status not in COUNTED_STATUSES and (curve := _curve(grid, lane, field)):
                    drawn |= _plot(panel, curve, color=colour, linewidth=0.7)
                    frozen = lane.status.startswith("frozen")
                    panel.plot(
                        *list(curve.items())[-1],
                        "x" if frozen else "v",
                        color="#D55E00" if frozen else "#7F7F7F",
                        label="lane frozen (not finite)" if frozen else "lane dropped (halving)",
                        markersize=5,
                    )
        for end, tuned in combination["ends"].items():
            if tuned is not None:
                lanes = [grid.lanes[i] for i in tuned["lanes"]]
                counted = [_curve(grid, lane, field) for lane in lanes if lane.status in COUNTED_STATUSES]
                colour, style = plotting.END_STYLES[end]
                drawn |= _plot(
                    panel, _mean(counted), color=colour, linestyle=style, linewidth=1.2, label=plotting.END_NAMES[end]
                )
        panel.set(xlabel="step", ylabel=label)
    if any((line.get_ydata() > 0).all() for line in axes[0].lines if len(line.get_ydata())):
        axes[0].set_yscale("log")
    axes[0].set_title(describe_choices(combination["choices"]), fontsize=10)
    return drawn


def _plot(axes: Axes, curve: Mapping[int, float], **style: Any) -> bool:
    if curve:
        axes.plot(list(curve), list(curve.values()), **style)
    return bool(curve)


def _curve(grid: Grid, lane: Lane, field: str) -> dict[int, float]:
    """{step: mean over tasks of the loss or of the first metric on dev}; steps without finite values are left out."""
    result = {}
    for entry in lane.curve:
        by_task = entry.get(field) or {}
        values = list(by_task.values()) if field == "loss" else [m.get(grid.tasks[t][0]) for t, m in by_task.items()]
        values = [v for v in values if v is not None and math.isfinite(v)]
        if values:
            result[entry["step"]] = math.fsum(values) / len(values)
    return result


def _mean(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over seeds at the steps that all of them have."""
    if not curves:
        return {}
    values: dict[int, list[float]] = collections.defaultdict(list)
    for curve in curves:
        for step, value in curve.items():
            values[step].append(value)
    return {step: math.fsum(v) / len(v) for step, v in sorted(values.items()) if len(v) == len(curves)}
