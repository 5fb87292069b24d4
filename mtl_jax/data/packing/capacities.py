"""The capacities of rows: tokens, example slots, and label positions of each level.

E and Q come from the data. Examples are first packed by tokens alone; then E and Q are the 90th, else the 95th, else
the 99th percentile of what those rows hold, whichever first needs at most 2 % more rows; else the largest. They are
never smaller than what the longest example needs. The choices of a record are packed together. Of more than `SAMPLE`
examples of train a random sample decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, example_range, example_ranges, select_examples
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing.first_fit import cached_first_fit
from mtl_jax.errors import UserError

SAMPLE = 1 << 17  # examples


class Capacities(NamedTuple):
    """What a row holds: T tokens, E example slots, and label positions of the levels with positions of their own.

    A level without a task has 0 label positions.
    """

    tokens: int
    examples: int
    word: int
    predicate: int
    sequence: int = 0
    span: int = 0


def example_demands(split: EncodedSplit, levels: Sequence[str]) -> np.ndarray:
    """int64[N, 6]: tokens, examples (1), and label positions of the levels that each example takes."""
    count = len(split.record)
    words = split.example_words.astype(np.int64)
    result = np.zeros((count, 6), np.int64)
    result[:, 0] = split.lengths
    result[:, 1] = 1
    if "word" in levels:
        result[:, 2] = words * ~split.copy
    if "predicate" in levels:
        result[:, 3] = words * np.diff(split.sequence_offsets)
    if "sequence" in levels:
        result[:, 4] = split.targets[split.record] * split.is_first_example
    if "span" in levels:
        result[:, 5] = (words + 1) * ~split.copy
    return result


def group_demands(split: EncodedSplit, demand: np.ndarray) -> np.ndarray:
    """int64[G, 6]: sums of `example_demands` over the examples that have to be in one row."""
    return np.add.reduceat(demand, np.flatnonzero(split.choice == 0)) if len(demand) else demand


def largest_demand(split: EncodedSplit, levels: Sequence[str]) -> np.ndarray:
    """int64[6], the largest of `group_demands`."""
    parts = (example_range(split, begin, end) for begin, end in example_ranges(split.choice, SAMPLE))
    demands = [group_demands(part, example_demands(part, levels)).max(0) for part in parts]
    return np.max(demands, axis=0) if demands else np.zeros(6, np.int64)


def choose_capacities(
    splits: Sequence[EncodedSplit],
    levels: Sequence[str],
    row_length: int,
    pack: bool,
    sample: EncodedSplit | None = None,
) -> Capacities:
    """Capacities for all splits of a data set, derived from the first (train), or a sample of it; see the head of this
    file.

    With `pack=False` a row holds one example.
    """
    largest = np.max([largest_demand(split, levels) for split in splits], axis=0)
    sample = splits[0] if sample is None else sample
    demand = group_demands(sample, example_demands(sample, levels))
    if "sequence" in levels:
        largest[4] = max(largest[4], 1)  # a row without targets, as in prediction, has a position as well
    _check_length(largest[0], row_length)
    if not pack or not len(demand):
        return Capacities(row_length, *map(int, largest[1:]))
    unlimited = demand.sum(0) + largest + 1
    unlimited[0] = row_length
    row = cached_first_fit(demand, unlimited)
    rows = row.max() + 1
    contents = np.stack([np.bincount(row, column) for column in demand.T], axis=1)
    for percentile in (90, 95, 99):
        limits = np.maximum(np.ceil(np.percentile(contents, percentile, axis=0)), largest).astype(np.int64)
        limits[0] = row_length
        if cached_first_fit(demand, limits).max() + 1 <= 1.02 * rows:
            break
    else:
        limits = np.maximum(contents.max(0), largest).astype(np.int64)
    return Capacities(row_length, *map(int, limits[1:]))


def capacities_of(rows: PackedRows, specs: Sequence[LabelSpec]) -> Capacities:
    """The capacities with which rows were packed for the tasks `specs`."""
    positions = dict.fromkeys(Capacities._fields[2:], 0)
    for spec in specs:
        if spec.level in positions:
            positions[spec.level] = rows.labels[spec.task]["segment"].shape[1]
    return Capacities(rows.tokens.shape[1], rows.start.shape[1], **positions)


def enlarged_capacities(capacities: Capacities, split: EncodedSplit, levels: Sequence[str]) -> Capacities:
    """`capacities`, enlarged where an example of `split` takes more."""
    largest = largest_demand(split, levels)
    _check_length(largest[0], capacities.tokens)
    return Capacities(capacities.tokens, *(max(c, int(n)) for c, n in zip(capacities[1:], largest[1:], strict=True)))


def predicate_limit(splits: Sequence[EncodedSplit], row_length: int, pack: bool) -> int:
    """The largest number of (predicate, word) pairs of an example, see `copy_for_predicates`.

    The 90th percentile of what the rows of the first split (train) hold when packed by tokens alone; with `pack=False`
    the 99th percentile over its examples; at least one sequence of the longest example of all splits.
    """
    longest = max(int(split.example_words.max(initial=0)) for split in splits)
    count = len(splits[0].record)
    sample = splits[0] if count <= SAMPLE else select_examples(splits[0], np.arange(0, count, -(-count // SAMPLE)))
    demand = example_demands(sample, ["predicate"])
    if not len(demand):
        return longest
    if not pack:
        return max(longest, int(np.percentile(demand[:, 3], 99)))
    row = cached_first_fit(demand[:, :1], np.asarray([row_length]))
    return max(longest, int(np.percentile(np.bincount(row, demand[:, 3]), 90)))


def _check_length(longest: int, row_length: int) -> None:
    if longest > row_length:
        raise UserError(f"an example of {longest} tokens does not fit row_length {row_length}")
