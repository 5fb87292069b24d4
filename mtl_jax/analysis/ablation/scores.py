"""Scores of all lanes at once: predictions on the devices, metrics on the host over complete records."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation.lanes import Shape, over_lanes, split_rows
from mtl_jax.data.batch import Batch
from mtl_jax.data.sampler import joint_evaluation_batches
from mtl_jax.evaluation.evaluator import (
    EvaluationProgram,
    Outputs,
    Sums,
    evaluation_program,
    group_by_size,
    placeholder_rows,
    split_outputs,
    split_sums,
    without_probabilities,
)
from mtl_jax.evaluation.label_levels import LEVELS
from mtl_jax.evaluation.metric_inputs import (
    constant_remark,
    gold_and_predicted,
    has_labels,
    metric_arguments,
    metric_values,
)
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.models.activation_sharding import ROW_AXES
from mtl_jax.runtime import distributed
from mtl_jax.sharing import gram
from mtl_jax.storage.summary import Scores
from mtl_jax.training.objective import Objective, Params
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.penalty_effect import distances

GridScores = list[list[Scores]]  # [S][L]
Cell = tuple[int, int]  # of an array [S, L]


class Spread(NamedTuple):
    """How far the tasks of one lane are apart, see `records.Lane`; None where all parameters are shared."""

    distance: float | None
    effective_rank: float | None


class _Gold(NamedTuple):
    """Positions of the predictions for the labelled records of one task and split in the packed rows.

    gold          of `gold_and_predicted`
    width         E or Q of the task's own data set; in a group there may be more example slots
    positions     int64 [M], index into the predictions of all rows [N·width], -1 = no prediction; None: all of them
    ends          where the sequences of a word-level task end in `positions`; else None
    to_arguments  (gold, predictions, sums) -> the arguments of the metrics
    """

    gold: Any
    width: int | None
    positions: np.ndarray | None
    ends: np.ndarray | None
    to_arguments: Callable[[Any, Any, np.ndarray], tuple[Any, Any]]


class LaneScores:
    """Scores [S][L] of lanes; one compiled program for each group of data sets of similar size, for all splits."""

    def __init__(self, experiment: Experiment, shape: Shape):
        self.experiment, self.corpus = experiment, experiment.corpus
        self._shape, self._cells = shape, shape.local_cells()
        rows, shards = experiment.config.evaluation.rows_per_batch, math.prod(shape.mesh.shape[a] for a in ROW_AXES)
        self._rows = rows + -rows % shards
        self._groups = []

        def jitted(function: Callable, axes: str) -> Callable:
            return jax.jit(over_lanes(function, axes, shape), out_shardings=shape.sharding("l"))

        for datasets in group_by_size(self.corpus, 2.0):
            blocks = tuple((self.corpus.layout.datasets.index(name),) for name in datasets)
            objective = experiment.objective_for(dataclasses.replace(self.corpus.layout, candidates=blocks))
            predict = jitted(functools.partial(_predict, without_probabilities(evaluation_program(objective))), "l-")
            self._groups.append((datasets, objective, predict))
        self._stacks = jitted(lambda params: _grams(params, experiment), "l")
        self._effects = jitted(functools.partial(_penalty_distances, experiment), "ls")
        self._gold: dict[tuple[str, str], _Gold] = {}

    def score(
        self,
        params: Params,
        split: str,
        listen: Callable[[], None] = lambda: None,
        remark: Callable[[int, int, str, str], None] = lambda *_: None,
    ) -> GridScores:
        """{task: {metric: value, ..., "loss": mean loss}} of each lane, for the tasks with a label in the split.

        Each process computes the metrics of the lanes on its devices; all return those of all lanes.

        Args:
          params: leaves [S, L, ...].
          split: to score.
          listen: called after each batch; raises `Stopped` where a signal asked to.
          remark: called with the indices in S and L, a task, and a sentence where all its predictions are alike.
        """
        scores: dict[Cell, Scores] = {cell: {} for cell in self._cells}
        remarks: list[tuple[int, int, str, str]] = []
        for datasets, objective, predict in self._groups:
            with_split = [name for name in datasets if split in self.corpus.rows[name]]
            if not with_split:
                continue
            # data sets without this split are in the batch too, so that one program serves all splits
            rows = {
                name: self.corpus.rows[name].get(split) or placeholder_rows(self.corpus.rows[name]) for name in datasets
            }
            outputs: list[Any] = []
            for batch in joint_evaluation_batches(rows, objective.layout, self._rows):
                outputs.append(predict(params, batch))
                if len(outputs) > 1:  # a batch is fetched while the next one is computed
                    outputs[-2] = self._local(outputs[-2])
                listen()
            outputs[-1] = self._local(outputs[-1])
            outputs = [(split_outputs(objective, o, 1), split_sums(objective, sums, 1)) for o, sums in outputs]
            for task in outputs[0][0]:
                dataset = self.corpus.specs[task].dataset
                if dataset in with_split and has_labels(self.corpus, task, split):
                    remarks += self._score_task(task, objective, split, outputs, scores)
        everywhere = distributed.gather((scores, remarks))
        for _, by_process in everywhere:
            for arguments in by_process:
                remark(*arguments)
        all_scores = {cell: values for by_cell, _ in everywhere for cell, values in by_cell.items()}
        order = self.corpus.layout.tasks
        return [
            [{t: all_scores[s, i][t] for t in order if t in all_scores[s, i]} for i in range(self._shape.lanes)]
            for s in range(self._shape.seeds)
        ]

    def _local(self, tree: Any) -> Any:
        """Leaves [S, L, ...] on the host, with the cells of this process as their first axis."""
        axis = self._shape.axis
        cells = np.asarray(self._cells, np.int64).reshape(-1, 2).T

        def local(leaf: jax.Array) -> np.ndarray:
            shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
            if not shards:
                return np.zeros((0, *leaf.shape[2:]), leaf.dtype)
            places = np.concatenate([np.arange(leaf.shape[axis])[shard.index[axis]] for shard in shards])
            rows = np.zeros(leaf.shape[axis], np.int64)
            rows[places] = np.arange(len(places))
            index = [*cells]
            index[axis] = rows[cells[axis]]
            return np.concatenate([np.asarray(shard.data) for shard in shards], axis=axis)[tuple(index)]

        return jax.tree.map(local, tree)

    def _score_task(
        self,
        task: str,
        objective: Objective,
        split: str,
        outputs: Sequence[tuple[Outputs, Sums]],
        scores: Mapping[Cell, Scores],
    ) -> list[tuple[int, int, str, str]]:
        """Writes the scores of one task into those of the local lanes, and returns the arguments of `remark`."""
        values = np.concatenate([output[task]["value"] for output, _ in outputs], axis=1)  # [cells, N, E or Q, ...]
        sums = np.sum([np.asarray(batch_sums[task], np.float64) for _, batch_sums in outputs], axis=0)  # [cells, ≥ 2]
        gold = self._gold_of(task, objective, split)
        names = self.corpus.vocabularies[task].all_names
        remarks = []
        for number, cell in enumerate(self._cells):
            flat = values[number, :, : gold.width].reshape(-1, *values.shape[3:])
            predicted = flat
            if gold.positions is not None:
                predicted = flat[gold.positions]
                predicted[gold.positions < 0] = -1
            if gold.ends is not None:
                predicted = np.split(predicted, gold.ends)
            loss, weight, *further = sums[number]
            labels, predicted = gold.to_arguments(gold.gold, predicted, np.asarray(further))
            if text := constant_remark(labels, predicted, names):
                remarks.append((*cell, task, text))
            metrics = metric_values(objective.tasks[task], labels, predicted, names)
            scores[cell][task] = metrics | {"loss": float(loss / weight) if weight > 0 else None}
        return remarks

    def _gold_of(self, task: str, objective: Objective, split: str) -> _Gold:
        if (task, split) not in self._gold:
            self._gold[task, split] = self._find_gold(task, objective, split)
        return self._gold[task, split]

    def _find_gold(self, task: str, objective: Objective, split: str) -> _Gold:
        """Gathers the indices of predictions in place of the predictions: their order is the same for all lanes."""
        dataset = self.corpus.specs[task].dataset
        rows, encoded = self.corpus.rows[dataset][split], self.corpus.splits[dataset][split].encoded
        arrays, level = rows.labels[task], LEVELS[objective.tasks[task].level]
        to_arguments = metric_arguments(self.corpus, objective, task, dataset, split)
        if level.drawn:
            return _Gold(None, None, None, None, to_arguments)
        like = rows.example if level.in_slots else arrays["segment"]
        indices = np.arange(like.size).reshape(like.shape)
        positions = level.gather(encoded, rows.example, arrays, "value", indices)
        gold, positions = gold_and_predicted(self.corpus, objective, task, dataset, split, positions)
        if not level.sequences:
            return _Gold(gold, indices.shape[1], positions, None, to_arguments)
        ends = np.cumsum([len(part) for part in positions])[:-1]
        joined = np.concatenate(positions) if positions else np.zeros((0,), np.int64)
        return _Gold(gold, indices.shape[1], joined, ends, to_arguments)

    def spread(self, params: Params) -> list[list[Spread]]:
        """Of each lane; `params` leaves [S, L, ...]."""
        grams = distributed.to_host(self._stacks(params))
        seeds, lanes = jax.tree.leaves(params)[0].shape[:2]
        if grams is None:
            return [[Spread(None, None)] * lanes] * seeds
        centred, norms = grams
        return [[_spread(centred[s, i], norms[s, i]) for i in range(lanes)] for s in range(seeds)]

    def penalty_distances(self, params: Params, initial: Params) -> dict[str, np.ndarray]:
        """{penalty: float32 [S, L, 3]}, see `penalty_effect.distances`.

        `params` has leaves [S, L, ...]; `initial`, the parameters before the first step, [S, ...].
        """
        return distributed.to_host(self._effects(params, initial))


def _predict(program: EvaluationProgram, params: Params, batch: Batch) -> tuple[Outputs, Sums]:
    return program(params, split_rows(batch, 1))


def _penalty_distances(experiment: Experiment, params: Params, initial: Params) -> dict[str, jax.Array]:
    trees = flatten(params), flatten(initial)
    penalties = experiment.spec.objective.penalties
    return {name: distances(*(penalty.stacks(tree) for tree in trees)) for name, penalty in penalties.items()}


def _grams(params: Params, experiment: Experiment) -> tuple[jax.Array, jax.Array] | None:
    """The Gram matrix of the deviations from the mean [K, K] and the norms ‖Θ_k‖ [K]; None where all is shared."""
    stacks = task_stacks(flatten({path: tree for path, tree in params.items() if path != "heads"}), experiment.owners)
    if not stacks or len(experiment.tasks) < 2:
        return None
    return gram(stacks, "mean"), jnp.sqrt(jnp.diagonal(gram(stacks)))


def _spread(centred: np.ndarray, norms: np.ndarray) -> Spread:
    centred = centred.astype(np.float64)
    squares = np.diag(centred)[:, None] + np.diag(centred)[None, :] - 2 * centred
    pairs = np.sqrt(np.maximum(squares[np.triu_indices(len(norms), 1)], 0.0))
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(centred), 0.0))
    p = sigma[sigma > 1e-6 * max(sigma.max(), 1e-30)] / max(sigma.sum(), 1e-30)
    rank = float(np.exp(-np.sum(p * np.log(p)))) if pairs.max(initial=0.0) > 0 else 0.0
    return Spread(float(pairs.mean() / norms.mean()) if norms.mean() > 0 else 0.0, rank)
