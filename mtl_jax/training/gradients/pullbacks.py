"""The data gradient with balanced gradients, for every way of sharing: one forward pass and K vector-Jacobian products.

Where taps cannot split the gradients of the tasks (`aggregated`), the K losses are pulled back one after another, to
whatever several of them reach. Losses that mixers and heads add are no tasks: their gradient is added to the
combination. Many of them are maximised by a part of the network, so a direction in which all losses fall means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from mtl_jax.balancing.gradient_combination import Aggregation, initial_state
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.data.batch import Batch
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.sharing.gram import inner_products
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients import stacked
from mtl_jax.training.gradients.base import Balance, DataStep, StepInputs, initial_balance
from mtl_jax.training.gradients.stacked import SharedSlices
from mtl_jax.training.loss_weighting import weigh_losses
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import PyTree, with_leaves

Sums = tuple[jax.Array, jax.Array]  # of the losses [H, K], and of the auxiliary ones [A]
Pullback = Callable[[Sums], tuple[FlatParams, Taps | None]]
Use = Callable[[Sums, Pullback], PyTree]  # reads one forward pass; what it returns is summed over micro-batches


class PullbackGradient(NamedTuple):
    """loss_weights, aggregation  (**traced options) -> the method
    shared   the slices that several losses reach
    at_once  number of losses that are pulled back together
    halves   2: the products are those between gradients of two halves of the rows
    storage  "copies": the K gradients are in memory together | "layers": one at a time, at the price of a product with
             the Jacobian for each
    hidden_at  layer whose outputs are compared in place of parameters, "" = none
    """

    loss_weights: Callable[..., LossWeights]
    aggregation: Callable[..., Aggregation]
    shared: SharedSlices
    at_once: int = 1
    halves: int = 1
    storage: str = "copies"
    hidden_at: str = ""

    def init(self, trained: FlatParams, tasks: int) -> Balance:
        """See `base.DataGradient`."""
        shared = {path: trained[path] for path in self.shared.masks}
        return initial_balance(self.loss_weights(), tasks, shared, initial_state(self.aggregation(), tasks, shared))

    def update(self, inputs: StepInputs) -> DataStep:
        """See `base.DataGradient`; metrics: `stacked.balance_metrics`, and "auxiliary" as in `joint`."""
        method = self.loss_weights(**inputs.hyper.loss_weights)
        aggregation = self.aggregation(**inputs.hyper.aggregation)
        present, names = inputs.total > 0, inputs.objective.auxiliary
        factors = jnp.stack([inputs.hyper.auxiliary[name] for name in names]) if names else jnp.zeros((0,))
        run = _forward_passes(self, inputs)
        one_by_one = self.storage == "layers" or bool(self.hidden_at)
        first = (self._products if one_by_one else self._stacks)(run, present.astype(jnp.float32), factors)
        products = first.products
        if self.halves == 2:
            of_first, of_second = stacked.half_factors(inputs)
            products = products * of_first[:, None] * of_second[None, :]
        norms = stacked.task_norms(products)
        mean = first.stacks if self.halves == 1 else jax.tree.map(lambda leaf: leaf.sum(axis=0), first.stacks)
        weighted = weigh_losses(
            method,
            inputs,
            first.losses,
            present,
            gradient_norms=norms,
            gram=products,
            gradients=stacked.masked(self.shared, mean, 1) if "gradients" in method.needs else None,
        )
        applied = weighted.applied
        if one_by_one:
            assert isinstance(aggregation, Weighting)  # see `experiment.task_gradients`
            weights, state = stacked.weigh_products(aggregation, inputs, products, applied, present)
            gradient = self._weighted(run, weights * applied, applied, factors)
            combined = stacked.Combined(weights, gradient, state)
        else:
            combined = stacked.combine_stacks(
                self.shared,
                inputs,
                aggregation,
                mean,
                products=products,
                applied=applied,
                losses=first.losses,
                present=present,
            )
            gradient = combined.gradient | stacked.scale_private(self.shared, first.private, applied)
            gradient = {path: leaf + first.auxiliary.get(path, 0.0) for path, leaf in gradient.items()}
        metrics = stacked.balance_metrics(combined.weights, products, norms)
        if names:
            metrics["auxiliary"] = dict(zip(names, first.auxiliary_losses, strict=True))
        extra = weighted.extra + jnp.dot(factors, first.auxiliary_losses)
        balance = weighted.balance._replace(aggregation=combined.state)
        return DataStep(first.losses, weighted.alpha, extra, gradient, balance, present, metrics)

    def _map(self, function: Callable[[Sums], PyTree], cotangents: Sums) -> PyTree:
        """`function` of each row of the cotangents, `at_once` of them together."""
        return jax.lax.map(function, cotangents, batch_size=self.at_once if self.at_once > 1 else None)

    def _units(self, present: jax.Array, auxiliary: int) -> Sums:
        """Unit vectors of the losses, [H·K, H, K] and [H·K, A]."""
        count = len(present) * self.halves
        unit = jnp.diag(jnp.tile(present, self.halves)).reshape(count, self.halves, -1)
        return unit, jnp.zeros((count, auxiliary))

    def _stacks(self, run: Callable[[Use], PyTree], present: jax.Array, factors: jax.Array) -> _First:
        """All gradients at once in memory."""
        unit, auxiliary = self._units(present, len(factors))
        if len(factors):
            unit = jnp.concatenate([unit, jnp.zeros_like(unit[:1])])
            auxiliary = jnp.concatenate([auxiliary, factors[None]])

        def use(sums: Sums, pullback: Pullback) -> PyTree:
            def shared_part(cotangent: Sums) -> FlatParams:
                gradient = pullback(cotangent)[0]
                return {path: gradient[path] for path in self.shared.masks}

            def private_part(losses: jax.Array, factors: jax.Array) -> FlatParams:
                cotangent = jnp.broadcast_to(losses, (self.halves, len(present))), factors
                return {path: g for path, g in pullback(cotangent)[0].items() if path not in self.shared.masks}

            rows = self._map(shared_part, (unit, auxiliary))
            private = private_part(present, jnp.zeros_like(factors))
            added = private_part(jnp.zeros_like(present), factors) if len(factors) else {}
            return sums, rows, private, added

        (losses, auxiliary_losses), rows, private, added = run(use)
        count = self.halves * len(present)
        stacks = {path: leaf[:count] for path, leaf in rows.items()}
        if self.halves == 2:
            stacks = {path: leaf.reshape(2, -1, *leaf.shape[1:]) for path, leaf in stacks.items()}
        if len(factors):
            added |= {path: leaf[count] for path, leaf in rows.items()}
        products = stacked.stack_products(self.shared, stacks, self.halves)
        return _First(losses.sum(axis=0), auxiliary_losses, stacks, private, added, products)

    def _products(self, run: Callable[[Use], PyTree], present: jax.Array, factors: jax.Array) -> _First:
        """Products alone: of the gradients of representations, or of one gradient at a time with the Jacobian."""
        units, shape = self._units(present, len(factors)), (self.halves, len(present))

        def of_hidden(sums: Sums, pullback: Pullback) -> PyTree:
            return sums, inner_products(self._map(lambda unit: cast(Taps, pullback(unit)[1]).hidden, units))

        def row(unit: Sums) -> tuple[Sums, jax.Array]:
            """The products of one gradient with all."""
            sums, gradient = run(lambda sums, pullback: (sums, pullback(unit)[0]))
            direction = {path: jnp.zeros_like(leaf) for path, leaf in gradient.items()}
            direction |= stacked.masked(self.shared, gradient)

            def with_jacobian(_, pullback: Pullback) -> jax.Array:
                transposed = jax.vjp(lambda cotangent: pullback(cotangent)[0], jax.tree.map(jnp.zeros_like, unit))[1]
                return transposed(direction)[0][0].reshape(shape)

            return sums, run(with_jacobian)

        if self.hidden_at:
            (losses, auxiliary), products = run(of_hidden)
        else:
            sums, products = self._map(row, units)
            losses, auxiliary = jax.tree.map(lambda leaf: leaf[0], sums)
        products = products.reshape(*shape, *shape)[0, :, -1]
        return _First(losses.sum(axis=0), auxiliary, {}, {}, {}, products)

    def _weighted(
        self, run: Callable[[Use], PyTree], weights: jax.Array, alpha: jax.Array, factors: jax.Array
    ) -> dict[str, jax.Array]:
        """The gradient of Σ weights_k·L_k in shared slices and of Σ α_k·L_k in others, with the auxiliary losses."""

        def use(_, pullback: Pullback) -> PyTree:
            def weighed(values: jax.Array) -> FlatParams:
                return pullback((jnp.broadcast_to(values, (self.halves, len(values))), factors))[0]

            return weighed(weights), weighed(alpha)

        combined, private = run(use)
        gradient = dict(private)
        for path, mask in self.shared.masks.items():
            is_shared = mask.reshape(-1, *(1,) * (private[path].ndim - 1))
            gradient[path] = combined[path] if mask.all() else jnp.where(is_shared, combined[path], private[path])
        return gradient


class _First(NamedTuple):
    """Of the first pass.

    losses            float32 [K], over all rows
    auxiliary_losses  float32 [A]
    stacks    {path: [K, O, ...]}, with halves [2, K, O, ...], of the leaves with shared slices; {} for products alone
    private   {path: [O, ...]}, the gradient of Σ L_k of the other leaves
    auxiliary {path: [O, ...]}, the gradient of the auxiliary losses times their factors; {} where there are none
    products  [K, K] of gradients over what is shared
    """

    losses: jax.Array
    auxiliary_losses: jax.Array
    stacks: dict[str, jax.Array]
    private: dict[str, jax.Array]
    auxiliary: dict[str, jax.Array]
    products: jax.Array


def _forward_passes(settings: PullbackGradient, inputs: StepInputs) -> Callable[[Use], PyTree]:
    """(use) -> what it returns of a forward pass, over all rows. A single micro-batch has one pass for all uses."""
    objective, batch = inputs.objective, inputs.batch
    counts = jax.vmap(lambda micro: terms.auxiliary_denominators(objective, micro))(batch).sum(axis=0)
    totals = terms.Denominators(inputs.total, psum(counts, inputs.axis))
    spec = TapSpec({}, hidden_at=settings.hidden_at, by_block=True) if settings.hidden_at else None

    def forward(micro: Batch) -> tuple[Sums, Any]:
        def contributions(trained: FlatParams, taps: Taps | None) -> Sums:
            losses, auxiliary = terms.contributions(
                objective,
                with_leaves(inputs.params, {**inputs.flat, **trained}),
                micro,
                inputs.hyper,
                inputs.key,
                totals=totals,
                progress=inputs.progress,
                halves=settings.halves,
                taps=taps,
                tap_spec=spec,
            )
            return losses.reshape(settings.halves, -1), auxiliary

        taps = objective.network.taps(inputs.params, micro, spec) if spec else None
        return jax.vjp(contributions, inputs.trained, taps)

    if batch.tokens.shape[0] == 1:
        once = forward(jax.tree.map(lambda leaf: leaf[0], batch))
        return lambda use: psum(use(*once), inputs.axis)

    def accumulated(use: Use) -> PyTree:
        def micro_use(micro: Batch) -> PyTree:
            return use(*forward(micro))

        shapes = jax.eval_shape(micro_use, jax.tree.map(lambda leaf: leaf[0], batch))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda carry, micro: (jax.tree.map(jnp.add, carry, micro_use(micro)), None), zero, batch
        )
        return psum(total, inputs.axis)

    return accumulated
