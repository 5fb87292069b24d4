"""Sequence packing: pieces of a split into rows of fixed capacities, and their labels with them.

A row holds T tokens, E example slots and, for each further level of labels, Q label positions. A piece goes to the
oldest open row in which all of them fit (first fit, pieces in their order, a window of open rows), else to a new row.

E and Q come from the data. Rows are packed by tokens alone first; then E and Q are the 90th, else the 95th, else the
99th percentile of what those rows hold, whichever first needs at most 2 % more rows; else the largest. They never fall
under what the longest piece needs. The choices of a record are packed as one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data import packed_labels
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.files import array_cache
from mtl_jax.data.labels.raw_labels import LabelSpec
from mtl_jax.errors import UserError

WINDOW = 64  # open rows


class Capacities(NamedTuple):
    """What a row holds: T tokens, E example slots, and label positions of the levels that have positions of their own.

    A level without a task has 0 label positions.
    """

    tokens: int
    examples: int
    word: int
    predicate: int
    sequence: int = 0
    span: int = 0

    def label_positions(self, level: str) -> int:
        """Q of a task of this level."""
        return getattr(self, level)


class PiecePositions(NamedTuple):
    """Where each of N pieces stands: row, example slot, and begin on T and on the Q axes of the levels, int64[N]."""

    row: np.ndarray
    slot: np.ndarray
    token: np.ndarray
    word: np.ndarray
    predicate: np.ndarray
    sequence: np.ndarray
    span: np.ndarray


def piece_demands(split: EncodedSplit, levels: Sequence[str]) -> np.ndarray:
    """int64[N, 6]: tokens, examples (1), and label positions of the levels that each piece takes."""
    count = len(split.record)
    words = split.piece_words.astype(np.int64)
    result = np.zeros((count, 6), np.int64)
    result[:, 0] = split.lengths
    result[:, 1] = 1
    if "word" in levels:
        result[:, 2] = words * ~split.copy
    if "predicate" in levels:
        result[:, 3] = words * np.diff(split.sequence_offsets)
    if "sequence" in levels:
        result[:, 4] = split.targets[split.record] * split.is_first_piece
    if "span" in levels:
        result[:, 5] = (words + 1) * ~split.copy
    return result


def _in_groups(split: EncodedSplit, demand: np.ndarray) -> np.ndarray:
    """What each group takes of pieces that have to stand in one row."""
    return np.add.reduceat(demand, np.flatnonzero(split.choice == 0)) if len(demand) else demand


def choose_capacities(splits: Sequence[EncodedSplit], levels: Sequence[str], row_length: int, pack: bool) -> Capacities:
    """Capacities for all splits of a data set, the first (train) deciding; see the head of this file.

    With `pack=False` a row holds one piece.
    """
    demands = [_in_groups(split, piece_demands(split, levels)) for split in splits]
    largest = np.max([demand.max(0, initial=0) for demand in demands], axis=0)
    if "sequence" in levels:
        largest[4] = max(largest[4], 1)  # a row without targets, as in prediction, has a place all the same
    if largest[0] > row_length:
        raise UserError(f"a piece of {largest[0]} tokens does not fit row_length {row_length}")
    if not pack or not len(demands[0]):
        return Capacities(row_length, *map(int, largest[1:]))
    unlimited = demands[0].sum(0) + largest + 1
    unlimited[0] = row_length
    row = _fitted(demands[0], unlimited)
    rows = row.max() + 1
    held = np.stack([np.bincount(row, demand) for demand in demands[0].T], axis=1)
    for percentile in (90, 95, 99):
        limits = np.maximum(np.ceil(np.percentile(held, percentile, axis=0)), largest).astype(np.int64)
        limits[0] = row_length
        if _fitted(demands[0], limits).max() + 1 <= 1.02 * rows:
            break
    else:
        limits = np.maximum(held.max(0), largest).astype(np.int64)
    return Capacities(row_length, *map(int, limits[1:]))


def capacities_of(rows: PackedRows, specs: Sequence[LabelSpec]) -> Capacities:
    """The capacities with which rows were packed for the tasks `specs`."""
    found = dict.fromkeys(Capacities._fields[2:], 0)
    for spec in specs:
        if spec.level in found:
            found[spec.level] = rows.labels[spec.task]["segment"].shape[1]
    return Capacities(rows.tokens.shape[1], rows.start.shape[1], **found)


def enlarged_capacities(capacities: Capacities, split: EncodedSplit, levels: Sequence[str]) -> Capacities:
    """`capacities`, or larger ones where a piece of `split` takes more."""
    largest = _in_groups(split, piece_demands(split, levels)).max(0, initial=0)
    if largest[0] > capacities.tokens:
        raise UserError(f"a piece of {largest[0]} tokens does not fit row_length {capacities.tokens}")
    return Capacities(capacities.tokens, *(max(c, int(n)) for c, n in zip(capacities[1:], largest[1:], strict=True)))


def predicate_limit(splits: Sequence[EncodedSplit], row_length: int, pack: bool) -> int:
    """(predicate, word) pairs of a piece at most, see `copy_for_predicates`.

    The 90th percentile of what the rows of the first split (train) hold when packed by tokens alone; with `pack=False`
    the 99th percentile of what its pieces have; at least one sequence of the longest piece of all splits.
    """
    longest = max(int(split.piece_words.max(initial=0)) for split in splits)
    demand = piece_demands(splits[0], ["predicate"])
    if not len(demand):
        return longest
    if not pack:
        return max(longest, int(np.percentile(demand[:, 3], 99)))
    row = _fitted(demand[:, :1], np.asarray([row_length]))
    return max(longest, int(np.percentile(np.bincount(row, demand[:, 3]), 90)))


def _fitted(demand: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`first_fit`, kept from run to run where it takes long."""
    key = {"first_fit": array_cache.checksum({"demand": demand, "limits": limits}), "window": WINDOW}
    return array_cache.load_or_make(key, lambda: {"row": first_fit(demand, limits)}, worth=0.05)["row"]


def first_fit(demand: np.ndarray, limits: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """int64[N] row of each piece: the oldest of `window` open rows in which it fits, else a new row.

    Args:
      demand: int64[N, A], what each piece takes of each of A capacities.
      limits: int64[A], what a row holds; no piece takes more.
    """
    row = np.empty(len(demand), np.int64)
    free = np.empty((window, demand.shape[1]), np.int64)
    name = np.empty(window, np.int64)
    smallest = demand.min(0) if len(demand) else limits
    count = opened = 0
    for n in range(len(demand)):
        fits = (free[:count] >= demand[n]).all(1)
        place = int(fits.argmax()) if count else 0
        if not count or not fits[place]:
            if count == window:  # close the oldest
                free[:-1], name[:-1] = free[1:], name[1:]
                count -= 1
            place = count
            free[place], name[place] = limits, opened
            count += 1
            opened += 1
        free[place] -= demand[n]
        row[n] = name[place]
        if (free[place] < smallest).any():  # nothing will fit any more
            free[place : count - 1], name[place : count - 1] = free[place + 1 : count], name[place + 1 : count]
            count -= 1
    return row


def pack(
    split: EncodedSplit,
    specs: Sequence[LabelSpec],
    classes: Mapping[str, int],
    capacities: Capacities,
    packed: bool = True,
) -> PackedRows:
    """Rows of a split, with the labels of `split.labels`, those of level "token" aside.

    Args:
      split: N pieces.
      specs: tasks of this data set.
      classes: C of each task, the number of training classes; labels at or above it have mask False.
      capacities: see `choose_capacities`.
      packed: False for one piece a row.
    """
    demand = piece_demands(split, [spec.level for spec in specs])
    limits = np.asarray(capacities, np.int64)
    together = _in_groups(split, demand)
    if len(demand) and (together.max(0) > limits).any():
        raise UserError(f"a piece needs {tuple(together.max(0).tolist())}, rows hold {tuple(limits.tolist())}")
    row = (_fitted(together, limits) if packed else np.arange(len(together)))[split.piece_groups]
    place = _place(row, demand)
    count = int(row.max()) + 1 if len(row) else 0
    shape, slots = (count, capacities.tokens), (count, capacities.examples)
    piece, within = concatenated_ranges(np.zeros_like(split.lengths), split.lengths)
    where = (row[piece], place.token[piece] + within)
    return PackedRows(
        tokens=_scatter(shape, where, split.tokens),
        segment=_scatter(shape, where, place.slot[piece] + 1),
        position=_scatter(shape, where, within if split.place is None else split.place),
        token_type=_scatter(shape, where, split.token_type),
        start=_scatter(slots, (row, place.slot), place.token),
        length=_scatter(slots, (row, place.slot), split.lengths),
        example=_scatter(slots, (row, place.slot), np.arange(len(row)), fill=-1),
        labels=_labels(split, specs, classes, capacities, place, count),
        patch=None if split.patch is None else _scatter(shape, where, split.patch),
    )


def fill_ratio(rows: PackedRows) -> float:
    """Share of token positions that hold a real token."""
    return float((rows.segment > 0).mean()) if rows.segment.size else 0.0


def _labels(split, specs, classes, capacities, place, count) -> dict[str, dict[str, np.ndarray]]:
    result: dict[str, dict[str, np.ndarray]] = {}
    structures = {}  # tasks of one level share these arrays
    for spec in specs:
        gold = split.labels[spec.task]
        level = spec.level
        slots = (count, capacities.examples)
        if level == "token":
            continue
        if level == "choice":
            result[spec.task] = packed_labels.choice_labels(split, gold, slots, place.row, place.slot)
            continue
        if level == "span":
            shape = (count, capacities.span)
            result[spec.task] = packed_labels.span_labels(
                split, gold, shape, place.row, place.slot, place.token, place.span
            )
            continue
        if level == "sequence":  # each task has targets of its own length
            where, shape, record, index, named = _targets(split, gold, capacities, place, count)
        else:
            if level not in structures:
                structures[level] = _structure(split, level, capacities, place, count)
            where, shape, record, index, named = structures[level]
        source = gold.offsets[record] + index
        value = gold.value[source]
        known = gold.known[source]
        if level in ("text", "pair"):
            known = known & split.is_first_piece
        if level == "pair":
            marks, there = packed_labels.pair_labels(split, slots, place.row, place.slot, place.token)
            named, known = named | marks, known & there
        if value.dtype == np.int32 and level != "sequence":
            known = known & (value < classes[spec.task])
        result[spec.task] = {
            "value": _scatter(shape, where, value, dtype=value.dtype),
            "mask": _scatter(shape, where, known, dtype=np.bool_),
            **named,
        }
    return result


def _structure(split: EncodedSplit, level: str, capacities: Capacities, place: PiecePositions, count: int):
    """Where the labels of a level stand: index arrays into the rows, shape, record and index of each label, arrays."""
    if level in ("text", "pair"):
        record = split.record.astype(np.int64)
        return (place.row, place.slot), (count, capacities.examples), record, np.zeros_like(record), {}
    if level == "word":  # one sequence for each piece
        piece = np.flatnonzero(~split.copy)
        begin = place.word[piece]
    else:
        counts = np.diff(split.sequence_offsets)
        piece, order = concatenated_ranges(np.zeros_like(counts), counts)
        begin = place.predicate[piece] + order * split.piece_words[piece]
    words = split.piece_words[piece].astype(np.int64)
    sequence, word = concatenated_ranges(np.zeros_like(words), words)
    at = begin[sequence] + word
    row = place.row[piece]
    segment = _rank_in_row(row) + 1
    where, shape = (row[sequence], at), (count, capacities.label_positions(level))
    start = place.token[piece]

    def token(piece_word: np.ndarray, which: np.ndarray) -> np.ndarray:
        return start[which] + split.word_token[split.word_offsets[piece[which]] + piece_word]

    named = {
        "token": _scatter(shape, where, token(word, sequence)),
        "segment": _scatter(shape, where, segment[sequence]),
        "slot": _scatter(shape, where, place.slot[piece][sequence]),
        "word": _scatter(shape, where, word),
    }
    record = split.record[piece].astype(np.int64)
    index = split.first_word[piece][sequence] + word
    if level == "predicate":
        number = split.sequence.astype(np.int64)
        predicate = split.predicate[split.predicate_offsets[record] + number] - split.first_word[piece]
        named["predicate"] = _scatter(shape, where, token(predicate, np.arange(len(piece)))[sequence])
        named["predicate_number"] = _scatter(shape, where, number[sequence])
        index = index + (number * split.words[record])[sequence]
    return where, shape, record[sequence], index, named


def _targets(split: EncodedSplit, gold: GoldLabels, capacities: Capacities, place: PiecePositions, count: int):
    """As `_structure`, for the targets of one task: those of a record stand at its first piece."""
    piece = np.flatnonzero(split.is_first_piece)
    record = split.record[piece].astype(np.int64)
    sequence, token = concatenated_ranges(np.zeros_like(record), np.diff(gold.offsets)[record])
    row = place.row[piece]
    where = (row[sequence], place.sequence[piece][sequence] + token)
    shape = (count, capacities.sequence)
    named = {
        "segment": _scatter(shape, where, (_rank_in_row(row) + 1)[sequence]),
        "slot": _scatter(shape, where, place.slot[piece][sequence]),
        "position": _scatter(shape, where, token),
    }
    return where, shape, record[sequence], token, named


def _place(row: np.ndarray, demand: np.ndarray) -> PiecePositions:
    """Pieces of a row stand in their order, one after the other on every axis."""
    order = np.argsort(row, kind="stable")
    before = np.cumsum(demand[order], axis=0) - demand[order]
    first = np.searchsorted(row[order], row[order])  # position in `order` of the row's first piece
    begin = np.empty_like(demand)
    begin[order] = before - before[first]
    return PiecePositions(row, begin[:, 1], begin[:, 0], begin[:, 2], begin[:, 3], begin[:, 4], begin[:, 5])


def _rank_in_row(row: np.ndarray) -> np.ndarray:
    """int64: how many earlier entries have the same row."""
    order = np.argsort(row, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return rank


def _scatter(shape, where, values, fill=0, dtype=np.int32) -> np.ndarray:
    result = np.full(shape + values.shape[1:], fill, dtype)
    result[where] = values
    return result
