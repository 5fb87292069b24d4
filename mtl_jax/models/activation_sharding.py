"""How activations lie on the mesh of the step that is traced: rows over `data` and `fsdp`, tokens over `sequence`.

Outside of such a step, and on a mesh that splits neither, nothing is done here. What lies over `model` follows from the
parameters (`Layer.tensor_parallel`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

ROW_AXES = ("data", "fsdp")
LARGE_LEAF = 1 << 16  # elements from which on `fsdp` splits a parameter, and `model` where no layer says how


def axis_size(*names: str) -> int:
    """The number of devices along these axes together; 1 where no step on a mesh is traced."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(name, 1) for name in names)


def shard_activations(x: jax.Array) -> jax.Array:
    """x [R, T, D] with its rows and tokens split, its features complete: so it lies before and after each layer.

    Where parameters are split over the same devices (fsdp) the compiler then gathers them, and not the activations;
    where layers are split (model) it sums what they give out.
    """
    if axis_size("fsdp", "sequence", "model") == 1:
        return x
    rows = ROW_AXES if x.shape[0] % axis_size(*ROW_AXES) == 0 else PartitionSpec.UNCONSTRAINED
    tokens = "sequence" if x.shape[1] % axis_size("sequence") == 0 else None
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, tokens, *[None] * (x.ndim - 2)))


def gather_tokens(x: jax.Array) -> jax.Array:
    """x [R, T, ...] with all tokens of a row on one device: of keys and values, which each query compares with."""
    if axis_size("sequence") == 1:
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(free, None, *[free] * (x.ndim - 2)))


def gather_table(table: jax.Array) -> jax.Array:
    """A table of vectors [V, D] with all that `fsdp` splits, to look up the tokens of this device's rows.

    Left to itself the compiler gathers the rows of all devices and sums what each finds.
    """
    if axis_size("fsdp") == 1:
        return table
    spec: list[str | None] = [None, None]
    if (axis := longest_axis(table.shape, axis_size("model"))) is not None:
        spec[axis] = "model"
    return jax.lax.with_sharding_constraint(table, PartitionSpec(*spec))


def longest_axis(shape: Sequence[int], devices: int, free: Collection[int] | None = None) -> int | None:
    """The axis that is split over so many devices in a large array: the longest that they divide, of `free` (None:
    all); None where there is none.
    """
    axes = [i for i in range(len(shape)) if shape[i] % devices == 0 and (free is None or i in free)]
    large = devices > 1 and math.prod(shape) >= LARGE_LEAF
    return max(axes, key=lambda i: shape[i]) if axes and large else None


def join_rows(x: jax.Array) -> jax.Array:
    """[S, R, ...] as [S·R, ...], see `split_rows`.

    Where rows are split over devices, those of equal number become neighbours: an array after the other would move
    rows from device to device.
    """
    if axis_size(*ROW_AXES) > 1:
        x = jnp.swapaxes(x, 0, 1)
    return x.reshape(-1, *x.shape[2:])


def split_rows(x: jax.Array, count: int) -> jax.Array:
    """The [S, R, ...] that `join_rows` joined, S = `count`."""
    if axis_size(*ROW_AXES) > 1:
        return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    return x.reshape(count, -1, *x.shape[1:])
