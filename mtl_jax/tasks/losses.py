"""Losses and weights of single items. No reduction: the caller sums and divides once.

A wrong shape is refused while the program is traced, here and in the other modules of heads: it would broadcast.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mtl_jax.tasks.base import Labels

ABSENT = -1e30  # score of a class that a task does not have; finite, since 0 · -inf is NaN


def balanced_weights(counts: tuple[int, ...]) -> tuple[float, ...]:
    """Class weights n / (C · n_c): all classes weigh the same in sum (King & Zeng 2001; scikit-learn's "balanced")."""
    return tuple(sum(counts) / (len(counts) * max(n, 1)) for n in counts)


def soft_targets(labels: Labels, classes: int) -> jax.Array:
    """Target distributions float32 [..., C] from class ids or distributions; zeros where the label is unknown."""
    value, mask = labels["value"], labels["mask"]
    if jnp.issubdtype(value.dtype, jnp.floating):
        chex.assert_shape(value, (*mask.shape, classes))
    else:
        chex.assert_equal_shape([value, mask])
        value = jax.nn.one_hot(value, classes, dtype=jnp.float32)
    return jnp.where(mask[..., None], value.astype(jnp.float32), 0.0)


def blank_padding(logits: jax.Array, count: jax.Array | int | None) -> jax.Array:
    """Scores [..., C] of which all but the first `count` classes are never predicted; None: all of them are classes."""
    if count is None:
        return logits
    return jnp.where(_exists(logits, count), logits, ABSENT)


def _exists(like: jax.Array, count: jax.Array | int) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(like.shape[-1]) < count, like.shape)


def _number(count: jax.Array | int) -> jax.Array:
    return jnp.asarray(count, jnp.float32)


def class_sums(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How often each class is the label, and the sum of its predicted probabilities over the same items, float32 [C].

    Args: logits and target [..., C]; a target of zeros (unknown label) is left out.
    """
    chex.assert_equal_shape([logits, target])
    axes = tuple(range(target.ndim - 1))
    known = target.sum(-1, keepdims=True) > 0
    return target.sum(axes), jnp.where(known, jax.nn.softmax(logits.astype(jnp.float32)), 0.0).sum(axes)


def item_weight(target: jax.Array, class_weights: tuple[float, ...] | None) -> jax.Array:
    """Σ_c w_c q_c of `target` q [..., C]: the weight of the item's class, 0 for an unknown label."""
    return (target if class_weights is None else target * _along(class_weights, target)).sum(-1)


def cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    class_weights: tuple[float, ...] | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    count: jax.Array | int | None = None,
) -> jax.Array:
    """-Σ_c w_c q'_c (1 - p_c)^γ log p_c over logits and target q [..., C], float32 [...].

    q' = (1 - ε) q + ε / C with ε = `smoothing` (Szegedy et al. 2016), γ = `gamma` (focal loss, Lin et al. 2017), w the
    class weights. A target of zeros (unknown label) gives 0. With `count` only the first so many are classes, the
    scores of the others come from `blank_padding`.
    """
    chex.assert_equal_shape([logits, target])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    known = target.sum(-1, keepdims=True)
    if count is None:
        q = (1.0 - smoothing) * target + smoothing / logits.shape[-1] * known
    else:
        q = (1.0 - smoothing) * target + jnp.where(_exists(target, count), smoothing / _number(count), 0.0) * known
    if class_weights is not None:
        q = q * _along(class_weights, q)
    if gamma:
        # the floor keeps the power's slope finite at p = 1 for γ < 1
        q = q * jnp.maximum(-jnp.expm1(log_p), 1e-12) ** gamma
    return -(q * log_p).sum(-1)


def binary_cross_entropy(
    logits: jax.Array,
    target: jax.Array,
    class_weights: tuple[float, ...] | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    count: jax.Array | int | None = None,
) -> jax.Array:
    """Mean over the C yes/no questions of -w_c y'(1-σ)^γ log σ - (1-y') σ^γ log(1-σ), float32 [...].

    target y 0/1 (or probabilities) [..., C], y' = (1 - ε) y + ε / 2; the class weights weigh the positives only. With
    `count` only the first so many are questions, the scores of the others come from `blank_padding`.
    """
    chex.assert_equal_shape([logits, target])
    logits = logits.astype(jnp.float32)
    if count is not None:  # the slope of what is left out of the sum is 0, and no NaN
        logits = jnp.where(_exists(logits, count), logits, 0.0)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    y = (1.0 - smoothing) * target + smoothing / 2
    positive, negative = -y * yes, -(1.0 - y) * no
    if gamma:
        positive, negative = positive * jnp.exp(gamma * no), negative * jnp.exp(gamma * yes)
    if class_weights is not None:
        positive = positive * _along(class_weights, positive)
    if count is None:
        return (positive + negative).mean(-1)
    return jnp.where(_exists(positive, count), positive + negative, 0.0).sum(-1) / _number(count)


def _along(class_weights: tuple[float, ...], like: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(class_weights, jnp.float32), like.shape)
