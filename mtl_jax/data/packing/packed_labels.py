"""Label arrays of packed rows, by level; their meaning is in `mtl_jax.data.batch`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing.capacities import Capacities
from mtl_jax.data.packing.row_placement import ExamplePositions, rank_in_row, scatter
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


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The examples of a split in `num_rows` rows; tasks of one level share the arrays of their places."""

    split: EncodedSplit
    capacities: Capacities
    placement: ExamplePositions
    num_rows: int

    @property
    def slots(self) -> tuple[int, int]:
        return self.num_rows, self.capacities.examples

    @functools.cached_property
    def examples(self) -> _LabelPlaces:
        """Of one label an example."""
        record = self.split.record.astype(np.int64)
        where = (self.placement.row, self.placement.slot)
        return _LabelPlaces(where, self.slots, record, np.zeros_like(record), {})

    @functools.cached_property
    def words(self) -> _LabelPlaces:
        """Of one sequence of labels an example."""
        example = np.flatnonzero(~self.split.copy)
        return _word_places(self, example, self.placement.word[example], self.capacities.word)

    @functools.cached_property
    def predicates(self) -> _LabelPlaces:
        """Of one sequence of labels a predicate."""
        split, counts = self.split, np.diff(self.split.sequence_offsets)
        example, order = concatenated_ranges(np.zeros_like(counts), counts)
        begin = self.placement.predicate[example] + order * split.example_words[example]
        return _word_places(self, example, begin, self.capacities.predicate, predicates=True)


def pack_labels(
    split: EncodedSplit,
    specs: Sequence[LabelSpec],
    classes: Mapping[str, int],
    capacities: Capacities,
    placement: ExamplePositions,
    num_rows: int,
) -> dict[str, LabelArrays]:
    """{task: label arrays of `num_rows` rows} of all levels but "token"; the other arguments as for `packing.pack`."""
    rows = _Rows(split, capacities, placement, num_rows)
    packed = {
        spec.task: LEVEL_PACKERS[spec.level](rows, split.labels[spec.task], classes[spec.task])
        for spec in specs
        if spec.level in LEVEL_PACKERS
    }
    for spec in specs:
        if spec.target is not None and spec.target.in_row:
            packed[spec.task] |= _places_in_rows(rows, split.labels[spec.task], packed[spec.task])
    return packed


def _pack_texts(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    return _packed_classes(rows.examples, gold, classes, rows.split.is_first_example)


def _pack_pairs(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    split, placement = rows.split, rows.placement
    has_marks = (split.mark_token >= 0).all(1)
    marks = np.where(has_marks[:, None], placement.token[:, None] + split.mark_token, 0)
    packed = _packed_classes(rows.examples, gold, classes, split.is_first_example & has_marks)
    return packed | {"mark": scatter(rows.slots, (placement.row, placement.slot), marks)}


def _pack_words(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    return _packed_classes(rows.words, gold, classes)


def _pack_predicates(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    return _packed_classes(rows.predicates, gold, classes)


def _pack_targets(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    """The targets of each task have lengths of their own, and tokens that the vocabulary lacks."""
    places = _target_places(rows.split, gold, (rows.num_rows, rows.capacities.sequence), rows.placement)
    source = gold.offsets[places.record] + places.index
    return _packed(places, gold.value[source], gold.known[source])


def _places_in_rows(rows: _Rows, gold: GoldLabels, packed: LabelArrays) -> LabelArrays:
    """Of targets that follow their texts: the token before each of theirs, and the tokens of each prompt."""
    split, placement = rows.split, rows.placement
    counts = np.where(split.is_first_example, np.diff(gold.offsets)[split.record], 0)
    prompt = scatter(rows.slots, (placement.row, placement.slot), split.lengths - counts)
    start = scatter(rows.slots, (placement.row, placement.slot), placement.token)
    first = np.take_along_axis(start + prompt - 1, packed["slot"], axis=1)
    token = np.where(packed["segment"] > 0, first + packed["position"], 0)
    return {"token": token.astype(np.int32), "prompt": prompt}


def _packed_classes(
    places: _LabelPlaces, gold: GoldLabels, classes: int, usable: np.ndarray | bool = True
) -> LabelArrays:
    """Labels of unknown classes, and of places that are not `usable`, are masked."""
    source = gold.offsets[places.record] + places.index
    value, known = gold.value[source], gold.known[source] & usable
    return _packed(places, value, known & (value < classes) if value.dtype == np.int32 else known)


def _packed(places: _LabelPlaces, value: np.ndarray, known: np.ndarray) -> LabelArrays:
    return {
        "value": scatter(places.shape, places.where, value, dtype=value.dtype),
        "mask": scatter(places.shape, places.where, known, dtype=np.bool_),
        **places.arrays,
    }


def maskable_tokens(rows: PackedRows, tokenizer: Tokenizer) -> LabelArrays:
    """{"maskable": bool[N, T]}: the tokens that may be hidden, all but special and unknown tokens and patches."""
    special = np.isin(rows.tokens, np.asarray(sorted(tokenizer.special_ids), np.int32))
    if rows.patch is not None:
        special |= rows.patch > 0
    return {"maskable": (rows.segment > 0) & ~special}


def with_maskable(rows: PackedRows, specs: Sequence[LabelSpec], tokenizer: Tokenizer) -> PackedRows:
    """The rows with the arrays of the tasks of level "token"."""
    hidden = {spec.task: maskable_tokens(rows, tokenizer) for spec in specs if spec.level == "token"}
    return rows._replace(labels=rows.labels | hidden)


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


def _word_places(
    rows: _Rows, example: np.ndarray, begin: np.ndarray, positions: int, predicates: bool = False
) -> _LabelPlaces:
    """The places of the words of `example` int64[sequences], that begin at `begin` on Q = `positions`."""
    split, placement = rows.split, rows.placement
    words = split.example_words[example].astype(np.int64)
    sequence, word = concatenated_ranges(np.zeros_like(words), words)
    row = placement.row[example]
    where, shape = (row[sequence], begin[sequence] + word), (rows.num_rows, positions)
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
    if predicates:
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
    sequence, token = concatenated_ranges(np.zeros_like(record), gold.offsets[record + 1] - gold.offsets[record])
    row = placement.row[example]
    where = (row[sequence], placement.sequence[example][sequence] + token)
    arrays = {
        "segment": scatter(shape, where, (rank_in_row(row) + 1)[sequence]),
        "slot": scatter(shape, where, placement.slot[example][sequence]),
        "position": scatter(shape, where, token),
    }
    return _LabelPlaces(where, shape, record[sequence], token, arrays)


def _pack_choices(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    split, placement, shape = rows.split, rows.placement, rows.slots
    where = (placement.row, placement.slot)
    group = placement.slot - split.choice + 1  # 1 + slot of the record's first choice: its examples are consecutive
    source = gold.offsets[split.record]
    return {
        "value": scatter(shape, where, gold.value[source] == split.choice),
        "mask": scatter(shape, where, gold.known[source], dtype=np.bool_),
        "group": scatter(shape, where, group),
        "choice": scatter(shape, where, split.choice),
    }


def _pack_spans(rows: _Rows, gold: GoldLabels, classes: int) -> LabelArrays:
    """The positions of an example are its first token, then its words.

    An example without the answer, which is in another example of its record, has no answer.
    """
    split, placement, shape = rows.split, rows.placement, (rows.num_rows, rows.capacities.span)
    example = np.flatnonzero(~split.copy)
    words = split.example_words[example].astype(np.int64)
    number, at = concatenated_ranges(np.zeros_like(words), words + 1)
    owner = example[number]
    where = (placement.row[owner], placement.span[owner] + at)
    has_answer, _ = answer_spans.complete_answers(split, gold)
    none = gold.value[:, 0] == answer_spans.NONE
    known = (gold.known & (gold.complete | none))[split.record[example]]
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


# How the labels of each level are packed; those of level "token" are drawn in the step, see `maskable_tokens`.
LEVEL_PACKERS: dict[str, Callable[[_Rows, GoldLabels, int], LabelArrays]] = {
    "text": _pack_texts,
    "pair": _pack_pairs,
    "choice": _pack_choices,
    "word": _pack_words,
    "predicate": _pack_predicates,
    "sequence": _pack_targets,
    "span": _pack_spans,
}
