"""Scores of the tasks: predictions on the devices, metrics on the host over complete records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.data.batches import evaluation_batches, evaluation_layout
from mtl_jax.data.corpus import Corpus
from mtl_jax.training import corruption, processes
from mtl_jax.training import objective as terms
from mtl_jax.training.judging import gather, gold_and_predicted, has_labels, judge, metric_values, uniform
from mtl_jax.training.objective import Objective


class Predictions(NamedTuple):
    """What a model says of one split of one data set.

    values  {task: {name: what `judging.gather` makes for the level of the task}}
    loss    {task: mean loss}, None where the split has no label of the task
    sums    {task: float64 [...]}, further sums that metrics need, see `program`
    """

    values: Mapping[str, Mapping[str, Any]]
    loss: Mapping[str, float | None]
    sums: Mapping[str, np.ndarray]


class Evaluator:
    """Predicts and scores. One compiled program for each data set."""

    def __init__(
        self,
        objective_for: Callable[..., Objective],
        corpus: Corpus,
        rows_per_block: int,
        put: Callable[[Batch], Batch],
        tasks: Collection[str] | None = None,
    ):
        """
        Args:
          objective_for: layout -> the objective over batches of that layout.
          corpus: the data.
          rows_per_block: R of the batches.
          put: places a batch on the devices.
          tasks: to predict; None for all.
        """
        self._corpus = corpus
        self._rows = rows_per_block
        self._put = put
        self._programs = {}
        for dataset in corpus.layout.datasets:
            objective = objective_for(evaluation_layout(corpus.layout, dataset))
            self._programs[dataset] = objective, jax.jit(program(objective, tasks))

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
        objective, program = self._programs[dataset]
        rows = self._corpus.rows[dataset][split]
        fetched, ahead = [], None  # a batch is fetched while the next one is computed, and no more are begun
        for batch in evaluation_batches(rows, objective.layout, self._rows):
            begun = program(params, self._put(batch)), int((batch.row >= 0).sum())
            if ahead is not None:
                fetched.append(processes.fetch(ahead[0]))
                progress(ahead[1])
            ahead = begun
        if ahead is not None:
            fetched.append(processes.fetch(ahead[0]))
            progress(ahead[1])
        outputs, sums = [output for output, _ in fetched], [share for _, share in fetched]
        total = (
            {task: np.sum([np.asarray(s[task], np.float64) for s in sums], axis=0) for task in sums[0]} if sums else {}
        )
        encoded = self._corpus.splits[dataset][split].encoded
        values = {}
        for task in total:
            joined = {
                name: np.concatenate([o[task][name] for o in outputs])[: len(rows.tokens)] for name in outputs[0][task]
            }
            values[task] = {
                name: gather(objective.tasks[task].level, name, encoded, rows.example, rows.labels[task], array)
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
        for dataset in self._corpus.layout.datasets:
            if split in self._corpus.rows[dataset]:
                predictions = self.predict(params, dataset, split, progress)
                for task, values in predictions.values.items():
                    if not has_labels(self._corpus, task, split):
                        continue
                    gold, predicted = self._judged(task, dataset, split, values, predictions.sums[task])
                    names = self._corpus.vocabularies[task].all_names
                    found = metric_values(self._programs[dataset][0].tasks[task], gold, predicted, names)
                    if text := uniform(gold, predicted, names):
                        remark(task, text)
                    scores[task] = found | {"loss": predictions.loss[task]}
        return {task: scores[task] for task in self._corpus.layout.tasks if task in scores}

    def rows(self, split: str) -> int:
        """Rows of a split over all data sets: the length of a progress bar."""
        return sum(len(rows[split].tokens) for rows in self._corpus.rows.values() if split in rows)

    def _judged(self, task: str, dataset: str, split: str, values: Mapping[str, Any], sums) -> tuple[Any, Any]:
        """Gold labels and predictions as the metrics take them."""
        objective, _ = self._programs[dataset]
        gold, predicted = gold_and_predicted(self._corpus, objective, task, dataset, split, values["value"])
        return judge(self._corpus, objective, task, dataset, split)(gold, predicted, sums)


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
            writes = task.level == "sequence"
            outputs[name] = task.generate(head, features) if writes else task.predict(head, logits, labels)
            found = [task.loss(head, logits, labels).sum(), task.weight(labels).sum()]
            sums[name] = jax.numpy.stack([*found, *task.sums(logits, labels)] if writes else found)
        return outputs, sums

    return program
