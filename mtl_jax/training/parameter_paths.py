"""Parameters as a flat dict {path: leaf}; a path is the keys joined by "/", e.g. `layer_03/attention/query/kernel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

PyTree: TypeAlias = Any  # of arrays


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to {path: leaf}, in the order of the tree."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, path)
        else:
            flat[path] = value
    return flat


def matching(paths: Iterable[str], regexes: Iterable[str]) -> set[str]:
    """The paths in which one of the regexes is found ("^" and "$" anchor it)."""
    compiled = [re.compile(regex) for regex in regexes]
    return {path for path in paths if any(regex.search(path) for regex in compiled)}


def with_leaves(tree: Mapping[str, Any], flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`tree` with the leaves of `flat` in their places; mappings without a leaf, as heads without parameters, stay."""
    paths = {key: f"{prefix}/{key}" if prefix else str(key) for key in tree}
    return {
        key: with_leaves(value, flat, paths[key]) if isinstance(value, Mapping) else flat[paths[key]]
        for key, value in tree.items()
    }
