"""From predictions in packed rows to the arguments of the metrics, by the level of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.corpus import Corpus
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.target_sequences import END, UNKNOWN
from mtl_jax.data.packing import unpacking
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.text_metrics import GeneratedTexts
from mtl_jax.training.objective import Objective


def gather_predictions(
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
    "word": M arrays [words, ...]; "predicate": [predicates, words, ...]. "token": M arrays [masks, ...] where the text
    has [MASK], else the rows as they are.
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


class ReferenceTexts(NamedTuple):
    """The target strings, and the tokens to copy from, [] where the task does not copy."""

    texts: list[str]
    sources: list[Sequence[str]]


def gold_and_predicted(corpus: Corpus, objective: Objective, task: str, dataset: str, split: str, predicted: Any):
    """Labelled records' gold labels and the predictions for them.

    Levels with one label a record: two arrays [M', ...]. Word level: two lists of sequences (of a predicate each for
    level "predicate"), words without a label left out. Level "sequence": `ReferenceTexts`, and an array [M', L]. Levels
    "token" and "span": None, and the predictions of all rows, or windows.
    """
    level = objective.tasks[task].level
    if level in ("token", "span"):
        return None, predicted
    gold = corpus.splits[dataset][split].encoded.labels[task]
    if corpus.vocabularies[task].soft:
        gold = gold._replace(value=gold.value.argmax(-1))
    if level == "sequence":
        labelled = np.flatnonzero(np.diff(gold.offsets))
        sources = [gold.sources[m] for m in labelled] if gold.sources else []
        return ReferenceTexts([gold.texts[m] for m in labelled], sources), predicted[labelled]
    if level not in ("word", "predicate"):
        return gold.value[gold.known], predicted[gold.known]
    golds, predictions = [], []
    for record, sequences in enumerate(predicted):
        sequences = sequences.reshape(-1, sequences.shape[-1])
        value, known = (array.reshape(sequences.shape) for array in gold.of(record))
        for labels, labelled, tags in zip(value, known, sequences, strict=True):
            if labelled.any():
                golds.append(labels[labelled])
                predictions.append(tags[labelled])
    return golds, predictions


def metric_values(task: Task, gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, float]:
    """{metric: value} of a task; `gold` and `predicted` from `metric_arguments`."""
    return {name: float(METRICS[name].value(METRICS[name].statistics(gold, predicted, names))) for name in task.metrics}


def metric_ceiling(corpus: Corpus, task: Task, split: str) -> dict[str, float]:
    """{metric: value} of the gold tokens themselves as predictions, where it is below 1: no model can do better.

    It is below 1 where tokens are not in the vocabulary, or a target is longer than `max_length`; and ROUGE is 0 for
    strings without words. Only tasks that generate text have ceilings.
    """
    if task.level != "sequence":
        return {}
    gold = corpus.splits[corpus.specs[task.name].dataset][split].encoded.labels[task.name]
    labelled = np.flatnonzero(np.diff(gold.offsets))
    if not len(labelled):
        return {}
    lengths = np.diff(gold.offsets)[labelled]
    ids = np.full((len(labelled), lengths.max()), -1, np.int32)
    ids[np.arange(lengths.max()) < lengths[:, None]] = gold.value
    ids[(ids == UNKNOWN) | (ids == END)] = -1
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


def metric_arguments(
    corpus: Corpus, objective: Objective, task: str, dataset: str, split: str
) -> Callable[[Any, Any, np.ndarray], tuple[Any, Any]]:
    """The function (gold, predicted, sums) -> (gold, predicted) that makes the two arguments of the metrics.

    It takes the results of `gold_and_predicted`, and the sums of `Predictions`.
    """
    level = objective.tasks[task].level
    if level == "sequence":
        texts = objective.tasks[task].to_texts
        return lambda gold, predicted, sums: (gold.texts, GeneratedTexts(texts(predicted, gold.sources), sums))
    if level == "token":
        return _token_arguments
    if level == "span":
        return _span_arguments(corpus, objective.tasks[task], dataset, split)
    return lambda gold, predicted, sums: (gold, predicted)


def _token_arguments(gold: None, predicted: Any, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predicted = np.asarray(predicted).reshape(-1, 4)
    predicted = predicted[predicted[:, 3] > 0]
    return predicted[:, 1].astype(np.int64), predicted[:, [0, 2]]


def _span_arguments(
    corpus: Corpus, task: Task, dataset: str, split: str
) -> Callable[[None, np.ndarray, np.ndarray], tuple[list[Any], list[Any]]]:
    """Answers as strings, or as tuples of word indices where the data set has words."""
    part, spec = corpus.splits[dataset][split], corpus.specs[task.name]
    known = np.flatnonzero(part.encoded.labels[task.name].known)
    record = part.encoded.record[unpacking.answer_windows(part.encoded)]
    inputs = part.inputs
    raw, _ = answer_spans.collect_answers(inputs, spec)
    by_words = inputs.texts is None
    gold_answers = [
        [tuple(range(a.begin, a.end)) if by_words else a.text for a in raw.values[record]] or [() if by_words else ""]
        for record in known
    ]
    begins = np.concatenate([[0], np.cumsum(part.encoded.words, dtype=np.int64)])

    def answer(record: int, first: int, last: int) -> str | tuple[int, ...]:
        if first < 0:
            return () if by_words else ""
        if by_words:
            return tuple(range(first, last + 1))
        offsets = part.encoded.char_offsets[begins[record] :]
        return inputs.texts[record][-1][offsets[first, 0] : offsets[last, 1]]

    def arguments(gold: None, predicted: np.ndarray, sums: np.ndarray) -> tuple[list[Any], list[Any]]:
        spans = task.best_answers(record, predicted, len(part.encoded.words))["value"][known].tolist()
        return gold_answers, [answer(m, *span) for m, span in zip(known, spans, strict=True)]

    return arguments
