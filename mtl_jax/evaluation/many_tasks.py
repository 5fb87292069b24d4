"""What is shown of many tasks: their mean, and the few that stand out. Files have the numbers of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LISTED_TASKS = 12  # up to so many tasks are shown one by one: on the progress bar, in messages and curves
WORST_TASKS = 3  # of more their mean and so many of the worst
TABLE_ROWS = 40  # a table of the terminal has at most about so many rows, one of a page is folded above
NAMED_TASKS = 64  # up to so many tasks have their names beside a heat map


def summarized(values: Mapping[str, float], worst: Callable[[float], float]) -> dict[str, float]:
    """{task: value}; of many tasks {"mean of K": their mean} and the worst of them, the worst first.

    Args:
      values: by task.
      worst: the worse a value, the larger.
    """
    if len(values) <= LISTED_TASKS:
        return dict(values)
    finite = [value for value in values.values() if np.isfinite(value)]
    order = sorted(values, key=lambda task: (np.isfinite(values[task]), -worst(values[task])))
    mean = float(np.mean(finite)) if finite else float("nan")
    return {f"mean of {len(values)}": mean, **{task: values[task] for task in order[:WORST_TASKS]}}


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by task; of many tasks only those that are not 0."""
    return dict(counts) if len(counts) <= LISTED_TASKS else {task: count for task, count in counts.items() if count}


def summarized_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], worst: Callable[[float], float]
) -> dict[str, list[tuple[int, float]]]:
    """{task: points (step, value)}; of many tasks the mean over those with a value at a step, and the worst at the end.

    `worst` as in `summarized`.
    """
    curves = {task: list(points) for task, points in curves.items() if points}
    shown = summarized({task: points[-1][1] for task, points in curves.items()}, worst)
    by_step: dict[int, list[float]] = {}
    for points in curves.values():
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    mean = [(step, float(np.mean(by_step[step]))) for step in sorted(by_step)]
    return {name: curves.get(name, mean) for name in shown}


def first_and_last(rows: Sequence[Sequence[Any]], key: Callable[[Sequence[Any]], float]) -> list[Sequence[Any]]:
    """All rows of a table; of more than `TABLE_ROWS` the first and the last of them by `key`, a row of "…" between."""
    if len(rows) <= TABLE_ROWS:
        return list(rows)
    ordered, half = sorted(rows, key=key), TABLE_ROWS // 2
    left_out = [f"… {len(rows) - 2 * half} more", *[""] * (len(rows[0]) - 1)]
    return [*ordered[:half], left_out, *ordered[-half:]]
