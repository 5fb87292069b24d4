"""Slices of what `splits` names: "train.csv[:-200]", "train[80%:]", in the notation of TFDS and Hugging Face Datasets,
and "all.csv[fold=test]", the records with a value in a field.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.record_sequences import ReadItems, selected
from mtl_jax.data.records import Record, find_field, suggestion
from mtl_jax.errors import UserError

_PART = re.compile(r"(.*)\[([^\[\]]*)\]", re.DOTALL)
_BOUND = re.compile(r"(-?)([0-9]{1,15})(%?)")
_SHOWN = 12  # values named in a message


class Slice(NamedTuple):
    """[first, last) of the records; "" = the beginning or the end; "-5" counts from the end; "10%" of their number."""

    first: str
    last: str


class Condition(NamedTuple):
    """The records whose field has this value, compared as strings."""

    field: str
    value: str


def parse_part(part: str) -> tuple[str, Slice | Condition | None]:
    """(name of what is sliced, its last slice or condition or None); "[:-200]" slices ".", the path itself.

    A colon in the brackets at the end of `part` makes a slice, an equals sign a condition. Raises UserError for
    invalid bounds.
    """
    match = _PART.fullmatch(part)
    if match is None or not {":", "="} & set(match[2]):
        return part, None
    stem, inside = match[1] or ".", match[2]
    if "=" in inside:
        name, _, value = inside.partition("=")
        return stem, Condition(name.strip(), value.strip())
    bounds = [bound.strip() for bound in inside.split(":")]
    for bound in bounds:
        number = _BOUND.fullmatch(bound)
        if len(bounds) != 2 or (bound and (number is None or (number[3] and int(number[2]) > 100))):
            raise UserError(
                f"{part!r}: a slice is [from:to] in whole numbers or percent of the records, such as [:-200], [-200:], "
                f"[:80%]; [{inside}] is none"
            )
    return stem, Slice(*bounds)


def take_part(items: ReadItems, selection: Slice | Condition, part: str) -> ReadItems:
    """The selected records, each with the notes directly before it (the last one also with those after it).

    Complementary slices ([:x] and [x:], [:-x] and [-x:]) share no record and leave none out. Raises UserError where a
    bound is beyond the records, no record has the field, or none is selected.
    """
    records, notes = items
    if isinstance(selection, Condition):
        is_selected = _with_value(records, selection, part)
    else:
        first = _position(selection.first, len(records), part) if selection.first else 0
        last = _position(selection.last, len(records), part) if selection.last else len(records)
        if first >= last:
            raise UserError(f"{part!r}: the slice is empty, there are {len(records)} records")
        is_selected = np.zeros(len(records), bool)
        is_selected[first:last] = True
    before = np.concatenate([[0], np.cumsum(is_selected)])
    selected_notes = [
        (int(before[number]), note) for number, note in notes if is_selected[min(number, len(records) - 1)]
    ]
    return ReadItems(selected(records, np.flatnonzero(is_selected)), selected_notes)


def _with_value(records: Sequence[Record], condition: Condition, part: str) -> np.ndarray:
    """bool[M], whether each record meets the condition. Raises UserError where none does."""

    def values() -> Iterator[str | None]:
        raw = (find_field(record, condition.field) for record in records)
        return (None if value is None else str(value).strip() for value in raw)

    is_met = np.fromiter((value == condition.value for value in values()), bool, len(records))
    if not is_met.any():
        counts = collections.Counter(value for value in values() if value is not None)
        if not counts:
            known = sorted({str(name) for record in records for name in record.fields})
            near = suggestion(condition.field, known)
            raise UserError(f"{part!r}: no record has a field {condition.field!r}; fields: {', '.join(known)}.{near}")
        shown = ", ".join(f"{value[:40]!r} ({count})" for value, count in counts.most_common(_SHOWN))
        near = suggestion(condition.value, counts)
        raise UserError(f"{part!r}: no record has {condition.value!r}; there are: {shown}.{near}")
    return is_met


def _position(bound: str, count: int, part: str) -> int:
    """The index of a bound of a slice among `count` records."""
    sign, digits, percent = _BOUND.fullmatch(bound).groups()
    number = int(digits)
    if percent:
        return round((100 - number if sign else number) * count / 100)
    if number > count:
        raise UserError(f"{part!r}: there are {count} records, fewer than {number}")
    return count - number if sign else number
