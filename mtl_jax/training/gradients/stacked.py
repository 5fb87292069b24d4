"""K gradients as stacks, leaves [K, O, ...]: which of their slices are shared, products between tasks, combination.

A slice that several losses reach gets the combination of the tasks' gradients; one that a single loss reaches gets α_k
times its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing.gradient_combination import Aggregation
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.data.batch import Batch
from mtl_jax.models.ownership import name_key
from mtl_jax.models.reach import HEADS, Readers
from mtl_jax.sharing.gram import inner_products, total
from mtl_jax.training import clipping
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients.base import StepInputs
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import PyTree

Stacks = Mapping[str, jax.Array]
_HIGHEST = jax.lax.Precision.HIGHEST


class SharedSlices(NamedTuple):
    """Which slices of the trained leaves several losses reach; static.

    masks  {path: bool[O]} of the leaves that have such a slice
    sole   {path: the task of each slice, K where none or several reach it}, of all trained leaves
    """

    masks: Mapping[str, np.ndarray]
    sole: Mapping[str, tuple[int, ...]]


def shared_slices(
    trained: Iterable[str], reach: Mapping[str, Readers], groups: Mapping[str, tuple[int, ...]], tasks: int
) -> SharedSlices:
    """The shared slices of the trained paths.

    Args:
      trained: paths of layers, and of heads by group of tasks.
      reach: see `models.reach`.
      groups: {group of tasks: their indices}.
      tasks: K.
    """
    masks, sole = {}, {}
    for path in trained:
        layer, *rest = path.split("/")
        readers = [reach[HEADS][k] for k in groups[rest[0]]] if layer == HEADS else reach[layer]
        mask = np.asarray([len(losses) > 1 for losses in readers])
        if mask.any():
            masks[path] = mask
        sole[path] = tuple(min(losses) if len(losses) == 1 else tasks for losses in readers)
    return SharedSlices(masks, sole)


def masked(shared: SharedSlices, gradient: FlatParams, leading: int = 0) -> dict[str, jax.Array]:
    """The leaves with shared slices, zero in the others; they have `leading` axes before that of the slices."""
    return {
        path: gradient[path] if mask.all() else jnp.where(_along(mask, gradient[path], leading), gradient[path], 0.0)
        for path, mask in shared.masks.items()
    }


def stack_products(shared: SharedSlices, stacks: Stacks, halves: int = 1) -> jax.Array:
    """float32 [K, K]: products over the shared slices. With halves the leaves are [2, K, O, ...], and entry (i, j) is
    that of the first half of task i and the second of j.
    """

    def products(leaf: jax.Array) -> jax.Array:
        if halves == 1:
            return inner_products(leaf)
        axes = tuple(range(1, leaf.ndim - 1))
        return jnp.tensordot(leaf[0], leaf[1], (axes, axes), precision=_HIGHEST)

    leaves = masked(shared, stacks, halves)
    return total((products(leaf.astype(jnp.float32)) for leaf in leaves.values()), jnp.float32)


def task_norms(products: jax.Array) -> jax.Array:
    """float32 [K]: norms of the K gradients, with a derivative where they are 0."""
    squares = jnp.maximum(jnp.diagonal(products), 0.0)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def balance_metrics(weights: jax.Array, products: jax.Array, norms: jax.Array) -> dict[str, PyTree]:
    """{"balanced": {"weights": [K], of the aggregation; "task_norms": [K], of ∇L_k over what is shared; "cosine":
    [K, K] between them}}.
    """
    inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    cosine = products * inverse[:, None] * inverse[None, :]
    return {"balanced": {"weights": weights, "task_norms": norms, "cosine": cosine}}


def weigh_products(
    aggregation: Weighting, inputs: StepInputs, products: jax.Array, applied: jax.Array, present: jax.Array
) -> tuple[jax.Array, PyTree]:
    """Weights [K] for the gradients of α_k·L_k, and the state of the method.

    Args:
      aggregation: reads products.
      inputs: of the step.
      products: float32 [K, K], of the unweighted gradients.
      applied: float32 [K], α, 0 for tasks that are not present.
      present: bool [K].
    """
    weighted_products = products * applied[:, None] * applied[None, :]
    key = jax.random.fold_in(inputs.key, name_key("aggregation"))
    weights, state = aggregation.update(weighted_products, inputs.balance.aggregation, key=key, present=present)
    chex.assert_equal_shape([weights, applied])
    return weights, state


class Combined(NamedTuple):
    """weights [K] of the aggregation, NaN where it has none; gradient {path: [O, ...]}; state of the aggregation."""

    weights: jax.Array
    gradient: dict[str, jax.Array]
    state: PyTree


def combine_stacks(
    shared: SharedSlices,
    inputs: StepInputs,
    aggregation: Aggregation,
    stacks: Stacks,
    *,
    products: jax.Array,
    applied: jax.Array,
    losses: jax.Array,
    present: jax.Array,
) -> Combined:
    """The leaves with shared slices by the aggregation of the gradients of α_k·L_k.

    Args:
      shared: static.
      inputs: of the step.
      aggregation: the method.
      stacks: the unweighted gradients, leaves [K, O, ...].
      products: float32 [K, K], of them.
      applied: float32 [K], α, 0 for tasks that are not present.
      losses: float32 [K].
      present: bool [K].
    """
    if isinstance(aggregation, Weighting):
        weights, state = weigh_products(aggregation, inputs, products, applied, present)
        return Combined(weights, weighted_sum(shared, stacks, weights * applied, applied), state)
    updates = {path: leaf * _tasks(applied, leaf) for path, leaf in masked(shared, stacks, 1).items()}
    key = jax.random.fold_in(inputs.key, name_key("aggregation"))
    joined, state = aggregation.update(updates, inputs.balance.aggregation, present=present, losses=losses, key=key)
    joined = cast(dict[str, jax.Array], joined)
    chex.assert_trees_all_equal_shapes(joined, {path: inputs.trained[path] for path in joined})
    private = weighted_sum(shared, stacks, jnp.zeros_like(applied), applied)
    weights = jnp.full_like(applied, jnp.nan)
    return Combined(weights, {path: leaf + private[path] for path, leaf in joined.items()}, state)


def weighted_sum(shared: SharedSlices, stacks: Stacks, weights: jax.Array, alpha: jax.Array) -> dict[str, jax.Array]:
    """{path: [O, ...]}: Σ_k weights_k g_k in shared slices, Σ_k α_k g_k in the others."""
    result = {}
    for path, mask in shared.masks.items():
        leaf = stacks[path]
        factors = jnp.where(mask[None, :], weights[:, None], alpha[:, None])  # [K, O]
        used = jnp.where(_slices(factors != 0, leaf), leaf, 0.0)  # with weight 0 not even NaN counts
        if len(mask) == 1:
            result[path] = jnp.tensordot(factors[:, 0], used, 1, precision=_HIGHEST)
        else:
            result[path] = (_slices(factors, leaf) * used).sum(axis=0)
    return result


def scale_private(shared: SharedSlices, gradient: FlatParams, applied: jax.Array) -> dict[str, jax.Array]:
    """The leaves without shared slices, each slice times α of the one task that reaches it."""
    outside = {path: leaf for path, leaf in gradient.items() if path not in shared.masks}
    return clipping.scale(outside, shared.sole, jnp.append(applied, 1.0))


def half_factors(inputs: StepInputs) -> jax.Array:
    """float32 [2, K]: factors that turn what a half adds to a mean over all rows into the mean over that half."""
    half = inputs.batch.tokens.shape[2] // 2

    def count_rows(rows: slice) -> jax.Array:
        def count(micro: Batch) -> jax.Array:
            labels = jax.tree.map(lambda leaf: leaf[:, rows], micro.labels)
            return terms.loss_denominators(inputs.objective, micro._replace(labels=labels), inputs.hyper)

        return psum(jax.vmap(count)(inputs.batch).sum(axis=0), inputs.axis)

    counts = jnp.stack([count_rows(slice(None, half)), count_rows(slice(half, None))])
    return jnp.where(counts > 0, inputs.total[None] / jnp.where(counts > 0, counts, 1.0), 0.0)


def _along(mask: np.ndarray, leaf: jax.Array, leading: int) -> np.ndarray:
    return mask.reshape((1,) * leading + (-1,) + (1,) * (leaf.ndim - leading - 1))


def _tasks(values: jax.Array, leaf: jax.Array) -> jax.Array:
    return values.reshape(-1, *(1,) * (leaf.ndim - 1))


def _slices(values: jax.Array, leaf: jax.Array) -> jax.Array:
    return values.reshape(*values.shape, *(1,) * (leaf.ndim - 2))
