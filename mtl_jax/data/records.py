"""What the readers yield: records, and notes about what they left out or changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.notices import INFORMATION, RECORDS, Notice
from mtl_jax.errors import UserError

_INDEX = re.compile(r"-?[0-9]{1,9}")


class Record(NamedTuple):
    """One example as it stands in a file.

    fields  column or key -> value: str, number, None, list (words, tags), dict
    file    the file as people know it: a path, or "wheel.whl/path/inside"
    line    1-based line where the example begins, or its number where a file has no lines; 0 where there is none
    lines   the lines of its words, where each stands in a line of its own; () elsewhere
    """

    fields: dict[str, Any]
    file: str
    line: int
    lines: Sequence[int] = ()


class Note(NamedTuple):
    """Something a reader left out or changed at one place. Notes of one `what` are counted together.

    count     how many of `what` there are at this place: 3 lines, 2 spans
    lost      records that the file has and that are not yielded on account of it
    harmless  whether nothing is lost by it, or an option asks for just that
    """

    what: str
    file: str
    line: int
    count: int = 1
    lost: int = 0
    harmless: bool = False


def line_numbers(numbers: Sequence[int]) -> Sequence[int]:
    """`Record.lines` of these, in little memory: mostly the lines of a sentence follow each other."""
    follow = len(numbers) > 0 and numbers[-1] - numbers[0] + 1 == len(numbers)
    return range(numbers[0], numbers[-1] + 1) if follow else tuple(numbers)


def where(record: Record | Note) -> str:
    """ "file:line", the place that an error message names."""
    return f"{record.file}:{record.line}" if record.line else record.file


def summary(split: str, notes: Iterable[Note]) -> list[Notice]:
    """One line for each kind of note, with its count, the records lost where these are another number, and the first
    place."""
    by_what: dict[str, list[Note]] = {}
    for note in notes:
        by_what.setdefault(note.what, []).append(note)
    lines = []
    for what, alike in by_what.items():
        count, lost = sum(note.count for note in alike), sum(note.lost for note in alike)
        records = f", {lost} {'record' if lost == 1 else 'records'} lost" if lost and lost != count else ""
        text = f"{split}: {count} {what}{records}; first at {where(alike[0])}"
        lines.append(Notice(text, INFORMATION if all(note.harmless for note in alike) else RECORDS, lost or count))
    return lines


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or nothing where no known name is close."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def field(record: Record, name: str) -> Any:
    """The value of field `name`: the field that is called so, or else a path.

    "a.b" is key b of the object in field a, "a.0.b" key b of the first item of the list in field a, "a.-1" the last
    item. Keys with dots in them win over paths, the longest first.

    Raises UserError where there is none, naming the known fields, the keys or the length of the list.
    """
    if name in record.fields:
        return record.fields[name]
    try:
        return _follow(record.fields, name.split("."), "")
    except _Absent as error:
        why = f": {error}" if str(error) else ""
        known = ", ".join(sorted(map(str, record.fields)))
        raise UserError(
            f"{where(record)}: there is no field {name!r}{why}; known fields: {known}.{suggestion(name, record.fields)}"
        ) from error


def find(record: Record, name: str) -> Any:
    """As `field`, but None where the record lacks the field, the key or the item.

    Raises UserError for a path that leads through a list without saying which item.
    """
    if name in record.fields or "." not in name:
        return record.fields.get(name)
    try:
        return _follow(record.fields, name.split("."), "")
    except _NoIndex as error:
        raise UserError(f"{where(record)}: there is no field {name!r}: {error}") from error
    except _Absent:
        return None


class _Absent(LookupError):
    """Why a path leads to nothing."""


class _NoIndex(_Absent):
    """A path goes on behind a list with what is no number."""


def _follow(value: Any, parts: Sequence[str], path: str) -> Any:
    """What `parts` lead to from `value`, which stands at `path`."""
    if not parts:
        return value
    if isinstance(value, Mapping):
        return _of_object(value, parts, path)
    if not isinstance(value, list | tuple):
        raise _Absent(f"{path!r} is {_kind(value)}, which has no {parts[0]!r} in it")
    items = "1 item" if len(value) == 1 else f"{len(value)} items"
    if not _INDEX.fullmatch(parts[0]):
        first, last = (f"{path}.{number}.{'.'.join(parts)}" for number in (0, -1))
        raise _NoIndex(f"{path!r} is a list of {items}; {first!r} is of its first, {last!r} of its last")
    number = int(parts[0])
    if not -len(value) <= number < len(value):
        raise _Absent(f"{path!r} is a list of {items}, counted from 0, which has no {number}")
    return _follow(value[number], parts[1:], f"{path}.{number}")


def _of_object(value: Mapping[str, Any], parts: Sequence[str], path: str) -> Any:
    why = None
    for n in range(len(parts), 0, -1):
        key = ".".join(parts[:n])
        if key in value:
            try:
                return _follow(value[key], parts[n:], f"{path}.{key}" if path else key)
            except _Absent as error:
                why = why or error
    raise why or _Absent(f"{path!r} has the keys {', '.join(map(str, value))[:200] or 'none'}" if path else "")


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "empty"}
    return kinds.get(type(value), type(value).__name__)
