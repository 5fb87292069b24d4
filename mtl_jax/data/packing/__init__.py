"""Sequence packing: the examples of a split in rows of fixed capacities, with their labels.

A row holds T tokens, E example slots and, for each further level of labels, Q label positions; see `capacities`. An
example goes to the oldest open row in which all of them fit, else to a new row; see `first_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.files import array_shards
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing.capacities import Capacities, example_demands, group_demands
from mtl_jax.data.packing.first_fit import cached_first_fit
from mtl_jax.data.packing.packed_labels import pack_labels
from mtl_jax.data.packing.row_placement import example_positions, scatter
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
