"""Pictures of how tasks relate: heat maps in clustered order, the affinity graph, cosines over training, scatters."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mtl_jax.analysis import plotting
from mtl_jax.analysis.relatedness.relate import Relatedness
from mtl_jax.evaluation.many_tasks import NAMED_TASKS

MAX_NUMBERED_TASKS = 12  # up to which cells show their numbers
MAX_NAMED_PAIRS = 8  # up to which the lines of all pairs are named


def draw(result: Relatedness, folder: pathlib.Path) -> list[plotting.Picture]:
    """All figures of a relatedness.json, as PNG files into a folder."""
    order = clustered(gains_of(result))
    measured = bool(np.isfinite(gains_of(result)).any())
    pictures = [_gains(result, order, folder), _graph(result, order, folder)] if measured else []
    if result["measures"]:
        pictures.append(_measures(result, order, folder))
    if result["measures"] and measured:
        pictures.append(_scatters(result, folder))
    if result["looks"] and len(result["looks"]["steps"]) > 1:
        pictures.append(_cosines(result, folder))
    return pictures


def matrix_of(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """A matrix from JSON, NaN for null."""
    return np.asarray([[np.nan if value is None else value for value in row] for row in rows], float)


def gains_of(result: Relatedness) -> np.ndarray:
    """[i, j] = mean gain of j with i, NaN on the diagonal and where it is unknown."""
    return matrix_of([[None if d is None else d["mean"] for d in row] for row in result["gain"]])


def clustered(closeness: np.ndarray) -> list[int]:
    """An order of K tasks in which close ones are neighbours: average linkage over the symmetric part, with optimal
    leaf ordering (Bar-Joseph et al. 2001).

    Args:
      closeness: float[K, K], larger = closer; entries that are not finite are replaced by the mean.
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


def _heat(
    axes: Axes,
    matrix: np.ndarray,
    tasks: Sequence[str],
    order: Sequence[int],
    diverging: bool,
    text: Callable[[float], str],
) -> AxesImage:
    """Draws one matrix in the given order."""
    shown = matrix[np.ix_(order, order)].astype(float)
    off = shown[~np.eye(len(order), dtype=bool)]
    off = off[np.isfinite(off)]
    largest = max(float(np.abs(off).max()), 1e-12) if off.size else 1.0
    limits = (-largest, largest) if diverging else (float(off.min()), float(off.max())) if off.size else (0.0, 1.0)
    np.fill_diagonal(shown, np.nan)
    image = axes.imshow(shown, cmap="PuOr" if diverging else "viridis", vmin=limits[0], vmax=limits[1])
    names = [tasks[k] for k in order]
    if len(names) <= NAMED_TASKS:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(order) <= MAX_NUMBERED_TASKS:
        middle, half = (limits[0] + limits[1]) / 2, max((limits[1] - limits[0]) / 2, 1e-12)
        for (row, column), value in np.ndenumerate(shown):
            if np.isfinite(value):
                relative = (value - middle) / half
                dark = abs(relative) > 0.75 if diverging else relative < -0.1
                colour = "white" if dark else "black"
                axes.text(column, row, text(value), ha="center", va="center", fontsize=7, color=colour)
    return image


def _gains(result: Relatedness, order: Sequence[int], folder: pathlib.Path) -> plotting.Picture:
    tasks = result["tasks"]
    size = max(4.5, 1.6 + 0.62 * min(len(tasks), NAMED_TASKS))
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.subplots()
    image = _heat(axes, gains_of(result), tasks, order, True, lambda v: f"{v:+.3f}")
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            d = result["gain"][i][j]
            if d and d["corrected_p"] is not None and d["corrected_p"] < 0.05:
                axes.add_patch(_frame(column, row))
    axes.set_ylabel("trained with")
    axes.set_xlabel("task that is scored")
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"gain over training alone ({result['split']})")
    caption = (
        f"What each task (column) gains from being trained with another (row), against training alone, on "
        f"{result['split']}; means over seeds. Framed: paired t-test, p < 0.05 after Holm's correction over all pairs. "
        "Tasks are in clustered order."
    )
    return plotting.Picture(plotting.save(figure, folder / "gains.png"), caption)


def _frame(column, row):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, linewidth=1.8)


def _measures(result: Relatedness, order: Sequence[int], folder: pathlib.Path) -> plotting.Picture:
    names = list(result["measures"])
    shape = plotting.grid_shape(len(names), 3)
    side = max(3.4, 0.9 + 0.42 * min(len(result["tasks"]), NAMED_TASKS))
    figure = Figure(figsize=(side * shape[1] + 0.8, (side - 0.2) * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for name, panel in zip(names, axes.flat, strict=False):
        entry = result["measures"][name]
        matrix = matrix_of(entry["matrix"])
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        image = _heat(panel, matrix, result["tasks"], order, bool((off < 0).any()), lambda v: f"{v:.2g}")
        figure.colorbar(image, ax=panel, shrink=0.7)
        panel.set_title(entry["title"] + (" (smaller = closer)" if entry["distance"] else ""), fontsize=10)
    plotting.hide_empty(axes.flat[len(names) :])
    caption = (
        "Every measure between all tasks, means over seeds; where it has a direction, the row acts and the column is "
        "acted upon. The tasks are in the order of the gains."
    )
    return plotting.Picture(plotting.save(figure, folder / "measures.png"), caption)


def _graph(result: Relatedness, order: Sequence[int], folder: pathlib.Path) -> plotting.Picture:
    """Tasks on a circle, in clustered order; an arrow from each task to those that it helps or harms."""
    tasks, gains = result["tasks"], gains_of(result)
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    axes = figure.subplots()
    angle = {k: 2 * np.pi * place / len(order) + np.pi / 2 for place, k in enumerate(order)}
    at = {k: np.asarray([np.cos(a), np.sin(a)]) for k, a in angle.items()}
    largest = max(float(np.nanmax(np.abs(gains))), 1e-12) if np.isfinite(gains).any() else 1.0
    colours = {True: plotting.PALETTE[2], False: plotting.PALETTE[3]}
    drawn = set()
    for i, j in _strongest(result, gains):
        value = gains[i, j]
        drawn.add(value > 0)
        arrow = {
            "arrowstyle": "-|>",
            "color": colours[bool(value > 0)],
            "linewidth": 0.4 + 3.6 * abs(value) / largest,
            "shrinkA": 24,
            "shrinkB": 24,
            "connectionstyle": "arc3,rad=0.12",
            "alpha": 0.8,
        }
        axes.annotate("", at[j], at[i], arrowprops=arrow)
    names = list(result["groups"]["groups"])
    for k, task in enumerate(tasks):
        number = result["groups"]["served"][task]
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
        if positive in drawn:
            axes.plot([], [], color=colours[positive], linewidth=2, label=label)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.3, 1.3), aspect="equal")
    axes.set_axis_off()
    caption = (
        "Arrows from a task to one that gains (blue) or loses (red) by it, with a width proportional to the gain; only "
        "those whose 95 % interval excludes 0, or else the strongest third. The colours of the names show the groups."
    )
    return plotting.Picture(plotting.save(figure, folder / "graph.png"), caption)


def _strongest(result: Relatedness, gains: np.ndarray) -> list[tuple[int, int]]:
    """Pairs whose interval excludes 0; if these are fewer than K, the largest third of all pairs."""
    pairs = [(i, j) for i in range(len(gains)) for j in range(len(gains)) if i != j and np.isfinite(gains[i, j])]

    def excludes_zero(i: int, j: int) -> bool:
        d = result["gain"][i][j]
        return d["low"] is not None and (d["low"] > 0 or d["high"] < 0)

    strongest = [pair for pair in pairs if excludes_zero(*pair)]
    if len(strongest) < len(gains):
        strongest = sorted(pairs, key=lambda pair: -abs(gains[pair]))[: max(len(gains), len(pairs) // 3)]
    return strongest


def _scatters(result: Relatedness, folder: pathlib.Path) -> plotting.Picture:
    names, gains = list(result["measures"]), gains_of(result)
    shape = plotting.grid_shape(len(names), 3)
    figure, axes = plotting.panels(*shape)
    off = ~np.eye(len(gains), dtype=bool)
    for name, panel in zip(names, axes.flat, strict=False):
        entry = result["measures"][name]
        matrix = matrix_of(entry["matrix"])
        known = off & np.isfinite(matrix) & np.isfinite(gains)
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.plot(matrix[known], gains[known], "o", color=plotting.PALETTE[2], markersize=5, alpha=0.8)
        panel.set(xlabel=entry["title"], ylabel=f"gain ({result['split']})")
        panel.locator_params(axis="x", nbins=5)
        rho = entry["correlation"]["rho"]
        sign = " of its negative" if entry["distance"] else ""
        panel.set_title("no correlation defined" if rho is None else f"ρ{sign} = {rho:+.2f}", fontsize=10)
    plotting.hide_empty(axes.flat[len(names) :])
    caption = "Each measure against measured transfer, one point for each ordered pair of tasks, with Spearman's ρ."
    return plotting.Picture(plotting.save(figure, folder / "scatters.png"), caption)


def _cosines(result: Relatedness, folder: pathlib.Path) -> plotting.Picture:
    tasks, steps = result["tasks"], result["looks"]["steps"]
    series = np.asarray([matrix_of(m) for m in result["looks"]["cosines"]])
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    spread = sorted(pairs, key=lambda pair: -np.nanmean(series[:, pair[0], pair[1]]))
    named: Sequence[tuple[int, int]] = spread
    if len(pairs) > MAX_NAMED_PAIRS:
        named = [*spread[: MAX_NAMED_PAIRS // 2], *spread[-MAX_NAMED_PAIRS // 2 :]]
    figure, axes = plotting.panels(1, 1)
    panel = axes[0, 0]
    for i, j in pairs:
        if (i, j) not in named:
            panel.plot(steps, series[:, i, j], color="#BBBBBB", linewidth=0.8)
    for number, (i, j) in enumerate(named):
        colour, marker = plotting.PALETTE[number % 8], plotting.MARKERS[number % 8]
        panel.plot(steps, series[:, i, j], color=colour, marker=marker, markersize=4, label=f"{tasks[j]}, {tasks[i]}")
    panel.axhline(0.0, color="black", linewidth=0.8)
    panel.set(xlabel="step", ylabel="cosine of gradients")
    rest = "; the closest and the farthest pairs are named, the others are grey" if len(pairs) > MAX_NAMED_PAIRS else ""
    caption = f"Cosines between the tasks' gradients over the shared parameters, along the joint run{rest}."
    return plotting.Picture(plotting.save(figure, folder / "cosines.png"), caption)
