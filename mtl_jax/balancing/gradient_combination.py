"""K gradients into one with given weights, and the optax transformation of a weighting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mtl_jax.balancing.weightings.base import State, Weighting
from mtl_jax.sharing.gram import Tree, accumulation_dtype, gram, task_count, total

Transform: TypeAlias = optax.GradientTransformationExtraArgs
Aggregation: TypeAlias = Weighting | Transform  # a function of the gradients' products, or of the gradients themselves


class AggregationState(NamedTuple):
    """key: raw data uint32[2] of the key of the next update; weighting: the method's own state."""

    key: jax.Array
    weighting: State


def transformation(init: Callable[..., State], update: Callable[..., tuple[Tree, State]]) -> Transform:
    """The optax transformation of two functions. optax's protocols ask for an `update` that takes a state of any type;
    here each takes its own.
    """
    return Transform(init, update)


def initial_state(aggregation: Aggregation, tasks: int, shared: Tree) -> State:
    """The state before the first step; `shared`: the shared parameters, leaves [...]."""
    return aggregation.init(tasks) if isinstance(aggregation, Weighting) else aggregation.init(shared)


def as_transform(weighting: Weighting, seed: int | jax.Array = 0, tasks: int | None = None) -> Transform:
    """The transformation that combines K gradients with the weights of `weighting`.

    Updates come with leaves [K, ...], or [2, K, ...] (the halves of a batch) where `weighting.halves`, and go on with
    leaves [...].

    Args:
      weighting: from `mtl_jax.balancing.weightings`.
      seed: for the random orders that some methods draw; an int or a key.
      tasks: K, needed by methods that keep a state for each task.

    Raises:
      ValueError: at init, if `tasks` is needed and absent; at update, if leaves differ in K or have no halves.
    """

    def init(params: Tree) -> AggregationState:
        return AggregationState(first_key(seed), weighting.init(tasks))

    def update(
        updates: Tree, state: AggregationState, params: Tree = None, *, present: jax.Array | None = None, **extra: Any
    ) -> tuple[Tree, AggregationState]:
        products = cross_gram(updates) if weighting.halves else gram(updates)
        present = jnp.ones(products.shape[0], bool) if present is None else present
        raw_key, key = next_key(state.key)
        weights, inner = weighting.update(products, state.weighting, key=key, present=present)
        gradients = mean_of_halves(updates) if weighting.halves else updates
        return combine(weights, gradients), AggregationState(raw_key, inner)

    return transformation(init, update)


def combine(weights: jax.Array, updates: Tree) -> Tree:
    """Σ_k weights_k · updates_k: leaves [K, ...] -> [...], summed in the dtype of the weights.

    A task of weight 0 has no effect, even if its gradient is not finite.
    """

    def combined(leaf: jax.Array) -> jax.Array:
        used = zero_unused(weights != 0, leaf).astype(weights.dtype)
        return jnp.tensordot(weights, used, 1, precision=jax.lax.Precision.HIGHEST).astype(leaf.dtype)

    return jax.tree.map(combined, updates)


def cross_gram(halves: Tree) -> jax.Array:
    """Products between gradients of two halves of a batch, leaves [2, K, ...]: float[K, K], entry (i, j) = g_i of the
    first · g_j of the second, summed over leaves. Its expectation is the Gram matrix of the true gradients; that of one
    batch has noise in its diagonal. Raises ValueError where a leaf has no halves.
    """
    if task_count(halves) != 2 or any(leaf.ndim < 2 for leaf in jax.tree.leaves(halves)):
        raise ValueError("this method needs gradients of two independent halves of a batch: leaves [2, K, ...]")
    dtype = accumulation_dtype(halves)

    def products(leaf: jax.Array) -> jax.Array:
        first, second = leaf[0].astype(dtype), leaf[1].astype(dtype)
        axes = tuple(range(1, first.ndim))
        return jnp.tensordot(first, second, (axes, axes), precision=jax.lax.Precision.HIGHEST)

    return total((products(leaf) for leaf in jax.tree.leaves(halves)), dtype)


def mean_of_halves(halves: Tree) -> Tree:
    """Gradients of the full batch: leaves [2, K, ...] -> [K, ...]."""
    return jax.tree.map(lambda leaf: (leaf[0] + leaf[1]) / 2, halves)


def zero_unused(used: jax.Array, leaf: jax.Array) -> jax.Array:
    """The leaf [K, ...] with zeros for tasks that are not used (bool[K]), NaN there included."""
    return jnp.where(used.reshape((-1, *(1,) * (leaf.ndim - 1))), leaf, jnp.zeros_like(leaf))


def first_key(seed: int | jax.Array) -> jax.Array:
    """The raw data, which a checkpoint can store, of a key or of the key of an int."""
    return jax.random.key_data(jax.random.key(seed) if isinstance(seed, int) else seed)


def next_key(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The raw data of the next key, and a key to draw from."""
    following, key = jax.random.split(jax.random.wrap_key_data(raw))
    return jax.random.key_data(following), key
