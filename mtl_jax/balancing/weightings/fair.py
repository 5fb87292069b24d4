"""Bargains between the tasks: Nash-MTL and FairGrad."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.fairness import fair_solution
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings.base import Weighting, cosines, safe_sqrt, stateless


def nash_mtl() -> Weighting:
    """The Nash bargaining solution, G w = 1/w elementwise (Navon et al. 2022, claim 3.1): FairGrad with α = 1.

    The combined gradient has norm √n for n tasks, for gradients of any norm; the authors' code then clips it
    to norm 1 (`optax.clip_by_global_norm(1.0)`). For gradients without a common direction see `fairgrad`.
    """
    return fairgrad(1.0)


def fairgrad(alpha: Number = 1.0) -> Weighting:
    """α-fair allocation of the improvement, G w = w^(−1/α) elementwise (Ban & Ji 2024, equation 7).

    α = 1 is Nash-MTL, α → ∞ tends to the direction of MGDA if that has only positive weights. The equation is solved
    for the gradients scaled to norm 1 with 10 K eps added to the diagonal, eps the precision of the dtype: the weights
    stay finite if some non-negative combination of the gradients is zero and there is no solution. Tasks with a
    gradient of zero get weight 0. Raises ValueError unless α > 0.
    """
    options.check_interval("alpha", alpha, 0.0, ends="()")

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        fairness = options.as_scalar(alpha, gram.dtype)
        largest = jax.lax.stop_gradient(jnp.max(jnp.diagonal(gram)))  # any scale gives the same weights
        largest = jnp.where(largest > 0, largest, 1.0)
        similarity, inverse_norms = cosines(gram, present)
        live = inverse_norms > 0
        ridge = 10 * gram.shape[0] * jnp.finfo(gram.dtype).eps
        matrix = similarity + jnp.diag(jnp.where(live, ridge, 1.0))
        norms = jnp.where(live, safe_sqrt(jnp.diagonal(gram)) * jax.lax.rsqrt(largest), 1.0)
        # with v = ‖g‖ w: C v = ‖g‖^(1/α − 1) v^(−1/α)
        least = jnp.finfo(gram.dtype).tiny
        solution = fair_solution(matrix, jnp.maximum(norms ** (1.0 / fairness - 1.0), least), fairness)
        return solution * inverse_norms * largest ** (0.5 - fairness / (1.0 + fairness))

    return stateless(weights)
