"""Preferences over the tasks: weights of their losses as points of a simplex, and the Pareto front of what they give.

Lanes of `config.ablation.preferences` differ in the weights α of the tasks: linear scalarisation, which reaches the
points of the front that are on its convex hull (Boyd & Vandenberghe 2004, section 4.7.4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mtl_jax.analysis.ablation.sweeps import Sweep
from mtl_jax.config.sections import Config
from mtl_jax.data.splits.subsets import random_generator

PREFIX = "weight_"  # of the name of a sweep, before that of its task


def preference_sweeps(config: Config) -> dict[str, Sweep]:
    """A sweep over the weight of each trained task, all moved together; {} without preferences."""
    count, tasks = config.ablation.preferences, tuple(config.train_tasks) or tuple(config.tasks)
    if not count:
        return {}
    weights = len(tasks) * preference_vectors(len(tasks), count, config.seed)
    return {
        f"{PREFIX}{task}": Sweep((f"tasks.{task}.weight",), tuple(float(f"{x:.6g}") for x in weights[:, k]), True)
        for k, task in enumerate(tasks)
    }


def preference_vectors(tasks: int, count: int, seed: int) -> np.ndarray:
    """float64[count, tasks], ≥ 0 with sum 1: evenly spaced between two tasks, without the ends; of more tasks equal
    weights, then draws from the uniform distribution on the simplex."""
    if tasks == 2:
        first = np.arange(1, count + 1) / (count + 1)
        return np.stack([first, 1 - first], axis=1)
    drawn = random_generator("preferences", seed).dirichlet(np.ones(tasks), count - 1)
    return np.concatenate([np.full((1, tasks), 1 / tasks), drawn])


def weighs_tasks(field: str) -> bool:
    """Whether a field of a config is the weight of a task, or of several."""
    return re.fullmatch(r"tasks\..+\.weight", field) is not None


def pareto_front(scores: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each of n points is non-dominated: none is at least as good for every task and better for one. A point
    with a value that is not finite is dominated.

    Args:
      scores: [n, K], more is better.
    """
    values = np.asarray(scores, float)
    defined = np.isfinite(values).all(axis=1) if len(values) else np.zeros(0, bool)
    front = []
    for value, is_defined in zip(values, defined, strict=True):
        others = values[defined]
        beaten = ((others >= value).all(axis=1) & (others > value).any(axis=1)).any() if is_defined else True
        front.append(not beaten)
    return front
