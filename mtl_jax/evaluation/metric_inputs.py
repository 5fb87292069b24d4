"""From predictions in packed rows to what the metrics compare, by the level of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import unpacking
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.target_sequences import END, UNKNOWN
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.text_metrics import Written
from mtl_jax.training.objective import Objective


def gather(
    level: str,
    name: str,
    encoded: EncodedSplit,
    example: np.ndarray,
    labels: Mapping[str, np.ndarray],
    array: np.ndarray,
) -> Any:
    """A prediction's array `name` of all rows by record.

    Levels "text", "sequence", "pair" and "choice": [M, ...], of "choice" the probability M arrays [choices].
    "span": [windows, ...], see `unpacking.answer_windows`.
    "word": M arrays [words, ...]; "predicate": [predicates, words, ...]. "token": M arrays [masks, ...] where the texts
    have [MASK], else the rows as they are.
    """
    if level in ("word", "predicate"):
        return unpacking.gather_words(encoded, example, labels, array)
    if level == "span":
        return unpacking.gather_spans(encoded, example, labels, array)
    if level == "choice" and name == "probability":
        return unpacking.gather_choices(encoded, example, array)
    if level == "token":
        return array if "maskable" in labels else unpacking.gather_masked(encoded, example, labels, array)
    return unpacking.gather_text(encoded, example, array)


def has_labels(corpus: Corpus, task: str, split: str) -> bool:
    """Whether any record of the split has a label of the task."""
    return bool(corpus.splits[corpus.specs[task].dataset][split].encoded.labels[task].known.any())


class References(NamedTuple):
    """The texts to be written, and the tokens to copy from, () where the task does not copy."""

    texts: list[str]
    sources: list[Sequence[str]]


def gold_and_predicted(corpus: Corpus, objective: Objective, task: str, dataset: str, split: str, predicted: Any):
    """Labelled records' gold labels and the predictions for them.

    Levels with one label a record: two arrays [M', ...]. Word level: two lists of sequences (of a predicate each for
    level "predicate"), words without a label left out. Level "sequence": `References`, and an array [M', L]. Levels
    "token" and "span": None, and the predictions of all rows, or windows.
    """
    level = objective.tasks[task].level
    if level in ("token", "span"):
        return None, predicted
    gold = corpus.splits[dataset][split].encoded.labels[task]
    if corpus.vocabularies[task].soft:
        gold = gold._replace(value=gold.value.argmax(-1))
    if level == "sequence":
        given = np.flatnonzero(np.diff(gold.offsets))
        sources = [gold.sources[m] for m in given] if gold.sources else []
        return References([gold.texts[m] for m in given], sources), predicted[given]
    if level not in ("word", "predicate"):
        return gold.value[gold.known], predicted[gold.known]
    golds, predictions = [], []
    for record, said in enumerate(predicted):
        said = said.reshape(-1, said.shape[-1])
        value, known = (array.reshape(said.shape) for array in gold.of(record))
        for labels, labelled, tags in zip(value, known, said, strict=True):
            if labelled.any():
                golds.append(labels[labelled])
                predictions.append(tags[labelled])
    return golds, predictions


def metric_values(task: Task, gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, float]:
    """{metric: value} of a task; `gold` and `predicted` from `metric_arguments`."""
    return {name: float(METRICS[name].value(METRICS[name].statistics(gold, predicted, names))) for name in task.metrics}


def ceiling(corpus: Corpus, task: Task, split: str) -> dict[str, float]:
    """{metric: value} of the gold tokens themselves as what is written, where it is below 1: no model can do better.

    It is where tokens are not in the vocabulary, or a target is longer than `max_length`; and ROUGE is 0 on texts
    without words. Of other tasks than those that write texts there is none.
    """
    if task.level != "sequence":
        return {}
    gold = corpus.splits[corpus.specs[task.name].dataset][split].encoded.labels[task.name]
    given = np.flatnonzero(np.diff(gold.offsets))
    if not len(given):
        return {}
    lengths = np.diff(gold.offsets)[given]
    ids = np.full((len(given), lengths.max()), -1, np.int32)
    ids[np.arange(lengths.max()) < lengths[:, None]] = gold.value
    ids[(ids == UNKNOWN) | (ids == END)] = -1
    written = task.texts(ids, [gold.sources[m] for m in given] if gold.sources else ())
    scores = text_scores(task, [gold.texts[m] for m in given], written)
    return {name: value for name, value in scores.items() if value < 1.0 - 1e-9}


def text_scores(task: Task, gold: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """{metric: value} of the task's metrics that compare texts."""
    compared = (name for name in task.metrics if not METRICS[name].from_sums)
    return {name: evaluate(name, gold, written, ()) for name in compared}


def uniform(gold: Any, predicted: Any, names: Sequence[str]) -> str:
    """A remark where all predictions are alike and the gold labels are not, or numbers are not finite; else "".

    `gold` and `predicted` from `metric_arguments`, `names` of the classes.
    """
    said, wanted = _flat(predicted), _flat(gold)
    if isinstance(said, np.ndarray) and said.ndim == 2 and wanted.ndim == 1:
        said = said[:, 0].astype(np.int64)  # hidden tokens, which come with a log-probability
    count = len(said)
    if isinstance(said, np.ndarray) and said.dtype.kind == "f" and not np.isfinite(said).all():
        return f"{int((~np.isfinite(said)).sum())} of {count} predicted numbers are not finite"
    if not count or not _alike(said) or _alike(wanted):
        return ""
    first = said[0]
    if isinstance(first, str | tuple):
        return f"{'the same text' if first else 'an empty answer'} was predicted for all {count} records"
    if first.ndim:
        return f"{'the same labels were' if first.any() else 'no label was'} predicted for all {count} records"
    if first.dtype.kind == "f":
        return f"the same number was predicted for all {count} records"
    name = repr(names[first]) if 0 <= first < len(names) else f"choice {first}" if first >= 0 else "nothing"
    return f"only {name} was predicted, {count} times"


def _flat(values: Any) -> Any:
    """Labels or predictions one after the other: an array, or a list of what can be compared."""
    values = values.texts if isinstance(values, Written) else values
    if isinstance(values, np.ndarray) or not values:
        return values
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [tuple(value) if isinstance(value, list) else value for value in values]


def _alike(values: Any) -> bool:
    return bool((values == values[0]).all()) if isinstance(values, np.ndarray) else all(v == values[0] for v in values)


def metric_arguments(
    corpus: Corpus, objective: Objective, task: str, dataset: str, split: str
) -> Callable[[Any, Any, np.ndarray], tuple[Any, Any]]:
    """What makes of `gold_and_predicted`, and the sums of `Predictions`, the two arguments of the metrics."""
    level = objective.tasks[task].level
    if level == "sequence":
        texts = objective.tasks[task].texts
        return lambda gold, predicted, sums: (gold.texts, Written(texts(predicted, gold.sources), sums))
    if level == "token":
        return _of_tokens
    if level == "span":
        return _of_spans(corpus, objective.tasks[task], dataset, split)
    return lambda gold, predicted, sums: (gold, predicted)


def _of_tokens(gold: None, predicted: Any, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted = np.asarray(predicted).reshape(-1, 4)
    predicted = predicted[predicted[:, 3] > 0]
    return predicted[:, 1].astype(np.int64), predicted[:, [0, 2]]


def _of_spans(corpus: Corpus, task: Task, dataset: str, split: str):
    """Answers as texts, or as tuples of word indices where the data set is of words."""
    part, spec = corpus.splits[dataset][split], corpus.specs[task.name]
    known = np.flatnonzero(part.encoded.labels[task.name].known)
    record = part.encoded.record[unpacking.answer_windows(part.encoded)]
    units = part.units
    raw, _ = answer_spans.collect_answers(units, spec)
    by_words = units.texts is None
    right = [
        [tuple(range(a.begin, a.end)) if by_words else a.text for a in raw.values[record]] or [() if by_words else ""]
        for record in known
    ]
    begins = np.concatenate([[0], np.cumsum(part.encoded.words, dtype=np.int64)])

    def said(record: int, first: int, last: int) -> Any:
        if first < 0:
            return () if by_words else ""
        if by_words:
            return tuple(range(first, last + 1))
        offsets = part.encoded.char_offsets[begins[record] :]
        return units.texts[record][-1][offsets[first, 0] : offsets[last, 1]]

    def of(gold: None, predicted: np.ndarray, sums: np.ndarray) -> tuple[list[Any], list[Any]]:
        spans = task.best(record, predicted, len(part.encoded.words))["value"][known].tolist()
        return right, [said(m, *span) for m, span in zip(known, spans, strict=True)]

    return of
