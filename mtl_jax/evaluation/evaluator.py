"""Scores of the tasks: predictions on the devices, metrics on the host over complete records."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.data.batch import Batch, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import evaluation_batches, joint_evaluation_batches
from mtl_jax.evaluation import decoding
from mtl_jax.evaluation.label_levels import LEVELS
from mtl_jax.evaluation.metric_inputs import (
    constant_remark,
    gold_and_predicted,
    has_labels,
    metric_arguments,
    metric_values,
)
from mtl_jax.runtime import distributed
from mtl_jax.tasks.base import Features, Labels, Task
from mtl_jax.tasks.groups import unpadded_predictions
from mtl_jax.training import objective as terms
from mtl_jax.training import token_corruption
from mtl_jax.training.objective import Objective, Params

SIZE_RATIO = 1.5  # data sets whose numbers of rows differ by less are scored together; the smaller ones are padded
SMALL_BATCHES = 4  # data sets of at most so many batches are scored together too


Outputs = Mapping[str, Mapping[str, jax.Array]]  # {group of tasks: {name: predictions [E, R, ...]}}
Sums = Mapping[str, jax.Array]  # {group of tasks: sums over a batch [E, S]}
TaskOutputs = Mapping[str, Mapping[str, np.ndarray]]  # {task: {name: predictions [R, ...]}}
TaskSums = Mapping[str, np.ndarray]  # {task: sums over a batch [S]}
EvaluationProgram = Callable[[Params, Batch], tuple[Outputs, Sums]]


class Predictions(NamedTuple):
    """Predictions for one split of one data set.

    values  {task: {name: what `Level.gather` returns for the level of the task}}
    loss    {task: mean loss}, None where the split has no label of the task
    sums    {task: float64 [...]}, further sums that metrics need, see `evaluation_program`
    """

    values: Mapping[str, Mapping[str, Any]]
    loss: Mapping[str, float | None]
    sums: Mapping[str, np.ndarray]


class Evaluator:
    """Predicts and scores.

    Data sets of similar size are scored by one compiled program with a block for each, because compilation takes longer
    than scoring small data sets. Predictions are made for one data set at a time.
    """

    def __init__(
        self,
        objective_for: Callable[..., Objective],
        corpus: Corpus,
        rows_per_block: int,
        put: Callable[[Batch], Batch],
        tasks: Collection[str] | None = None,
        multiple: int = 1,
    ):
        """
        Args:
          objective_for: layout -> the objective over batches of that layout.
          corpus: the data.
          rows_per_block: R of the batches; with a block for each of several data sets, their total number of rows.
          put: places a batch on the devices.
          tasks: to predict; None for all.
          multiple: R is a multiple of this, for the devices that share the rows.
        """
        self._corpus = corpus
        self._rows = rows_per_block
        self._put = put
        self._multiple = multiple
        self._tasks = frozenset(corpus.layout.tasks if tasks is None else tasks)

        @functools.cache
        def compiled(datasets: tuple[str, ...], values_only: bool) -> tuple[Objective, EvaluationProgram]:
            blocks = tuple((corpus.layout.datasets.index(name),) for name in datasets)
            objective = objective_for(dataclasses.replace(corpus.layout, candidates=blocks))
            program = evaluation_program(objective, tasks)
            return objective, jax.jit(without_probabilities(program) if values_only else program)

        self._compiled = compiled

    def for_corpus(self, corpus: Corpus, rows_per_block: int) -> Evaluator:
        """The same programs over other data of the same layout; other shapes are compiled anew."""
        other = copy.copy(self)
        other._corpus, other._rows = corpus, rows_per_block
        return other

    def predict(
        self, params: Params, dataset: str, split: str, progress: Callable[[int], None] = lambda n: None
    ) -> Predictions:
        """Predictions of all tasks on `dataset` for every record of `split`.

        `progress` is called with the number of rows done after each batch.
        """
        objective, program = self._compiled((dataset,), False)
        rows = self._corpus.rows[dataset][split]
        batches = evaluation_batches(rows, objective.layout, self._rows)
        outputs, sums = self._outputs(objective, program, params, batches, progress)
        return self._predictions(objective, outputs, sums, dataset, split)

    def _outputs(
        self,
        objective: Objective,
        program: EvaluationProgram,
        params: Params,
        batches: Iterable[Batch],
        progress: Callable[[int], None],
    ) -> tuple[list[TaskOutputs], list[TaskSums]]:
        """The outputs and the sums of each batch by task, on the host."""
        outputs, sums = [], []

        def fetch(result: tuple[Outputs, Sums], rows: int) -> None:
            output, batch_sums = distributed.to_host(result)
            output, batch_sums = split_outputs(objective, output), split_sums(objective, batch_sums)
            outputs.append({task: arrays for task, arrays in output.items() if task in self._tasks})
            sums.append({task: arrays for task, arrays in batch_sums.items() if task in self._tasks})
            progress(rows)

        pending = None  # a batch is fetched while the next one is computed, and never more are in progress
        for batch in batches:
            started = program(params, self._put(batch)), int((batch.row >= 0).sum())
            if pending is not None:
                fetch(*pending)
            pending = started
        if pending is not None:
            fetch(*pending)
        return outputs, sums

    def _predictions(
        self, objective: Objective, outputs: Sequence[TaskOutputs], sums: Sequence[TaskSums], dataset: str, split: str
    ) -> Predictions:
        """The predictions for one data set, from batches in which it has a block."""
        rows, encoded = self._corpus.rows[dataset][split], self._corpus.splits[dataset][split].encoded
        layout = objective.layout
        tasks = [layout.tasks[k] for k in layout.tasks_on(layout.datasets.index(dataset))]
        total = {
            task: np.sum([np.asarray(batch_sums[task], np.float64) for batch_sums in sums], axis=0)
            for task in tasks
            if sums and task in sums[0]
        }
        values = {}
        for task in total:
            level, labels = LEVELS[objective.tasks[task].level], rows.labels[task]
            joined = {
                name: np.concatenate([output[task][name] for output in outputs])[: len(rows.tokens)]
                for name in outputs[0][task]
            }
            if not level.drawn:  # other data sets in the batch, and other tasks of the group, may have more
                places = (rows.example if level.in_slots else labels["segment"]).shape[1]
                joined = {name: array[:, :places] for name, array in joined.items()}
            values[task] = {
                name: level.gather(encoded, rows.example, labels, name, array) for name, array in joined.items()
            }
        loss = {task: float(loss / weight) if weight > 0 else None for task, (loss, weight, *_) in total.items()}
        return Predictions(values, loss, {task: task_sums[2:] for task, task_sums in total.items()})

    def score(
        self,
        params: Params,
        split: str,
        progress: Callable[[int], None] = lambda n: None,
        remark: Callable[[str, str], None] = lambda task, text: None,
    ) -> dict[str, dict[str, float]]:
        """Scores every task that has a label in this split.

        Args:
          params: parameters.
          split: of all data sets.
          progress: called with the number of rows done after each batch.
          remark: called with a task and a sentence where all its predictions are alike.

        Returns:
          {task: {metric: value, ..., "loss": mean loss}}
        """
        scores = {}
        for datasets in group_by_size(self._corpus, SIZE_RATIO, SMALL_BATCHES * self._rows):
            if not any(split in self._corpus.rows[name] for name in datasets):
                continue
            objective, program = self._compiled(tuple(datasets), True)
            # data sets without this split are in the batch too, so that one program serves all splits
            rows = {
                name: self._corpus.rows[name].get(split) or placeholder_rows(self._corpus.rows[name])
                for name in datasets
            }
            count = -(-self._rows // len(datasets))
            batches = joint_evaluation_batches(rows, objective.layout, count + -count % self._multiple)
            outputs, sums = self._outputs(objective, program, params, batches, progress)
            for dataset in [name for name in datasets if split in self._corpus.rows[name]]:
                predictions = self._predictions(objective, outputs, sums, dataset, split)
                for task, values in predictions.values.items():
                    if not has_labels(self._corpus, task, split):
                        continue
                    gold, predicted = gold_and_predicted(self._corpus, objective, task, dataset, split, values["value"])
                    to_arguments = metric_arguments(self._corpus, objective, task, dataset, split)
                    gold, predicted = to_arguments(gold, predicted, predictions.sums[task])
                    names = self._corpus.vocabularies[task].all_names
                    if text := constant_remark(gold, predicted, names):
                        remark(task, text)
                    metrics = metric_values(objective.tasks[task], gold, predicted, names)
                    scores[task] = metrics | {"loss": predictions.loss[task]}
        return {task: scores[task] for task in self._corpus.layout.tasks if task in scores}

    def rows(self, split: str) -> int:
        """Rows of a split over all data sets: the length of a progress bar."""
        return sum(len(rows[split].tokens) for rows in self._corpus.rows.values() if split in rows)


def group_by_size(corpus: Corpus, ratio: float, small: int = 0) -> list[list[str]]:
    """Data sets in groups whose largest number of rows to score is at most `ratio` times the smallest, or `small`."""
    sizes = {
        name: sum(len(rows.tokens) for split, rows in splits.items() if split != "train")
        for name, splits in corpus.rows.items()
    }
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if groups and sizes[groups[-1][0]] <= max(ratio * sizes[name], small):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def placeholder_rows(by_split: Mapping[str, PackedRows]) -> PackedRows:
    """One row of a data set in place of a split that it lacks; it is not scored."""
    rows = next(iter(by_split.values()))
    return jax.tree.map(lambda array: array[:1], rows)._replace(pixels=rows.pixels)


def without_probabilities(program: EvaluationProgram) -> EvaluationProgram:
    """Only predicted values and sums: scores need no probabilities, which are then not computed."""

    def values(params, batch):
        outputs, sums = program(params, batch)
        return {group: {"value": output["value"]} for group, output in outputs.items()}, sums

    return values


def evaluation_program(objective: Objective, tasks: Collection[str] | None = None) -> EvaluationProgram:
    """(params, batch) -> ({group: predictions [E, R, ...]}, {group: [E] of [Σ loss, Σ weight, further sums of
    `Task.metric_sums`]}); see `split_outputs` and `split_sums`.

    A task that generates text searches here, with a cache, until the last sequence of the batch has ended. With `tasks`
    only these are predicted, and XLA removes what only the others need.
    """

    def program(params, batch):
        batch = token_corruption.corrupt_for_evaluation(objective, batch)
        parts = list(terms.group_batches(objective, batch, tasks))
        continues = any(part.group.form.continues for part in parts)
        if continues:  # frozen layers have keys, too
            batch = batch._replace(hidden=None)
        network_outputs = objective.network.apply(params, batch, None, None, collect_keys=continues)
        outputs, sums = {}, {}
        for part in parts:
            name, heads, features = part.group.name, part.heads(params), part.features(network_outputs.features)
            logits = part.apply(_logits, heads, params, features, part.labels)
            if part.group.form.continues:
                predictions = decoding.continue_prompts(objective, params, batch, part, network_outputs)
            else:
                predictions = part.apply(_predictions, heads, params, features, logits, part.labels)
            outputs[name] = jax.tree.map(part.split, predictions)
            sums[name] = part.sums(_sums, heads, params, logits, part.labels)
        return outputs, sums

    return program


def _logits(task: Task, head: Params, features: Features, labels: Labels) -> Any:
    return task.logits(head, features, labels)


def _predictions(task: Task, head: Params, features: Features, logits: Any, labels: Labels) -> dict[str, jax.Array]:
    return task.generate(head, features) if task.defines("generate") else task.predict(head, logits, labels)


def _sums(task: Task, head: Params, logits: Any, labels: Labels) -> jax.Array:
    values = [task.loss(head, logits, labels).sum(), task.weight(labels).sum()]
    return jax.numpy.stack([*values, *task.metric_sums(logits, labels)])


def split_outputs(objective: Objective, outputs: Outputs, axis: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """{task: predictions [..., R, ...]} from those of a program [..., E, R, ...], on the host.

    Args:
      objective: of the program; its layout has a block for each of some data sets.
      outputs: of the program.
      axis: of the entries.
    """
    by_task: dict[str, dict[str, np.ndarray]] = {}
    for group in objective.groups:
        if group.name in outputs:
            entries = objective.layout.entries[group.name].fixed
            by_task |= unpadded_predictions(group, outputs[group.name], entries, axis)
    return by_task


def split_sums(objective: Objective, sums: Sums, axis: int = 0) -> dict[str, np.ndarray]:
    """{task: sums [..., S]} from those of a program [..., E, S]."""
    return {
        list(group.tasks)[index]: sums[group.name][(slice(None),) * axis + (entry,)]
        for group in objective.groups
        if group.name in sums
        for entry, index in enumerate(objective.layout.entries[group.name].fixed)
    }
