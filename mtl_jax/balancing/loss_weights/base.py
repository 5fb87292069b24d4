"""The interface of a loss weighting: what it reads and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import Tree

State: TypeAlias = Any  # a pytree of arrays, of a type of the method's own


class Signals(NamedTuple):
    """What training provides at each update. Entries of a task that is not present are not read.

    losses          float[K]  means over the labelled examples of each task; read where the method needs "losses"
    present         bool[K]   which tasks have labels in the batch
    gradient_norms  float[K]  of each task's loss, not weighted, over the shared parameters (or the last shared layer)
    gram            float[K, K]  products of these gradients; replaces `gradient_norms`
    gradients       pytree, leaves [K, ...], these gradients themselves
    losses_after    float[K]  losses on the batch of the previous update, with the parameters after it; not read at the
                    first update
    divergences     float[K]  KL(labels ‖ predictions), distributions of the classes over the batch, see
                    `class_divergence`; NaN for tasks without classes
    scores          float[K]  last score on dev, in [0, 1], higher is better; NaN before the first

    All but the first two are None if training does not provide them.
    """

    losses: jax.Array
    present: jax.Array
    gradient_norms: jax.Array | None = None
    gram: jax.Array | None = None
    gradients: Tree = None
    losses_after: jax.Array | None = None
    divergences: jax.Array | None = None
    scores: jax.Array | None = None


class LossWeights(NamedTuple):
    """init(K) -> state; update(signals, state) -> (α float32[K], extra_loss float32 scalar, state).

    No gradient flows through α. The α of an absent task is finite and multiplies a loss of 0. `extra_loss` is added to
    the objective; it does not depend on the parameters and makes Σ α_k L_k + extra_loss the value of the method's
    objective, if it has one. `needs`: the fields of `Signals` that α or the state depend on. "losses" means those of
    the complete step, known before any of its gradients. With "gradients" the first function is init(K, shared),
    `shared` the pytree of parameters that the gradients belong to.
    """

    init: Callable[..., State]
    update: Callable[[Signals, State], tuple[jax.Array, jax.Array, State]]
    needs: frozenset[str] = frozenset()

    @property
    def needs_losses(self) -> bool:
        """Whether α or the state depend on the losses of the step."""
        return "losses" in self.needs


def stateless(alpha: Callable[[Signals], jax.Array], *needs: str) -> LossWeights:
    """A method from signals -> α [K]."""

    def update(signals: Signals, state: State) -> tuple[jax.Array, jax.Array, State]:
        weights = jax.lax.stop_gradient(alpha(signals))
        return weights, jnp.zeros((), weights.dtype), state

    return LossWeights(lambda count: (), update, frozenset(needs))


def require_signal(signals: Signals, field: str, method: str) -> Any:
    """A field of the signals. Raises ValueError, which names method and field, if it is None."""
    value = getattr(signals, field)
    if value is None:
        raise ValueError(f"{method} needs Signals.{field}, which training does not provide")
    return value


def gradient_norms(signals: Signals, method: str) -> jax.Array:
    """Norms of the gradients, float[K], from `gradient_norms` or `gram`. Raises ValueError if both are None."""
    if signals.gradient_norms is None and signals.gram is not None:
        return jnp.sqrt(jnp.maximum(jnp.diagonal(signals.gram), 0.0))
    return require_signal(signals, "gradient_norms", method)


def mean_over(values: jax.Array, used: jax.Array) -> jax.Array:
    """Mean of values [K] over the tasks used (bool[K]); 0 if there are none."""
    count = jnp.maximum(jnp.sum(used.astype(values.dtype)), 1.0)
    return jnp.sum(jnp.where(used, values, 0.0)) / count
