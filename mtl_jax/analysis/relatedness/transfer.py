"""Measured transfer: every single task and pairs of tasks are trained, as lanes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.plan import Plan, Program, Setting
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.intervals import interval, paired_difference, with_corrected_p
from mtl_jax.config.sections import Config

Group = tuple[int, ...]


def transfer_plan(config: ConfigDict, tasks: Sequence[str]) -> Plan:
    """K lanes of a task and K (K − 1) / 2 of a pair for each seed, or as many pairs as `relatedness.num_pairs`.

    Where a task of weight 0 is as good as absent, all are lanes of one program: the tasks of a lane have their weight,
    the others 0, and all have the same batches. Otherwise each group is a program, of its tasks alone. All lanes have
    the same number of steps, and are scored after the last one. No program where no pair is to be trained.
    """
    groups = transfer_groups(config, len(tasks))
    seeds = tuple(range(config.seed, config.seed + config.relatedness.num_seeds))
    lane_config = traced_fields.ordered_copy(config)
    lane_config.evaluation.checkpoint = "last"
    lane_config.training.eval_every = lane_config.training.early_stopping_patience = 0
    ablation = lane_config.ablation
    ablation.method, ablation.options, ablation.exact_optimum = "grid", ConfigDict(), ""
    if not groups:
        return Plan((), {}, {}, {}, seeds)

    def setting(group: Group, fields: dict[str, Any]) -> Setting:
        return Setting("sharing", {"first": group[0], "last": group[-1]}, fields)

    if weight_zero_is_absence(config):
        settings = tuple(
            setting(g, {f"tasks.{task}.weight": config.tasks[task].weight * (k in g) for k, task in enumerate(tasks)})
            for g in groups
        )
        return Plan((Program("transfer", lane_config, {}, settings, {}),), {}, {}, {}, seeds)
    programs = tuple(
        Program(f"transfer_{'_'.join(map(str, g))}", _restricted(lane_config, tasks, g), {}, (setting(g, {}),), {})
        for g in groups
    )
    return Plan(programs, {}, {}, {}, seeds)


def transfer_groups(config: Config, count: int) -> list[Group]:
    """The groups of one and two of `count` tasks that are trained; drawn by config.seed where they are not all."""
    pairs, wanted = list(itertools.combinations(range(count), 2)), config.relatedness.num_pairs
    if wanted == 0:
        return []
    if 0 < wanted < len(pairs):
        drawn = np.random.default_rng(config.seed).choice(len(pairs), wanted, replace=False)
        pairs = [pairs[i] for i in sorted(drawn)]
    return [(k,) for k in range(count)] + pairs


def weight_zero_is_absence(config: Config) -> bool:
    """Whether a task of weight 0 changes nothing for the others: no penalty, mixer or cascade takes their columns
    together, and no weighting their losses or gradients."""
    sharing = config.sharing
    return not (
        config.penalties
        or sharing.mixer
        or sharing.cascades
        or sharing.tied
        or config.aggregation.method != "sum"
        or config.loss_weights.method != "equal"
        or config.meta.method
    )


def _restricted(config: ConfigDict, tasks: Sequence[str], group: Group) -> ConfigDict:
    """The config of a group of its tasks; what needs two tasks is left out for one alone."""
    restricted = traced_fields.ordered_copy(config)
    restricted.train_tasks = tuple(tasks[k] for k in group)
    for section in (restricted.loss_weights, restricted.aggregation):
        for name, value in section.options.items():
            if isinstance(value, list | tuple) and len(value) == len(tasks):  # one number for each task
                section.options[name] = tuple(value[k] for k in group)
    if len(group) == 1:
        restricted.penalties = ConfigDict(sort_keys=False)
        for section, method in ((restricted.loss_weights, "equal"), (restricted.aggregation, "sum")):
            section.method, section.options = method, ConfigDict()
        restricted.aggregation.level, restricted.aggregation.gradient_storage = "parameters", "copies"
        restricted.aggregation.smoothing = 0.0
        restricted.sharing.tied = False
        restricted.sharing.mixer, restricted.sharing.mixer_options, restricted.sharing.mixer_layers = (
            "",
            ConfigDict(),
            (),
        )
    if restricted.meta.tasks_per_step > len(group):
        restricted.meta.tasks_per_step = 0
    return restricted


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
