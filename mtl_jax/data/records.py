"""What the readers yield: records, and notes about what they left out or changed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from mtl_jax.errors import UserError


class Record(NamedTuple):
    """One example as it stands in a file.

    fields  column or key -> value: str, number, None, list (words, tags), dict
    file    the file as people know it: a path, or "wheel.whl/path/inside"
    line    1-based line where the example begins, or its number where a file has no lines; 0 where there is none
    """

    fields: dict[str, Any]
    file: str
    line: int


class Note(NamedTuple):
    """Something a reader left out or changed at one place. Notes of one `what` are counted together."""

    what: str
    file: str
    line: int


def where(record: Record | Note) -> str:
    """ "file:line", the place that an error message names."""
    return f"{record.file}:{record.line}" if record.line else record.file


def summary(split: str, notes: Iterable[Note]) -> list[str]:
    """One line for each kind of note, with its count and first place."""
    by_what: dict[str, list[Note]] = {}
    for note in notes:
        by_what.setdefault(note.what, []).append(note)
    return [f"{split}: {len(found)} {what}; first at {where(found[0])}" for what, found in by_what.items()]


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or nothing where no known name is close."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def field(record: Record, name: str) -> Any:
    """The value of field `name`; "a.b" also reaches key b of the object in field a.

    Raises UserError naming the known fields where there is none.
    """
    if name in record.fields:
        return record.fields[name]
    value: Any = record.fields
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(sorted(map(str, record.fields)))
            raise UserError(
                f"{where(record)}: there is no field {name!r}; known fields: {known}.{suggestion(name, record.fields)}"
            )
        value = value[key]
    return value
