"""The data gradient in one pass: ∇(Σ α_k·L_k + auxiliary losses), for loss weights that read no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.data.batch import Batch
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients.base import Balance, DataStep, StepInputs, initial_balance
from mtl_jax.training.loss_weighting import mean_losses, weigh_losses
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import with_leaves


class JointGradient(NamedTuple):
    """One backward pass over the weighted sum. loss_weights: (**traced options) -> the method."""

    loss_weights: Callable[..., LossWeights]

    def init(self, trained: FlatParams, tasks: int) -> Balance:
        """See `base.DataGradient`."""
        del trained
        return initial_balance(self.loss_weights(), tasks)

    def update(self, inputs: StepInputs) -> DataStep:
        """See `base.DataGradient`; of several micro-batches the gradients are summed in a scan."""
        method, batch = self.loss_weights(**inputs.hyper.loss_weights), inputs.batch
        present = inputs.total > 0
        names, factors, contributions = _terms(inputs)

        def apply(weighted, sums, gradient):
            losses, auxiliary = psum(sums, inputs.axis)
            metrics = {"auxiliary": dict(zip(names, auxiliary, strict=True))} if names else {}
            extra = weighted.extra + jnp.dot(factors, auxiliary)
            gradient = psum(gradient, inputs.axis)
            return DataStep(losses, weighted.alpha, extra, gradient, weighted.balance, present, metrics)

        if batch.tokens.shape[0] == 1:
            micro = jax.tree.map(lambda leaf: leaf[0], batch)
            sums, pullback = jax.vjp(lambda trained: contributions(trained, micro), inputs.trained)
            weighted = weigh_losses(method, inputs, psum(sums[0], inputs.axis), present)
            (gradient,) = pullback((weighted.applied, factors))
            return apply(weighted, sums, gradient)

        # α may depend on the losses of all micro-batches, so these come first where the method needs them
        losses = mean_losses(inputs, inputs.params) if method.needs_losses else jnp.zeros_like(inputs.total)
        weighted = weigh_losses(method, inputs, losses, present)

        def add(carry, micro):
            sums, pullback = jax.vjp(lambda trained: contributions(trained, micro), inputs.trained)
            (gradient,) = pullback((weighted.applied, factors))
            return jax.tree.map(jnp.add, carry, (sums, gradient)), None

        zero = ((jnp.zeros_like(inputs.total), jnp.zeros_like(factors)), jax.tree.map(jnp.zeros_like, inputs.trained))
        (sums, gradient), _ = jax.lax.scan(add, zero, batch)
        return apply(weighted, sums, gradient)


class _Terms(NamedTuple):
    """names of the A auxiliary losses, their factors float32 [A], and (trained leaves, micro-batch) -> what it adds to
    the losses [K] and [A].
    """

    names: tuple[str, ...]
    factors: jax.Array
    contributions: Callable[[FlatParams, Batch], tuple[jax.Array, jax.Array]]


def _terms(inputs: StepInputs) -> _Terms:
    objective, hyper, names = inputs.objective, inputs.hyper, inputs.objective.auxiliary
    factors = jnp.stack([hyper.auxiliary[name] for name in names]) if names else jnp.zeros((0,))
    counts = jax.vmap(lambda micro: terms.auxiliary_denominators(objective, micro))(inputs.batch).sum(axis=0)
    totals = terms.Denominators(inputs.total, psum(counts, inputs.axis))

    def contributions(trained: FlatParams, micro: Batch) -> tuple[jax.Array, jax.Array]:
        params = with_leaves(inputs.params, {**inputs.flat, **trained})
        return terms.contributions(objective, params, micro, hyper, inputs.key, totals=totals, progress=inputs.progress)

    return _Terms(names, factors, contributions)
