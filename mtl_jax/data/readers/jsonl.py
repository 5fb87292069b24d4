"""JSON lines, one object a line; or one JSON list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mtl_jax.data.files import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_jsonl(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record a line; blank lines are skipped. NaN (as pandas writes a missing value) becomes None.

    A file that begins with "[" is one list of objects, over any number of lines; `Record.line` then is the number of
    the item.

    Raises UserError at the line: broken JSON, not an object, a key twice in one object, an infinite number.
    """
    for number, line in location.lines(encoding):
        if line.lstrip().startswith("[") and (items := _list(location, encoding)) is not None:
            yield from (_object(item, location.name, n, "each item") for n, item in enumerate(items, start=1))
            return
        if line.strip():
            yield _object(parse_json(line, f"{location.name}:{number}"), location.name, number, "each line")


def _list(location: Location, encoding: str) -> list[Any] | None:
    """What the whole file holds; None where its first line is a JSON value by itself."""
    first = next(line for _, line in location.lines(encoding) if line.strip())
    text = location.text(encoding)
    alone = text.strip() != first.strip() and _is_json(first)
    return None if alone else parse_json(text, location.name)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _object(value: Any, file: str, number: int, each: str) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{file}:{number}: {each} has to hold a JSON object {{...}}, found {kind(value)}")
    return Record(value, file, number)


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text. Raises UserError that begins with `place`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
        return found

    def constant(name: str) -> None:
        if name != "NaN":
            raise ValueError(f"{name} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: broken JSON: {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{place}: broken JSON: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place}: broken JSON: {error}") from error


def kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
