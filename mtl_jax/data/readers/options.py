"""Options of readers, checked against the reader's signature."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError

# Parameters that a data set's entry gives by other fields: the name of a split; the fields of its texts.
CALLER_OPTIONS = ("split", "fields")
# Options of every data set and reader; see `mtl_jax.data.datasets.read_dataset`.
COMMON_OPTIONS = ("empty", "schemes", "scheme", "lists")


def declared_options(reader: Callable[..., Any]) -> dict[str, Any]:
    """Name -> type of each option of a reader: its keyword-only parameters, those of `CALLER_OPTIONS` included."""
    function = reader
    while hasattr(function, "func"):  # of a `Reader`, or of one that is bound to others
        function = function.func
    return _keyword_options(function)


@functools.cache
def _keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def select_options(reader: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are passed to the reader: all but those of `COMMON_OPTIONS` that it does not have."""
    native = declared_options(reader)
    return {name: value for name, value in options.items() if name not in COMMON_OPTIONS or name in native}


def check_options(reader: Callable[..., Any], options: Mapping[str, Any], further: tuple[str, ...] = ()) -> None:
    """Raises UserError for an option that the reader does not have, or of a wrong type. `further`: also known."""
    known = {name: hint for name, hint in declared_options(reader).items() if name not in CALLER_OPTIONS}
    for name, value in options.items():
        if name not in known and name not in further:
            names = sorted([*known, *further])
            raise UserError(
                f"options.{name}: this reader has no such option; it has: {', '.join(names)}.{suggestion(name, names)}"
            )
        if name in known and not _fits(value, known[name]):
            raise UserError(f"options.{name} should be {_in_words(known[name])}, found {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in inner)
    if origin is collections.abc.Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(option) for option in inner)
    if origin is collections.abc.Sequence:
        return f"a list with {_in_words(inner[0])} for each item"
    if origin is collections.abc.Mapping:
        return f"a mapping of {' to '.join(map(_in_words, inner))}"
    names = {str: "a string", int: "an integer from 0", float: "a number", bool: "True or False", type(None): "None"}
    return names[hint]
