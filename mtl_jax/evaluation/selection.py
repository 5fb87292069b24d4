"""One number for the scores of several tasks: by it the best step, and the best setting of an ablation, are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Selection(NamedTuple):
    """How scores become one number.

    name          in AGGREGATES, or that of a task
    weights       {task: weight}, of "weighted"
    single_task   {task: score of a model of the task alone}, of "delta_m"
    """

    name: str = "mean"
    weights: Mapping[str, float] = {}
    single_task: Mapping[str, float] = {}

    def __call__(self, scores: Mapping[str, float | None]) -> float | None:
        """The number of {task: score}; None where no task was scored, NaN where it is not defined."""
        if not scores:
            return None
        if self.name not in AGGREGATES:
            return scores.get(self.name)
        return AGGREGATES[self.name](self, scores)


def relative_change(
    scores: Mapping[str, float | None],
    single_task: Mapping[str, float | None],
    decreasing: Sequence[str] = (),
) -> float | None:
    """Δm = 1/K Σ_k (−1)^{l_k} (M_k − B_k) / B_k, with l_k = 1 where less is better (Maninis, Radosavovic & Kokkinos
    2019, equation 4).

    Args:
      scores: M of each task.
      single_task: B of each task; Δm is over the tasks that have one.
      decreasing: tasks of whose metric less is better.

    Returns:
      a fraction, 0.01 = one per cent better than single tasks; None where no task is in both, or a value is not
      known, not finite or a B is 0.
    """
    changes = []
    for task in scores.keys() & single_task.keys():
        value, base = scores[task], single_task[task]
        if value is None or not base or not math.isfinite(value) or not math.isfinite(base):
            return None
        changes.append((-1 if task in decreasing else 1) * (value - base) / base)
    return math.fsum(changes) / len(changes) if changes else None


def _array(scores: Mapping[str, float | None]) -> np.ndarray:
    return np.asarray([math.nan if value is None else value for value in scores.values()], float)


def _geometric_mean(_: Selection, scores: Mapping[str, float | None]) -> float:
    values = _array(scores)
    with np.errstate(divide="ignore"):
        return math.nan if (values < 0).any() else float(np.exp(np.log(values).mean()))


def _weighted(selection: Selection, scores: Mapping[str, float | None]) -> float:
    weights = np.asarray([selection.weights.get(task, 1.0) for task in scores], float)
    used = weights > 0  # a weight of 0 leaves a task out, defined or not
    return float(weights[used] @ _array(scores)[used] / weights[used].sum()) if used.any() else math.nan


def _delta_m(selection: Selection, scores: Mapping[str, float | None]) -> float:
    change = relative_change(scores, selection.single_task)
    return math.nan if change is None else change


AGGREGATES: dict[str, Callable[[Selection, Mapping[str, float | None]], float | None]] = {
    "mean": lambda _, scores: float(np.mean(list(scores.values()))),
    "min": lambda _, scores: float(_array(scores).min()),
    "geometric_mean": _geometric_mean,
    "weighted": _weighted,
    "delta_m": _delta_m,
}
