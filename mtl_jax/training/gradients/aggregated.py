"""The gradient of the data where gradients are balanced: K gradients over what is shared, weighed and combined.

1. One pass gives the K losses, the gradients of what each task owns, and the K gradients over what several share.
2. The loss weights make α of losses and gradients; the aggregation sees the gradients of α_k·L_k.
3. Shared slices get the combination; slices of one task get α_k times their gradient.
λ·∇Ω is added behind, by the step.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtl_jax.models.ownership import name_key
from mtl_jax.training import clipping
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import gather, psum
from mtl_jax.training.gradients import per_task
from mtl_jax.training.gradients.per_task import TABLE, Shared, TaskGradients
from mtl_jax.training.loss_weighting import told
from mtl_jax.training.parameter_paths import with_leaves


class _Pass(NamedTuple):
    """What one pass tells: losses [K] of all rows, unweighted gradients of leaves, the gradients told apart."""

    losses: jax.Array
    gradient: dict[str, jax.Array]
    gradients: TaskGradients


def data_gradient(spec, state, trained, flat, batch, hyper, key, total, axis):
    """As the plain gradient in `step`, with the shared part combined by the aggregation.

    Args:
      spec: `StepSpec` with `shared`.
      state, trained, flat, batch, hyper, key: as in the step; batch leaves [A, B, R, ...].
      total: float32[K], denominators of the losses over the whole step.
      axis: name of the device axis under pmap.

    Returns:
      losses [K], α [K], extra loss, Balance, gradient {path: leaf}, {"balanced": {"weights": [K], of the aggregation;
      "task_norms": [K], of ∇L_k over what is shared; "cosine": [K, K] between them}}.
    """
    shared, present = spec.shared, total > 0
    objective, method = spec.objective, spec.loss_weights(**hyper.loss_weights)
    aggregation = spec.aggregation(**hyper.aggregation)

    def pullback_of(micro):
        params = with_leaves(state.params, flat)
        taps = objective.network.taps(params, micro, shared.taps)

        def shares(trained, taps):
            params = with_leaves(state.params, {**flat, **trained})
            return terms.loss_shares(objective, params, micro, hyper, key, total, taps, shared.taps)

        return jax.vjp(shares, trained, taps)

    def read(micro, share, pulled) -> _Pass:
        gradient, taps = pulled
        apart = per_task.told_apart(shared, objective.layout, micro, taps)
        held = () if shared.twice else shared.owners
        return _Pass(share, {path: leaf for path, leaf in gradient.items() if path not in held}, apart)

    on = present.astype(jnp.float32)
    single = batch.tokens.shape[0] == 1
    if single:
        micro = jax.tree.map(lambda leaf: leaf[0], batch)
        share, pullback = pullback_of(micro)
        first = read(micro, share, pullback(on))
    else:
        first = _accumulated(lambda micro: _applied(pullback_of(micro), micro, on, read), batch)
    first = _over_devices(first, axis)
    losses, apart = first.losses, first.gradients

    products = per_task.products(shared, apart)
    if shared.taps.halves == 2:
        of_half = _half_shares(objective, batch, hyper, total, axis)
        products = products * of_half[0][:, None] * of_half[1][None, :]
    squares = jnp.maximum(jnp.diagonal(products), 0.0)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)

    shapes = {path: trained[path] for path in shared.owners}
    signals = told(
        objective, method.needs, state.balance, state.params, batch, hyper, key, axis, losses, present,
        gradient_norms=norms, gram=products,
        gradients=per_task.dense(shared, apart, shapes) if "gradients" in method.needs else None,
    )  # fmt: skip
    alpha, extra, of_losses = method.update(signals, state.balance.loss_weights)
    chex.assert_equal_shape([alpha, losses])
    alpha = alpha * jnp.stack([hyper.alpha[name] for name in objective.tasks])
    applied = jnp.where(present, alpha, 0.0)

    drawn = jax.random.fold_in(key, name_key("aggregation"))
    before = state.balance.aggregation
    if aggregation.weighting:
        weighed = products * applied[:, None] * applied[None, :]
        weights, after = aggregation.weighting.update(weighed, before, key=drawn, present=present)
        chex.assert_equal_shape([weights, applied])
        factors = weights * applied
        if shared.twice:
            if single:
                second = read(micro, share, pullback(factors))
            else:
                second = _accumulated(lambda micro: _applied(pullback_of(micro), micro, factors, read), batch)
            gradient = _of_two(shared, spec.slices, first, _over_devices(second, axis), applied, shapes)
        else:
            gradient = first.gradient | per_task.combined(shared, apart, factors, applied, shapes)
    else:
        weights = jnp.full_like(applied, jnp.nan)  # such methods have none
        updates = {
            path: leaf * applied.reshape(-1, *(1,) * (leaf.ndim - 1))
            for path, leaf in per_task.dense(shared, apart, shapes).items()
        }
        joined, after = aggregation.transform.update(updates, before, present=present, losses=losses, key=drawn)
        chex.assert_trees_all_equal_shapes(joined, {path: shapes[path] for path in joined})
        own = per_task.own_slices(shared, apart, applied, shapes)
        gradient = first.gradient | {path: leaf + own[path] for path, leaf in joined.items()}
    outside = {path: leaf for path, leaf in gradient.items() if path not in shared.owners}
    gradient |= clipping.scale(outside, spec.slices, jnp.append(applied, 1.0))
    inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    metrics = {"weights": weights, "task_norms": norms, "cosine": products * inverse[:, None] * inverse[None, :]}
    balance = state.balance._replace(loss_weights=of_losses, aggregation=after)
    return losses, alpha, extra, balance, gradient, {"balanced": metrics}


def _applied(found, micro, cotangent, read):
    share, pullback = found
    return read(micro, share, pullback(cotangent))


def _accumulated(one, batch) -> _Pass:
    """Sums over micro-batches; tokens stand one after another."""
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], batch))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _summed(shapes))

    def add(carry, micro):
        found = one(micro)
        return jax.tree.map(jnp.add, carry, _summed(found)), found.gradients.tokens

    found, tokens = jax.lax.scan(add, zero, batch)
    tokens = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tokens)
    return found._replace(gradients=found.gradients._replace(tokens=tokens))


def _summed(found: _Pass) -> _Pass:
    return found._replace(gradients=found.gradients._replace(tokens=None))


def _over_devices(found: _Pass, axis) -> _Pass:
    """The pass over the rows of all devices."""
    tokens = gather(found.gradients.tokens, axis)
    found = psum(_summed(found), axis)
    return found._replace(gradients=found.gradients._replace(tokens=tokens))


def _of_two(shared: Shared, slices, first: _Pass, second: _Pass, alpha, shapes) -> dict[str, jax.Array]:
    """Shared slices from the second pass, in which the losses were weighed; the others as they were in the first."""
    ones, zero = jnp.ones_like(alpha), jnp.zeros_like(alpha)
    gradient = dict(first.gradient)
    for path, owner in shared.owners.items():
        if path == TABLE and second.gradients.tokens is not None:
            shape = shapes[path].shape
            gradient[path] = per_task.token_sum(
                second.gradients.tokens, per_task.factors(owner, ones, zero), owner, shape
            ) + per_task.token_sum(
                first.gradients.tokens, per_task.factors(owner, zero, alpha), owner, shape
            )  # fmt: skip
            continue
        own = clipping.scale({path: first.gradient[path]}, slices, jnp.append(alpha, 0.0))[path]
        used = per_task.shared_slices(owner).reshape(-1, *(1,) * (own.ndim - 1))
        gradient[path] = jnp.where(used, second.gradient[path], own)
    return gradient


def _half_shares(objective, batch, hyper, total, axis) -> jax.Array:
    """float32[2, K]: what turns the part of a mean over all rows that comes from a half into the mean of the half."""
    half = batch.tokens.shape[2] // 2

    def of_rows(rows):
        def labels_of(micro):
            labels = {
                name: {key: leaf[:, rows] for key, leaf in of_task.items()} for name, of_task in micro.labels.items()
            }
            return terms.counts(objective, micro._replace(labels=labels), hyper)

        return psum(jax.vmap(labels_of)(batch).sum(axis=0), axis)

    counts = jnp.stack([of_rows(slice(None, half)), of_rows(slice(half, None))])
    return jnp.where(counts > 0, total[None] / jnp.where(counts > 0, counts, 1.0), 0.0)


def require(shared: Shared, rows: int, accumulate: int, placement: str) -> str | None:
    """What the batches of a config do not allow, as a sentence; None where all is well."""
    if shared.taps.halves == 2 and rows % 2:
        return f"config.data.rows: {rows} rows cannot be split in two halves, which this aggregation needs"
    if shared.taps.halves == 2 and shared.level == "representation":
        return "config.aggregation.level: two halves of a batch have no representation in common; take 'parameters'"
    if shared.memory == "layers" and (accumulate > 1 or placement == "pmap"):
        return (
            "config.aggregation.memory: 'layers' sees the products of one batch on one program only, not their sums "
            "over micro-batches (config.training.accumulate) or pmap; take 'copies'"
        )
    return None
