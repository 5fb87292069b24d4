"""The data gradient with balanced gradients: K gradients over the shared parameters, weighted and combined.

1. One pass gives the K losses, the gradients of the slices of each task, and the K gradients of the shared slices.
2. The loss weights compute α from losses and gradients; the aggregation combines the gradients of α_k·L_k.
3. Shared slices get the combination; slices of one task get α_k times their gradient.
The step adds λ·∇Ω to the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from mtl_jax.balancing.gradient_combination import Aggregation, initial_state
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.data.batch import Batch
from mtl_jax.models.ownership import SliceOwners, name_key
from mtl_jax.training import clipping
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import gather, psum
from mtl_jax.training.gradients import per_task
from mtl_jax.training.gradients.base import Balance, DataStep, StepInputs, initial_balance
from mtl_jax.training.gradients.per_task import EMBEDDING_TABLE, SharedParameters, TaskGradients
from mtl_jax.training.gradients.stacked import Combined, balance_metrics, half_factors, task_norms, weigh_products
from mtl_jax.training.loss_weighting import weigh_losses
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import with_leaves


class _Pass(NamedTuple):
    """Of one pass: losses [K] over all rows, unweighted gradients of leaves, the gradients split by task."""

    losses: jax.Array
    gradient: dict[str, jax.Array]
    gradients: TaskGradients


class AggregatedGradient(NamedTuple):
    """loss_weights, aggregation  (**traced options) -> the method
    shared   the parameters for which the gradients are split by task
    slices   {path: owner group of each slice}
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
        """See `base.DataGradient`; metrics: `stacked.balance_metrics`."""
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
        combined = self._combine(inputs, first, run, products=products, applied=applied, shapes=shapes)
        outside = {path: leaf for path, leaf in combined.gradient.items() if path not in shared.owners}
        gradient = combined.gradient | clipping.scale(outside, self.slices, jnp.append(applied, 1.0))
        metrics = balance_metrics(combined.weights, products, norms)
        balance = weighted.balance._replace(aggregation=combined.state)
        return DataStep(losses, weighted.alpha, weighted.extra, gradient, balance, present, metrics)

    def _combine(
        self,
        inputs: StepInputs,
        first: _Pass,
        run: Callable[[jax.Array], _Pass],
        *,
        products: jax.Array,
        applied: jax.Array,
        shapes: FlatParams,
    ) -> Combined:
        """Shared slices by the aggregation of the gradients of α_k·L_k; slices of one task as in the first pass.

        Args:
          inputs: of the step.
          first: the pass with all weights 1.
          run: another pass, with the given weights [K].
          products: float32 [K, K], of the unweighted gradients over the shared slices.
          applied: float32 [K], α, 0 for tasks that are not present.
          shapes: leaves of the shared paths, for their shapes.
        """
        shared, by_task, present = self.shared, first.gradients, inputs.total > 0
        aggregation = self.aggregation(**inputs.hyper.aggregation)
        if isinstance(aggregation, Weighting):
            weights, state = weigh_products(aggregation, inputs, products, applied, present)
            factors = weights * applied
            if shared.twice:
                gradient = _of_two(shared, self.slices, first, run(factors), applied, shapes)
            else:
                gradient = first.gradient | per_task.combine_gradients(shared, by_task, factors, applied, shapes)
            return Combined(weights, gradient, state)
        weights = jnp.full_like(applied, jnp.nan)  # methods that read gradients have none
        updates = {
            path: leaf * applied.reshape(-1, *(1,) * (leaf.ndim - 1))
            for path, leaf in per_task.dense_gradients(shared, by_task, shapes).items()
        }
        key = jax.random.fold_in(inputs.key, name_key("aggregation"))
        before = inputs.balance.aggregation
        joined, state = aggregation.update(updates, before, present=present, losses=first.losses, key=key)
        joined = cast(dict[str, jax.Array], joined)
        chex.assert_trees_all_equal_shapes(joined, {path: shapes[path] for path in joined})
        private = per_task.unshared_slices(shared, by_task, applied, shapes)
        gradient = {path: leaf + private[path] for path, leaf in joined.items()}
        return Combined(weights, first.gradient | gradient, state)


def _passes(shared: SharedParameters, inputs: StepInputs) -> Callable[[jax.Array], _Pass]:
    """(cotangents [K] of the losses) -> one pass over all rows. A single micro-batch has one forward pass for all."""
    objective = inputs.objective

    def pullback_of(micro: Batch):
        taps = objective.network.taps(inputs.params, micro, shared.taps)

        def contributions(trained, taps):
            params = with_leaves(inputs.params, {**inputs.flat, **trained})
            return terms.loss_contributions(
                objective, params, micro, inputs.hyper, inputs.key, inputs.total, taps=taps, tap_spec=shared.taps
            )

        return jax.vjp(contributions, inputs.trained, taps)

    def as_pass(micro: Batch, losses: jax.Array, cotangents) -> _Pass:
        gradient, taps = cotangents
        by_task = per_task.split_by_task(shared, objective.layout, micro, taps)
        stacked = () if shared.twice else shared.owners
        return _Pass(losses, {path: leaf for path, leaf in gradient.items() if path not in stacked}, by_task)

    if inputs.batch.tokens.shape[0] == 1:
        micro = jax.tree.map(lambda leaf: leaf[0], inputs.batch)
        losses, pullback = pullback_of(micro)
        return lambda cotangents: _over_devices(as_pass(micro, losses, pullback(cotangents)), inputs.axis)

    def run(cotangents):
        def micro_pass(micro: Batch) -> _Pass:
            losses, pullback = pullback_of(micro)
            return as_pass(micro, losses, pullback(cotangents))

        return _over_devices(_accumulated(micro_pass, inputs.batch), inputs.axis)

    return run


def _products(shared: SharedParameters, inputs: StepInputs, by_task: TaskGradients) -> tuple[jax.Array, jax.Array]:
    """Products [K, K] of the K gradients over the shared parameters, and their norms [K]."""
    products = per_task.gradient_products(shared, by_task)
    if shared.taps.halves == 2:
        first, second = half_factors(inputs)
        products = products * first[:, None] * second[None, :]
    return products, task_norms(products)


def _accumulated(micro_pass: Callable[[Batch], _Pass], batch: Batch) -> _Pass:
    """Sums over micro-batches; tokens are concatenated."""
    shapes = jax.eval_shape(micro_pass, jax.tree.map(lambda leaf: leaf[0], batch))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), _without_tokens(shapes))

    def add(carry, micro):
        result = micro_pass(micro)
        return jax.tree.map(jnp.add, carry, _without_tokens(result)), result.gradients.tokens

    total, tokens = jax.lax.scan(add, zero, batch)
    return _with_tokens(total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tokens))


def _without_tokens(result: _Pass) -> _Pass:
    """The part of a pass that can be summed."""
    return _with_tokens(result, None)


def _with_tokens(result: _Pass, tokens: per_task.Tokens | None) -> _Pass:
    return result._replace(gradients=result.gradients._replace(tokens=tokens))


def _over_devices(result: _Pass, axis: str | None) -> _Pass:
    """The pass over the rows of all devices."""
    return _with_tokens(psum(_without_tokens(result), axis), gather(result.gradients.tokens, axis))


def _of_two(
    shared: SharedParameters, slices: SliceOwners, first: _Pass, second: _Pass, alpha: jax.Array, shapes: FlatParams
) -> dict[str, jax.Array]:
    """Shared slices from the second pass, in which the losses were weighted; slices of one task from the first."""
    ones, zero = jnp.ones_like(alpha), jnp.zeros_like(alpha)
    gradient = dict(first.gradient)
    tokens, private_tokens = second.gradients.tokens, first.gradients.tokens
    for path, owner in shared.owners.items():
        if path == EMBEDDING_TABLE and tokens is not None and private_tokens is not None:
            shape = shapes[path].shape
            gradient[path] = per_task.token_sum(
                tokens, per_task.slice_factors(owner, ones, zero), owner, shape
            ) + per_task.token_sum(private_tokens, per_task.slice_factors(owner, zero, alpha), owner, shape)
            continue
        private = clipping.scale({path: first.gradient[path]}, slices, jnp.append(alpha, 0.0))[path]
        is_shared = per_task.shared_slices(owner).reshape(-1, *(1,) * (private.ndim - 1))
        gradient[path] = jnp.where(is_shared, second.gradient[path], private)
    return gradient


def batch_refusal(shared: SharedParameters, accumulate: int, placement: str) -> bool:
    """Whether the products cannot be computed layer by layer: products of one batch in one program are no sums over
    micro-batches or devices.
    """
    return shared.gradient_storage == "layers" and (accumulate > 1 or placement == "pmap")
