"""What the level of a task's labels means in evaluation: one table, from predictions in packed rows to metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.corpus import Split
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing import unpacking
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.text_metrics import GeneratedTexts

LabelArrays = Mapping[str, np.ndarray]
Arguments = Callable[[Any, Any, np.ndarray], tuple[Any, Any]]  # (gold, predicted, sums) -> arguments of the metrics


class Level(NamedTuple):
    """One level.

    gather       (split, example [R, E], label arrays, name, array) -> a prediction's array `name` of all rows by record
    select       (gold, predicted) -> gold labels and predictions of the labelled records
    arguments    (task, split, spec) -> what makes the two arguments of the metrics of them, and of `Task.metric_sums`
    in_slots     predictions stand in the slots of examples, [R, E, ...]; else at label positions, [R, Q, ...]
    sequences    a record has a sequence of labels, one for each word
    drawn        labels are drawn in the step: predictions bring them along, by row
    """

    gather: Callable[[EncodedSplit, np.ndarray, LabelArrays, str, np.ndarray], Any]
    select: Callable[[GoldLabels, Any], tuple[Any, Any]]
    arguments: Callable[[Task, Split, LabelSpec], Arguments]
    in_slots: bool = False
    sequences: bool = False
    drawn: bool = False


class ReferenceTexts(NamedTuple):
    """The target strings, and the tokens to copy from, [] where the task does not copy."""

    texts: list[str]
    sources: list[Sequence[str]]


def _in_slots(split: EncodedSplit, example: np.ndarray, labels: LabelArrays, name: str, array: np.ndarray):
    """[M, ...]."""
    return unpacking.gather_text(split, example, array)


def _of_choices(split: EncodedSplit, example: np.ndarray, labels: LabelArrays, name: str, array: np.ndarray):
    """[M, ...]; of the probability M arrays [choices]."""
    if name == "probability":
        return unpacking.gather_choices(split, example, array)
    return unpacking.gather_text(split, example, array)


def _of_words(split: EncodedSplit, example: np.ndarray, labels: LabelArrays, name: str, array: np.ndarray):
    """M arrays [words, ...], or [predicates, words, ...]."""
    return unpacking.gather_words(split, example, labels, array)


def _of_windows(split: EncodedSplit, example: np.ndarray, labels: LabelArrays, name: str, array: np.ndarray):
    """[windows, ...], see `unpacking.answer_windows`."""
    return unpacking.gather_spans(split, example, labels, array)


def _of_masks(split: EncodedSplit, example: np.ndarray, labels: LabelArrays, name: str, array: np.ndarray):
    """M arrays [masks, ...] where the text has [MASK], else the rows as they are."""
    return array if "maskable" in labels else unpacking.gather_masked(split, example, labels, array)


def _labelled(gold: GoldLabels, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[M', ...] each."""
    return gold.value[gold.known], predicted[gold.known]


def _labelled_texts(gold: GoldLabels, predicted: np.ndarray) -> tuple[ReferenceTexts, np.ndarray]:
    """Texts, and [M', L]."""
    labelled = np.flatnonzero(np.diff(gold.offsets))
    sources = [gold.sources[m] for m in labelled] if gold.sources else []
    return ReferenceTexts([gold.texts[m] for m in labelled], sources), predicted[labelled]


def _labelled_words(gold: GoldLabels, predicted: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Lists of sequences, of a predicate each where there are some; words without a label are left out."""
    golds, predictions = [], []
    for record, sequences in enumerate(predicted):
        sequences = sequences.reshape(-1, sequences.shape[-1])
        value, known = (array.reshape(sequences.shape) for array in gold.at_record(record))
        for labels, labelled, tags in zip(value, known, sequences, strict=True):
            if labelled.any():
                golds.append(labels[labelled])
                predictions.append(tags[labelled])
    return golds, predictions


def _all_predictions(gold: GoldLabels, predicted: Any) -> tuple[None, Any]:
    """None, and the predictions of all rows, or windows: `arguments` finds the labels."""
    return None, predicted


def _unchanged(task: Task, split: Split, spec: LabelSpec) -> Arguments:
    return lambda gold, predicted, sums: (gold, predicted)


def _text_arguments(task: Task, split: Split, spec: LabelSpec) -> Arguments:
    """Texts, and those that were written, with the sums of the task."""
    return lambda gold, predicted, sums: (gold.texts, GeneratedTexts(task.to_texts(predicted, gold.sources), sums))


def _token_arguments(task: Task, split: Split, spec: LabelSpec) -> Arguments:
    """Hidden tokens, and [n, 2] predicted token and log-probability of the hidden one."""

    def arguments(gold: None, predicted: Any, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = np.asarray(predicted).reshape(-1, 4)
        predicted = predicted[predicted[:, 3] > 0]
        return predicted[:, 1].astype(np.int64), predicted[:, [0, 2]]

    return arguments


def _span_arguments(task: Task, split: Split, spec: LabelSpec) -> Arguments:
    """Answers as strings, or as tuples of word indices where the data set has words."""
    known = np.flatnonzero(split.encoded.labels[task.name].known)
    record = split.encoded.record[unpacking.answer_windows(split.encoded)]
    inputs = split.inputs
    raw, _ = answer_spans.collect_answers(inputs, spec)
    by_words = inputs.texts is None
    gold_answers = [
        [tuple(range(a.begin, a.end)) if by_words else a.text for a in raw.values[record]] or [() if by_words else ""]
        for record in known
    ]
    begins = np.concatenate([[0], np.cumsum(split.encoded.words, dtype=np.int64)])

    def answer(record: int, first: int, last: int) -> str | tuple[int, ...]:
        if first < 0:
            return () if by_words else ""
        if by_words:
            return tuple(range(first, last + 1))
        offsets = split.encoded.char_offsets[begins[record] :]
        return inputs.texts[record][-1][offsets[first, 0] : offsets[last, 1]]

    def arguments(gold: None, predicted: np.ndarray, sums: np.ndarray) -> tuple[list[Any], list[Any]]:
        spans = task.best_answers(record, predicted, len(split.encoded.words))["value"][known].tolist()
        return gold_answers, [answer(m, *span) for m, span in zip(known, spans, strict=True)]

    return arguments


LEVELS: dict[str, Level] = {
    "text": Level(_in_slots, _labelled, _unchanged, in_slots=True),
    "pair": Level(_in_slots, _labelled, _unchanged, in_slots=True),
    "choice": Level(_of_choices, _labelled, _unchanged, in_slots=True),
    "sequence": Level(_in_slots, _labelled_texts, _text_arguments, in_slots=True),
    "word": Level(_of_words, _labelled_words, _unchanged, sequences=True),
    "predicate": Level(_of_words, _labelled_words, _unchanged, sequences=True),
    "span": Level(_of_windows, _all_predictions, _span_arguments),
    "token": Level(_of_masks, _all_predictions, _token_arguments, drawn=True),
}
