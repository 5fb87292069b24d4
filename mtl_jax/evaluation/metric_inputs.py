"""From predictions in packed rows to the arguments of the metrics, by the level of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.data.corpus import Corpus
from mtl_jax.evaluation.label_levels import LEVELS, Arguments
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.text_metrics import GeneratedTexts
from mtl_jax.training.objective import Objective


def has_labels(corpus: Corpus, task: str, split: str) -> bool:
    """Whether any record of the split has a label of the task."""
    return bool(corpus.splits[corpus.specs[task].dataset][split].encoded.labels[task].known.any())


def gold_and_predicted(corpus: Corpus, objective: Objective, task: str, dataset: str, split: str, predicted: Any):
    """Labelled records' gold labels and the predictions for them, see `Level.select`."""
    gold = corpus.splits[dataset][split].encoded.labels[task]
    if corpus.vocabularies[task].soft:
        gold = gold._replace(value=gold.value.argmax(-1))
    return LEVELS[objective.tasks[task].level].select(gold, predicted)


def metric_values(task: Task, gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, float]:
    """{metric: value} of a task; `gold` and `predicted` from `metric_arguments`."""
    return {name: float(METRICS[name].value(METRICS[name].statistics(gold, predicted, names))) for name in task.metrics}


def metric_ceiling(corpus: Corpus, task: Task, split: str) -> dict[str, float]:
    """{metric: value} of the gold tokens themselves as predictions, where it is below 1: no model can do better.

    It is below 1 where tokens are not in the vocabulary, or a target is longer than `max_length`; and ROUGE is 0 for
    strings without words. Only tasks that generate text have ceilings.
    """
    if task.predicts != "texts":
        return {}
    gold = corpus.splits[corpus.specs[task.name].dataset][split].encoded.labels[task.name]
    labelled = np.flatnonzero(np.diff(gold.offsets))
    if not len(labelled):
        return {}
    lengths = np.diff(gold.offsets)[labelled]
    ids = np.full((len(labelled), lengths.max()), -1, np.int32)
    ids[np.arange(lengths.max()) < lengths[:, None]] = gold.value
    ids[np.isin(ids, task.silent)] = -1
    generated = task.to_texts(ids, [gold.sources[m] for m in labelled] if gold.sources else ())
    scores = text_scores(task, [gold.texts[m] for m in labelled], generated)
    return {name: value for name, value in scores.items() if value < 1.0 - 1e-9}


def text_scores(task: Task, gold: Sequence[str], generated: Sequence[str]) -> dict[str, float]:
    """{metric: value} of the task's metrics that compare strings."""
    compared = (name for name in task.metrics if not METRICS[name].from_sums)
    return {name: evaluate(name, gold, generated, ()) for name in compared}


def constant_remark(gold: Any, predicted: Any, names: Sequence[str]) -> str:
    """A remark where all predictions are alike and the gold labels are not, or numbers are not finite; else "".

    `gold` and `predicted` from `metric_arguments`, `names` of the classes.
    """
    values, labels = _flat(predicted), _flat(gold)
    if isinstance(values, np.ndarray) and values.ndim == 2 and labels.ndim == 1:
        values = values[:, 0].astype(np.int64)  # hidden tokens, which come with a log-probability
    count = len(values)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} of {count} predicted numbers are not finite"
    if not count or not _all_equal(values) or _all_equal(labels):
        return ""
    first = values[0]
    if isinstance(first, str | tuple):
        return f"{'the same text' if first else 'an empty answer'} was predicted for all {count} records"
    if first.ndim:
        return f"{'the same labels were' if first.any() else 'no label was'} predicted for all {count} records"
    if first.dtype.kind == "f":
        return f"the same number was predicted for all {count} records"
    name = repr(names[first]) if 0 <= first < len(names) else f"choice {first}" if first >= 0 else "nothing"
    return f"only {name} was predicted, {count} times"


def _flat(values: Any) -> Any:
    """All labels or predictions in one array, or in a list of values that can be compared."""
    values = values.texts if isinstance(values, GeneratedTexts) else values
    if isinstance(values, np.ndarray) or not values:
        return values
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [tuple(value) if isinstance(value, list) else value for value in values]


def _all_equal(values: np.ndarray | Sequence[Any]) -> bool:
    return bool((values == values[0]).all()) if isinstance(values, np.ndarray) else all(v == values[0] for v in values)


def metric_arguments(corpus: Corpus, objective: Objective, task: str, dataset: str, split: str) -> Arguments:
    """The function (gold, predicted, sums) -> (gold, predicted) that makes the two arguments of the metrics.

    It takes the results of `gold_and_predicted`, and the sums of `Predictions`.
    """
    kind = objective.tasks[task]
    return LEVELS[kind.level].arguments(kind, corpus.splits[dataset][split], corpus.specs[task])
