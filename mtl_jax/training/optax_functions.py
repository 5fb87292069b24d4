"""The functions that optax exports, and options of a config against their signatures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import jax


def public_functions(module: ModuleType, argument: str = "") -> dict[str, Callable[..., Any]]:
    """The public functions of a module that have an argument of this name."""
    public = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and not name.startswith("_")}
    return {name: f for name, f in public.items() if not argument or argument in inspect.signature(f).parameters}


def standard_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """For the code of optax, which multiplies floats by integer counts, whatever the promotion of the caller."""

    @functools.wraps(function)
    def promoted(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return promoted


def option_problem(
    field: str,
    name: str,
    make: Callable[..., Any],
    options: Mapping[str, Any],
    fields: Mapping[str, str],
    known: Iterable[str] = (),
) -> str:
    """Options against a signature. `fields`: arguments set elsewhere; `known`: those that need not be given."""
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name not in fields
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())
    for option in options:
        if option in fields:
            return f"{field}.{option}: it follows {fields[option]}; set that instead"
        if option not in parameters and not takes_any:
            return f"{field}.{option}: {name!r} has no such option; it has {', '.join(parameters) or 'none'}"
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in known]
    if missing := [option for option in required if option not in options]:
        return f"{field}: {name!r} needs {' and '.join(map(repr, missing))}"
    return ""
