"""Two spans that are marked in a text, for tasks about what is between them (Soares et al. 2019).

The spans come from two fields of the record, or from four strings around them in the text itself. Either way they are
read off here, and `encoding` puts one marker token before and one behind each.

A field holds [first, last] or {"start", "end"}: for words indices from 0, both inclusive, or one index for one word;
for plain text characters, the end exclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.data.records import Record, field, where
from mtl_jax.errors import UserError

Spans = tuple[tuple[int, int], tuple[int, int]]  # (first, one behind the last) of each of the two
MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")


def of_text(record: Record, text: str, marked: Sequence[str]) -> tuple[str, Spans]:
    """(the text without marks, spans of characters). Raises UserError for a span that is not there."""
    if len(marked) == 2:
        return text, _pair(_span(record, name, len(text), "character", 0) for name in marked)
    for mark in marked:
        if text.count(mark) != 1:
            raise _at(record, f"{mark!r} should stand once in the text, found {text.count(mark)} times")
    order = sorted(range(4), key=lambda k: text.index(marked[k]))
    places, removed = [0] * 4, 0
    for k in order:
        places[k] = text.index(marked[k]) - removed
        removed += len(marked[k])
    for mark in marked:
        text = text.replace(mark, "", 1)
    return text, _closed(record, places, marked)


def of_words(record: Record, words: Sequence[str], marked: Sequence[str]) -> tuple[Sequence[str], Spans]:
    """(the words without marks, spans of words). Raises UserError for a span that is not there."""
    if len(marked) == 2:
        return words, _pair(_span(record, name, len(words), "word", 1) for name in marked)
    for mark in marked:
        if words.count(mark) != 1:
            raise _at(record, f"{mark!r} should be one of the words, once, found {words.count(mark)} times")
    places = [sum(word not in marked for word in words[: words.index(mark)]) for mark in marked]
    return [word for word in words if word not in marked], _closed(record, places, marked)


def insert(units: Sequence[Sequence[int]], spans: Spans) -> tuple[list[list[int]], list[int]]:
    """Token ids of each unit (word or token) with the markers beside them: -1 and -2 around the first span, -3, -4.

    Args:
      units: ids of each unit.
      spans: in units.

    Returns:
      the ids of each unit with its markers, and how many of them stand before its own ids.
    """
    ids, before = [list(unit) for unit in units], [0] * len(units)
    # from the inside out: spans may lie in one another
    for number in sorted((0, 1), key=lambda n: spans[n][1] - spans[n][0]):
        first, end = spans[number]
        ids[first].insert(0, -2 * number - 1)
        before[first] += 1
        ids[end - 1].append(-2 * number - 2)
    return ids, before


def place(tokens: list[int], begin: int, markers: Sequence[int]) -> list[int]:
    """Puts the ids `markers` in the place of -1 ... -4 from position `begin` on; where they stand, -1 = nowhere."""
    places = [-1] * 4
    for at in range(begin, len(tokens)):
        if tokens[at] < 0:
            number = -tokens[at] - 1
            places[number], tokens[at] = at - begin, markers[number]
    return places


def in_tokens(record: Record, spans: Spans, offsets: Sequence[tuple[int, int]]) -> Spans:
    """Spans of tokens from spans of characters: all tokens of which a character is inside."""

    def tokens(begin: int, end: int) -> tuple[int, int]:
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
        if not inside:
            raise _at(record, f"no token between characters {begin} and {end}, which are marked")
        return inside[0], inside[-1] + 1

    return _pair(tokens(*span) for span in spans)


def _span(record: Record, name: str, length: int, what: str, inclusive: int) -> tuple[int, int]:
    value: Any = field(record, name)
    if isinstance(value, int) and inclusive:
        value = (value, value)
    if isinstance(value, Mapping):
        value = (value.get("start"), value.get("end"))
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value)):
        raise _at(record, f"field {name!r} should be the first and the last {what} of a span, found {value!r}"[:200])
    begin, end = value[0], value[1] + inclusive
    if not 0 <= begin < end <= length:
        raise _at(record, f"field {name!r}: no such span, {value!r}, in a text of {length} {what}s")
    return begin, end


def _closed(record: Record, places: Sequence[int], marked: Sequence[str]) -> Spans:
    for k in (0, 2):
        if places[k] >= places[k + 1]:
            raise _at(record, f"nothing stands between {marked[k]!r} and {marked[k + 1]!r}")
    return (places[0], places[1]), (places[2], places[3])


def _pair(spans: Any) -> Spans:
    first, second = spans
    return first, second


def _at(record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: {message}")
