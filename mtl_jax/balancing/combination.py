"""K gradients into one with given weights, and the optax transformation of a weighting."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.balancing.weightings.base import Weighting
from mtl_jax.sharing.gram import accumulation_dtype, gram, task_count


class AggregationState(NamedTuple):
    """key: raw data uint32[2] of the key of the next update; weighting: the method's own state."""

    key: jax.Array
    weighting: Any


def as_transform(
    weighting: Weighting, seed: int | jax.Array = 0, tasks: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """The transformation that combines K gradients with the weights of `weighting`.

    Updates enter with leaves [K, ...], or [2, K, ...] (the halves of a batch) where `weighting.halves`, and leave with
    leaves [...].

    Args:
      weighting: from `mtl_jax.balancing.weightings`.
      seed: of the random orders that some methods draw; an int or a key.
      tasks: K, needed by a method whose state has its size.

    Raises:
      ValueError: at init, where `tasks` is needed; at update, where leaves differ in K or have no halves.
    """

    def init(params) -> AggregationState:
        return AggregationState(first_key(seed), weighting.init(tasks))

    def update(updates, state: AggregationState, params=None, *, present: jax.Array | None = None, **extra):
        products = cross_gram(updates) if weighting.halves else gram(updates)
        present = jnp.ones(products.shape[0], bool) if present is None else present
        key, drawn = next_key(state.key)
        weights, inner = weighting.update(products, state.weighting, key=drawn, present=present)
        joined = mean_of_halves(updates) if weighting.halves else updates
        return combine(weights, joined), AggregationState(key, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def combine(weights: jax.Array, updates: Any) -> Any:
    """Σ_k weights_k · updates_k: leaves [K, ...] -> [...], summed in the dtype of the weights.

    A task of weight 0 is left out, though its gradient were not finite.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        leaf_of_used = zero_unused(weights != 0, leaf).astype(weights.dtype)
        return jnp.tensordot(weights, leaf_of_used, 1, precision=jax.lax.Precision.HIGHEST).astype(leaf.dtype)

    return jax.tree.map(of_leaf, updates)


def cross_gram(halves: Any) -> jax.Array:
    """Products between gradients of two halves of a batch, leaves [2, K, ...]: float[K, K], entry (i, j) = g_i of the
    first · g_j of the second, summed over leaves. In expectation the Gram matrix of the true gradients, unlike that of
    the whole batch, whose diagonal the noise enlarges. Raises ValueError where a leaf has no halves.
    """
    if task_count(halves) != 2 or any(leaf.ndim < 2 for leaf in jax.tree.leaves(halves)):
        raise ValueError("this method needs gradients of two independent halves of a batch: leaves [2, K, ...]")
    dtype = accumulation_dtype(halves)

    def of_leaf(leaf: jax.Array) -> jax.Array:
        first, second = leaf[0].astype(dtype), leaf[1].astype(dtype)
        axes = tuple(range(1, first.ndim))
        return jnp.tensordot(first, second, (axes, axes), precision=jax.lax.Precision.HIGHEST)

    return sum(of_leaf(leaf) for leaf in jax.tree.leaves(halves))


def mean_of_halves(halves: Any) -> Any:
    """Gradients of the whole batch: leaves [2, K, ...] -> [K, ...]."""
    return jax.tree.map(lambda leaf: (leaf[0] + leaf[1]) / 2, halves)


def zero_unused(used: jax.Array, leaf: jax.Array) -> jax.Array:
    """The leaf [K, ...] with zeros for tasks that are not used (bool[K]), whatever stood there."""
    return jnp.where(used.reshape((-1, *(1,) * (leaf.ndim - 1))), leaf, jnp.zeros_like(leaf))


def first_key(seed: int | jax.Array) -> jax.Array:
    """Raw data, which checkpoints can hold, of a key from an int, or of the key itself."""
    return jax.random.key_data(jax.random.key(seed) if isinstance(seed, int) else seed)


def next_key(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw data of the key after this one, and a key to draw from."""
    after, drawn = jax.random.split(jax.random.wrap_key_data(raw))
    return jax.random.key_data(after), drawn


class Aggregation(NamedTuple):
    """How K gradients become one: a function of their products, or a transformation of the gradients themselves."""

    weighting: Weighting | None
    transform: optax.GradientTransformationExtraArgs | None

    def init(self, tasks: int, shared: Any) -> Any:
        """The state before the first step; `shared` {path: leaf} are the shared parameters."""
        return self.weighting.init(tasks) if self.weighting else self.transform.init(shared)
