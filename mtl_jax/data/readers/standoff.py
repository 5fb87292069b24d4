"""Annotations of texts as spans of characters: JSON of annotation tools, and brat's folders."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mtl_jax import unicode
from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.readers.jsonl import read_records
from mtl_jax.data.records import Note, Record, field, find_field, suggestion, where
from mtl_jax.errors import UserError

_FIELDS = ("spans", "entities", "labels", "label")
_STARTS, _ENDS = ("start", "start_offset", "begin", "from"), ("end", "end_offset", "stop", "to")
_NO_SPANS = frozenset("REAMN*")  # how brat's lines begin that annotate other things; "#" is a comment
_OTHERS = "annotations other than of spans (relations, events, attributes) left out"
_PIECES = "spans in several pieces, taken from their first to their last character"
_NO_WORD = "spans without a word in them left out"
_TYPES = ("label", "type", "tag", "entity", "entity_group", "labels")


class _Mark(NamedTuple):
    """Characters start, ..., end - 1 of a text are of type `type`."""

    start: int
    end: int
    type: str


def read_spans(
    location: Location,
    encoding: str,
    *,
    text: str = "text",
    spans: str = "",
    scheme: str = "iob2",
    records: str = "",
    key: str = "",
) -> Iterator[Record | Note]:
    """JSON in any form of `jsonl`, texts with labelled spans, as doccano, Prodigy, spaCy and others write them.

    Fields: words, tags (a list as long; None where the text has no annotation), and those of the file. Words are runs
    of letters and digits with their marks, and single other signs; a Han character is one, see `mtl_jax.unicode`. A
    span that begins or ends inside a word is extended to the word; of overlapping spans the longest is kept. Both are
    counted in notes.

    Args:
      text: field of the text.
      spans: field of the spans, a list of [start, end, type] or of objects: start or start_offset, begin, from; end
        or end_offset, stop, to (not included); label or type, tag, entity, entity_group. "" = the first of spans,
        entities, labels, label that a record has.
      scheme: of the tags, "iob2" or "bioes".
      records, key: where the texts are, see `jsonl`; an object with a text is one by itself.

    Raises UserError at the line: no text, spans of another form, or outside of the text.
    """
    _check_scheme(scheme)
    for record in read_records(location, encoding, records, key, fields=(text,)):
        value = find_field(record, text)
        if not isinstance(value, str):
            known = ", ".join(map(str, record.fields)) or "none"
            raise UserError(
                f"{where(record)}: no text in the field {text!r} (options.text); fields: {known}."
                f"{suggestion(text, record.fields)}"
            )
        marks = _marks(record, spans, len(value))
        words, tags, notes = _tagged(value, marks, scheme)
        yield from (Note(what, record.file, record.line) for what in notes)
        yield record._replace(fields={**record.fields, "words": words, "tags": None if marks is None else tags})


def read_brat(location: Location, encoding: str, *, scheme: str = "iob2") -> Iterator[Record | Note]:
    """A folder of brat's pairs NAME.txt and NAME.ann: one record for each line of a text that is not blank.

    Fields: words and tags as of `read_spans`, text (the line), document (NAME). A text without its .ann has tags None.
    Text-bound annotations (T) are read; one in several pieces is taken from its first to its last character. These, and
    what is not read (relations, events, attributes, an .ann without text), are counted in notes.

    Args:
      scheme: of the tags, "iob2" or "bioes".

    Raises UserError where the folder has no text, or at the line of an annotation that is not brat's or that lies
    outside of the text.
    """
    _check_scheme(scheme)
    location.require_folder()
    texts = [file for file in location.children() if file.place.name.endswith(".txt") and file.is_file()]
    if not texts:
        raise UserError(f"{location.name}: no .txt files in this folder, which brat's pairs of .txt and .ann have")
    names = [file.place.name.removesuffix(".txt") for file in texts]
    for file in location.children():
        if file.place.name.endswith(".ann") and file.place.name.removesuffix(".ann") not in names:
            yield Note("annotations without a text of their name (.ann without .txt) left out", file.name, 0)
    for name, file in zip(names, texts, strict=True):
        annotations = location.child(f"{name}.ann")
        yield from _brat_records(name, file, annotations if annotations.is_file() else None, encoding, scheme)


def _brat_records(
    name: str, file: Location, annotations: Location | None, encoding: str, scheme: str
) -> Iterator[Record | Note]:
    """The lines of one text, with the annotations of the file annotations it."""
    lines = list(file.raw_lines(encoding))
    marks: dict[int, _Mark] = {}
    if annotations:
        marks, notes = _brat_marks(annotations, encoding, sum(map(len, lines)))
        yield from notes
    begin, placed = 0, set()
    for number, line in enumerate(lines, start=1):
        end = begin + len(line)
        if line.strip():
            overlapping = [at for at, m in marks.items() if m.start < end and m.end > begin]
            placed.update(overlapping)
            if any(marks[at].start < begin or marks[at].end > end for at in overlapping):
                yield Note("lines with an annotation that goes on in another line, cut there", file.name, number)
            inside = [
                _Mark(max(m.start, begin) - begin, min(m.end, end) - begin, m.type)
                for m in map(marks.get, overlapping)
                if m
            ]
            words, tags, changes = _tagged(line, inside, scheme)
            yield from (Note(what, file.name, number) for what in changes)
            fields = {"words": words, "tags": tags if annotations else None}
            yield Record({**fields, "text": line.strip(), "document": name}, file.name, number)
        begin = end
    for at in sorted(marks.keys() - placed):
        yield Note(_NO_WORD, annotations.name if annotations else file.name, at)


def _check_scheme(scheme: str) -> None:
    if scheme not in ("iob2", "bioes"):
        raise UserError(f'options.scheme has to be "iob2" or "bioes", not {scheme!r}')


def _tagged(text: str, marks: Sequence[_Mark] | None, scheme: str) -> tuple[list[str], list[str], list[str]]:
    """(words, tags, what had to be changed)."""
    places = [match.span() for match in unicode.pattern(False, text.isascii()).finditer(text)]
    starts, ends = [start for start, _ in places], [end for _, end in places]
    kept_spans: list[tag_schemes.Span] = []
    notes = []
    for mark in sorted(marks or (), key=lambda mark: (mark.start - mark.end, mark.start)):
        first, last = bisect.bisect_right(ends, mark.start), bisect.bisect_left(starts, mark.end)
        if first >= last or mark.start == mark.end:
            notes.append(_NO_WORD)
            continue
        if any(first < other.end and last > other.start for other in kept_spans):
            notes.append("spans that overlap another, as long or longer, left out")
            continue
        if mark.start > starts[first] or mark.end < ends[last - 1]:
            notes.append("spans that begin or end inside a word, taken to its ends")
        kept_spans.append(tag_schemes.Span(mark.type, first, last))
    tags = tag_schemes.tags_from_spans(sorted(kept_spans, key=lambda span: span.start), len(places), scheme)
    return [text[start:end] for start, end in places], tags, notes


def _marks(record: Record, given: str, length: int) -> list[_Mark] | None:
    """The spans of a record with a text of `length` characters; None where it has no annotation."""
    name = given or next((name for name in _FIELDS if name in record.fields), "")
    if not name:
        asked = " or ".join(map(repr, _FIELDS))
        raise UserError(f"{where(record)}: no field {asked} of spans; name it in options.spans")
    value = field(record, name)
    if value is None:
        return None
    if not isinstance(value, list):
        raise UserError(f"{where(record)}: the field {name!r} should be a list of spans, found {value!r:.80}")
    return [_within(_mark(item, record, name), length, where(record)) for item in value]


def _mark(item: Any, record: Record, name: str) -> _Mark:
    if isinstance(item, dict):
        parts = [next((item[key] for key in keys if key in item), None) for keys in (_STARTS, _ENDS, _TYPES)]
    else:
        parts = list(item) if isinstance(item, list) and len(item) == 3 else [None] * 3
    start, end, kind = parts
    if isinstance(kind, list) and len(kind) == 1:  # as Label Studio has it
        kind = kind[0]
    value = all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
    if not value or not isinstance(kind, str) or not kind:
        raise UserError(
            f"{where(record)}: {item!r:.120} in the field {name!r} is no span: [start, end, type], or an object with "
            "start, end and label"
        )
    return _Mark(start, end, kind)


def _within(mark: _Mark, length: int, place: str) -> _Mark:
    if not 0 <= mark.start <= mark.end <= length:
        raise UserError(
            f"{place}: the span {mark.start} to {mark.end} ({mark.type}) is not inside the text of {length} characters"
        )
    return mark


def _brat_marks(file: Location, encoding: str, length: int) -> tuple[dict[int, _Mark], list[Note]]:
    """({line: its annotation of the text}, notes on what is changed or not read)."""
    marks, notes = {}, []
    for number, line in file.lines(encoding):
        if line[:1] in _NO_SPANS:
            notes.append(Note(_OTHERS, file.name, number, harmless=True))
        if not line.startswith("T"):
            continue
        match = re.fullmatch(r"T\S*\t(\S+) (\d+) (\d+;\d+ )*(\d+)(?:\t.*)?", line)
        if not match:
            raise UserError(f"{file.name}:{number}: {line[:80]!r} is no annotation of a text: T1<tab>Type start end")
        if match[3]:
            notes.append(Note(_PIECES, file.name, number))
        mark = _Mark(int(match[2]), int(match[4]), match[1])
        marks[number] = _within(mark, length, f"{file.name}:{number}")
    return marks, notes
