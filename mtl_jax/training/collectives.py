"""Sums and collections over the device axis of pmap; without an axis the values themselves."""

from __future__ import annotations

from typing import TypeVar

import jax

Tree = TypeVar("Tree")  # a pytree of arrays


def psum(tree: Tree, axis: str | None) -> Tree:
    """The sum over all devices."""
    return jax.lax.psum(tree, axis) if axis else tree


def gather(tree: Tree, axis: str | None) -> Tree:
    """The leaves of all devices, concatenated along their first axis."""
    return jax.lax.all_gather(tree, axis, tiled=True) if axis else tree
