"""Heads in files: by the names of their tasks, in their true shapes. In memory they are stacked by group."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mtl_jax.tasks.base import Params
from mtl_jax.tasks.groups import TaskGroup, join_heads, split_heads


def by_name(groups: Sequence[TaskGroup], params: Params) -> Params:
    """Parameters with heads {task: leaves} from parameters with heads {group: leaves [K_g, ...]}."""
    if jax.process_count() > 1:  # each has its part of the arrays
        return {**params, "heads": jax.jit(functools.partial(split_heads, groups))(params["heads"])}
    # copies: the step after this one writes where these arrays are
    return {**params, "heads": jax.tree.map(np.array, split_heads(groups, jax.device_get(params["heads"])))}


def abstract_by_name(groups: Sequence[TaskGroup], abstract: Params) -> Params:
    """As `by_name` for the shapes and shardings that a checkpoint is restored into."""

    def of_task(stacked: jax.ShapeDtypeStruct, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = stacked.sharding
        if isinstance(sharding, NamedSharding):
            same = stacked.shape[1:] == shape.shape
            spec = PartitionSpec(*sharding.spec[1:]) if same else PartitionSpec()
            sharding = NamedSharding(sharding.mesh, spec)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    heads = {
        task: jax.tree.map(of_task, abstract["heads"][group.name], shapes)
        for group in groups
        for task, shapes in zip(group.tasks, group.shapes, strict=True)
    }
    return {**abstract, "heads": heads}


def by_group(groups: Sequence[TaskGroup], params: Params, abstract: Params) -> Params:
    """The inverse of `by_name`; `abstract` has the shardings of the result."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract["heads"])
    if jax.process_count() > 1:
        join = functools.partial(join_heads, groups, stack=jax.numpy.stack)
        return {**params, "heads": jax.jit(join, out_shardings=shardings)(params["heads"])}
    heads = join_heads(groups, jax.device_get(params["heads"]))
    placed = jax.tree.map(
        lambda leaf, like: leaf if like.sharding is None else jax.device_put(leaf, like.sharding),
        heads,
        abstract["heads"],
    )
    return {**params, "heads": placed}
