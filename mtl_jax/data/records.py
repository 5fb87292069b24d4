"""What readers yield: records, and notes about what they left out or changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.notices import INFORMATION, RECORDS, Notice
from mtl_jax.errors import UserError

_INDEX = re.compile(r"-?[0-9]{1,9}")


class Record(NamedTuple):
    """One record as it is in a file.

    fields  column or key -> value: str, number, None, list (words, tags), dict
    file    the file as messages name it: a path, or "wheel.whl/path/inside"
    line    1-based line where the record begins, or its number where a file has no lines; 0 where there is neither
    lines   line numbers of its words in formats with one word a line; () in others
    """

    fields: dict[str, Any]
    file: str
    line: int
    lines: Sequence[int] = ()


class Note(NamedTuple):
    """Something that a reader left out or changed at one place. Notes with equal `what` are counted together.

    count     number of cases at this place: 3 lines, 2 spans
    lost      records of the file that are not yielded because of it
    harmless  True where nothing is lost, or where an option asks for it
    """

    what: str
    file: str
    line: int
    count: int = 1
    lost: int = 0
    harmless: bool = False


def line_numbers(numbers: Sequence[int]) -> Sequence[int]:
    """`numbers` for `Record.lines`: a range where they are consecutive, as mostly, which needs little memory."""
    are_consecutive = len(numbers) > 0 and numbers[-1] - numbers[0] + 1 == len(numbers)
    return range(numbers[0], numbers[-1] + 1) if are_consecutive else tuple(numbers)


def where(record: Record | Note) -> str:
    """ "file:line", as error messages name a place; the file alone where it has no lines."""
    return f"{record.file}:{record.line}" if record.line else record.file


def summarize_notes(split: str, notes: Iterable[Note]) -> list[Notice]:
    """One notice for each `Note.what`: its count, the records lost where their number differs, and the first place."""
    by_what: dict[str, list[Note]] = {}
    for note in notes:
        by_what.setdefault(note.what, []).append(note)
    notices = []
    for what, equal in by_what.items():
        count, lost = sum(note.count for note in equal), sum(note.lost for note in equal)
        records = f", {lost} {'record' if lost == 1 else 'records'} lost" if lost and lost != count else ""
        text = f"{split}: {count} {what}{records}; first at {where(equal[0])}"
        notices.append(Notice(text, INFORMATION if all(note.harmless for note in equal) else RECORDS, lost or count))
    return notices


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or "" where no known name is close."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def field(record: Record, name: str) -> Any:
    """The value of the field called `name`, or else of the path `name`.

    "a.b" is key b of the object in field a, "a.0.b" key b of the first item of the list in field a, "a.-1" its last
    item. Keys with dots in them take precedence over paths, the longest key first.

    Raises UserError where there is no such field, naming the known fields, the keys or the length of the list.
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


def find_field(record: Record, name: str) -> Any:
    """As `field`, but None where the record lacks the field, the key or the item.

    Raises UserError for a path that passes through a list without an index.
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
    """Nothing is at a path; the message says why."""


class _NoIndex(_Absent):
    """A path continues after a list with something other than an index."""


def _follow(value: Any, parts: Sequence[str], path: str) -> Any:
    """The value at the path `parts` below `value`, which is at `path` itself."""
    if not parts:
        return value
    if isinstance(value, Mapping):
        return _follow_object(value, parts, path)
    if not isinstance(value, list | tuple):
        raise _Absent(f"{path!r} is {_type_name(value)}, which has no {parts[0]!r} in it")
    items = "1 item" if len(value) == 1 else f"{len(value)} items"
    if not _INDEX.fullmatch(parts[0]):
        first, last = (f"{path}.{number}.{'.'.join(parts)}" for number in (0, -1))
        raise _NoIndex(f"{path!r} is a list of {items}; {first!r} reads its first item, {last!r} its last")
    number = int(parts[0])
    if not -len(value) <= number < len(value):
        raise _Absent(f"{path!r} is a list of {items}, counted from 0, which has no {number}")
    return _follow(value[number], parts[1:], f"{path}.{number}")


def _follow_object(value: Mapping[str, Any], parts: Sequence[str], path: str) -> Any:
    first_error = None
    for n in range(len(parts), 0, -1):
        key = ".".join(parts[:n])
        if key in value:
            try:
                return _follow(value[key], parts[n:], f"{path}.{key}" if path else key)
            except _Absent as error:
                first_error = first_error or error
    raise first_error or _Absent(f"{path!r} has the keys {', '.join(map(str, value))[:200] or 'none'}" if path else "")


def _type_name(value: Any) -> str:
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number", type(None): "empty"}
    return names.get(type(value), type(value).__name__)
