"""Sums and collections over the device axis of pmap; without an axis the values themselves."""

from __future__ import annotations

from typing import Any

import jax


def psum(tree: Any, axis: str | None) -> Any:
    """The sum over all devices."""
    return jax.lax.psum(tree, axis) if axis else tree


def gather(tree: Any, axis: str | None) -> Any:
    """The leaves of all devices one after another on their first axis."""
    return jax.lax.all_gather(tree, axis, tiled=True) if axis else tree
