"""Scores of an experiment's parameters: by task, split and metric, and the distances between the tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.evaluation.evaluator import Evaluator
from mtl_jax.evaluation.metric_inputs import ceiling
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import Forecast, progress_bar
from mtl_jax.training.placement import Placement, place

Scores = dict[str, dict[str, float | None]]  # {task: {metric: value}}


class Scored(NamedTuple):
    """Scores of one split, and {task: sentence} on predictions that are all alike."""

    scores: Scores
    remarks: dict[str, str]


def placement_of(experiment: Experiment) -> Placement:
    """The placement that the config asks for.

    Raises:
      UserError: rows or mesh that do not fit the devices.
    """
    training = experiment.config.training
    placement = place(training.placement, training.mesh.to_dict(), experiment.spec.slices, len(experiment.tasks))
    if experiment.config.data.rows_per_block % placement.row_shards:
        raise UserError(
            f"config.data.rows_per_block: {experiment.config.data.rows_per_block} rows cannot be split over "
            f"{placement.row_shards} "
            f"devices; take a multiple of {placement.row_shards}"
        )
    return placement


def make_evaluator(experiment: Experiment, placement: Placement, tasks: Collection[str] | None = None) -> Evaluator:
    """The evaluator of an experiment. `tasks`: to predict; None for all."""
    rows = experiment.config.evaluation.rows_per_batch
    rows += -rows % placement.row_shards
    shards = placement.row_shards
    return Evaluator(experiment.objective_for, experiment.corpus, rows, placement.put_eval, tasks, shards)


def abstract(shapes: Any, placement: Placement) -> Any:
    """Shapes with the shardings of the placement, to restore a checkpoint into."""
    return jax.tree.map(lambda shape, sharding: shape.update(sharding=sharding), shapes, placement.shardings(shapes))


def abstract_params(experiment: Experiment, placement: Placement) -> Any:
    """Shapes and shardings of the parameters."""
    return abstract(jax.eval_shape(lambda: experiment.init_params(experiment.config.seed)), placement)


def score_split(
    evaluator: Evaluator, params: Any, split: str, listen: Callable[[], None] = distributed.require_no_signal
) -> Scored:
    """Scores of every task that has the split, with a progress bar.

    `listen` is called after each batch; it raises `Stopped` where a signal asked to.
    """
    remarks: dict[str, str] = {}
    with progress_bar(split, "row", evaluator.rows(split), leave=False) as bar:
        forecast = Forecast(bar)

        def progress(rows: int) -> None:
            bar.update(rows)
            forecast(bar.n)
            listen()

        return Scored(evaluator.score(params, split, progress, remarks.__setitem__), remarks)


def score_splits(evaluator: Evaluator, experiment: Experiment, params: Any, known: Mapping[str, Scored] | None = None):
    """All splits of `config.evaluation.splits`.

    Args:
      evaluator, experiment, params: what to score.
      known: {split: scores} that need no computing.

    Returns:
      {task: {split: {metric: value}}}, {task: {split: {"scored": examples, "total": before `limit`}}}, and {task:
      {split: sentence}} on predictions that are all alike.
    """
    scores: dict[str, dict[str, Any]] = {name: {} for name in experiment.tasks}
    sizes: dict[str, dict[str, Any]] = {name: {} for name in experiment.tasks}
    remarks: dict[str, dict[str, str]] = {}
    for split in experiment.config.evaluation.splits:
        found = (known or {}).get(split) or score_split(evaluator, params, split)
        for task, text in found.remarks.items():
            remarks.setdefault(task, {})[split] = text
        for task, values in found.scores.items():
            scores[task][split] = values
            numbers = experiment.corpus.statistics["datasets"][experiment.config.tasks[task].dataset][split]
            sizes[task][split] = {"scored": numbers["records"], "total": numbers["available"]}
    return scores, sizes, remarks


def ceilings(experiment: Experiment, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {split: `metric_inputs.ceiling`}} of `scores` {task: {split: ...}}, of tasks and splits that have one."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, by_split in scores.items():
        for split in by_split:
            if bound := ceiling(experiment.corpus, experiment.tasks[name], split):
                result.setdefault(name, {})[split] = bound
    return result


def means(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, Any]]:
    """The mean over tasks of each one's first metric, by split.

    Args:
      scores: {task: {split: {metric: value}}}.

    Returns:
      {split: {"mean": None where a task's value is, "tasks": [those that have the split], "metrics": their different
      first metrics: of several the mean is of unlike numbers}}; a split that fewer than two tasks have is left out.
    """
    result = {}
    for split in sorted({split for by_split in scores.values() for split in by_split}):
        firsts = {task: next(iter(found[split].items())) for task, found in scores.items() if found.get(split)}
        values = [value for _, value in firsts.values()]
        if len(firsts) > 1:
            result[split] = {
                "mean": None if None in values else float(np.mean(values)),
                "tasks": list(firsts),
                "metrics": list(dict.fromkeys(metric for metric, _ in firsts.values())),
            }
    return result


def mean_score(scores: Scores, experiment: Experiment) -> float | None:
    """The mean over tasks of each one's first metric; None where no task was scored."""
    firsts = [scores[name][task.metrics[0]] for name, task in experiment.tasks.items() if name in scores]
    return float(np.mean(firsts)) if firsts else None


def mean_loss(scores: Scores) -> float | None:
    """The mean over tasks of their losses; None where one is not known."""
    losses = [values["loss"] for values in scores.values()]
    return None if not losses or None in losses else float(np.mean(losses))


def task_scores(scores: Scores, experiment: Experiment) -> np.ndarray:
    """Each task's first metric, float32 [K]; NaN for a task that was not scored."""
    found = [scores[name][task.metrics[0]] if name in scores else None for name, task in experiment.tasks.items()]
    return np.asarray([np.nan if value is None else value for value in found], np.float32)
