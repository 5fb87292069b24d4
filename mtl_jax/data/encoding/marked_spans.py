"""Two marked spans of a text, for tasks about the relation between them (Soares et al. 2019).

The spans come from two fields of the record, or from four strings around them in the text itself. In both cases they
are read here, and `encoding` inserts one marker token before and one after each.

A field holds [first, last] or {"start", "end"}, or two fields "start+end" hold one number each; for words also one
index for one word. Numbers count from 0. `ends` says whether the second number is that of the last word or character,
"included", or one more, "excluded"; "" is the usual convention: words included, characters excluded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.data.records import Record, field, where
from mtl_jax.errors import UserError

Spans = tuple[tuple[int, int], tuple[int, int]]  # [begin, end) of both spans
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")


def spans_in_text(record: Record, text: str, marked: Sequence[str], ends: str = "") -> tuple[str, Spans]:
    """(the text without marks, spans of characters). Raises UserError for a span that does not exist."""
    if len(marked) == 2:
        return text, _pair(_span(record, name, len(text), "character", ends or "excluded") for name in marked)
    for mark in marked:
        if text.count(mark) != 1:
            raise _error_at(record, f"{mark!r} should occur once in the text, found {text.count(mark)} times")
    order = sorted(range(4), key=lambda k: text.index(marked[k]))
    places, removed = [0] * 4, 0
    for k in order:
        places[k] = text.index(marked[k]) - removed
        removed += len(marked[k])
    for mark in marked:
        text = text.replace(mark, "", 1)
    return text, _closed(record, places, marked)


def spans_in_words(
    record: Record, words: Sequence[str], marked: Sequence[str], ends: str = ""
) -> tuple[Sequence[str], Spans]:
    """(the words without marks, spans of words). Raises UserError for a span that does not exist."""
    if len(marked) == 2:
        return words, _pair(_span(record, name, len(words), "word", ends or "included") for name in marked)
    for mark in marked:
        if words.count(mark) != 1:
            raise _error_at(record, f"{mark!r} should be one of the words, once, found {words.count(mark)} times")
    places = [sum(word not in marked for word in words[: words.index(mark)]) for mark in marked]
    return [word for word in words if word not in marked], _closed(record, places, marked)


def insert_markers(elements: Sequence[Sequence[int]], spans: Spans) -> tuple[list[list[int]], list[int]]:
    """Token ids of each element (word or token) with the markers inserted: -1, -2 around the first span, -3, -4 around
    the second.

    Args:
      elements: ids of each element.
      spans: of elements.

    Returns:
      the ids of each element with its markers, and the number of markers before its own ids.
    """
    ids, before = [list(element) for element in elements], [0] * len(elements)
    # from the inside out: one span may contain the other
    for number in sorted((0, 1), key=lambda n: spans[n][1] - spans[n][0]):
        first, end = spans[number]
        ids[first].insert(0, -2 * number - 1)
        before[first] += 1
        ids[end - 1].append(-2 * number - 2)
    return ids, before


def place_markers(tokens: list[int], begin: int, markers: Sequence[int]) -> list[int]:
    """Replaces -1 ... -4 from position `begin` on by the ids `markers`; returns their positions in the example, -1 =
    none.
    """
    positions = [-1] * 4
    for position in range(begin, len(tokens)):
        if tokens[position] < 0:
            number = -tokens[position] - 1
            positions[number], tokens[position] = position - begin, markers[number]
    return positions


def token_spans(record: Record, spans: Spans, offsets: Sequence[tuple[int, int]]) -> Spans:
    """Spans of tokens from spans of characters: all tokens with a character inside."""

    def tokens(begin: int, end: int) -> tuple[int, int]:
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
        if not inside:
            raise _error_at(record, f"no token between characters {begin} and {end}, which are marked")
        return inside[0], inside[-1] + 1

    return _pair(tokens(*span) for span in spans)


def field_names(name: str) -> tuple[str, ...]:
    """The fields that hold a span: "start+end" names two, any other name itself."""
    names = tuple(name.split("+"))
    return names if len(names) == 2 and all(names) else (name,)


def _span(record: Record, name: str, length: int, what: str, ends: str) -> tuple[int, int]:
    names = (name,) if name in record.fields else field_names(name)
    value: Any = tuple(field(record, part) for part in names) if len(names) == 2 else field(record, name)
    single = _integer(value)
    if single is not None and what == "word":
        value = (single, single if ends == "included" else single + 1)
    if isinstance(value, Mapping):
        value = (value.get("start"), value.get("end"))
    pair = [_integer(item) for item in value] if isinstance(value, list | tuple) else []
    if len(pair) != 2 or None in pair:
        raise _error_at(
            record, f"field {name!r} should be the first and the last {what} of a span, found {value!r}"[:200]
        )
    begin, end = pair[0], pair[1] + (ends == "included")
    if not 0 <= begin < end <= length:
        convention = f"the last {what} {ends}, see marked_ends of the data set"
        raise _error_at(
            record, f"field {name!r}: no such span, {value!r} ({convention}), in a text of {length} {what}s"
        )
    return begin, end


def _integer(value: Any) -> int | None:
    """An integer, also in the forms of tables: "3", 3.0; None for any other value."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _closed(record: Record, places: Sequence[int], marked: Sequence[str]) -> Spans:
    for k in (0, 2):
        if places[k] >= places[k + 1]:
            raise _error_at(record, f"nothing is between {marked[k]!r} and {marked[k + 1]!r}")
    return (places[0], places[1]), (places[2], places[3])


def _pair(spans: Iterable[tuple[int, int]]) -> Spans:
    first, second = spans
    return first, second


def _error_at(record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: {message}")
