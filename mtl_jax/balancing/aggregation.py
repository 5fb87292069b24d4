"""K gradients into one, as optax transformations: updates enter with leaves `[K, ...]` and leave without the task axis.

    optimizer = optax.chain(aggregation.cagrad(0.4), optax.adamw(1e-4))

`optimizer.init(params)` takes the parameters as they are, without a task axis. `optimizer.update(..., present=bool[K])`
says which tasks have labels in the batch; all, without it. λ·∇Ω is to be added behind, not balanced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.balancing import weightings
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.sharing.gram import gram


class AggregationState(NamedTuple):
    """key: of the next update; weighting: the method's own state."""

    key: jax.Array
    weighting: Any


def as_transform(
    weighting: Weighting, seed: int | jax.Array = 0, tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that combines K gradients with the weights of `weighting`.

    Args:
      weighting: from `mtl_jax.balancing.weightings`.
      seed: of the random orders that some methods draw; an int or a key.
      tasks: K, needed by a method whose state has its size.

    Raises:
      ValueError: at update, where leaves differ in K.
    """

    def init(params) -> AggregationState:
        key = jax.random.key(seed) if isinstance(seed, int) else seed
        return AggregationState(key, weighting.init(tasks))

    def update(updates, state: AggregationState, params=None, *, present: jax.Array | None = None, **extra):
        products = gram(updates)
        present = jnp.ones(products.shape[0], bool) if present is None else present
        key, drawn = jax.random.split(state.key)
        weights, inner = weighting.update(products, state.weighting, key=drawn, present=present)
        return combine(weights, updates), AggregationState(key, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def combine(weights: jax.Array, updates: Any) -> Any:
    """Σ_k weights_k · updates_k: leaves [K, ...] -> [...], summed in the dtype of the weights.

    A task of weight 0 is left out, though its gradient were not finite.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        used = (weights != 0).reshape((-1, *(1,) * (leaf.ndim - 1)))
        leaf_of_used = jnp.where(used, leaf, jnp.zeros_like(leaf)).astype(weights.dtype)
        return jnp.tensordot(weights, leaf_of_used, 1, precision=jax.lax.Precision.HIGHEST).astype(leaf.dtype)

    return jax.tree.map(of_leaf, updates)


def mean(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.mean`; options of `as_transform`."""
    return as_transform(weightings.mean(), **options)


def sum(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.sum`; options of `as_transform`."""
    return as_transform(weightings.sum(), **options)


def mgda(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.mgda`; options of `as_transform`."""
    return as_transform(weightings.mgda(), **options)


def pcgrad(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.pcgrad`; options of `as_transform`."""
    return as_transform(weightings.pcgrad(), **options)


def imtl_g(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.imtl_g`; options of `as_transform`."""
    return as_transform(weightings.imtl_g(), **options)


def aligned_mtl(**options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.aligned_mtl`; options of `as_transform`."""
    return as_transform(weightings.aligned_mtl(), **options)


def cagrad(c: float = 0.4, **options) -> optax.GradientTransformationExtraArgs:
    """See `weightings.cagrad`; options of `as_transform`."""
    return as_transform(weightings.cagrad(c), **options)


AGGREGATION: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "mean": mean,
    "sum": sum,
    "mgda": mgda,
    "pcgrad": pcgrad,
    "imtl_g": imtl_g,
    "aligned_mtl": aligned_mtl,
    "cagrad": cagrad,
}
