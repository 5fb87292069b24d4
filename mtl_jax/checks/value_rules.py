"""Checks of a single value. Each takes the field's path `where` and calls `report` with a line for each problem."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mtl_jax.checks.ranges import DEVICES, LONGEST_NAME, SIGNS, STRING_FIELDS

Report = Callable[[str], None]


def check_fields(config: Mapping[str, Any], default: Mapping[str, Any], where: str, report: Report) -> None:
    """Unknown fields, missing ones and wrong types, by comparison with the defaults.

    A mapping that is empty in the defaults may hold any keys.
    """
    for name in config:
        if name not in default:
            near = difflib.get_close_matches(name, list(default), 1)
            report(f"{where}.{name}: no such field" + (f"; did you mean {where}.{near[0]}?" if near else ""))
    for name, value in default.items():
        if name not in config:
            report(f"{where}.{name}: missing; start from default.get_config()")
            continue
        field, given = f"{where}.{name}", config[name]
        if hasattr(value, "items"):
            if not hasattr(given, "items"):
                report(f"{field}: should hold fields, found {given!r}")
            elif len(value):
                check_fields(given, value, field, report)
        elif isinstance(value, bool) != isinstance(given, bool) or not isinstance(given, _accepted_types(value)):
            report(f"{field}: {given!r} should be {_describe_type(value)}")
        elif name in STRING_FIELDS and isinstance(value, tuple) and not all(isinstance(item, str) for item in given):
            report(f"{field}: {given!r} should be a tuple of strings")


def _accepted_types(value: Any) -> type | tuple[type, ...]:
    if isinstance(value, float):
        return (int, float)
    return (tuple, list) if isinstance(value, tuple) else type(value)


def _describe_type(value: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", tuple: "a tuple"}
    return names[type(value)]


def check_entry(where: str, entry: Any, default: Mapping[str, Any], report: Report) -> None:
    """Whether an entry has exactly the fields of its default, with the right types."""
    if hasattr(entry, "items"):
        check_fields(entry, default, where, report)
    else:
        report(f"{where}: should hold fields, found {entry!r}; start from its function in mtl_jax.config.default")


def check_name(where: str, name: str, report: Report, reserved: Collection[str] = ()) -> None:
    """A name that the user gives: it becomes part of folders, paths of parameters and keys of results."""
    odd = "".join(dict.fromkeys(sign for sign in name if sign in SIGNS or sign.isspace() or not sign.isprintable()))
    if not name or odd:
        what = f"without blanks, control characters and {SIGNS}, but it has {odd!r}" if odd else "not empty"
        report(f"{where}: a name is {what}; it becomes part of paths and keys, use letters, digits, '_' and '-'")
    elif name[0] in "-~":
        report(f"{where}: a name that begins with {name[0]!r} reads like a flag or a folder; begin with a letter")
    elif len(name.encode()) > LONGEST_NAME:
        report(f"{where}: a name of {len(name.encode())} bytes; at most {LONGEST_NAME}, it becomes part of file names")
    elif name in reserved or name.casefold() in DEVICES:
        report(f"{where}: {name!r} is reserved for another key or file; choose another name, e.g. '{name}_1'")


def check_distinct(where: str, names: Iterable[str], report: Report) -> None:
    """Names that differ only in case, or in how letters are encoded, are the same file on some systems."""
    first: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in first:
            report(f"{where}: {first[key]!r} and {name!r} differ only in case, and are the same file on some systems")
        first.setdefault(key, name)


def check_choice(where: str, value: Any, choices: Iterable[str], report: Report) -> bool:
    """Whether the value is one of the choices."""
    choices = list(choices)
    if value in choices:
        return True
    near = difflib.get_close_matches(str(value), map(str, choices), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    report(f"{where}: {value!r} is none of {', '.join(map(repr, choices))}{hint}")
    return False


def check_names(where: str, names: Iterable[Any], known: Collection[str], report: Report) -> None:
    """Whether all of the names are known."""
    for name in names:
        check_choice(where, name, known, report)


def check_regex(where: str, value: Any, report: Report) -> None:
    """Whether the value compiles as a regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        report(f"{where}: {value!r} is not a regular expression: {error}")


def check_range(where: str, value: Any, low: float | None, high: float | None, report: Report) -> None:
    """Whether the value is a finite number from `low` to `high`; None: no limit."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        report(f"{where}: {value!r} should be a finite number")
    elif (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        report(f"{where}: {value!r} should be {' and '.join(bounds)}")


def get_field(config: Any, field: str) -> Any:
    """The value at a dotted path."""
    for key in field.split("."):
        config = config[key]
    return config
