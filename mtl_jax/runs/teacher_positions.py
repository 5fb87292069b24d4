"""Soft labels of choices and of the ends of answers: from the positions of a teacher's rows to those of a student's."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.errors import UserError


def by_position(rows: PackedRows, encoded: EncodedSplit, task: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """A teacher's probabilities [N, E] or [N, Q, 2] as `value` [n, ...] by `_numbers`, and `known` bool[n]."""
    where, number, count = _numbers(rows, encoded, task)
    value, known = np.zeros((count, *values.shape[2:]), np.float32), np.zeros(count, bool)
    value[number], known[number] = values[where], True
    return {"value": value, "known": known}


def at_positions(
    rows: PackedRows, encoded: EncodedSplit, task: str, value: np.ndarray, known: np.ndarray
) -> dict[str, np.ndarray]:
    """{"teacher", "teacher_mask"} of the student's rows; the gold label where no teacher has a prediction.

    Args:
      rows, encoded: of the student.
      task: its name.
      value, known: see `by_position`.
    """
    labels = rows.labels[task]
    where, number, _ = _numbers(rows, encoded, task)
    gold = labels["value"].astype(np.float32)
    if "word" in labels:
        gold = np.stack([(labels["value"] & bit) > 0 for bit in (1, 2)], axis=-1).astype(np.float32)
    mask = labels["mask"].copy()
    teacher = np.where(mask.reshape(*mask.shape, *(1,) * (gold.ndim - 2)), gold, 0.0)
    has_teacher = known[number]
    at = tuple(index[has_teacher] for index in where)
    teacher[at], mask[at] = value[number[has_teacher]], True
    return {"teacher": teacher.astype(np.float32), "teacher_mask": mask}


def require_same_windows(where: str, teacher: EncodedSplit, student: EncodedSplit) -> None:
    """Raises UserError where a teacher reads a text in other windows or tokens: its ends of answers would be those of
    other positions."""
    orders = _order(teacher), _order(student)
    for name in ("record", "first_word", "example_words"):
        first, second = (getattr(split, name)[order] for split, order in zip((teacher, student), orders, strict=True))
        if not np.array_equal(first, second):
            raise UserError(
                f"{where} reads the texts in other windows or tokens than the student, whose positions it cannot "
                "label; train it with the same tokenizer, config.data.row_length and window_stride"
            )


def _numbers(
    rows: PackedRows, encoded: EncodedSplit, task: str
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, int]:
    """The positions of a task in its rows, a number for each that does not depend on the packing, and their count."""
    labels, order = rows.labels[task], _order(encoded)
    place = np.argsort(order)  # of each example in that order
    if "word" not in labels:  # choices: an example is one
        row, slot = np.nonzero(rows.example >= 0)
        return (row, slot), place[rows.example[row, slot]], len(encoded.record)
    row, position = np.nonzero(labels["segment"] > 0)
    example = rows.example[row, labels["slot"][row, position]].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(encoded.example_words[order].astype(np.int64) + 1)])
    word = labels["word"][row, position]
    at = np.where(word < 0, 0, word - encoded.first_word[example] + 1)
    return (row, position), offsets[place[example]] + at, int(offsets[-1])


def _order(encoded: EncodedSplit) -> np.ndarray:
    """int64[N], the examples by record, choice and window: train has them in another order."""
    return np.lexsort((encoded.copy, encoded.first_word, encoded.choice, encoded.record))
