"""Alternatives of a choice against its baselines: a figure for each, differences with intervals and by task."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import SIGNIFICANCE, describe_choices
from mtl_jax.evaluation.many_tasks import NAMED_TASKS

BESIDE = 6  # up to so many tasks have their panel beside the means
NUMBERED = 16  # up to so many tasks have numbers in their cells


def draw_baseline(compared: Mapping[str, Any], split: str, folder: pathlib.Path, number: int) -> plotting.Picture:
    """The mean difference of each alternative with its interval, best first; beside it, of many tasks below it, the
    differences by task.

    Args:
      compared: one of the `baselines` of a summary.
      split: whose scores are drawn.
      folder: of the PNG.
      number: in its name.
    """
    others = [o for o in compared["others"] if o["average"].get(split, {}).get("mean") is not None]
    others.sort(key=lambda o: o["average"][split]["mean"])
    names = [o["alternative"] for o in others]
    tasks = list(dict.fromkeys(task for o in others for task in o["tasks"]))
    height = 1.6 + 0.3 * max(len(others), 3)
    beside = len(tasks) <= BESIDE
    figure = Figure(figsize=(plotting.WIDTH, height if beside else 2 * height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.2)) if beside else figure.subplots(2, 1)
    _intervals(left, others, split)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel(f"mean score − {compared['baseline']} ({split})")
    _by_task(figure, right, others, tasks, split)
    right.set_yticks(range(len(names)), names)
    rest, place = describe_choices(compared["rest"]), "Right" if beside else "Below"
    figure.suptitle(f"against {compared['baseline']}{f', {rest}' if rest else ''}", fontsize=11, parse_math=False)
    caption = (
        f"Each alternative of {compared['choice']} minus {compared['baseline']}, each at its setting chosen on dev, on "
        f"{split}: paired by seed, with 95 % intervals; filled where p < {SIGNIFICANCE:g} after Holm's correction over "
        f"the alternatives. {place}: the same by task, a star where p < {SIGNIFICANCE:g} without correction."
    )
    file = folder / f"baseline_{plotting.file_name(compared['choice'])}_{number}.png"
    return plotting.Picture(plotting.save(figure, file), caption)


def _intervals(axes: Axes, others: Sequence[Mapping[str, Any]], split: str) -> None:
    axes.axvline(0.0, color="black", linewidth=0.8)
    for place, other in enumerate(others):
        value = other["average"][split]
        significant = value["corrected_p"] is not None and value["corrected_p"] < SIGNIFICANCE
        colour = plotting.PALETTE[2]
        if value["low"] is not None:
            axes.hlines(place, value["low"], value["high"], color=colour, linewidth=1.4)
        face = colour if significant else "white"
        axes.plot(value["mean"], place, "o", color=colour, markerfacecolor=face, markersize=6)
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _by_task(figure: Figure, axes: Axes, others: Sequence[Mapping[str, Any]], tasks: Sequence[str], split: str) -> None:
    values = np.full((len(others), len(tasks)), np.nan)
    for row, other in enumerate(others):
        for column, task in enumerate(tasks):
            difference = other["tasks"].get(task, {}).get(split)
            if difference and difference["mean"] is not None:
                values[row, column] = difference["mean"]
                star = "*" if difference["p"] is not None and difference["p"] < SIGNIFICANCE else ""
                number = f"{difference['mean']:+.3f}" if len(tasks) <= NUMBERED else ""
                axes.text(column, row, number + star, ha="center", va="center", fontsize=8)
    largest = max(float(np.nanmax(np.abs(values))), 1e-9) if np.isfinite(values).any() else 1.0
    image = axes.imshow(values, cmap="PuOr", vmin=-1.6 * largest, vmax=1.6 * largest, aspect="auto", origin="lower")
    if len(tasks) <= NAMED_TASKS:
        slanted = {} if len(tasks) <= 5 else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(tasks)), tasks, **slanted)
    figure.colorbar(image, ax=axes, shrink=0.8)
