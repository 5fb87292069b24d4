"""Where the examples of a split are placed in rows, and how values are written there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ExamplePositions(NamedTuple):
    """The place of each of N examples: row, example slot, and first index on T and on the Q axes, int64[N]."""

    row: np.ndarray
    slot: np.ndarray
    token: np.ndarray
    word: np.ndarray
    predicate: np.ndarray
    sequence: np.ndarray
    span: np.ndarray


def example_positions(row: np.ndarray, demand: np.ndarray) -> ExamplePositions:
    """The placement of examples in their rows `row` int64[N]: in their order, one after the other on every axis."""
    order = np.argsort(row, kind="stable")
    before = np.cumsum(demand[order], axis=0) - demand[order]
    first = np.searchsorted(row[order], row[order])  # position in `order` of the row's first example
    begin = np.empty_like(demand)
    begin[order] = before - before[first]
    return ExamplePositions(row, begin[:, 1], begin[:, 0], begin[:, 2], begin[:, 3], begin[:, 4], begin[:, 5])


def rank_in_row(row: np.ndarray) -> np.ndarray:
    """int64: the number of earlier entries with the same row."""
    order = np.argsort(row, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return rank


def scatter(
    shape: tuple[int, ...], where: tuple[np.ndarray, ...], values: np.ndarray, fill: int = 0, dtype=np.int32
) -> np.ndarray:
    """An array [*shape, ...] of `fill` with `values` at the indices `where`."""
    result = np.full(shape + values.shape[1:], fill, dtype)
    result[where] = values
    return result
