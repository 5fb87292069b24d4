"""JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mtl_jax.data.files import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_jsonl(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record a line; blank lines are skipped. NaN (as pandas writes a missing value) becomes None.

    Raises UserError at the line: broken JSON, not an object, a key twice in one object, an infinite number.
    """
    for number, line in location.lines(encoding):
        if line.strip():
            value = parse_json(line, f"{location.name}:{number}")
            if not isinstance(value, dict):
                raise UserError(
                    f"{location.name}:{number}: each line has to hold a JSON object {{...}}, found {kind(value)}"
                )
            yield Record(value, location.name, number)


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
