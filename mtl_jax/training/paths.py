"""Parameters as a flat dict {path: leaf}; a path is the keys joined by "/", e.g. `layer_03/attention/query/kernel`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


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


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def matching(paths: Iterable[str], regexes: Iterable[str]) -> set[str]:
    """The paths in which one of the regexes is found ("^" and "$" anchor it)."""
    compiled = [re.compile(regex) for regex in regexes]
    return {path for path in paths if any(regex.search(path) for regex in compiled)}
