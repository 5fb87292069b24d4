"""From predictions by row to predictions by record, in the order of the records."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from mtl_jax.data.encoding.encode import EncodedSplit


def gather_text(split: EncodedSplit, example: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Predictions of a text-level task for each record.

    Args:
      split: M records, N examples.
      example: int32[R, E], index of the example, -1 for an empty slot.
      values: [R, E, ...].

    Returns:
      [M, ...], the value position each record's first example; -1 where no row has it.
    """
    result = np.full((len(split.words), *values.shape[2:]), -1, values.dtype)
    row, slot = np.nonzero(example >= 0)
    number = example[row, slot]
    first = split.is_first_example[number]
    result[split.record[number[first]]] = values[row[first], slot[first]]
    return result


def gather_words(
    split: EncodedSplit, example: np.ndarray, labels: Mapping[str, np.ndarray], values: np.ndarray
) -> list[np.ndarray]:
    """Predictions of a word-level or predicate-level task for each record, its examples joined.

    Args:
      split: M records, N examples.
      example: int32[R, E], index of the example, -1 for an empty slot.
      labels: the task's arrays [R, Q] `segment`, `slot`, `word` and, for level "predicate", `predicate_number`.
      values: [R, Q, ...].

    Returns:
      M arrays: [words, ...] or [predicates, words, ...]; -1 where no row has the word (truncated, or in another example
      than the predicate).
    """
    row, position = np.nonzero(labels["segment"] > 0)
    number = example[row, labels["slot"][row, position]]
    row, position, number = row[number >= 0], position[number >= 0], number[number >= 0]
    record = split.record[number]
    words = split.words.astype(np.int64)
    of_predicates = "predicate_number" in labels
    counts = words * np.diff(split.predicate_offsets) if of_predicates else words
    offsets = np.concatenate([[0], np.cumsum(counts)])
    index = offsets[record] + split.first_word[number] + labels["word"][row, position]
    if of_predicates:
        index = index + labels["predicate_number"][row, position] * words[record]
    flat = np.full((int(offsets[-1]), *values.shape[2:]), -1, values.dtype)
    flat[index] = values[row, position]
    parts = [flat[begin:end] for begin, end in itertools.pairwise(offsets)]
    if of_predicates:
        # Every sentence has a word, so -1 is unambiguous.
        parts = [part.reshape(-1, n, *values.shape[2:]) for part, n in zip(parts, words, strict=True)]
    return parts


def answer_windows(split: EncodedSplit) -> np.ndarray:
    """int64: the examples that are searched for answers."""
    return np.flatnonzero(~split.copy)


def gather_spans(
    split: EncodedSplit, example: np.ndarray, labels: Mapping[str, np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Predictions of a span-level task for each of `answer_windows`.

    Args:
      split: N examples.
      example: int32[R, E], index of the example, -1 for an empty slot.
      labels: the task's arrays [R, Q] `segment`, `slot`, `word`.
      values: [R, Q, ...], read position each example's position for "no answer".
    """
    row, position = np.nonzero((labels["segment"] > 0) & (labels["word"] < 0))
    result = np.empty((len(split.record), *values.shape[2:]), values.dtype)
    result[example[row, labels["slot"][row, position]]] = values[row, position]
    return result[answer_windows(split)]


def gather_choices(split: EncodedSplit, example: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Predictions for each choice of each record: M arrays [choices, ...] from values [R, E, ...]."""
    row, slot = np.nonzero(example >= 0)
    number = example[row, slot]
    order = np.lexsort((split.choice[number], split.record[number]))
    counts = np.bincount(split.record[number], minlength=len(split.words))
    return np.split(values[row[order], slot[order]], np.cumsum(counts)[:-1])


def gather_masked(
    split: EncodedSplit, example: np.ndarray, labels: Mapping[str, np.ndarray], values: np.ndarray
) -> list[np.ndarray]:
    """Predictions for the [MASK]s of each record in their order: M arrays [masks, ...] from values [R, Q, ...]."""
    row, position = np.nonzero(labels["segment"] > 0)
    number = example[row, labels["slot"][row, position]]
    order = np.lexsort((labels["token"][row, position], split.first_word[number], split.record[number]))
    counts = np.bincount(split.record[number], minlength=len(split.words))
    return np.split(values[row[order], position[order]], np.cumsum(counts)[:-1])
