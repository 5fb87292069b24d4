"""The inputs of records: one or two texts, or words; also choices, marked spans and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.files import array_shards, parse_cache
from mtl_jax.data.record_sequences import StoredRecords
from mtl_jax.data.records import Record, field, find_field, where
from mtl_jax.data.splits.duplicates import text_digest
from mtl_jax.errors import UserError


class RecordInputs(NamedTuple):
    """The inputs of M records, checked: either `texts` or `words` is given.

    texts       [M] tuples of one or two texts, or of none where there are only pictures
    words       [M] lists of words
    predicates  [M] lists of word indices, empty where no task reads them
    choices     [M] lists of answers to choose from, each encoded with the texts; None where there are none
    marks       [M] pairs of spans [begin, end) of characters or words; None where none are marked
    markers     names of the tokens around them: before and after the first span, before and after the second
    aligned     whether the character offsets of the tokens of the last text are needed
    pictures    [M] tuples of numbers of pictures in the data set's image store; None where it has no pictures
    grid        (rows, columns) of the patches of every picture
    options     of records on disk: the arguments of `extract_inputs`; their texts, words, … are read as needed
    """

    texts: list[tuple[str, ...]] | None
    words: list[list[str]] | None
    predicates: list[list[int]]
    records: Sequence[Record]
    choices: list[list[str]] | None = None
    marks: list[marked_spans.Spans] | None = None
    markers: tuple[str, ...] = ()
    aligned: bool = False
    pictures: Sequence[tuple[int, ...]] | None = None
    grid: tuple[int, int] = (0, 0)
    options: Mapping[str, Any] | None = None

    @property
    def patches(self) -> list[int]:
        """[M] numbers of patches of all pictures of each record."""
        if self.pictures is None:
            return [0] * len(self.records)
        return [len(numbers) * self.grid[0] * self.grid[1] for numbers in self.pictures]

    @property
    def word_counts(self) -> list[int] | None:
        """[M] numbers of words, None for plain texts."""
        return None if self.words is None else [len(words) for words in self.words]

    def text_keys(self) -> np.ndarray:
        """uint64[M], a key that records with the same text (and pictures) share."""
        parts = self.texts if self.words is None else self.words
        if self.pictures is not None:
            parts = [(*texts, repr(numbers)) for texts, numbers in zip(parts, self.pictures, strict=True)]
        return np.frombuffer(b"".join(map(text_digest, parts)), np.uint64)

    def fingerprint(self) -> str:
        """Hash of everything that encoding reads."""
        if self.options is not None:
            return array_shards.digest([self.records.key, self.options, parse_cache.code_digest()])
        digest = hashlib.sha256()
        parts = (self.texts, self.words, self.predicates, self.choices, self.marks, self.markers, self.aligned)
        pictures = () if self.pictures is None else (self.pictures, self.grid)
        for part in (*parts, *pictures):
            digest.update(json.dumps(part).encode())
        return digest.hexdigest()


def extract_inputs(
    records: Sequence[Record],
    *,
    text: Sequence[str] | str = (),
    words: str = "",
    predicates: str = "",
    choices: Sequence[str] = (),
    marked: Sequence[str] = (),
    markers: Sequence[str] = marked_spans.MARKERS,
    marked_ends: str = "",
    aligned: bool = False,
    pictured: bool = False,
) -> RecordInputs:
    """Takes from the records what is encoded.

    Args:
      records: M records.
      text: names of one or two fields with plain text; or
      words: name of a field with a list of words.
      predicates: name of the field with the word indices of the predicates; records without it have none.
      choices: name of the field with the list of choices, or of several fields with one each (None: no such choice).
      marked: two fields with a span each, or four strings around the spans in the text; see `marked_spans`.
      marked_ends: "included" | "excluded": the last word, or character, in fields with spans; see `marked_spans`.
      markers: tokens to insert around the spans.
      aligned: see `RecordInputs`.
      pictured: whether the data set has pictures, which need no text.

    Raises:
      UserError: by file and line: no such field, an empty text, a wrong type, a predicate outside the sentence, a
        span outside the text, fewer than two choices.
    """
    text = (text,) if isinstance(text, str) and text else tuple(text)
    if isinstance(records, StoredRecords):
        options = {"text": text, "words": words, "predicates": predicates, "choices": tuple(choices)}
        options |= {"marked": tuple(marked), "markers": tuple(markers), "marked_ends": marked_ends, "aligned": aligned}
        return _stored_inputs(records, options)
    if (text and words) or not (text or words or pictured) or len(text) > 2:
        raise UserError("a data set needs either `text` (one or two field names) or `words` (one field name)")
    if not words:
        inputs = _text_inputs(records, text, choices, marked, marked_ends)
        return inputs._replace(markers=tuple(markers) if marked else (), aligned=aligned)
    sentences = [_words(record, words) for record in records]
    spans = None
    if marked:
        pairs = zip(records, sentences, strict=True)
        without_marks = [
            marked_spans.spans_in_words(record, sentence, marked, marked_ends) for record, sentence in pairs
        ]
        sentences, spans = [list(sentence) for sentence, _ in without_marks], [spans for _, spans in without_marks]
    indices = [_predicates(r, predicates, len(s)) for r, s in zip(records, sentences, strict=True)]
    return RecordInputs(None, sentences, indices, records, None, spans, tuple(markers) if marked else ())


def _text_inputs(
    records: Sequence[Record], names: Sequence[str], choices: Sequence[str], marked: Sequence[str], marked_ends: str
) -> RecordInputs:
    """The inputs of records of plain text, without markers."""
    texts = [tuple(_text(record, name) for name in names) for record in records]
    choices_of = [_choices(record, choices) for record in records] if choices else None
    spans = None
    if marked:
        if len(names) > 1:
            raise UserError("marked spans are in one text: a data set with `marked` has one field in `text`")
        pairs = zip(records, texts, strict=True)
        without_marks = [marked_spans.spans_in_text(record, text, marked, marked_ends) for record, (text,) in pairs]
        texts, spans = [(text,) for text, _ in without_marks], [spans for _, spans in without_marks]
    return RecordInputs(texts, None, [[] for _ in records], records, choices_of, spans)


class Column(Sequence):
    """One field of the inputs of records on disk, extracted as it is read."""

    def __init__(self, records: StoredRecords, options: Mapping[str, Any], name: str):
        self._records, self._options, self._name = records, options, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(Column(self._records[index], self._options, self._name))
        return getattr(extract_inputs([self._records[index]], **self._options), self._name)[0]

    def __iter__(self) -> Iterator[Any]:
        for begin, end in array_shards.ranges(len(self), 1 << 12):
            yield from getattr(extract_inputs(list(self._records[begin:end]), **self._options), self._name)


def _stored_inputs(records: StoredRecords, options: dict[str, Any]) -> RecordInputs:
    first = extract_inputs(records[:1].in_memory(), **options)
    columns = {
        name: None if getattr(first, name) is None else Column(records, options, name)
        for name in ("texts", "words", "predicates", "choices", "marks")
    }
    return first._replace(**columns, records=records, options=options)


def _text(record: Record, name: str) -> str:
    value = field(record, name)
    if not isinstance(value, str):
        raise _error_at(record, f"field {name!r} should be a string, found {value!r}")
    if not value.strip():
        raise _error_at(record, f"field {name!r}: empty text")
    return value


def _words(record: Record, name: str) -> list[str]:
    value = field(record, name)
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise _error_at(record, f"field {name!r} should be a list of words, found {value!r}"[:200])
    if not value:
        raise _error_at(record, f"field {name!r}: empty text")
    return list(value)


def _predicates(record: Record, name: str, words: int) -> list[int]:
    value = find_field(record, name) if name else None
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(p, int) and 0 <= p < words for p in value):
        raise _error_at(record, f"field {name!r} should list word indices from 0 to {words - 1}, found {value!r}"[:200])
    return list(value)


def _choices(record: Record, names: Sequence[str]) -> list[str]:
    values = [field(record, name) for name in names]
    if len(names) == 1:
        if not isinstance(values[0], list | tuple):
            raise _error_at(record, f"field {names[0]!r} should be a list of choices, found {values[0]!r}"[:200])
        values = list(values[0])
    present = [value for value in values if value is not None]
    # A table may have fewer choices in a row than columns.
    while present and isinstance(present[-1], str) and not present[-1].strip():
        present.pop()
    if len(present) < 2 or not all(isinstance(value, str) and value.strip() for value in present):
        raise _error_at(
            record, f"{', '.join(names)}: at least two choices, each a string, expected, found {values!r}"[:200]
        )
    return present


def _error_at(record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: {message}")
