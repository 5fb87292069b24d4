"""The gradient of the data where gradients are balanced: K gradients over what is shared, weighed and combined.

1. One pass gives the K losses, the gradients of what each task owns, and the K gradients over what several share.
2. The loss weights make α of losses and gradients; the aggregation sees the gradients of α_k·L_k.
3. Shared slices get the combination; slices of one task get α_k times their gradient.
λ·∇Ω is added after it, by the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtl_jax.balancing.combination import Aggregation, initial_state
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.models.ownership import SliceOwners, name_key
from mtl_jax.training import clipping
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import gather, psum
from mtl_jax.training.gradients import per_task
from mtl_jax.training.gradients.base import Balance, DataStep, StepInputs, initial_balance
from mtl_jax.training.gradients.per_task import EMBEDDING_TABLE, SharedParameters, TaskGradients
from mtl_jax.training.loss_weighting import weigh_losses
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import with_leaves


class _Pass(NamedTuple):
    """What one pass gives: losses [K] of all rows, unweighted gradients of leaves, the gradients split by task."""

    losses: jax.Array
    gradient: dict[str, jax.Array]
    gradients: TaskGradients


class AggregatedGradient(NamedTuple):
    """loss_weights, aggregation: (**traced options) -> the method; shared: what the K gradients are split for; slices
    {path: owner group of each slice}.
    """

    loss_weights: Callable[..., LossWeights]
    aggregation: Callable[..., Aggregation]
    shared: SharedParameters
    slices: SliceOwners

    def init(self, trained: FlatParams, tasks: int) -> Balance:
        """See `base.DataGradient`."""
        shared = {path: trained[path] for path in self.shared.owners}
        return initial_balance(self.loss_weights(), tasks, shared, initial_state(self.aggregation(), tasks, shared))

    def update(self, inputs: StepInputs) -> DataStep:
        """See `base.DataGradient`. metrics: {"balanced": {"weights": [K], of the aggregation; "task_norms": [K], of
        ∇L_k over what is shared; "cosine": [K, K] between them}}.
        """
        shared, present = self.shared, inputs.total > 0
        method = self.loss_weights(**inputs.hyper.loss_weights)
        run = _passes(shared, inputs)
        first = run(present.astype(jnp.float32))
        losses, by_task = first.losses, first.gradients
        products, norms = _products(shared, inputs, by_task)
        shapes = {path: inputs.trained[path] for path in shared.owners}
        weighted = weigh_losses(
            method,
            inputs,
            losses,
            present,
            gradient_norms=norms,
            gram=products,
            gradients=per_task.dense_gradients(shared, by_task, shapes) if "gradients" in method.needs else None,
        )
        applied = weighted.applied
        combined = self._combine(inputs, first, run, products, applied, shapes)
        outside = {path: leaf for path, leaf in combined.gradient.items() if path not in shared.owners}
        gradient = combined.gradient | clipping.scale(outside, self.slices, jnp.append(applied, 1.0))
        inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
        cosine = products * inverse[:, None] * inverse[None, :]
        metrics = {"balanced": {"weights": combined.weights, "task_norms": norms, "cosine": cosine}}
        balance = weighted.balance._replace(aggregation=combined.state)
        return DataStep(losses, weighted.alpha, weighted.extra, gradient, balance, present, metrics)

    def _combine(self, inputs: StepInputs, first: _Pass, run, products, applied, shapes) -> _Combined:
        """The shared part by the aggregation of the gradients of α_k·L_k; what one task owns is left as it is."""
        shared, by_task, present = self.shared, first.gradients, inputs.total > 0
        aggregation, before = self.aggregation(**inputs.hyper.aggregation), inputs.balance.aggregation
        key = jax.random.fold_in(inputs.key, name_key("aggregation"))
        if isinstance(aggregation, Weighting):
            weighed = products * applied[:, None] * applied[None, :]
            weights, state = aggregation.update(weighed, before, key=key, present=present)
            chex.assert_equal_shape([weights, applied])
            factors = weights * applied
            if shared.twice:
                gradient = _of_two(shared, self.slices, first, run(factors), applied, shapes)
            else:
                gradient = first.gradient | per_task.combine_gradients(shared, by_task, factors, applied, shapes)
            return _Combined(weights, gradient, state)
        weights = jnp.full_like(applied, jnp.nan)  # such methods have none
        updates = {
            path: leaf * applied.reshape(-1, *(1,) * (leaf.ndim - 1))
            for path, leaf in per_task.dense_gradients(shared, by_task, shapes).items()
        }
        joined, state = aggregation.update(updates, before, present=present, losses=first.losses, key=key)
        chex.assert_trees_all_equal_shapes(joined, {path: shapes[path] for path in joined})
        own = per_task.unshared_slices(shared, by_task, applied, shapes)
        return _Combined(weights, first.gradient | {path: leaf + own[path] for path, leaf in joined.items()}, state)


class _Combined(NamedTuple):
    """weights [K] of the aggregation, gradient {path: leaf}, state of the aggregation."""

    weights: jax.Array
    gradient: dict[str, jax.Array]
    state: Any


def _passes(shared: SharedParameters, inputs: StepInputs) -> Callable[[jax.Array], _Pass]:
    """(cotangents [K] of the losses) -> one pass over all rows. Of a single micro-batch the forward pass is shared."""
    objective = inputs.objective

    def pullback_of(micro):
        taps = objective.network.taps(inputs.params, micro, shared.taps)

        def contributions(trained, taps):
            params = with_leaves(inputs.params, {**inputs.flat, **trained})
            return terms.loss_contributions(
                objective, params, micro, inputs.hyper, inputs.key, inputs.total, taps, shared.taps
            )

        return jax.vjp(contributions, inputs.trained, taps)

    def read(micro, losses, cotangents) -> _Pass:
        gradient, taps = cotangents
        by_task = per_task.split_by_task(shared, objective.layout, micro, taps)
        stacked = () if shared.twice else shared.owners
        return _Pass(losses, {path: leaf for path, leaf in gradient.items() if path not in stacked}, by_task)

    if inputs.batch.tokens.shape[0] == 1:
        micro = jax.tree.map(lambda leaf: leaf[0], inputs.batch)
        losses, pullback = pullback_of(micro)
        return lambda cotangents: _over_devices(read(micro, losses, pullback(cotangents)), inputs.axis)

    def run(cotangents):
        def one(micro):
            losses, pullback = pullback_of(micro)
            return read(micro, losses, pullback(cotangents))

        return _over_devices(_accumulated(one, inputs.batch), inputs.axis)

    return run


def _products(shared: SharedParameters, inputs: StepInputs, by_task: TaskGradients) -> tuple[jax.Array, jax.Array]:
    """Products [K, K] of the K gradients over what is shared, and their norms [K]."""
    products = per_task.gradient_products(shared, by_task)
    if shared.taps.halves == 2:
        of_half = _half_shares(inputs.objective, inputs.batch, inputs.hyper, inputs.total, inputs.axis)
        products = products * of_half[0][:, None] * of_half[1][None, :]
    squares = jnp.maximum(jnp.diagonal(products), 0.0)
    return products, jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


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


def _of_two(shared: SharedParameters, slices, first: _Pass, second: _Pass, alpha, shapes) -> dict[str, jax.Array]:
    """Shared slices from the second pass, in which the losses were weighed; the others as they were in the first."""
    ones, zero = jnp.ones_like(alpha), jnp.zeros_like(alpha)
    gradient = dict(first.gradient)
    for path, owner in shared.owners.items():
        if path == EMBEDDING_TABLE and second.gradients.tokens is not None:
            shape = shapes[path].shape
            gradient[path] = per_task.token_sum(
                second.gradients.tokens, per_task.slice_factors(owner, ones, zero), owner, shape
            ) + per_task.token_sum(first.gradients.tokens, per_task.slice_factors(owner, zero, alpha), owner, shape)
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
            return terms.loss_denominators(objective, micro._replace(labels=labels), hyper)

        return psum(jax.vmap(labels_of)(batch).sum(axis=0), axis)

    counts = jnp.stack([of_rows(slice(None, half)), of_rows(slice(half, None))])
    return jnp.where(counts > 0, total[None] / jnp.where(counts > 0, counts, 1.0), 0.0)


def batch_refusal(shared: SharedParameters, rows: int, accumulate: int, placement: str) -> str | None:
    """What the batches of a config do not allow, as a sentence; None where all is well."""
    if shared.taps.halves == 2 and rows % 2:
        return f"config.data.rows_per_block: {rows} rows cannot be split in two halves, which this aggregation needs"
    if shared.taps.halves == 2 and shared.level == "representation":
        return "config.aggregation.level: two halves of a batch have no representation in common; take 'parameters'"
    if shared.gradient_storage == "layers" and (accumulate > 1 or placement == "pmap"):
        return (
            "config.aggregation.gradient_storage: 'layers' sees the products of one batch on one program only, not "
            "their sums over micro-batches (config.training.grad_accum_steps) or pmap; take 'copies'"
        )
    return None
