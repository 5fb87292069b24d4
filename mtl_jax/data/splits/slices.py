"""Parts of what `splits` names: "train.csv[:-200]", "train[80%:]", as TFDS and Hugging Face Datasets write them, and
"all.csv[fold=test]", the records with a value in a field.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

from mtl_jax.data.records import Note, Record, find_field, suggestion
from mtl_jax.errors import UserError

_PART = re.compile(r"(.*)\[([^\[\]]*)\]", re.DOTALL)
_BOUND = re.compile(r"(-?)([0-9]{1,15})(%?)")
_SHOWN = 12  # values named in a message


class Slice(NamedTuple):
    """[first, last) of the records; "" = from the beginning, to the end; "-5" from the end; "10%" of their number."""

    first: str
    last: str


class Condition(NamedTuple):
    """The records whose field has this value, as text."""

    field: str
    value: str


def parse(part: str) -> tuple[str, Slice | Condition | None]:
    """(what it is a part of, the last slice or condition of it or None); "[:-200]" is a part of ".", the path itself.

    A colon in the brackets that `part` ends with makes a slice, an equals sign a condition. Raises UserError for bounds
    that are none.
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


def take(items: Sequence[Record | Note], wanted: Slice | Condition, part: str) -> list[Record | Note]:
    """The wanted records, with the notes that stand before each of them (after the last one: with that one).

    Complementary slices ([:x] and [x:], [:-x] and [-x:]) share no record and leave none out. Raises UserError where a
    bound lies beyond the records, no record has the field, or none is left.
    """
    records = [item for item in items if isinstance(item, Record)]
    if isinstance(wanted, Condition):
        kept = _with_value(records, wanted, part)
    else:
        first = _position(wanted.first, len(records), part) if wanted.first else 0
        last = _position(wanted.last, len(records), part) if wanted.last else len(records)
        if first >= last:
            raise UserError(f"{part!r}: the slice is empty, there are {len(records)} records")
        kept = [first <= number < last for number in range(len(records))]
    chosen, number = [], 0
    for item in items:
        if kept[min(number, len(records) - 1)]:
            chosen.append(item)
        number += isinstance(item, Record)
    return chosen


def _with_value(records: Sequence[Record], wanted: Condition, part: str) -> list[bool]:
    values = [None if (value := find_field(record, wanted.field)) is None else str(value).strip() for record in records]
    kept = [value == wanted.value for value in values]
    if not any(kept):
        there = collections.Counter(value for value in values if value is not None)
        if not there:
            known = sorted({str(name) for record in records for name in record.fields})
            near = suggestion(wanted.field, known)
            raise UserError(f"{part!r}: no record has a field {wanted.field!r}; fields: {', '.join(known)}.{near}")
        shown = ", ".join(f"{value[:40]!r} ({count})" for value, count in there.most_common(_SHOWN))
        near = suggestion(wanted.value, there)
        raise UserError(f"{part!r}: no record has {wanted.value!r}; there are: {shown}.{near}")
    return kept


def _position(bound: str, count: int, part: str) -> int:
    sign, digits, percent = _BOUND.fullmatch(bound).groups()
    number = int(digits)
    if percent:
        return round((100 - number if sign else number) * count / 100)
    if number > count:
        raise UserError(f"{part!r}: there are {count} records, fewer than {number}")
    return count - number if sign else number
