"""Fields of a config by dotted name: which of them are arguments of the compiled step, reading and setting them."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.default import ENTRIES
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError

# "*" = a name that the user chooses. All other fields change the program.
TRACED = (
    "penalties.*.strength",
    "penalties.*.by_layer.*",
    "tasks.*.weight",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "model.dropout",
    "model.attention_dropout",
    "sharing.adapter_options.dropout",
    "loss_weights.options.*",
    "aggregation.options.*",
    "auxiliary.*",
    "distillation.*.weight",
    "meta.inner_learning_rate",
)


def _mappings(section: type) -> Iterator[str]:
    """The fields of a section, and of those below it, whose keys are free."""
    for field, kind in typing.get_type_hints(section).items():
        if isinstance(kind, type):
            yield from _mappings(kind)
        elif not hasattr(section, field) and typing.get_args(kind)[1] not in ENTRIES.values():
            yield field


# mappings whose keys the user chooses: an absent key has its default
_OPEN_MAPPINGS = {"penalties", *_mappings(Config), *(name for entry in ENTRIES.values() for name in _mappings(entry))}


def is_traced(field: str) -> bool:
    """Whether the compiled step takes the field as an argument."""
    patterns = (re.escape(name).replace(r"\*", r"[^.]+") for name in TRACED)
    return any(re.fullmatch(pattern, field) for pattern in patterns)


def expand(config: ConfigDict, field: str, where: str) -> tuple[str, ...]:
    """The fields of a config that match a name with "*".

    Raises:
      UserError: naming `where`, for a field that the config does not have.
    """
    matches = tuple(".".join(parts) for parts in _walk(config, field.split("."), ""))
    if not matches:
        raise UserError(f"{where}: {field!r} is no field of this config; name one such as 'penalties.l2.strength'")
    return matches


def _walk(node: Any, parts: list[str], parent: str) -> Iterator[tuple[str, ...]]:
    if not parts:
        yield ()
        return
    if not hasattr(node, "keys"):
        return
    first, *rest = parts
    for name in list(node) if first == "*" else [first]:
        if name in node:
            yield from ((name, *tail) for tail in _walk(node[name], rest, name))
        elif not rest and parent in _OPEN_MAPPINGS:
            yield (name,)


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with the given fields set."""
    copy = ordered_copy(config)
    for field, value in values.items():
        *parents, last = field.split(".")
        node = copy
        for name in parents:
            node = node[name]
        if last in node and isinstance(node[last], float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        node[last] = value
    return copy


def merged(config: ConfigDict, changes: Mapping[str, Any], where: str) -> ConfigDict:
    """A copy of the config with nested changes applied.

    Raises:
      UserError: naming `where`, for a field that the config does not have.
    """
    copy = ordered_copy(config)
    _merge(copy, changes, where, "")
    return copy


def _merge(node: ConfigDict, changes: Mapping[str, Any], where: str, parent: str) -> None:
    for name, value in changes.items():
        if name not in node and parent not in _OPEN_MAPPINGS:
            raise UserError(f"{where}: the config has no field {name!r} there; it has {', '.join(node)}")
        if name in node and hasattr(node[name], "items") and hasattr(value, "items"):
            _merge(node[name], value, f"{where}.{name}", name)
        elif name in node and isinstance(node[name], float) and isinstance(value, int) and not isinstance(value, bool):
            node[name] = float(value)
        else:
            node[name] = value


def ordered_copy(config: Any) -> Any:
    """A deep copy that preserves the order of fields and accepts new ones."""
    if hasattr(config, "items"):
        copy = ConfigDict(sort_keys=False)
        for name, value in config.items():
            copy[name] = ordered_copy(value)
        return copy
    return config
