"""Pictures of how tasks relate: heat maps in clustered order, the affinity graph, cosines over training, scatters."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mtl_jax.analysis import plotting

NUMBERS = 12  # tasks up to which cells show their numbers
LABELLED = 8  # pairs whose lines are named


def draw(found: Mapping[str, Any], folder: pathlib.Path) -> list[plotting.Picture]:
    """All figures of a relatedness.json, as PNG files into a folder."""
    order = clustered(gains_of(found))
    pictures = [_gains(found, order, folder), _graph(found, order, folder)]
    if found["measures"]:
        pictures += [_measures(found, order, folder), _scatters(found, folder)]
    if found["looks"] and len(found["looks"]["steps"]) > 1:
        pictures.append(_cosines(found, folder))
    return pictures


def matrix_of(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """A matrix as JSON has it, NaN for null."""
    return np.asarray([[np.nan if value is None else value for value in row] for row in rows], float)


def gains_of(found: Mapping[str, Any]) -> np.ndarray:
    """[i, j] = mean gain of j with i, NaN on the diagonal and where it is not known."""
    return matrix_of([[None if d is None else d["mean"] for d in row] for row in found["gain"]])


def clustered(closeness: np.ndarray) -> list[int]:
    """An order of K tasks in which close ones are neighbours: average linkage over the symmetric part, leaves ordered
    so that neighbours are as close as they can be (Bar-Joseph et al. 2001).

    Args:
      closeness: float[K, K], larger = closer; what is not finite counts as the mean.
    """
    count = len(closeness)
    if count < 3:
        return list(range(count))
    off = ~np.eye(count, dtype=bool)
    known = closeness[off][np.isfinite(closeness[off])]
    filled = np.where(np.isfinite(closeness), closeness, known.mean() if known.size else 0.0)
    distance = filled[off].max() - (filled + filled.T) / 2
    np.fill_diagonal(distance, 0.0)
    flat = squareform(np.maximum(distance, 0.0), checks=False)
    return hierarchy.leaves_list(hierarchy.linkage(flat, "average", optimal_ordering=True)).tolist()


def _heat(axes, matrix, tasks, order, diverging, format_):
    """One matrix in the given order; returns the image."""
    shown = matrix[np.ix_(order, order)].astype(float)
    off = shown[~np.eye(len(order), dtype=bool)]
    off = off[np.isfinite(off)]
    most = max(float(np.abs(off).max()), 1e-12) if off.size else 1.0
    limits = (-most, most) if diverging else (float(off.min()), float(off.max())) if off.size else (0.0, 1.0)
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(shown, cmap="PuOr" if diverging else "viridis", vmin=limits[0], vmax=limits[1])
    names = [tasks[k] for k in order]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(order) <= NUMBERS:
        middle, half = (limits[0] + limits[1]) / 2, max((limits[1] - limits[0]) / 2, 1e-12)
        for (row, column), value in np.ndenumerate(shown):
            if np.isfinite(value):
                far = (value - middle) / half
                dark = abs(far) > 0.75 if diverging else far < -0.1
                colour = "white" if dark else "black"
                axes.text(column, row, format_(value), ha="center", va="center", fontsize=7, color=colour)
    return image


def _gains(found, order, folder):
    tasks = found["tasks"]
    size = max(4.5, 1.6 + 0.62 * len(tasks))
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.subplots()
    image = _heat(axes, gains_of(found), tasks, order, True, lambda v: f"{v:+.3f}")
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            d = found["gain"][i][j]
            if d and d["corrected_p"] is not None and d["corrected_p"] < 0.05:
                axes.add_patch(_frame(column, row))
    axes.set_ylabel("trained with")
    axes.set_xlabel("task that is scored")
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"gain over training alone ({found['split']})")
    caption = (
        f"What each task (column) gains from being trained with another (row), against training alone, on "
        f"{found['split']}; means over seeds. Framed: paired t-test, p < 0.05 after Holm's correction over all pairs. "
        "Tasks are in clustered order."
    )
    return plotting.Picture(plotting.save(figure, folder / "gains.png"), caption)


def _frame(column, row):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, linewidth=1.8)


def _measures(found, order, folder):
    names = list(found["measures"])
    shape = plotting.grid_shape(len(names), 3)
    side = max(3.4, 0.9 + 0.42 * len(found["tasks"]))
    figure = Figure(figsize=(side * shape[1] + 0.8, (side - 0.2) * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for name, one in zip(names, axes.flat, strict=False):
        entry = found["measures"][name]
        matrix = matrix_of(entry["matrix"])
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        image = _heat(one, matrix, found["tasks"], order, bool((off < 0).any()), lambda v: f"{v:.2g}")
        figure.colorbar(image, ax=one, shrink=0.7)
        one.set_title(entry["title"] + (" (smaller = closer)" if entry["distance"] else ""), fontsize=10)
    plotting.hide_empty(axes.flat[len(names) :])
    caption = (
        "Every measure between all tasks, means over seeds; where it has a direction the row acts and the column is "
        "acted upon. The order of the tasks is that of the gains."
    )
    return plotting.Picture(plotting.save(figure, folder / "measures.png"), caption)


def _graph(found, order, folder):
    """Tasks on a circle, in clustered order; an arrow from each task to those that it helps or harms."""
    tasks, gains = found["tasks"], gains_of(found)
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    axes = figure.subplots()
    angle = {k: 2 * np.pi * place / len(order) + np.pi / 2 for place, k in enumerate(order)}
    at = {k: np.asarray([np.cos(a), np.sin(a)]) for k, a in angle.items()}
    most = np.nanmax(np.abs(gains)) if np.isfinite(gains).any() else 1.0
    colours = {True: plotting.PALETTE[2], False: plotting.PALETTE[3]}
    seen = set()
    for i, j in _strongest(found, gains):
        value = gains[i, j]
        seen.add(value > 0)
        arrow = {
            "arrowstyle": "-|>",
            "color": colours[bool(value > 0)],
            "linewidth": 0.4 + 3.6 * abs(value) / most,
            "shrinkA": 24,
            "shrinkB": 24,
            "connectionstyle": "arc3,rad=0.12",
            "alpha": 0.8,
        }
        axes.annotate("", at[j], at[i], arrowprops=arrow)
    names = list(found["groups"]["groups"])
    for k, task in enumerate(tasks):
        number = found["groups"]["served"][task]
        colour = plotting.PALETTE[(number + 4) % len(plotting.PALETTE)] if len(names) > 1 else "#DDDDDD"
        axes.text(
            *at[k],
            task,
            ha="center",
            va="center",
            fontsize=9,
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.4", "facecolor": colour, "alpha": 0.45, "edgecolor": "black"},
        )
    for positive, label in ((True, "helps"), (False, "harms")):
        if positive in seen:
            axes.plot([], [], color=colours[positive], linewidth=2, label=label)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_axis_off()
    caption = (
        "Who helps whom: arrows from a task to one that gains (blue) or loses (red) by it, as thick as the gain; only "
        "those whose 95 % interval leaves out 0, or else the strongest third. The colours of the names are the groups."
    )
    return plotting.Picture(plotting.save(figure, folder / "graph.png"), caption)


def _strongest(found, gains) -> list[tuple[int, int]]:
    """Pairs whose interval leaves out 0; where these are fewer than K, the third of all that is largest."""
    pairs = [(i, j) for i in range(len(gains)) for j in range(len(gains)) if i != j and np.isfinite(gains[i, j])]

    def clear(i, j):
        d = found["gain"][i][j]
        return d["low"] is not None and (d["low"] > 0 or d["high"] < 0)

    chosen = [pair for pair in pairs if clear(*pair)]
    if len(chosen) < len(gains):
        chosen = sorted(pairs, key=lambda pair: -abs(gains[pair]))[: max(len(gains), len(pairs) // 3)]
    return chosen


def _scatters(found, folder):
    names, gains = list(found["measures"]), gains_of(found)
    shape = plotting.grid_shape(len(names), 3)
    figure, axes = plotting.panels(*shape)
    off = ~np.eye(len(gains), dtype=bool)
    for name, one in zip(names, axes.flat, strict=False):
        entry = found["measures"][name]
        matrix = matrix_of(entry["matrix"])
        known = off & np.isfinite(matrix) & np.isfinite(gains)
        one.axhline(0.0, color="black", linewidth=0.8)
        one.plot(matrix[known], gains[known], "o", color=plotting.PALETTE[2], markersize=5, alpha=0.8)
        one.set(xlabel=entry["title"], ylabel=f"gain ({found['split']})")
        one.locator_params(axis="x", nbins=5)
        rho = entry["correlation"]["rho"]
        sign = " of its negative" if entry["distance"] else ""
        one.set_title("no correlation defined" if rho is None else f"ρ{sign} = {rho:+.2f}", fontsize=10)
    plotting.hide_empty(axes.flat[len(names) :])
    caption = "Each measure against measured transfer, one point an ordered pair of tasks, with Spearman's ρ."
    return plotting.Picture(plotting.save(figure, folder / "scatters.png"), caption)


def _cosines(found, folder):
    tasks, steps = found["tasks"], found["looks"]["steps"]
    series = np.asarray([matrix_of(m) for m in found["looks"]["cosines"]])
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    spread = sorted(pairs, key=lambda pair: -np.nanmean(series[:, pair[0], pair[1]]))
    named: Sequence[tuple[int, int]] = spread
    if len(pairs) > LABELLED:
        named = [*spread[: LABELLED // 2], *spread[-LABELLED // 2 :]]
    figure, axes = plotting.panels(1, 1)
    one = axes[0, 0]
    for i, j in pairs:
        if (i, j) not in named:
            one.plot(steps, series[:, i, j], color="#BBBBBB", linewidth=0.8)
    for number, (i, j) in enumerate(named):
        colour, marker = plotting.PALETTE[number % 8], plotting.MARKERS[number % 8]
        one.plot(steps, series[:, i, j], color=colour, marker=marker, markersize=4, label=f"{tasks[j]}, {tasks[i]}")
    one.axhline(0.0, color="black", linewidth=0.8)
    one.set(xlabel="step", ylabel="cosine of gradients")
    rest = "; the closest and the farthest pairs are named, the others grey" if len(pairs) > LABELLED else ""
    caption = f"Cosines between the tasks' gradients over what they share, along the joint run{rest}."
    return plotting.Picture(plotting.save(figure, folder / "cosines.png"), caption)
