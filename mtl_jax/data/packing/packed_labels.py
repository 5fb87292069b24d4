"""Label arrays of packed rows, by level; their meaning is in `mtl_jax.data.batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing.capacities import Capacities
from mtl_jax.data.packing.placement import ExamplePositions, rank_in_row, scatter
from mtl_jax.data.tokenizers import Tokenizer

START, END = 1, 2  # bits of a span label

LabelArrays = dict[str, np.ndarray]


class _LabelPlaces(NamedTuple):
    """Where the n labels of a level are.

    where   indices into arrays of `shape`
    record  int64[n], the record of each label
    index   int64[n], its index among the labels of the record
    arrays  arrays of the level besides value and mask
    """

    where: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]
    record: np.ndarray
    index: np.ndarray
    arrays: LabelArrays


def pack_labels(
    split: EncodedSplit,
    specs: Sequence[LabelSpec],
    classes: Mapping[str, int],
    capacities: Capacities,
    placement: ExamplePositions,
    num_rows: int,
) -> dict[str, LabelArrays]:
    """{task: label arrays of `num_rows` rows} of all levels but "token"; the other arguments as for `packing.pack`."""
    result: dict[str, LabelArrays] = {}
    structures: dict[str, _LabelPlaces] = {}  # tasks of one level share these arrays
    slots = (num_rows, capacities.examples)
    for spec in specs:
        gold, level = split.labels[spec.task], spec.level
        if level == "token":
            continue
        if level == "choice":
            result[spec.task] = _choices(split, gold, slots, placement)
            continue
        if level == "span":
            result[spec.task] = _spans(split, gold, (num_rows, capacities.span), placement)
            continue
        if level == "sequence":  # the targets of each task have lengths of their own
            places = _target_places(split, gold, (num_rows, capacities.sequence), placement)
        else:
            if level not in structures:
                structures[level] = _label_places(split, level, capacities, placement, num_rows)
            places = structures[level]
        source = gold.offsets[places.record] + places.index
        value, known, arrays = gold.value[source], gold.known[source], places.arrays
        if level in ("text", "pair"):
            known = known & split.is_first_example
        if level == "pair":
            has_marks = (split.mark_token >= 0).all(1)
            marks = np.where(has_marks[:, None], placement.token[:, None] + split.mark_token, 0)
            arrays = arrays | {"mark": scatter(slots, (placement.row, placement.slot), marks)}
            known = known & has_marks
        if value.dtype == np.int32 and level != "sequence":
            known = known & (value < classes[spec.task])
        result[spec.task] = {
            "value": scatter(places.shape, places.where, value, dtype=value.dtype),
            "mask": scatter(places.shape, places.where, known, dtype=np.bool_),
            **arrays,
        }
    return result


def maskable_tokens(rows: PackedRows, tokenizer: Tokenizer) -> LabelArrays:
    """{"maskable": bool[N, T]}: the tokens that may be hidden, all but special and unknown tokens and patches."""
    special = np.isin(rows.tokens, np.asarray(sorted(tokenizer.special_ids), np.int32))
    if rows.patch is not None:
        special |= rows.patch > 0
    return {"maskable": (rows.segment > 0) & ~special}


def masked_positions(rows: PackedRows, tokenizer: Tokenizer, least: int = 1) -> LabelArrays:
    """The arrays of level "token" for texts that contain [MASK]: one position of unknown value for each.

    Q is `least`, or the largest number of them in a row.
    """
    row, token = np.nonzero((rows.tokens == tokenizer.mask_id) & (rows.segment > 0))
    rank = rank_in_row(row)
    shape, where = (len(rows.tokens), max(int(rank.max(initial=0)) + 1, least)), (row, rank)
    segment = rows.segment[row, token]
    return {
        "value": np.zeros(shape, np.int32),
        "mask": np.zeros(shape, np.bool_),
        "token": scatter(shape, where, token),
        "segment": scatter(shape, where, segment),
        "slot": scatter(shape, where, segment - 1),
    }


def _label_places(
    split: EncodedSplit, level: str, capacities: Capacities, placement: ExamplePositions, num_rows: int
) -> _LabelPlaces:
    """The places of labels of level "text", "pair", "word" or "predicate"."""
    if level in ("text", "pair"):
        record = split.record.astype(np.int64)
        slots = (num_rows, capacities.examples)
        return _LabelPlaces((placement.row, placement.slot), slots, record, np.zeros_like(record), {})
    if level == "word":  # one sequence for each example
        example = np.flatnonzero(~split.copy)
        begin = placement.word[example]
    else:
        counts = np.diff(split.sequence_offsets)
        example, order = concatenated_ranges(np.zeros_like(counts), counts)
        begin = placement.predicate[example] + order * split.example_words[example]
    words = split.example_words[example].astype(np.int64)
    sequence, word = concatenated_ranges(np.zeros_like(words), words)
    row = placement.row[example]
    where, shape = (row[sequence], begin[sequence] + word), (num_rows, capacities.label_positions(level))
    start = placement.token[example]

    def token(example_word: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The index on T of a word of the sequences `which`."""
        return start[which] + split.word_token[split.word_offsets[example[which]] + example_word]

    arrays = {
        "token": scatter(shape, where, token(word, sequence)),
        "segment": scatter(shape, where, (rank_in_row(row) + 1)[sequence]),
        "slot": scatter(shape, where, placement.slot[example][sequence]),
        "word": scatter(shape, where, word),
    }
    record = split.record[example].astype(np.int64)
    index = split.first_word[example][sequence] + word
    if level == "predicate":
        number = split.sequence.astype(np.int64)
        predicate = split.predicate[split.predicate_offsets[record] + number] - split.first_word[example]
        arrays["predicate"] = scatter(shape, where, token(predicate, np.arange(len(example)))[sequence])
        arrays["predicate_number"] = scatter(shape, where, number[sequence])
        index = index + (number * split.words[record])[sequence]
    return _LabelPlaces(where, shape, record[sequence], index, arrays)


def _target_places(
    split: EncodedSplit, gold: GoldLabels, shape: tuple[int, int], placement: ExamplePositions
) -> _LabelPlaces:
    """The places of the targets of one task: those of a record are at its first example."""
    example = np.flatnonzero(split.is_first_example)
    record = split.record[example].astype(np.int64)
    sequence, token = concatenated_ranges(np.zeros_like(record), np.diff(gold.offsets)[record])
    row = placement.row[example]
    where = (row[sequence], placement.sequence[example][sequence] + token)
    arrays = {
        "segment": scatter(shape, where, (rank_in_row(row) + 1)[sequence]),
        "slot": scatter(shape, where, placement.slot[example][sequence]),
        "position": scatter(shape, where, token),
    }
    return _LabelPlaces(where, shape, record[sequence], token, arrays)


def _choices(split: EncodedSplit, gold: GoldLabels, shape: tuple[int, int], placement: ExamplePositions) -> LabelArrays:
    """The arrays of level "choice"."""
    where = (placement.row, placement.slot)
    group = placement.slot - split.choice + 1  # 1 + slot of the record's first choice: its examples are consecutive
    source = gold.offsets[split.record]
    return {
        "value": scatter(shape, where, gold.value[source] == split.choice),
        "mask": scatter(shape, where, gold.known[source], dtype=np.bool_),
        "group": scatter(shape, where, group),
        "choice": scatter(shape, where, split.choice),
    }


def _spans(split: EncodedSplit, gold: GoldLabels, shape: tuple[int, int], placement: ExamplePositions) -> LabelArrays:
    """The arrays of level "span"; the positions of an example are its first token, then its words.

    An example without the answer, which is in another example of its record, has no answer.
    """
    example = np.flatnonzero(~split.copy)
    words = split.example_words[example].astype(np.int64)
    number, at = concatenated_ranges(np.zeros_like(words), words + 1)
    owner = example[number]
    where = (placement.row[owner], placement.span[owner] + at)
    has_answer, is_answerable = answer_spans.complete_answers(split, gold)
    none = gold.value[:, 0] == answer_spans.NONE
    known = (gold.known & (is_answerable | none))[split.record[example]]
    value = gold.value[split.record] - split.first_word[:, None]
    value = np.where(has_answer[:, None], value, -1)[example]
    bits = START * (at == value[number, 0] + 1) + END * (at == value[number, 1] + 1)
    word_index = split.word_offsets[owner] + np.maximum(at - 1, 0)
    position = np.where(at > 0, split.word_token[np.minimum(word_index, max(len(split.word_token) - 1, 0))], 0)
    return {
        "value": scatter(shape, where, np.where(known[number], bits, 0)),
        "mask": scatter(shape, where, known[number], dtype=np.bool_),
        "token": scatter(shape, where, placement.token[owner] + position),
        "segment": scatter(shape, where, rank_in_row(placement.row[example])[number] + 1),
        "slot": scatter(shape, where, placement.slot[owner]),
        "word": scatter(shape, where, np.where(at > 0, at - 1 + split.first_word[owner], -1)),
    }
