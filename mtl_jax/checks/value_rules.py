"""Checks of a single value. Each takes the field's path `where` and says what is wrong to `say`, a line a problem."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable

from mtl_jax.checks.ranges import DEVICES, LONGEST_NAME, SIGNS, STRING_FIELDS


def check_fields(config, default, where, say):
    """Unknown fields, missing ones and wrong types, against the defaults. Free mappings are empty in the defaults."""
    for name in config:
        if name not in default:
            near = difflib.get_close_matches(name, list(default), 1)
            say(f"{where}.{name}: no such field" + (f"; did you mean {where}.{near[0]}?" if near else ""))
    for name, value in default.items():
        if name not in config:
            say(f"{where}.{name}: missing; begin with default.get_config()")
            continue
        field, found = f"{where}.{name}", config[name]
        if hasattr(value, "items"):
            if not hasattr(found, "items"):
                say(f"{field}: should hold fields, found {found!r}")
            elif len(value):
                check_fields(found, value, field, say)
        elif isinstance(value, bool) != isinstance(found, bool) or not isinstance(found, _like(value)):
            say(f"{field}: {found!r} should be {_kind(value)}")
        elif name in STRING_FIELDS and isinstance(value, tuple) and not all(isinstance(item, str) for item in found):
            say(f"{field}: {found!r} should be a tuple of texts")


def _like(value):
    if isinstance(value, float):
        return (int, float)
    return (tuple, list) if isinstance(value, tuple) else type(value)


def _kind(value):
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple"}
    return names[type(value)]


def check_entry(where, entry, default, say):
    """Whether an entry has exactly the fields of its default, of the right types."""
    if hasattr(entry, "items"):
        check_fields(entry, default, where, say)
    else:
        say(f"{where}: should hold fields, found {entry!r}; begin with its function in mtl_jax.config.default")


def check_name(where, name, say, reserved=()):
    """A name of the user's own: it becomes part of folders, paths of parameters and keys of results."""
    odd = "".join(dict.fromkeys(sign for sign in name if sign in SIGNS or sign.isspace() or not sign.isprintable()))
    if not name or odd:
        what = f"without blanks, control characters and {SIGNS}, but it has {odd!r}" if odd else "not empty"
        say(f"{where}: a name is {what}; it becomes part of paths and keys, take letters, digits, '_' and '-'")
    elif name[0] in "-~":
        say(f"{where}: a name that begins with {name[0]!r} reads like a flag or a folder; begin with a letter")
    elif len(name.encode()) > LONGEST_NAME:
        say(f"{where}: a name of {len(name.encode())} bytes; at most {LONGEST_NAME}, it becomes part of file names")
    elif name in reserved or name.casefold() in DEVICES:
        say(f"{where}: {name!r} is the name of something else in what is written; choose another, e.g. '{name}_1'")


def check_distinct(where, names, say):
    """Names that differ in nothing but case, or in how letters are encoded, are one file on some systems."""
    first: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in first:
            say(f"{where}: {first[key]!r} and {name!r} differ in case alone, and are one file on some systems")
        first.setdefault(key, name)


def check_choice(where, value, choices: Iterable[str], say) -> bool:
    choices = list(choices)
    if value in choices:
        return True
    near = difflib.get_close_matches(str(value), map(str, choices), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    say(f"{where}: {value!r} is none of {', '.join(map(repr, choices))}{hint}")
    return False


def check_names(where, names, known, say):
    for name in names:
        check_choice(where, name, known, say)


def check_regex(where, value, say):
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        say(f"{where}: {value!r} is not a regular expression: {error}")


def check_range(where, value, low, high, say):
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        say(f"{where}: {value!r} should be a finite number")
    elif (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        say(f"{where}: {value!r} should be {' and '.join(bounds)}")


def get_field(config, field):
    for key in field.split("."):
        config = config[key]
    return config
