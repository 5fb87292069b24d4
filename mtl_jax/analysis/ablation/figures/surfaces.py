"""The figure of an ablation over two sweeps: a surface for each combination of choices."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.image import AxesImage

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import describe_choices
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.ablation.summary import profile

MAX_NUMBERED_CELLS = 64  # up to which each cell shows its value


def draw_surface(grid: Grid, combinations: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> plotting.Picture:
    """The first two sweeps: cells if they are a grid, else coloured dots."""
    first, second = list(grid.sweeps)[:2]
    figure, axes = plotting.panels(*plotting.grid_shape(len(combinations), 3), height=3.6)
    for combination, panel in zip(combinations, axes.flat, strict=False):
        points = profile(combination["points"], first, second)[0]
        drawn = _cells(panel, grid, points, first, second) or _dots(panel, grid, points, first, second)
        if drawn is not None:
            figure.colorbar(drawn, ax=panel, label="mean score (dev)")
        panel.set(xlabel=first, ylabel=second, title=describe_choices(combination["choices"]))
        if combination["chosen"] is not None:
            chosen = combination["points"][combination["chosen"]]["values"]
            rows, columns = ([p["values"][name] for p in points] for name in (second, first))
            position, size, fill = (chosen[first], chosen[second]), 24, "none"
            if len(points) == len(set(rows)) * len(set(columns)):  # in a corner of the cell, next to its number
                position = (sorted(set(columns)).index(position[0]) + 0.3, sorted(set(rows)).index(position[1]) + 0.3)
                size, fill = 11, "white"
            panel.plot(*position, "*", color=fill, markeredgecolor="black", markersize=size, label="chosen on dev")
    plotting.hide_empty(axes.flat[len(combinations) :])
    others = f" At the best value of {', '.join(list(grid.sweeps)[2:])}." if len(grid.sweeps) > 2 else ""
    caption = (
        f"Mean score of all tasks on dev over {first} and {second}.{others} Lanes that froze (×) or were dropped (▽) "
        "are not in the means."
    )
    return plotting.Picture(plotting.save(figure, folder / "surface.png"), caption)


def _cells(axes: Axes, grid: Grid, points: Sequence[plotting.Point], first: str, second: str) -> AxesImage | None:
    """The image of a full grid; None if the points are not one."""
    columns, rows = (sorted({p["values"][name] for p in points}) for name in (first, second))
    if len(points) != len(columns) * len(rows):
        return None
    values = np.full((len(rows), len(columns)), np.nan)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#BBBBBB")
    for p in points:
        if p["score"]["mean"] is not None:
            values[rows.index(p["values"][second]), columns.index(p["values"][first])] = p["score"]["mean"]
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=colours)
    for p in points:
        place = columns.index(p["values"][first]), rows.index(p["values"][second])
        score, statuses = p["score"]["mean"], p["statuses"]
        mark = "×" if statuses.get("frozen: not finite") else "▽" if statuses.get("dropped") else ""
        if score is None or len(points) <= MAX_NUMBERED_CELLS:
            bright = score is None or image.norm(score) > 0.55
            text = mark or "–" if score is None else f"{score:.3f}".lstrip("0") + mark
            axes.text(*place, text, ha="center", va="center", fontsize=7, color="black" if bright else "white")
    for values, set_ticks, rotation in ((columns, axes.set_xticks, 45), (rows, axes.set_yticks, 0)):
        set_ticks(range(len(values)), [f"{v:.2g}" for v in values], rotation=rotation, fontsize=8)
    axes.grid(False)
    return image


def _dots(axes: Axes, grid: Grid, points: Sequence[plotting.Point], first: str, second: str) -> PathCollection | None:
    known = [p for p in points if p["score"]["mean"] is not None]
    for name, set_scale in ((first, axes.set_xscale), (second, axes.set_yscale)):
        if grid.sweeps[name]["scale"] == "log" and all(p["values"][name] > 0 for p in points):
            set_scale("log")
    for p in points:
        if p not in known:
            axes.plot(p["values"][first], p["values"][second], "x", color="#7F7F7F", label="not finished")
    if not known:
        return None
    xs, ys, scores = zip(*((p["values"][first], p["values"][second], p["score"]["mean"]) for p in known), strict=True)
    return axes.scatter(xs, ys, c=scores, cmap="viridis", s=60, edgecolors="black", linewidths=0.5)
