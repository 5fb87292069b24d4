"""Sequence packing: the examples of a split in rows of fixed capacities, with their labels.

A row holds T tokens, E example slots and, for each further level of labels, Q label positions; see `capacities`. An
example goes to the oldest open row in which all of them fit, else to a new row; see `first_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.files import array_shards
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing.capacities import Capacities, example_demands, group_demands
from mtl_jax.data.packing.first_fit import cached_first_fit, first_fit
from mtl_jax.data.packing.packed_labels import pack_labels
from mtl_jax.data.packing.row_placement import example_positions, rank_in_row, scatter
from mtl_jax.errors import UserError


def pack(
    split: EncodedSplit,
    specs: Sequence[LabelSpec],
    classes: Mapping[str, int],
    capacities: Capacities,
    packed: bool = True,
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray] = cached_first_fit,
) -> PackedRows:
    """Rows of a split, with the labels of `split.labels` of all levels but "token".

    Args:
      split: N examples.
      specs: tasks of this data set.
      classes: C of each task, the number of training classes; labels at or above it have mask False.
      capacities: see `choose_capacities`.
      packed: False for one example a row.
      fit: how rows are chosen.
    """
    demand = example_demands(split, [spec.level for spec in specs])
    limits = np.asarray(capacities, np.int64)
    group_demand = group_demands(split, demand)
    if len(demand) and (group_demand.max(0) > limits).any():
        raise UserError(f"an example needs {tuple(group_demand.max(0).tolist())}, rows hold {tuple(limits.tolist())}")
    row = (fit(group_demand, limits) if packed else np.arange(len(group_demand)))[split.example_groups]
    placement = example_positions(row, demand)
    num_rows = int(row.max()) + 1 if len(row) else 0
    shape, slots = (num_rows, capacities.tokens), (num_rows, capacities.examples)
    example, within = concatenated_ranges(np.zeros_like(split.lengths), split.lengths)
    where = (row[example], placement.token[example] + within)
    by_slot = (row, placement.slot)
    return PackedRows(
        tokens=scatter(shape, where, split.tokens),
        segment=scatter(shape, where, placement.slot[example] + 1),
        position=scatter(shape, where, within if split.place is None else split.place),
        token_type=scatter(shape, where, split.token_type),
        start=scatter(slots, by_slot, placement.token),
        length=scatter(slots, by_slot, split.lengths),
        example=scatter(slots, by_slot, np.arange(len(row)), fill=-1),
        labels=pack_labels(split, specs, classes, capacities, placement, num_rows),
        patch=None if split.patch is None else scatter(shape, where, split.patch),
    )


def rows_of_groups(rows: PackedRows, split: EncodedSplit) -> np.ndarray:
    """int64[G], the row that has each group of examples that have to be in one row."""
    row, slot = np.nonzero(rows.example >= 0)
    result = np.empty(len(split.record), np.int64)
    result[rows.example[row, slot]] = row
    return result[split.choice == 0]


def fill_ratio(rows: PackedRows) -> float:
    """The share of token positions that hold a real token."""
    chunks = array_shards.ranges(len(rows.segment))
    real = sum(int(np.count_nonzero(rows.segment[begin:end])) for begin, end in chunks)
    return real / rows.segment.size if rows.segment.size else 0.0


class PackedSequences(NamedTuple):
    """Sequences of tokens in rows; a model may attend between positions of equal `segment`.

    tokens    int[N, T], 0 where there is none
    segment   int32[N, T], the number of the sequence within its row, from 1; 0 where there is no token
    position  int32[N, T], of a token in its sequence
    row       int64[sequences], the row of each sequence
    start     int64[sequences], the first position of each sequence in its row
    """

    tokens: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    row: np.ndarray
    start: np.ndarray


def pack_sequences(sequences: Sequence[Sequence[int] | np.ndarray], row_length: int) -> PackedSequences:
    """Sequences of token ids, several in a row, by first fit; for training loops without the rest of this package.

    Raises:
      UserError: a sequence is longer than a row.
    """
    lengths = np.asarray([len(sequence) for sequence in sequences], np.int64)
    if len(lengths) and lengths.max() > row_length:
        raise UserError(f"sequence {lengths.argmax()} has {lengths.max()} tokens, a row {row_length}; cut it before")
    row = first_fit(lengths[:, None], np.asarray([row_length], np.int64))
    order = np.argsort(row, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    start = np.empty_like(lengths)
    start[order] = before - before[np.searchsorted(row[order], row[order])]
    shape = (int(row.max()) + 1 if len(row) else 0, row_length)
    sequence, within = concatenated_ranges(np.zeros_like(lengths), lengths)
    where = (row[sequence], start[sequence] + within)
    tokens = np.concatenate([np.asarray(s) for s in sequences]) if len(lengths) else np.zeros(0, np.int32)
    return PackedSequences(
        tokens=scatter(shape, where, tokens, dtype=tokens.dtype),
        segment=scatter(shape, where, rank_in_row(row)[sequence] + 1),
        position=scatter(shape, where, within),
        row=row,
        start=start,
    )
