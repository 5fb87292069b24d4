"""The JSON values of a file: one in each line, several over any number of lines, or a single one."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.errors import UserError

_BLANKS = re.compile(r"[ \t\r\n]*")


def read_values(location: Location, encoding: str) -> Iterator[tuple[int, Any]]:
    """(line where it begins, value) of each value of a file. NaN (as pandas writes a missing value) becomes None.

    Raises UserError at the line: broken JSON, a repeated key in an object, an infinite number.
    """
    one_a_line = False
    for number, line in location.lines(encoding):
        if not line.strip():
            continue
        try:
            value = _decoded(line, f"{location.name}:{number}")
        except json.JSONDecodeError as error:
            rest = list(itertools.islice(location.lines(encoding), number - 1, None))
            yield from _over_lines(rest, location.name, one_a_line, error)
            return
        one_a_line = True
        yield number, value


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON string. The message of a UserError begins with `place`."""
    try:
        return _decoded(text, place)
    except json.JSONDecodeError as error:
        raise _broken(error, place) from error


def type_name(value: Any) -> str:
    """The type of a JSON value, in JSON's terms."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _over_lines(
    lines: Sequence[tuple[int, str]], file: str, one_a_line: bool, first_error: json.JSONDecodeError
) -> Iterator[tuple[int, Any]]:
    """The values from the first line on that is no complete value; `first_error` says why it is none."""
    text = "\n".join(line for _, line in lines)
    at = _BLANKS.match(text, 0).end()
    numbered = []
    while at < len(text):
        number = lines[0][0] + text.count("\n", 0, at)
        try:
            value, at = _decoded(text, f"{file}:{number}", at)
        except json.JSONDecodeError as error:
            if not numbered and (one_a_line or (len(lines) > 1 and _is_value(lines[1][1]))):
                raise _broken(first_error, f"{file}:{number}") from first_error
            wrong = lines[0][0] + error.lineno - 1
            begin = f" (the value begins at line {number})" if wrong != number else ""
            raise UserError(f"{file}:{wrong}: broken JSON: {error.msg} at column {error.colno}{begin}") from error
        numbered.append((number, value))
        at = _BLANKS.match(text, at).end()
    begins = [number for number, _ in numbered]
    if len(set(begins)) < len(begins):  # several in one line: they are named by their number instead
        numbered = [(number, value) for number, (_, value) in enumerate(numbered, start=1)]
    yield from numbered


def _decoded(text: str, place: str, at: int | None = None) -> Any:
    """The value of a string; with `at` the value that begins there, and where it ends.

    Raises json.JSONDecodeError for invalid JSON, UserError for JSON that is refused.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        numbered = dict(pairs)
        if len(numbered) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice in one object")
        return numbered

    def constant(name: str) -> None:
        if name != "NaN":
            raise ValueError(f"{name} is no JSON number")

    try:
        if at is None:
            return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        return json.JSONDecoder(object_pairs_hook=unique, parse_constant=constant).raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise UserError(f"{place}: broken JSON: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place}: broken JSON: {error}") from error


def _is_value(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _broken(error: json.JSONDecodeError, place: str) -> UserError:
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return UserError(f"{place}: broken JSON: {error.msg} at {line}column {error.colno}")
