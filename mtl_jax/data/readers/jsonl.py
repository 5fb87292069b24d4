"""JSON in any form: a value in each line, several values, a list, a list under a key, records by key; splits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.json_forms import place_of_records, table_rows
from mtl_jax.data.readers.json_values import parse_json, read_values, type_name
from mtl_jax.data.records import Note, Record, field, find_field, suggestion
from mtl_jax.errors import UserError

_KEY = "key"


def read_jsonl(
    location: Location,
    encoding: str,
    *,
    records: str = "",
    key: str = "",
    columns: Sequence[str] = (),
    fields: Sequence[str] = (),
) -> Iterator[Record | Note]:
    """One record for each object. NaN (as pandas writes a missing value) becomes None.

    The form of the file is detected: a value in each line, or values over any number of lines; one list; one object
    that only holds a list under a key, at any depth ({"data": [...]}, {"data": {"train": [...]}}); one object with a
    record for each key ({"id1": {...}, "id2": {...}}), or with an object for each column, as pandas writes tables. An
    ambiguous file is decided by the fields of the texts, or an error names the option that decides.

    `Record.line` is the line where the value begins; for records inside one value it is the number of the item, and
    `Record.file` is "path:key".

    Args:
      records: path of the list, or of the object with records by key, as "data.train"; "." = each value of the file is
        a record (or a list of records), whatever it holds; "" = detected.
      key: field that gets the keys of an object with a record for each key; "" = "key", where this form is detected.
      columns: names for the values of records that are lists, or one name for records that are strings or numbers; ()
        = records are objects.
      fields: paths that a record has; given by `text`, `words` or `image` of the data set.

    Raises UserError at the line: broken JSON, not an object, a repeated key in an object, an infinite number.
    """
    return read_records(location, encoding, records, key, columns, fields)


def read_json_splits(
    location: Location, encoding: str, *, split: str, columns: Sequence[str] = ("text", "label"), key: str = ""
) -> Iterator[Record | Note]:
    """The records of one split of a JSON object that holds all: {"train": [...], "val": [...]} (CLINC150).

    `Record.file` is "path:split", `Record.line` the item's number.

    Args:
      split: path of the list, or of the object with a record for each key ("train", "data.train"); below a folder
        "FILES:PATH", where FILES is a name or pattern ("part-*.json:train"). Given by `splits` of the data set.
      columns: names for the values of items that are lists; items that are objects have their own names.
      key: field that gets the keys of records by key; "" = "key".

    Raises UserError at the item.
    """
    path = _path_in(location, split)
    for file in files_of_splits(location, split):
        content = parse_json(file.text(encoding), file.name)
        if not isinstance(content, dict):
            raise UserError(f"{file.name}: has to hold one JSON object of splits, found {type_name(content)}")
        document = Record(content, file.name, 0)
        if find_field(document, path) is None and "." not in path:
            known = ", ".join(content)
            raise UserError(f"{file.name}: no split {path!r}; there are: {known}.{suggestion(path, content)}")
        yield from _items(field(document, path), f"{file.name}:{path}", None, key or _KEY, columns)


def files_of_splits(location: Location, split: str) -> list[Location]:
    """The files with a split. Raises UserError where `split` names none."""
    if not location.is_folder():
        return [location]
    pattern = split.rpartition(":")[0]
    if not pattern:
        raise UserError(
            f"{location.name} is a folder; then splits name file and key: {f'FILES.json:{split}'!r} instead of "
            f"{split!r}"
        )
    files = location.glob(pattern)
    if not files:
        raise UserError(f"{location.name}: nothing matches {pattern!r}")
    return files


def read_records(
    location: Location,
    encoding: str,
    records: str = "",
    key: str = "",
    columns: Sequence[str] = (),
    fields: Sequence[str] = (),
) -> Iterator[Record]:
    """As `read_jsonl`."""
    numbered_values = read_values(location, encoding)
    file = location.name
    first, second = next(numbered_values, None), next(numbered_values, None)
    if first is None:
        return
    alone = second is None
    line, document = first
    if alone and not records and isinstance(document, Mapping) and (rows := table_rows(document)) is not None:
        yield from _items(rows, file, None, key or _KEY, columns)
        return
    if alone and not records and isinstance(document, Mapping):
        record = Record(document, file, line)
        path = "" if key else place_of_records(record, columns, fields)
        if path is not None:
            inner = field(record, path) if path else document
            yield from _items(inner, f"{file}:{path}" if path else file, None, key or _KEY, columns)
            return
    for number, value in itertools.chain([first], [] if second is None else [second], numbered_values):
        if records not in ("", "."):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{file}:{number}: options.records={records!r} is a path in an object, found {type_name(value)}"
                )
            inner = field(Record(value, file, number), records)
            yield from _items(inner, f"{file}:{records}", None if alone else number, key or _KEY, columns)
        elif isinstance(value, list) and (alone or columns) and not _is_row(value, columns):
            for at, item in enumerate(value, start=1):
                yield _record(item, file, at if alone else number, "each item", columns)
        elif key:
            yield from _items(value, file, None if alone else number, key, columns)
        else:
            yield _record(value, file, number, "each line", columns)


def _items(value: Any, file: str, line: int | None, key: str, columns: Sequence[str]) -> Iterator[Record]:
    """The records of a list, or of an object with one for each key; `line`: of all of them, None = numbered."""
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield _record(item, file, line or number, "an item", columns)
        return
    if not isinstance(value, Mapping) or not value:
        empty = "an object without keys" if isinstance(value, Mapping) else type_name(value)
        raise UserError(f"{file}: has to be a list of items, or an object with a record for each key, found {empty}")
    for number, (name, item) in enumerate(value.items(), start=1):
        record = _record(item, file, line or number, f"the value of each key (here {name!r})", columns)
        if record.fields.get(key, name) not in (name, _as_number(name)):
            raise UserError(
                f"{file}:{line or number}: key {name!r}: the record already has a field {key!r}, "
                f"{record.fields[key]!r}; give the field for the keys another name by options.key"
            )
        yield record._replace(fields={key: name, **record.fields})


def _record(value: Any, file: str, number: int, each: str, columns: Sequence[str]) -> Record:
    if isinstance(value, list) and columns:
        if len(value) != len(columns):
            raise UserError(
                f"{file}:{number}: {len(value)} values, options.columns names {len(columns)} ({', '.join(columns)})"
            )
        value = dict(zip(columns, value, strict=True))
    if len(columns) == 1 and not isinstance(value, dict):
        value = {columns[0]: value}
    if not isinstance(value, dict):
        wanted = "be a list or an object" if columns else "hold a JSON object {...}"
        raise UserError(f"{file}:{number}: {each} has to {wanted}, found {type_name(value)}")
    return Record(value, file, number)


def _is_row(value: list[Any], columns: Sequence[str]) -> bool:
    return bool(columns) and len(value) == len(columns) and not all(isinstance(item, list | dict) for item in value)


def _path_in(location: Location, split: str) -> str:
    return split.rpartition(":")[2] if location.is_folder() else split


def _as_number(name: str) -> int | None:
    return int(name) if name.isdecimal() and len(name) < 19 else None
