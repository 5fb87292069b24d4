"""Scores of an experiment's parameters by task, split and metric, and their means over tasks."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.evaluation.evaluator import Evaluator
from mtl_jax.evaluation.metric_inputs import metric_ceiling
from mtl_jax.evaluation.selection import Selection
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.models.layers import Layer
from mtl_jax.models.remat import OFFLOADING
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import Forecast, progress_bar
from mtl_jax.storage.checkpoint import SavedParams, load_params
from mtl_jax.storage.summary import Scores, SplitScores
from mtl_jax.training.objective import Params
from mtl_jax.training.placement import Placement, make_placement, require_host_memory


class Scored(NamedTuple):
    """Scores of one split, and {task: sentence} on predictions that are all alike."""

    scores: Scores
    remarks: dict[str, str]


class ScoredSplits(NamedTuple):
    """Scores of all splits.

    scores   {task: {split: {metric: value}}}
    sizes    {task: {split: {"scored": examples, "total": examples before `limit`}}}
    remarks  {task: {split: sentence}} on predictions that are all alike
    """

    scores: SplitScores
    sizes: dict[str, dict[str, dict[str, int]]]
    remarks: dict[str, dict[str, str]]


def placement_from_config(experiment: Experiment) -> Placement:
    """The placement that the config asks for.

    Raises:
      UserError: rows or mesh that do not fit the devices; a platform without the memory that is asked for.
    """
    training = experiment.config.training
    placement = make_placement(
        training.placement,
        training.mesh.to_dict(),
        experiment.spec.slices,
        len(experiment.tasks),
        offload_optimizer=training.offload_optimizer,
    )
    require_even(experiment, placement)
    if experiment.config.model.remat_policy in OFFLOADING:
        require_host_memory("config.model.remat_policy")
    return placement


def require_even(experiment: Experiment, placement: Placement) -> None:
    """Raises UserError where an axis of the mesh does not divide what it splits."""
    data, sizes = experiment.config.data, placement.mesh_shape
    splits = [("data.rows_per_block", data.rows_per_block, "data × fsdp", placement.row_shards)]
    splits.append(("data.row_length", data.row_length, "sequence", sizes.get("sequence", 1)))
    layers = [layer for layer in experiment.model.layers if isinstance(layer, Layer)]
    for layer in dict.fromkeys(layers):
        splits += [(f"model.{name}", getattr(layer, name), "model", sizes.get("model", 1)) for name in layer.divisors]
    for field, count, axis, devices in splits:
        if count % devices:
            raise UserError(
                f"config.{field}: {count} cannot be split over {devices} devices (config.training.mesh, {axis}); "
                f"{_what_would(field, count, axis, devices)}"
            )


def _what_would(field: str, count: int, axis: str, devices: int) -> str:
    divisors = [str(n) for n in range(1, count + 1) if count % n == 0 and n <= jax.device_count()]
    if field.startswith("data."):
        return f"take a multiple of {devices}, or so many devices: {', '.join(divisors)}"
    return f"{axis} may be {', '.join(divisors)}; config.training.mesh.fsdp splits parameters of any size"


def make_evaluator(experiment: Experiment, placement: Placement, tasks: Collection[str] | None = None) -> Evaluator:
    """The evaluator of an experiment. `tasks`: to predict; None for all."""
    rows = experiment.config.evaluation.rows_per_batch
    rows += -rows % placement.row_shards
    shards = placement.row_shards
    return Evaluator(experiment.objective_for, experiment.corpus, rows, placement.put_eval, tasks, shards)


def abstract_arrays(shapes: chex.ArrayTree, placement: Placement) -> chex.ArrayTree:
    """Shapes with the shardings of the placement, to restore a checkpoint into."""
    return jax.tree.map(lambda shape, sharding: shape.update(sharding=sharding), shapes, placement.shardings(shapes))


def abstract_params(experiment: Experiment, placement: Placement) -> chex.ArrayTree:
    """Shapes and shardings of the parameters."""
    return abstract_arrays(jax.eval_shape(lambda: experiment.init_params(experiment.config.seed)), placement)


def restore_params(experiment: Experiment, placement: Placement, workdir: pathlib.Path, which: str) -> SavedParams:
    """The parameters of a run, placed; see `checkpoint.load_params`."""
    abstract = abstract_params(experiment, placement)
    return load_params(workdir, which, abstract, experiment.spec.objective.groups)


def score_split(
    evaluator: Evaluator, params: Params, split: str, listen: Callable[[], None] = distributed.require_no_signal
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


def score_splits(
    evaluator: Evaluator, experiment: Experiment, params: Params, known: Mapping[str, Scored | None] | None = None
) -> ScoredSplits:
    """Scores of all splits in `config.evaluation.splits`, except `known` {split: scores} that need no computing."""
    result = ScoredSplits({name: {} for name in experiment.tasks}, {name: {} for name in experiment.tasks}, {})
    for split in experiment.config.evaluation.splits:
        scored = (known or {}).get(split) or score_split(evaluator, params, split)
        for task, text in scored.remarks.items():
            result.remarks.setdefault(task, {})[split] = text
        for task, values in scored.scores.items():
            result.scores[task][split] = values
            statistics = experiment.corpus.statistics["datasets"][experiment.config.tasks[task].dataset][split]
            result.sizes[task][split] = {"scored": statistics["records"], "total": statistics["available"]}
    return result


def metric_ceilings(experiment: Experiment, scores: SplitScores) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {split: `metric_inputs.metric_ceiling`}}, of the tasks and splits that have one."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, by_split in scores.items():
        for split in by_split:
            if bound := metric_ceiling(experiment.corpus, experiment.tasks[name], split):
                result.setdefault(name, {})[split] = bound
    return result


def mean_by_split(scores: SplitScores) -> dict[str, dict[str, Any]]:
    """The mean over tasks of each one's first metric, by split.

    Returns:
      {split: {"mean": None where a task's value is, "tasks": [those that have the split], "metrics": their distinct
      first metrics; the mean over several metrics mixes units}}. Splits that fewer than two tasks have are left out.
    """
    result = {}
    for split in sorted({split for by_split in scores.values() for split in by_split}):
        firsts = {task: next(iter(values[split].items())) for task, values in scores.items() if values.get(split)}
        values = [value for _, value in firsts.values()]
        if len(firsts) > 1:
            result[split] = {
                "mean": None if None in values else float(np.mean(values)),
                "tasks": list(firsts),
                "metrics": list(dict.fromkeys(metric for metric, _ in firsts.values())),
            }
    return result


def selection_score(scores: Scores, experiment: Experiment) -> float | None:
    """The tasks' first metrics as one number, by `config.evaluation.selection`; None where no task was scored."""
    evaluation = experiment.config.evaluation
    choose = Selection(evaluation.selection, evaluation.selection_weights, evaluation.single_task_scores)
    return choose({name: scores[name][task.metrics[0]] for name, task in experiment.tasks.items() if name in scores})


def mean_loss(scores: Scores) -> float | None:
    """The mean over tasks of their losses; None where one is not known."""
    losses = [values["loss"] for values in scores.values()]
    return None if not losses or None in losses else float(np.mean(losses))


def task_scores(scores: Scores, experiment: Experiment) -> np.ndarray:
    """Each task's first metric, float32 [K]; NaN for a task that was not scored."""
    values = [scores[name][task.metrics[0]] if name in scores else None for name, task in experiment.tasks.items()]
    return np.asarray([np.nan if value is None else value for value in values], np.float32)
