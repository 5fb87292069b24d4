"""Slices of what `splits` names: "train.csv[:-200]", "train[80%:]", as TFDS and Hugging Face Datasets write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_SLICE = re.compile(r"(.*)\[([^\[\]:]*):([^\[\]:]*)\]", re.DOTALL)
_BOUND = re.compile(r"(-?)([0-9]{1,15})(%?)")


class Slice(NamedTuple):
    """[first, last) of the records; "" = from the beginning, to the end; "-5" from the end; "10%" of their number."""

    first: str
    last: str


def parse(part: str) -> tuple[str, Slice | None]:
    """(what is sliced, the slice or None). A colon in brackets makes a slice; "[:-200]" is one of ".", the path itself.

    Raises UserError for bounds that are none.
    """
    match = _SLICE.fullmatch(part)
    if match is None:
        return part, None
    stem, *bounds = match.groups()
    for bound in bounds:
        number = _BOUND.fullmatch(bound.strip())
        if bound.strip() and (number is None or (number[3] and int(number[2]) > 100)):
            raise UserError(
                f"{part!r}: a slice is [from:to] in whole numbers or percent of the records, such as [:-200], [-200:], "
                f"[:80%]; {bound!r} is neither"
            )
    return stem or ".", Slice(bounds[0].strip(), bounds[1].strip())


def take(items: Sequence[Record | Note], wanted: Slice, part: str) -> list[Record | Note]:
    """The records of a slice, with the notes that stand before each of them (after the last one: with that one).

    Complementary slices ([:x] and [x:], [:-x] and [-x:]) share no record and leave none out. Raises UserError where a
    bound lies beyond the records or the slice is empty.
    """
    count = sum(isinstance(item, Record) for item in items)
    first = _position(wanted.first, count, part) if wanted.first else 0
    last = _position(wanted.last, count, part) if wanted.last else count
    if first >= last:
        raise UserError(f"{part!r}: the slice is empty, there are {count} records")
    chosen, number = [], 0
    for item in items:
        if first <= min(number, count - 1) < last:
            chosen.append(item)
        number += isinstance(item, Record)
    return chosen


def _position(bound: str, count: int, part: str) -> int:
    sign, digits, percent = _BOUND.fullmatch(bound).groups()
    number = int(digits)
    if percent:
        return round((100 - number if sign else number) * count / 100)
    if number > count:
        raise UserError(f"{part!r}: there are {count} records, fewer than {number}")
    return count - number if sign else number
