"""Where the records of a JSON document are: in a list under a key, by key in an object, or the document itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data.records import Record, field, find_field
from mtl_jax.errors import UserError

_DEEPEST = 4  # objects around the records
_SHOWN = 8  # names in a message


def place_of_records(document: Record, columns: Sequence[str], fields: Sequence[str]) -> str | None:
    """The path of the records of a file with one object: its only list of objects, or its only object with a record
    for each key; "" = the document is such an object; None = it is a record itself.

    An object with all of `fields` (paths) is a record, whatever else it holds. With `columns` a list of that many
    values is a record as well. Raises UserError for an ambiguous file, naming the options that decide.
    """
    value, file = document.fields, document.file
    if fields and all(find_field(document, name) is not None for name in fields):
        return None
    if _by_key(value, columns):
        return ""
    places = list(_places(value, columns))
    fitting = [path for path in places if fields and _has_fields(document, path, fields)]
    if len(fitting) == 1:
        return fitting[0]
    plain = [name for name, inner in value.items() if _is_plain(inner)]
    if places and not plain and len(places) == 1:
        return places[0]
    if places and not plain:
        raise UserError(
            f"{file}: records under {_names(places)}; name one as options.records, or read them as splits: "
            f'reader="json_splits", splits={{"train": {places[0]!r}, ...}}'
        )
    if places:
        raise UserError(
            f"{file}: one object, with objects under {_names(places)}, and {_names(plain)} next to them; "
            f'options.records={places[0]!r} reads those as records, options.records="." the document as one'
        )
    rows = list(_places(value, columns, rows=True))
    if rows and (fields or not plain):
        raise UserError(
            f"{file}: lists of lists under {_names(rows)}; their values need names: options.records={rows[0]!r} and "
            'options.columns=("text", "label") or others (or as splits: reader="json_splits")'
        )
    if len(value) == 1 and not plain and isinstance(next(iter(value.values())), Mapping):
        raise UserError(
            f'{file}: one object under one key, {_names(value)}; options.records="." reads the document as one '
            "record, options.key (the name of a field for the key) as records by key"
        )
    return None


def _has_fields(document: Record, path: str, fields: Sequence[str]) -> bool:
    """Whether the first record of a list, or of an object with records by key, has the fields."""
    inner = field(document, path)
    first = next(iter(inner.values() if isinstance(inner, Mapping) else inner))
    try:
        return isinstance(first, dict) and all(
            find_field(document._replace(fields=first), name) is not None for name in fields
        )
    except UserError:  # a path through a list without a number
        return False


def _by_key(value: Mapping[str, Any], columns: Sequence[str]) -> bool:
    """Whether an object has a record for each key: at least two, with a field in common."""
    inner = list(value.values())
    if len(inner) < 2:
        return False
    if all(isinstance(item, Mapping) and any(map(_is_plain, item.values())) for item in inner):
        return bool(set(inner[0]).intersection(*inner[1:]))
    return bool(columns) and all(
        isinstance(item, list) and len(item) == len(columns) and _is_plain(item) for item in inner
    )


def table_rows(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object with an object for each column, {"text": {"0": ..., "1": ...}, ...}, as pandas writes them;
    None for any other."""
    columns = list(document.values())
    if not columns or not all(isinstance(column, Mapping) and column for column in columns):
        return None
    numbers = list(columns[0])
    numbered = all(number.isdecimal() for number in numbers) and not any(name.isdecimal() for name in document)
    if not numbered or any(list(c) != numbers or any(isinstance(v, Mapping) for v in c.values()) for c in columns):
        return None
    return [{name: column[number] for name, column in document.items()} for number in numbers]


def _places(
    value: Mapping[str, Any], columns: Sequence[str], path: str = "", depth: int = 1, rows: bool = False
) -> Iterator[str]:
    """Paths of lists of records, and of objects with a record for each key, inside objects; `rows`: of lists of lists
    that could be records with `columns`.
    """
    for name, inner in value.items():
        there = f"{path}.{name}" if path else str(name)
        if isinstance(inner, Mapping):
            if not rows and _by_key(inner, columns):
                yield there
            elif depth < _DEEPEST:
                yield from _places(inner, columns, there, depth + 1, rows)
        elif rows:
            if _are_rows(inner):
                yield there
        elif _is_list_of(inner, dict) or (
            columns and _is_list_of(inner, list) and all(len(row) == len(columns) for row in inner)
        ):
            yield there


def _are_rows(value: Any) -> bool:
    """Whether a value is a list of lists of one length above 1, each with a string."""
    if not _is_list_of(value, list):
        return False
    alike = len({len(row) for row in value}) == 1 and len(value[0]) > 1
    return alike and all(any(isinstance(cell, str) for cell in row) for row in value)


def _is_list_of(value: Any, wanted: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, wanted) for item in value)


def _is_plain(value: Any) -> bool:
    """Whether a value holds no objects or lists of lists: a number, a string, a list of these (but no empty list, which
    may be a split without records).
    """
    if isinstance(value, list):
        return bool(value) and not any(isinstance(item, Mapping | list) for item in value)
    return not isinstance(value, Mapping)


def _names(names: Iterable[Any]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:_SHOWN])) + (" …" if len(names) > _SHOWN else "")
