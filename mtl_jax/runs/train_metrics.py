"""The metrics of a train step as a line of metrics.jsonl, see `metrics_log.MetricsLog` for its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

StepMetrics = Mapping[str, Any]  # the metrics of `train_step` on the host


def by_owner(values: np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    """{task or "shared": value} of values [K + 1]."""
    return dict(zip([*tasks, "shared"], values.tolist(), strict=True))


def task_losses(metrics: StepMetrics, tasks: Sequence[str], field: str = "losses") -> dict[str, float | None]:
    """{task: L_k}, None for a task without labels in the batch."""
    return {
        task: float(loss) if present else None
        for task, loss, present in zip(tasks, metrics[field], metrics["present"], strict=True)
    }


def train_line(metrics: StepMetrics, tasks: Sequence[str]) -> dict[str, Any]:
    """The fields of a line of kind "train"."""
    line = {
        "loss": task_losses(metrics, tasks),
        "alpha": dict(zip(tasks, metrics["alpha"].tolist(), strict=True)),
        **{
            name: {penalty: float(value) for penalty, value in metrics[name].items()}
            for name in ("penalty", "strength", "penalty_ratio", "column_distance")
        },
        "total": float(metrics["total"]),
        "gradient_norm": by_owner(metrics["gradient_norm"], tasks),
        "learning_rate": float(metrics["learning_rate"]),
        "skipped": by_owner(metrics["skipped"], tasks),
    }
    for name in ("auxiliary", "teaching"):
        if name in metrics:
            line[name] = jax.tree.map(float, metrics[name])
    if "balanced" in metrics:
        line |= _aggregation(metrics["balanced"], tasks)
    if "support" in metrics:  # meta-learning: the loss of each task before its inner steps
        line["support"] = task_losses(metrics, tasks, "support")
    return line


def _aggregation(metrics: StepMetrics, tasks: Sequence[str]) -> dict[str, Any]:
    """By task: weight and norm of its gradient, and the cosine to the gradient it conflicts with most."""

    def by_task(values: np.ndarray) -> dict[str, float | None]:
        return {task: float(v) if np.isfinite(v) else None for task, v in zip(tasks, values, strict=True)}

    lowest = np.where(np.eye(len(tasks), dtype=bool), np.inf, metrics["cosine"]).min(axis=1)
    return {
        "weights": by_task(metrics["weights"]),
        "task_norms": by_task(metrics["task_norms"]),
        "lowest_cosine": by_task(lowest),
    }
