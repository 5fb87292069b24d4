"""The results of trained lanes: final scores, distances between the tasks, effects of the penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation.engine import Engine, padded
from mtl_jax.analysis.ablation.lane_log import LaneLog, LaneResult
from mtl_jax.analysis.ablation.scores import Cell, GridScores
from mtl_jax.evaluation.scores import selection_score
from mtl_jax.runtime import distributed
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.penalty_effect import Effect, mean_ratio


class LaneParameters(NamedTuple):
    """The parameters of lanes that are scored, leaves [S, L, ...], and their hyperparameters [S, L]."""

    engine: Engine
    seeds: Sequence[int]
    params: chex.ArrayTree
    hyper: Hyperparameters


def lane_results(
    lanes: LaneParameters, logs: Mapping[Cell, LaneLog], uses_last: np.ndarray, stop: StopSignals
) -> dict[Cell, LaneResult]:
    """The results of the lanes in `logs`, by cell.

    Args:
      lanes: what is scored.
      logs: of the lanes whose results are wanted.
      uses_last: bool [S, L], whether the parameters are those of the last step and not of the best.
      stop: interrupts.

    Raises:
      Stopped: a signal arrived.
    """
    experiment = lanes.engine.built.experiment
    remarks: dict[Cell, dict[str, dict[str, str]]] = {}

    def score(split: str) -> GridScores:
        def remark(s: int, i: int, task: str, text: str) -> None:
            remarks.setdefault((s, i), {}).setdefault(task, {})[split] = text

        return lanes.engine.scores.score(lanes.params, split, stop.raise_if_stopped, remark)

    scores = {split: score(split) for split in experiment.config.evaluation.splits}
    spread = lanes.engine.scores.spread(lanes.params)
    effects = _effects(lanes, logs)
    results = {}
    for (s, i), log in logs.items():
        by_task = {
            task: {split: of_lanes[s][i][task] for split, of_lanes in scores.items() if task in of_lanes[s][i]}
            for task in experiment.tasks
        }
        dev = {task: by_split["dev"] for task, by_split in by_task.items() if "dev" in by_split}
        results[s, i] = {
            "values": log.learned_values(),
            "status": log.status,
            "step": log.steps if uses_last[s, i] else log.best_step,
            "steps": log.steps,
            "scores": by_task,
            "score": selection_score(dev, experiment),
            "distance": spread[s][i].distance,
            "effective_rank": spread[s][i].effective_rank,
            "curve": log.curve,
            "left_out": log.left_out,
            "remarks": remarks.get((s, i), {}),
            "effects": {name: effect._asdict() for name, effect in effects[s, i].items()},
        }
    return results


def _effects(lanes: LaneParameters, logs: Mapping[Cell, LaneLog]) -> dict[Cell, dict[str, Effect]]:
    """{cell: {penalty: its effect}}"""
    built = lanes.engine.built
    if not built.spec.objective.penalties:
        return {cell: {} for cell in logs}
    by_seed = {seed: built.experiment.init_params(seed) for seed in lanes.seeds}
    shape = lanes.engine.shape
    initial = jax.tree.map(lambda *x: jnp.stack(x), *(by_seed[seed] for seed in padded(lanes.seeds, shape.seeds)))
    distances = lanes.engine.scores.penalty_distances(lanes.params, distributed.place(initial, shape.sharding("s")))
    strength = distributed.to_host(lanes.hyper.strength)

    def effect(name: str, cell: Cell, log: LaneLog) -> Effect:
        ratio = mean_ratio(point["penalty_ratio"][name] for point in log.curve if "penalty_ratio" in point)
        return Effect(ratio, float(strength[name][cell]), *distances[name][cell].tolist())

    return {cell: {name: effect(name, cell, log) for name in distances} for cell, log in logs.items()}
