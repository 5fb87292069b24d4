"""Gradients of meta-learning: through, or at the end of, some steps of gradient descent on one task.

Parameters Θ = (fast, slow), any two pytrees: the inner loop moves `fast`, the outer one both. With all of Θ in `fast`
this is MAML; with the head alone in it, ANIL (Raghu et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.training.parameter_paths import PyTree

Loss = Callable[..., jax.Array]  # (fast, slow, number of the inner step: int32 scalar) -> scalar


class MetaGradient(NamedTuple):
    """Losses and gradient of one task for the outer step.

    loss    scalar: of the query after adaptation (MAML), or the mean over the inner steps (Reptile)
    loss_before  scalar: the loss of the first inner step, before anything was adapted; NaN without inner steps
    fast, slow  the gradients
    """

    loss: jax.Array
    loss_before: jax.Array
    fast: PyTree
    slow: PyTree


def adapt(
    loss: Loss,
    fast: PyTree,
    slow: PyTree,
    rate: jax.Array,
    steps: int,
    reduce: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[PyTree, PyTree, jax.Array]:
    """Gradient descent from i = 0 to `steps` − 1: fast_{i+1} = fast_i − rate · ∇_fast loss(fast_i, slow, i).

    Args:
      loss: of the inner steps.
      fast, slow: initial values.
      rate: scalar, may be traced.
      steps: static.
      reduce: from (loss, gradient) on one device to those of all.

    Returns:
      fast after the steps, Σ_i ∇loss = (fast_0 − fast_steps) / rate, and the losses [steps], each before its step
    """

    def step(carry, number):
        fast, total = carry
        value, gradient = reduce(jax.value_and_grad(loss)(fast, slow, number))
        moved = jax.tree.map(lambda p, g: p - rate * g, fast, gradient)
        return (moved, jax.tree.map(jnp.add, total, gradient)), value

    begin = fast, jax.tree.map(jnp.zeros_like, fast)
    (fast, total), losses = jax.lax.scan(step, begin, jnp.arange(steps, dtype=jnp.int32))
    return fast, total, losses


def maml(
    support: Loss,
    query: Callable[[PyTree, PyTree], jax.Array],
    fast: PyTree,
    slow: PyTree,
    rate: jax.Array,
    steps: int,
    *,
    first_order: bool = False,
    reduce: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> MetaGradient:
    """∇ query(Θ'(Θ)), where Θ' is Θ after inner steps on `support` (Finn et al. 2017, eq. 1).

    `first_order`: ∇ query at Θ', as if Θ' did not depend on Θ (FOMAML, section 5.2 there): no Hessian of `support`.
    """

    def adapted(fast, slow):
        moved, _, losses = adapt(support, fast, slow, rate, steps, reduce)
        return moved, losses

    if first_order:
        moved, losses = adapted(fast, slow)
        value, gradients = jax.value_and_grad(query, argnums=(0, 1))(moved, slow)
    else:

        def after(fast, slow):
            moved, losses = adapted(fast, slow)
            return query(moved, slow), losses

        (value, losses), gradients = jax.value_and_grad(after, argnums=(0, 1), has_aux=True)(fast, slow)
    return _meta(reduce((value, gradients)), losses)


def reptile(
    loss: Loss,
    fast: PyTree,
    slow: PyTree,
    rate: jax.Array,
    steps: int,
    reduce: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> MetaGradient:
    """(Θ − Θ') / rate with Θ' after inner steps on a minibatch each (Nichol et al. 2018, algorithm 1 and section 3).

    Computed as the sum of the inner gradients, which is equal and defined for a rate of 0 too. Parameters that do not
    adapt get no gradient.
    """
    _, total, losses = adapt(loss, fast, slow, rate, steps, reduce)
    return _meta((losses.mean(), (total, jax.tree.map(jnp.zeros_like, slow))), losses)


def _meta(value_and_gradients: tuple[jax.Array, tuple[PyTree, PyTree]], losses: jax.Array) -> MetaGradient:
    value, (fast, slow) = value_and_gradients
    return MetaGradient(value, losses[0] if losses.size else jnp.full_like(value, jnp.nan), fast, slow)
