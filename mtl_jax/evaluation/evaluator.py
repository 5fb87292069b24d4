"""Scores of the tasks: predictions on the devices, metrics on the host over complete records."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.data.batch import Batch, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import evaluation_batches, joint_evaluation_batches
from mtl_jax.evaluation.metric_inputs import (
    gather,
    gold_and_predicted,
    has_labels,
    metric_arguments,
    metric_values,
    uniform,
)
from mtl_jax.runtime import distributed
from mtl_jax.training import corruption
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import Objective

LIKE = 1.5  # data sets whose rows differ by less are scored together: the rows of the smaller ones are empty at the end
SMALL = 4  # and those of so many batches


class Predictions(NamedTuple):
    """What a model says of one split of one data set.

    values  {task: {name: what `metric_inputs.gather` makes for the level of the task}}
    loss    {task: mean loss}, None where the split has no label of the task
    sums    {task: float64 [...]}, further sums that metrics need, see `program`
    """

    values: Mapping[str, Mapping[str, Any]]
    loss: Mapping[str, float | None]
    sums: Mapping[str, np.ndarray]


class Evaluator:
    """Predicts and scores. Data sets of like size are scored by one compiled program, a block for each: to compile one
    for each data set takes longer than to score small ones. Predictions are of one data set at a time.
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
          rows_per_block: R of the batches; where several data sets have a block each, as many rows in all.
          put: places a batch on the devices.
          tasks: to predict; None for all.
          multiple: R is one of this, for the devices that share the rows.
        """
        self._corpus = corpus
        self._rows = rows_per_block
        self._put = put
        self._multiple = multiple

        @functools.cache
        def compiled(datasets: tuple[str, ...], values_only: bool):
            blocks = tuple((corpus.layout.datasets.index(name),) for name in datasets)
            objective = objective_for(dataclasses.replace(corpus.layout, candidates=blocks))
            run = program(objective, tasks)
            return objective, jax.jit(values_alone(run) if values_only else run)

        self._compiled = compiled

    def of(self, corpus: Corpus, rows_per_block: int) -> Evaluator:
        """The same programs over other data of the same layout; rows of other shapes are compiled anew."""
        other = copy.copy(self)
        other._corpus, other._rows = corpus, rows_per_block
        return other

    def predict(
        self, params: Any, dataset: str, split: str, progress: Callable[[int], None] = lambda n: None
    ) -> Predictions:
        """Predictions of all tasks on `dataset` for every record of `split`.

        `progress` is called with the number of rows done after each batch.
        """
        objective, run = self._compiled((dataset,), False)
        rows = self._corpus.rows[dataset][split]
        batches = evaluation_batches(rows, objective.layout, self._rows)
        outputs, sums = self._outputs(run, params, batches, progress)
        return self._predictions(objective, outputs, sums, dataset, split)

    def _outputs(self, run, params, batches, progress):
        """([outputs of each batch], [sums of each batch]) on the host."""
        fetched, ahead = [], None  # a batch is fetched while the next one is computed, and no more are begun
        for batch in batches:
            begun = run(params, self._put(batch)), int((batch.row >= 0).sum())
            if ahead is not None:
                fetched.append(distributed.fetch(ahead[0]))
                progress(ahead[1])
            ahead = begun
        if ahead is not None:
            fetched.append(distributed.fetch(ahead[0]))
            progress(ahead[1])
        return [output for output, _ in fetched], [share for _, share in fetched]

    def _predictions(self, objective, outputs, sums, dataset: str, split: str) -> Predictions:
        """Of one data set, from batches in which it has a block."""
        rows, encoded = self._corpus.rows[dataset][split], self._corpus.splits[dataset][split].encoded
        layout = objective.layout
        own = [layout.tasks[k] for k in layout.tasks_on(layout.datasets.index(dataset))]
        total = {
            task: np.sum([np.asarray(s[task], np.float64) for s in sums], axis=0)
            for task in own
            if sums and task in sums[0]
        }
        values = {}
        for task in total:
            level, slots = objective.tasks[task].level, rows.example.shape[1]
            joined = {
                name: np.concatenate([o[task][name] for o in outputs])[: len(rows.tokens)] for name in outputs[0][task]
            }
            if level not in ("word", "predicate", "span", "token"):  # beside other data sets there may be more slots
                joined = {name: array[:, :slots] for name, array in joined.items()}
            values[task] = {
                name: gather(level, name, encoded, rows.example, rows.labels[task], array)
                for name, array in joined.items()
            }
        loss = {task: float(s / w) if w > 0 else None for task, (s, w, *_) in total.items()}
        return Predictions(values, loss, {task: sums[2:] for task, sums in total.items()})

    def score(
        self,
        params: Any,
        split: str,
        progress: Callable[[int], None] = lambda n: None,
        remark: Callable[[str, str], None] = lambda task, text: None,
    ) -> dict[str, dict[str, float]]:
        """{task: {metric: value, ..., "loss": mean loss}} for every task that has a label in this split.

        `progress` as in `predict`; `remark` is called with a task and a sentence on predictions that are all alike.
        """
        scores = {}
        for datasets in alike(self._corpus, LIKE, SMALL * self._rows):
            if not any(split in self._corpus.rows[name] for name in datasets):
                continue
            objective, run = self._compiled(tuple(datasets), True)
            # a data set without this split takes part all the same, so that one program serves all splits
            rows = {name: self._corpus.rows[name].get(split) for name in datasets}
            rows = {n: placeholder(self._corpus.rows[n]) if one is None else one for n, one in rows.items()}
            count = -(-self._rows // len(datasets))
            batches = joint_evaluation_batches(rows, objective.layout, count + -count % self._multiple)
            outputs, sums = self._outputs(run, params, batches, progress)
            for dataset in [name for name in datasets if split in self._corpus.rows[name]]:
                predictions = self._predictions(objective, outputs, sums, dataset, split)
                for task, values in predictions.values.items():
                    if not has_labels(self._corpus, task, split):
                        continue
                    gold, predicted = self._judged(objective, task, dataset, split, values, predictions.sums[task])
                    names = self._corpus.vocabularies[task].all_names
                    found = metric_values(objective.tasks[task], gold, predicted, names)
                    if text := uniform(gold, predicted, names):
                        remark(task, text)
                    scores[task] = found | {"loss": predictions.loss[task]}
        return {task: scores[task] for task in self._corpus.layout.tasks if task in scores}

    def rows(self, split: str) -> int:
        """Rows of a split over all data sets: the length of a progress bar."""
        return sum(len(rows[split].tokens) for rows in self._corpus.rows.values() if split in rows)

    def _judged(self, objective, task: str, dataset: str, split: str, values: Mapping[str, Any], sums):
        """(gold labels, predictions) as the metrics take them."""
        gold, predicted = gold_and_predicted(self._corpus, objective, task, dataset, split, values["value"])
        return metric_arguments(self._corpus, objective, task, dataset, split)(gold, predicted, sums)


def alike(corpus: Corpus, factor: float, small: int = 0) -> list[list[str]]:
    """Data sets in groups whose largest number of rows to score is at most `factor` times the smallest, or `small`."""
    sizes = {
        name: sum(len(rows.tokens) for split, rows in splits.items() if split != "train")
        for name, splits in corpus.rows.items()
    }
    groups: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if groups and sizes[groups[-1][0]] <= max(factor * sizes[name], small):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def placeholder(by_split: Mapping[str, PackedRows]) -> PackedRows:
    """One row of a data set, in the place of a split that it has not; nothing of it is scored."""
    rows = next(iter(by_split.values()))
    return jax.tree.map(lambda array: array[:1], rows)._replace(pixels=rows.pixels)


def values_alone(function):
    """Predicted values and sums alone: probabilities are not needed to score, and then not computed."""

    def values(params, batch):
        outputs, sums = function(params, batch)
        return {task: {"value": output["value"]} for task, output in outputs.items()}, sums

    return values


def program(objective: Objective, tasks: Collection[str] | None = None):
    """(params, batch) -> ({task: predictions [R, ...]}, {task: [Σ loss, Σ weight, what `task.sums` adds]}).

    A task that writes texts searches for them here, with a cache, until the last text of the batch has ended. With
    `tasks` only of these, and XLA leaves out what only others need.
    """

    def program(params, batch):
        batch = corruption.for_evaluation(objective, batch)
        hidden = objective.network.apply(params, batch, None, None).hidden
        outputs, sums = {}, {}
        for name in hidden if tasks is None else [name for name in hidden if name in tasks]:
            task, labels = objective.tasks[name], terms.rows_of(batch.labels[name])
            head = terms.head(objective, params, name)
            features = terms.features(batch, objective.layout, name, hidden[name])
            logits = task.logits(head, features, labels)
            writes = task.has("generate")
            outputs[name] = task.generate(head, features) if writes else task.predict(head, logits, labels)
            found = [task.loss(head, logits, labels).sum(), task.weight(labels).sum()]
            sums[name] = jax.numpy.stack([*found, *task.sums(logits, labels)])
        return outputs, sums

    return program
