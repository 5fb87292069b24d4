"""Measured transfer: every single task and every pair of tasks is trained, as lanes of one program."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypedDict

from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.plan import Plan, Program, Setting
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.intervals import interval, paired_difference, with_corrected_p


def transfer_plan(config: ConfigDict, tasks: Sequence[str]) -> Plan:
    """K + K (K − 1) / 2 lanes for each seed: the tasks of a lane have their weight, the others 0.

    All lanes have the same number of steps and the same batches of their tasks, and are scored after the last step.
    """
    lane_config = traced_fields.ordered_copy(config)
    lane_config.evaluation.checkpoint = "last"
    lane_config.training.eval_every = lane_config.training.early_stopping_patience = 0
    ablation = lane_config.ablation
    ablation.method, ablation.options, ablation.exact_optimum = "grid", ConfigDict(), ""
    groups = [(k,) for k in range(len(tasks))] + list(itertools.combinations(range(len(tasks)), 2))
    settings = tuple(
        Setting(
            "sharing",
            {"first": group[0], "last": group[-1]},
            {f"tasks.{task}.weight": config.tasks[task].weight * (k in group) for k, task in enumerate(tasks)},
        )
        for group in groups
    )
    seeds = tuple(range(config.seed, config.seed + config.relatedness.num_seeds))
    return Plan((Program("transfer", lane_config, {}, settings, {}),), {}, {}, {}, seeds)


class TransferGains(TypedDict):
    """What each task gains from each other.

    alone  {task: interval of its first metric, trained alone}
    gain   [i][j] = difference (see `intervals`) between j trained with i and j alone, paired by seed, with p corrected
           by Holm over all of them; None for i = j
    """

    alone: dict[str, dict[str, Any]]
    gain: list[list[dict[str, Any] | None]]


def transfer_gains(grid: Grid, split: str) -> TransferGains:
    """The gains on a split, from the lanes of `transfer_plan`."""
    metrics = {task: names[0] for task, names in grid.tasks.items()}
    tasks = list(grid.tasks)

    def scores(task: str, first: int, last: int) -> dict[int, float | None]:
        lanes = [lane for lane in grid.lanes if (lane.values["first"], lane.values["last"]) == (first, last)]
        return {lane.seed: lane.scores.get(task, {}).get(split, {}).get(metrics[task]) for lane in lanes}

    alone = [scores(task, k, k) for k, task in enumerate(tasks)]
    pairs = [(i, j) for i in range(len(tasks)) for j in range(len(tasks)) if i != j]
    differences = with_corrected_p([paired_difference(scores(tasks[j], *sorted((i, j))), alone[j]) for i, j in pairs])
    matrix: list[list[dict[str, Any] | None]] = [[None] * len(tasks) for _ in tasks]
    for (i, j), difference in zip(pairs, differences, strict=True):
        matrix[i][j] = difference._asdict()
    return {
        "alone": {t: interval(list(a.values()))._asdict() for t, a in zip(tasks, alone, strict=True)},
        "gain": matrix,
    }
