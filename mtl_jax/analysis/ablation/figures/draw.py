"""The figures of an ablation: scores against each sweep, gains against each choice, surfaces, distances, curves."""

from __future__ import annotations

import collections
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from matplotlib.axes import Axes

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation.conclusions import describe_choices
from mtl_jax.analysis.ablation.figures.baselines import draw_baseline
from mtl_jax.analysis.ablation.figures.curves import draw_curves
from mtl_jax.analysis.ablation.figures.gains import draw_gains
from mtl_jax.analysis.ablation.figures.pareto import draw_front
from mtl_jax.analysis.ablation.figures.surfaces import draw_surface
from mtl_jax.analysis.ablation.preferences import PREFIX, weighs_tasks
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.ablation.summary import main_split, profile

Combination = Mapping[str, Any]  # of choices, see `summary.summarise`
Combinations = Sequence[Combination]
MAX_LINES = 8  # in one panel


def draw(grid: Grid, summary: Mapping[str, Any], folder: pathlib.Path) -> list[plotting.Picture]:
    """Draws every figure that the grid allows.

    Args:
      grid: the ablation.
      summary: `summary.summarise` of it.
      folder: of the PNG files; it is created.
    """
    pictures = [
        draw_baseline(compared, main_split(summary), folder, number)
        for number, compared in enumerate(summary["baselines"])
    ]
    together = [name for name in grid.sweeps if name.startswith(PREFIX)]
    for sweep in grid.sweeps:
        if sweep in together:  # their sum is fixed: a curve over one of them would mix the others
            continue
        combinations = _with_sweeps(summary, [sweep])
        if len(combinations) > 1:
            pictures += _averages(grid, summary, combinations, sweep, folder)
        if combinations:
            pictures += _by_task(grid, summary, combinations, sweep, folder)
    if len(grid.tasks) > 1 and any(weighs_tasks(sweep["field"]) for sweep in grid.sweeps.values()):
        for number, combination in enumerate(_with_sweeps(summary, [])):
            pictures.append(draw_front(summary, combination, folder, number))
    for choice, alternatives in grid.choices.items():
        if len(alternatives) > 1 and choice not in grid.baselines:
            pictures += draw_gains(grid, summary, _with_sweeps(summary, []), choice, folder)
    first = [name for name in grid.sweeps if name not in together][:2]
    if len(first) > 1 and (combinations := _with_sweeps(summary, first)):
        pictures.append(draw_surface(grid, combinations, folder))
    for sweep in summary["strengths"] or first[:1]:
        if combinations := _with_sweeps(summary, [sweep]):
            pictures += _distances(grid, combinations, sweep, folder)
            pictures += draw_curves(grid, combinations, sweep, folder)
    if not summary["strengths"] and not first:
        pictures += draw_curves(grid, _with_sweeps(summary, []), None, folder)
    return pictures


def _with_sweeps(summary: Mapping[str, Any], sweeps: Collection[str]) -> Combinations:
    """The combinations that have these sweeps; alternatives of a choice may lack some."""
    return [c for c in summary["combinations"] if c["points"] and set(sweeps) <= c["points"][0]["values"].keys()]


def _other_sweeps(grid: Grid) -> str:
    return f" Each point is at the best value of the other sweeps on dev ({', '.join(grid.sweeps)})." * (
        len(grid.sweeps) > 1
    )


def _grouped(combinations: Combinations, line: str | None) -> dict[str, list[Combination]]:
    """Combinations by all their choices except `line`: {description: [combinations]}."""
    groups: dict[str, list] = collections.defaultdict(list)
    for combination in combinations:
        rest = {name: value for name, value in combination["choices"].items() if name != line}
        groups[describe_choices(rest)].append(combination)
    return groups


def _averages(
    grid: Grid, summary: Mapping[str, Any], combinations: Combinations, sweep: str, folder: pathlib.Path
) -> list[plotting.Picture]:
    """A panel for each combination: rows are the last choice but one, columns the last."""
    by_row = _grouped(combinations, list(grid.choices)[-1])
    wide = max(len(group) for group in by_row.values())
    if len(by_row) == 1 or wide > 5:
        shape, order = plotting.grid_shape(len(combinations)), combinations
        places = [divmod(i, shape[1]) for i in range(len(order))]
    else:
        shape, order, places = (len(by_row), wide), [], []
        for row, group in enumerate(by_row.values()):
            order += group
            places += [(row, column) for column in range(len(group))]
    figure, axes = plotting.panels(*shape)
    for combination, place in zip(order, places, strict=True):
        _score_panel(axes[place], grid, summary, [combination], sweep, None)
        axes[place].set_title(describe_choices(combination["choices"]), fontsize=10)
    plotting.hide_empty([axes[r, c] for r in range(shape[0]) for c in range(shape[1]) if (r, c) not in places])
    caption = (
        f"Mean score of all tasks on dev against {sweep}, with 95 % intervals over seeds; the star is the setting "
        f"chosen on dev. Each panel has its own scale.{_other_sweeps(grid)}"
    )
    return [plotting.Picture(plotting.save(figure, folder / f"average_{plotting.file_name(sweep)}.png"), caption)]


def _by_task(
    grid: Grid, summary: Mapping[str, Any], combinations: Combinations, sweep: str, folder: pathlib.Path
) -> list[plotting.Picture]:
    """A panel for each task and one for their mean; a line for each alternative of the last choice."""
    tasks = [None, *grid.tasks] if len(grid.tasks) > 1 else [None]
    last = list(grid.choices)[-1] if grid.choices else None
    pictures = []
    for number, (rest, group) in enumerate(_grouped(combinations, last).items()):
        group, several = _best(group), len(group) > MAX_LINES
        shape = plotting.grid_shape(len(tasks))
        figure, axes = plotting.panels(*shape)
        for task, panel in zip(tasks, axes.flat, strict=False):
            _score_panel(panel, grid, summary, group, sweep, task)
            mean = "mean of all tasks" if len(tasks) > 1 else next(iter(grid.tasks))
            panel.set_title(mean if task is None else task)
        plotting.hide_empty(axes.flat[len(tasks) :])
        figure.suptitle(rest, fontsize=11, parse_math=False) if rest else None
        beyond = " Beyond the swept values: single-task training (0), tied columns (∞) and hard sharing."
        limits = beyond if len(group) > 1 and summary["strengths"] == [sweep] else ""
        best = f" The {MAX_LINES} best of {last} on dev." if several else ""
        caption = (
            f"Score on dev against {sweep}{f', {rest}' if rest else ''}, with 95 % intervals over seeds; stars: chosen "
            f"on the mean of all tasks.{best}{limits}{_other_sweeps(grid)}"
        )
        file = folder / f"tasks_{plotting.file_name(sweep)}_{number}.png"
        pictures.append(plotting.Picture(plotting.save(figure, file), caption))
    return pictures


def _best(combinations: Combinations) -> Combinations:
    """The best combinations on dev, as many as a panel can show, in their order."""

    def score(combination: Combination) -> float:
        chosen = combination["chosen"]
        return -math.inf if chosen is None else combination["points"][chosen]["score"]["mean"]

    best = sorted(combinations, key=score, reverse=True)[:MAX_LINES]
    return [c for c in combinations if c in best]


def _score_panel(
    axes: Axes, grid: Grid, summary: Mapping[str, Any], combinations: Combinations, sweep: str, task: str | None
) -> None:
    """Dev scores of one task (None: the mean of all) against a sweep; a line for each combination."""
    metric = None if task is None else summary["scores"][task]

    def pick(point: plotting.Point) -> Mapping[str, Any] | None:
        return point["score"] if task is None else point["tasks"].get(task, {}).get("dev", {}).get(metric)

    points = [point for combination in combinations for point in combination["points"]]
    x = plotting.scale(sweep, grid.sweeps[sweep], points)
    single, strength = len(combinations) == 1, summary["strengths"] == [sweep]
    names = [next(reversed(c["choices"].values()), "") for c in combinations]
    beyond: dict[int, str] = {}
    for combination, name, colour, i in zip(
        combinations, names, plotting.colours_by_name(names), range(99), strict=False
    ):
        marker = "o" if single else plotting.MARKERS[i % len(plotting.MARKERS)]
        shown, joined = profile(combination["points"], sweep)
        label = "soft sharing" if summary["strengths"] else "trained"
        if not single:
            label = f"{next(reversed(combination['choices']))} {name}"
        plotting.line(axes, x, shown, pick, colour=colour, label=label, marker=marker, joined=joined)
        if single:
            beyond |= plotting.end_lines(axes, x, combination["ends"], pick, strength)
            _references(axes, grid, combination, sweep, x, task)
        elif strength:
            beyond |= plotting.end_points(axes, x, combination["ends"], pick, colour, marker)
        if combination["chosen"] is not None:
            chosen = combination["points"][combination["chosen"]]
            if value := pick(chosen):
                place = x.place(chosen["values"][sweep])
                axes.plot(
                    place,
                    value["mean"],
                    "*",
                    color=colour,
                    markeredgecolor="black",
                    markersize=14,
                    zorder=6,
                    label="chosen on dev",
                )
    x.apply(axes, beyond)
    axes.set_ylabel("mean score (dev)" if task is None else f"{metric} (dev)")
    axes.margins(y=0.16)


def _references(
    axes: Axes, grid: Grid, combination: Combination, sweep: str, x: plotting.Scale, task: str | None
) -> None:
    """Exact optima: a dashed line over the sweep, or a horizontal one if they do not depend on it."""
    curves: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for reference in grid.references:
        if not reference["choices"].items() <= combination["choices"].items():
            continue
        tasks = grid.tasks if task is None else [task]
        scores = [reference["scores"].get(t, {}).get("dev", {}).get(grid.tasks[t][0]) for t in tasks]
        if any(score is None for score in scores):
            continue
        score = math.fsum(scores) / len(scores)
        if sweep in reference["values"]:
            curves[reference["label"]].append((x.place(reference["values"][sweep]), score))
        elif not reference["values"]:
            axes.axhline(score, color=plotting.REFERENCE, linestyle="--", linewidth=1.4, label=reference["label"])
    for label, line in curves.items():
        axes.plot(
            *zip(*sorted(line), strict=True), "--", color=plotting.REFERENCE, linewidth=1.6, label=label, zorder=3.5
        )


def _distances(grid: Grid, combinations: Combinations, sweep: str, folder: pathlib.Path) -> list[plotting.Picture]:
    """Distances between the tasks' parameters, and the effective rank of their deviations."""
    measures = [
        (field, label)
        for field, label in (("distance", "distance / norm"), ("effective_rank", "effective rank"))
        if any(point[field]["n"] for c in combinations for point in c["points"])
    ]
    if not measures:
        return []
    last = list(grid.choices)[-1] if grid.choices else None
    groups = _grouped(combinations, last)
    figure, axes = plotting.panels(len(measures), len(groups))
    for column, (rest, group) in enumerate(groups.items()):
        names = [next(reversed(c["choices"].values()), "") for c in group]
        x = plotting.scale(sweep, grid.sweeps[sweep], [point for c in group for point in c["points"]])
        for row, (field, title) in enumerate(measures):
            panel, beyond = axes[row, column], {}
            for i, (combination, name, colour) in enumerate(
                zip(group, names, plotting.colours_by_name(names), strict=True)
            ):
                shown, joined = profile(combination["points"], sweep)
                label, marker = f"{last} {name}" if last else "soft sharing", plotting.MARKERS[i % 8]
                pick = itemgetter(field)
                plotting.line(panel, x, shown, pick, colour=colour, label=label, marker=marker, joined=joined)
                beyond |= plotting.end_points(panel, x, combination["ends"], pick, colour, marker)
            x.apply(panel, beyond)
            panel.set_ylabel(title)
            panel.margins(y=0.16)
            panel.set_title(rest, fontsize=10) if rest and row == 0 else None
    caption = (
        f"Against {sweep}: the mean distance between two tasks' parameters, relative to their mean norm, and the "
        f"effective rank of the tasks' deviations from their mean (0 to {max(len(grid.tasks) - 1, 0)}), over the "
        f"parameters that they do not share.{_other_sweeps(grid)}"
    )
    return [plotting.Picture(plotting.save(figure, folder / f"distance_{plotting.file_name(sweep)}.png"), caption)]
