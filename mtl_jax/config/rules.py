"""Checks of a single value. Each takes the field's path `where` and says what is wrong to `say`, a line a problem."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

from mtl_jax.config.fields import TEXTS


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
        elif name in TEXTS and isinstance(value, tuple) and not all(isinstance(item, str) for item in found):
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
        say(f"{where}: should hold fields, found {entry!r}; begin with its function in configs/default.py")


def check_name(where, name, say):
    if not name or any(sign in name for sign in "/. \t\n|"):
        say(f"{where}: a name is without blanks, '/', '.' and '|'; it becomes part of paths")


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


def get(config, field):
    for key in field.split("."):
        config = config[key]
    return config
