"""Points of the convex hull of the gradients: MGDA and CAGrad."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.balancing import options
from mtl_jax.balancing.interior_point import simplex_minimum
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings.base import (
    Weighting,
    cosines,
    dot,
    normalised_preference,
    safe_divide,
    safe_sqrt,
    scale_gram,
    stateless,
)
from mtl_jax.sharing.gram import Tree


def mgda() -> Weighting:
    """The point of least norm in the convex hull of the gradients (Désidéri 2012; Sener & Koltun 2018).

    Exact for two tasks; for more a quadratic programme, solved to rounding in a fixed number of Newton steps.
    """

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        if gram.shape[0] == 2:
            return _least_norm_of_two(gram, present)
        similarity, normal, live = _relative(gram, present)
        v = simplex_minimum(lambda similarity, v, floor: (dot(similarity, v), similarity), similarity, normal, live)
        zero = (present & ~live).astype(gram.dtype)
        zeros = jnp.sum(zero)
        return jnp.where(zeros > 0, zero / jnp.maximum(zeros, 1.0), normal * v)

    return stateless(weights)


def cagrad(c: Number = 0.4) -> Weighting:
    """Conflict-averse gradient: the best worst improvement within c‖g_0‖ of the mean g_0 (Liu et al. 2021).

    weights = 1/n + c (‖g_0‖ / ‖g_w‖) w, w = argmin over the simplex of g_w·g_0 + c ‖g_0‖ ‖g_w‖. Not divided by 1 + c²,
    as some code does. c = 0 is the mean. If ‖g_w‖ vanishes, no step improves all tasks, and the result is the mean.
    Raises ValueError unless 0 ≤ c < 1.
    """
    options.check_interval("c", c, 0.0, 1.0, "[)")

    def weights(gram: jax.Array, key: jax.Array, present: jax.Array) -> jax.Array:
        equal = normalised_preference(gram, present)
        if options.is_concrete(c) and c == 0:
            return equal
        # in v, with w_k = v_k · least norm / ‖g_k‖, all terms are of order 1 for any norms; F is homogeneous
        similarity, normal, live = _relative(gram, present)
        gram = scale_gram(gram)
        length = safe_sqrt(dot(equal, dot(gram, equal)))
        towards_mean = safe_divide(dot(similarity, equal * safe_sqrt(jnp.diagonal(gram))), length)
        radius = options.as_scalar(c, gram.dtype)
        least = 10 * jnp.finfo(gram.dtype).eps ** 0.5  # smaller ‖g_v‖ are rounding: no step improves all tasks

        def derivatives(data: Tree, x: jax.Array, floor: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
            # ‖g_v‖ = min over s of ½ (‖g_v‖²/s + s), s the last variable: Newton steps then have no kink at 0
            similarity, towards_mean, radius = data
            v, s = x[:-1], jnp.maximum(x[-1], floor)
            product = dot(similarity, v) / s
            ratio = dot(v, product) / s
            gradient = jnp.append(towards_mean + radius * product, 0.5 * radius * (1.0 - ratio))
            mixed = -product[:, None]
            return gradient, radius / s * jnp.block([[similarity, mixed], [mixed.T, ratio[None, None]]])

        def raised(data: Tree, x: jax.Array) -> jax.Array:
            # the best s is ‖g_v‖; a shortened step can leave it far below, from where Newton steps only double it
            v = x[:-1]
            return x.at[-1].set(jnp.maximum(x[-1], safe_sqrt(dot(v, dot(data[0], v)))))

        extended = jnp.append(normal, 0.0), jnp.append(live, True)
        data = similarity, towards_mean, radius
        v = simplex_minimum(derivatives, data, *extended, iterations=100, raised=raised)[:-1]
        norm = safe_sqrt(dot(v, dot(similarity, v)))
        # a gradient of zero takes all of w unless F < 0 is possible without it
        helps = jnp.all(live | ~present) | (dot(v, towards_mean) + radius * norm < 0)
        factor = jnp.where(helps, radius * length / jnp.maximum(norm, least), 0.0)
        return equal + factor * v * jnp.where(
            live, safe_divide(jnp.ones_like(equal), safe_sqrt(jnp.diagonal(gram))), 0.0
        )

    return stateless(weights)


def _relative(gram: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosines [K, K]; least norm / ‖g_k‖ [K]; and which tasks are present with a non-zero gradient, bool[K]."""
    similarity, inverse_norms = cosines(gram, present)
    live = inverse_norms > 0
    return similarity, jnp.where(live, safe_divide(inverse_norms, jnp.max(inverse_norms)), 1.0), live


def _least_norm_of_two(gram: jax.Array, present: jax.Array) -> jax.Array:
    """min over t in [0, 1] of ‖t g_0 + (1 − t) g_1‖: t = (g_1 − g_0)·g_1 / ‖g_0 − g_1‖²."""
    distance = gram[0, 0] + gram[1, 1] - 2.0 * gram[0, 1]
    distinct = distance > 0
    first = jnp.where(distinct, (gram[1, 1] - gram[0, 1]) / jnp.where(distinct, distance, 1.0), 0.5)
    first = jnp.clip(first, 0.0, 1.0)
    both = present[0] & present[1]
    return jnp.where(both, jnp.stack([first, 1.0 - first]), present.astype(gram.dtype))
