"""From records to examples of token ids: each record is one example, or several where a long sentence is split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs, extract_inputs
from mtl_jax.data.encoding.text_examples import (
    append_example,
    encode_choices,
    encode_texts,
    encode_without_text,
    marker_ids,
    too_long_error,
)
from mtl_jax.data.notices import INFORMATION, LENGTH, Notice
from mtl_jax.data.records import Record
from mtl_jax.data.tokenizers import Template, Tokenizer
from mtl_jax.errors import UserError

OVERFLOW = ("truncate", "split", "error", "windows")


class EncodedSplit(NamedTuple):
    """M records of a split, encoded as N examples; ragged arrays are flat, with offsets.

    words              int32[M]    number of words of the record; for plain text the number of tokens of its last text
                                   where `char_offsets` are known, else 0
    predicate_offsets  int64[M+1]  record m has predicate[predicate_offsets[m]:predicate_offsets[m+1]]
    predicate          int32[...]  index of the predicate's word in the record
    record             int32[N]    the record of the example
    first_word         int32[N]    index in the record of the example's first word, or first token of the last text
    example_words      int32[N]    number of words of the example, 0 for plain text
    token_offsets      int64[N+1]  example n has tokens[token_offsets[n]:token_offsets[n+1]]
    tokens             int32[...]  token ids, special tokens included
    token_type         int32[...]  0 first text, 1 second text of a pair
    word_offsets       int64[N+1]  example n has word_token[word_offsets[n]:word_offsets[n+1]]
    word_token         int32[...]  position in the example of the word's first sub-word
    sequence_offsets   int64[N+1]  example n has sequence[sequence_offsets[n]:sequence_offsets[n+1]]
    sequence           int32[...]  number in the record of each predicate whose roles are predicted at this example
    copy               bool[N]     True for a repetition of the example before, for further predicates; it has no other
                                   labels
    overlong           int64[3]    numbers of records that were truncated or split, and of tokens and words in no
                       example
    choice             int32[N]    number of the choice in the example; the examples of a record are consecutive
    mark_token         int32[N, 4] position in the example of the markers of both spans, -1 = none
    char_offsets       int32[.., 2] [begin, end) in characters of each of the `words` of plain text, concatenated over
                                   records; empty where no task needs them
    labels             {task: GoldLabels} complete gold labels by record
    targets            int64[M]    tokens of the record's longest target sequence; None without such a task
    place              int32[...]  of each token, see `patches.insert_patches`; None = its position in the example
    patch              int32[...]  row of the patch at each token in the store's pixels, 0 = none; None without pictures
    """

    words: np.ndarray
    predicate_offsets: np.ndarray
    predicate: np.ndarray
    record: np.ndarray
    first_word: np.ndarray
    example_words: np.ndarray
    token_offsets: np.ndarray
    tokens: np.ndarray
    token_type: np.ndarray
    word_offsets: np.ndarray
    word_token: np.ndarray
    sequence_offsets: np.ndarray
    sequence: np.ndarray
    copy: np.ndarray
    overlong: np.ndarray
    choice: np.ndarray
    mark_token: np.ndarray
    char_offsets: np.ndarray
    labels: Mapping[str, GoldLabels] = {}
    targets: np.ndarray | None = None
    place: np.ndarray | None = None
    patch: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """int64[N] tokens of each example."""
        return np.diff(self.token_offsets)

    @property
    def is_first_example(self) -> np.ndarray:
        """bool[N], the example that has its record's labels in text-level tasks."""
        return (self.first_word == 0) & ~self.copy & (self.choice == 0)

    @property
    def example_groups(self) -> np.ndarray:
        """int64[N], a number that examples share which have to be in one row: the choices of a record."""
        return np.cumsum(self.choice == 0) - 1


def encode(
    inputs: RecordInputs, tokenizer: Tokenizer, max_length: int, overflow: str = "truncate", stride: int = 0
) -> EncodedSplit:
    """Token ids of every record, without labels.

    Args:
      inputs: of the records.
      tokenizer: provides ids and the template of special tokens.
      max_length: the largest number of tokens of an example, special tokens and patches of pictures included.
      overflow: how a record of more tokens is encoded. "truncate": its end is cut off; the longer text of a pair loses
        tokens first; special tokens stay. "split": further examples take the words that do not fit, each with its own
        special tokens (data sets of words only). "error": UserError by file and line. "windows": overlapping examples,
        each with the complete first text and a part of the last one. In every mode a single word with more sub-words
        than an example holds keeps its first ones. The n choices of a record have an example each, of at most
        max_length // n tokens, so that they fit one row.
      stride: of "windows", the distance in tokens between the beginnings of two windows; 0 = half a window. It is
        limited to the size of a window.

    Raises:
      UserError: as above; `max_length` leaves no room for text; an unknown `overflow`.
    """
    if overflow not in OVERFLOW:
        raise UserError(f"overflow: {overflow!r} is none of {', '.join(OVERFLOW)}")
    paired = _paired(inputs)
    template = tokenizer.pair if paired else tokenizer.single
    has_text = inputs.texts is None or any(inputs.texts)
    room = max_length - template.special_count
    if room - max(inputs.patches, default=0) < has_text + paired:
        fixed = f"{template.special_count} special tokens"
        if any(inputs.patches):
            fixed += f" and {max(inputs.patches)} patches of a picture (config.images.patch_size)"
        raise UserError(
            f"a row of {max_length} tokens (config.data.row_length) leaves no room for text in addition to {fixed}"
        )
    if inputs.texts is None:
        return _encode_words(inputs, tokenizer, template, room, overflow, stride)
    if overflow == "split" and has_text:
        raise UserError('overflow "split" cuts between words: give the data set `words`, or choose "truncate"')
    if inputs.choices is not None:
        return EncodedSplit(**encode_choices(inputs, tokenizer, template, max_length, overflow))
    if not has_text:
        return EncodedSplit(**encode_without_text(inputs, template))
    return EncodedSplit(**encode_texts(inputs, tokenizer, template, room, overflow, stride))


def leading_special_tokens(inputs: RecordInputs, tokenizer: Tokenizer) -> int:
    """The number of special tokens before the text of every example."""
    return len((tokenizer.pair if _paired(inputs) else tokenizer.single).before)


def _paired(inputs: RecordInputs) -> bool:
    return inputs.choices is not None or (inputs.texts is not None and any(len(text) == 2 for text in inputs.texts))


def overlong_note(name: str, split: EncodedSplit) -> Notice | None:
    """A notice about truncated and split records, None where there are none."""
    records, tokens, words = (int(n) for n in split.overlong)
    if not records:
        return None
    examples = int((~split.copy & (split.choice == 0)).sum()) - len(split.words)
    share = records / len(split.words)
    lost = f"{tokens} tokens" + (f" and {words} words" if words else "") + " left out"
    way = "read through windows" if len(split.char_offsets) else "split"
    done = f"{way}, {examples} more examples" if examples else "truncated"
    text = f"{name}: {records} of {len(split.words)} ({share:.1%}) too long, {done}" + (f", {lost}" if tokens else "")
    return Notice(text, LENGTH if tokens else INFORMATION, records, len(split.words))


def copy_for_predicates(split: EncodedSplit, limit: int) -> EncodedSplit:
    """The split with copies of every example of more than `limit` (predicate, word) pairs, each with some predicates.

    Otherwise one sentence of 40 words and 30 predicates would decide how many label positions every row has. Each copy
    has at least one predicate, and so may exceed the limit.
    """
    sequences = np.diff(split.sequence_offsets)
    most = np.maximum(limit // np.maximum(split.example_words, 1), 1)
    copies = np.maximum(-(-sequences // most), 1)
    if (copies == 1).all():
        return split
    example, number = concatenated_ranges(np.zeros_like(copies), copies)
    counts = np.minimum(sequences[example] - number * most[example], most[example])
    repeated = select_examples(split, example)
    return repeated._replace(sequence_offsets=offsets_from_lengths(counts), sequence=split.sequence, copy=number > 0)


def select_examples(split: EncodedSplit, example: np.ndarray) -> EncodedSplit:
    """The same records with the examples of the given indices, in their order."""

    def ragged(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(offsets of the selected examples, indices of their elements)."""
        lengths = np.diff(offsets)[example]
        return offsets_from_lengths(lengths), concatenated_ranges(offsets[example], lengths)[1]

    token_offsets, token = ragged(split.token_offsets)
    by_token = {name: getattr(split, name)[token] for name in ("place", "patch") if getattr(split, name) is not None}
    word_offsets, word = ragged(split.word_offsets)
    sequence_offsets, sequence = ragged(split.sequence_offsets)
    return split._replace(
        record=split.record[example],
        first_word=split.first_word[example],
        example_words=split.example_words[example],
        token_offsets=token_offsets,
        tokens=split.tokens[token],
        token_type=split.token_type[token],
        word_offsets=word_offsets,
        word_token=split.word_token[word],
        sequence_offsets=sequence_offsets,
        sequence=split.sequence[sequence],
        copy=split.copy[example],
        choice=split.choice[example],
        mark_token=split.mark_token[example],
        **by_token,
    )


# Arrays of `EncodedSplit` with an entry for each example, or for each of its tokens, words or predicates.
OFFSETS = ("token_offsets", "word_offsets", "sequence_offsets")
BY_EXAMPLE = ("record", "first_word", "example_words", "copy", "choice", "mark_token")
_INSIDE = ("tokens", "token_type", "word_token", "sequence")
_BY_RECORD = ("words", "predicate", "char_offsets")
CUMULATIVE = (*OFFSETS, "predicate_offsets")


def example_arrays(split: EncodedSplit) -> dict[str, np.ndarray]:
    """The arrays of the examples of a split without pictures; of the offsets all but the first, which is 0."""
    arrays = {name: getattr(split, name) for name in (*BY_EXAMPLE, *_INSIDE)}
    return arrays | {name: getattr(split, name)[1:] for name in OFFSETS}


def encode_chunk(
    records: Sequence[Record],
    begin: int,
    options: Mapping[str, Any],
    tokenizer: Tokenizer,
    settings: tuple[int, str, int],
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The arrays of an encoded chunk of records, the first of which has the number `begin`; and `overlong`.

    `options` of `extract_inputs`, `settings` the further arguments of `encode`.
    """
    split = encode(extract_inputs(list(records), **options), tokenizer, *settings)
    arrays = example_arrays(split) | {name: getattr(split, name) for name in _BY_RECORD}
    arrays |= {"record": split.record + np.int32(begin), "predicate_offsets": split.predicate_offsets[1:]}
    return arrays, split.overlong.tolist()


def example_ranges(choice: np.ndarray, size: int) -> list[tuple[int, int]]:
    """[begin, end) of about `size` examples each, whose choices are given; those of a record stay together."""
    count = len(choice)
    begins = np.arange(0, count, size)
    while len(late := np.flatnonzero(choice[begins] > 0)):
        begins[late] -= 1
    begins = np.unique(begins).tolist()
    return list(zip(begins, [*begins[1:], count], strict=True))


def example_range(split: EncodedSplit, begin: int, end: int) -> EncodedSplit:
    """The same records with the examples [begin, end)."""
    if (begin, end) == (0, len(split.record)):
        return split
    return select_examples(split, np.arange(begin, end))


def concatenated_ranges(begin: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The concatenation of ranges of `lengths`: (number of the range, begin + index in the range) of each element."""
    number = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return number, np.repeat(begin, lengths) + within


def offsets_from_lengths(lengths: np.ndarray) -> np.ndarray:
    """int64[n + 1]: where concatenated ranges of these lengths begin, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class _WordExamples:
    """Examples of sentences of words, collected one after the other."""

    def __init__(self, template: Template, markers: list[int]):
        self.template = template
        self.markers = markers
        self.tokens: list[int] = []
        self.types: list[int] = []
        self.word_token: list[int] = []
        self.sequence: list[int] = []
        self.marks: list[list[int]] = []
        # record, first word, words, ends of tokens, of word_token and of sequence
        self.table: list[tuple[int, ...]] = []

    def add(
        self,
        record: int,
        subwords: list[list[int]],
        before: list[int],
        first: int,
        room: int,
        predicates: Sequence[int],
    ) -> int:
        """Adds an example of the words from `first` on that fit into `room` tokens; returns the index after the last.

        `before`: how many of each word's sub-words are markers before it. `predicates`: words of the record.
        """
        ids: list[int] = []
        last = first
        while last < len(subwords) and len(ids) + len(subwords[last]) <= room:
            self.word_token.append(len(self.template.before) + len(ids) + before[last])
            ids.extend(subwords[last])
            last += 1
        begin = len(self.tokens)
        append_example(self.tokens, self.types, [ids], self.template)
        self.marks.append(marked_spans.place_markers(self.tokens, begin, self.markers) if self.markers else [-1] * 4)
        self.sequence.extend(k for k, word in enumerate(predicates) if first <= word < last)
        ends = len(self.tokens), len(self.word_token), len(self.sequence)
        self.table.append((record, first, last - first, *ends))
        return last

    def encoded(self, inputs: RecordInputs, overlong: np.ndarray) -> EncodedSplit:
        """The examples of all records as a split."""
        table = np.asarray(self.table, np.int64).reshape(-1, 6)
        ends = np.concatenate([np.zeros((1, 6), np.int64), table])
        return EncodedSplit(
            words=np.asarray(inputs.word_counts, np.int32),
            predicate_offsets=offsets_from_lengths([len(indices) for indices in inputs.predicates]),
            predicate=np.asarray([word for indices in inputs.predicates for word in indices], np.int32),
            record=table[:, 0].astype(np.int32),
            first_word=table[:, 1].astype(np.int32),
            example_words=table[:, 2].astype(np.int32),
            token_offsets=ends[:, 3],
            tokens=np.asarray(self.tokens, np.int32),
            token_type=np.asarray(self.types, np.int32),
            word_offsets=ends[:, 4],
            word_token=np.asarray(self.word_token, np.int32),
            sequence_offsets=ends[:, 5],
            sequence=np.asarray(self.sequence, np.int32),
            copy=np.zeros(len(table), np.bool_),
            overlong=overlong,
            choice=np.zeros(len(table), np.int32),
            mark_token=np.asarray(self.marks, np.int32).reshape(-1, 4),
            char_offsets=np.zeros((0, 2), np.int32),
        )


def _encode_words(
    inputs: RecordInputs, tokenizer: Tokenizer, template: Template, room: int, overflow: str, stride: int
) -> EncodedSplit:
    """As `encode`, for records of words; `room`: tokens of an example at most, without special tokens."""
    examples = _WordExamples(template, marker_ids(inputs, tokenizer))
    overlong = np.zeros(3, np.int64)
    patches = inputs.patches
    for m, subwords in enumerate(tokenizer.encode_words(inputs.words)):
        available = room - patches[m]
        before = [0] * len(subwords)
        if examples.markers:
            subwords, before = marked_spans.insert_markers(subwords, inputs.marks[m])
        total = sum(map(len, subwords))
        if total > available:
            if overflow == "error":
                length = total + patches[m] + template.special_count
                raise too_long_error(inputs.records[m], length, room + template.special_count)
            subwords = [ids[:available] for ids in subwords]
            overlong += (1, total - sum(map(len, subwords)), 0)
        first = 0
        while first < len(subwords):
            last = examples.add(m, subwords, before, first, available, inputs.predicates[m])
            if overflow == "windows" and last < len(subwords):
                ends = np.cumsum(list(map(len, subwords[first:last])))
                first += 1 + int(np.searchsorted(ends[:-1], stride or available // 2))
            else:
                first = last
            if overflow == "truncate" and last < len(subwords):
                overlong += (0, sum(map(len, subwords[last:])), len(subwords) - last)
                break
    return examples.encoded(inputs, overlong)
