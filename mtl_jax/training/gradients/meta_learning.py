"""The data gradient of meta-learning: each task adapts separately, on part of its examples.

1. The examples of a batch are split by a key of (run, step, data set, record): all examples of a record are on the same
   side, wherever they were packed. A side is a mask on labels: examples in a row do not see each other.
2. Sequentially, each task of the step takes some steps of gradient descent from Θ, and gives a loss and a gradient.
3. The gradients are weighted by α, and added up or combined by an aggregation; clipping, λ·Ω and the optimizer follow
   in the step. Losses that mixers and heads add are of no single task: their gradient before adaptation is added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing.gradient_combination import Aggregation, initial_state
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.data.batch import Batch
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.ownership import name_key
from mtl_jax.tasks.groups import TaskGroup
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients import inner_loop, stacked
from mtl_jax.training.gradients.auxiliary import auxiliary_step
from mtl_jax.training.gradients.base import Balance, DataStep, StepInputs, initial_balance
from mtl_jax.training.gradients.stacked import SharedSlices
from mtl_jax.training.gradients.task_views import assign_split, mask_labels, task_view, view_labels
from mtl_jax.training.group_batch import group_batch
from mtl_jax.training.loss_weighting import weigh_losses
from mtl_jax.training.objective import FlatParams, Objective
from mtl_jax.training.parameter_paths import with_leaves


class MetaSpec(NamedTuple):
    """What is static about meta-learning; see `config.meta`.

    method   "maml" | "fomaml" | "reptile"
    steps    of the inner loop
    support_fraction  fraction of the examples for the inner loop of MAML
    tasks_per_step    number of tasks in a step, drawn anew each time
    adapts   trained paths that the inner loop moves
    zeroed   those of them that start from zero
    view     the objective over the blocks of one task, in the layout of `task_view_layout`
    records  int32 [data sets, examples]: the record of each example of train; None where each example is a record
    """

    method: str
    steps: int
    support_fraction: float
    tasks_per_step: int
    adapts: frozenset[str]
    zeroed: frozenset[str]
    view: Objective
    records: np.ndarray | None


class MetaLearningGradient(NamedTuple):
    """loss_weights, aggregation  (**traced options) -> the method
    meta    static settings
    shared  the slices that several losses reach; None where no method reads the gradients of the tasks
    """

    loss_weights: Callable[..., LossWeights]
    meta: MetaSpec
    aggregation: Callable[..., Aggregation]
    shared: SharedSlices | None

    def init(self, trained: FlatParams, tasks: int) -> Balance:
        """See `base.DataGradient`."""
        if self.shared is None:
            return initial_balance(self.loss_weights(), tasks)
        shared = {path: trained[path] for path in self.shared.masks}
        return initial_balance(self.loss_weights(), tasks, shared, initial_state(self.aggregation(), tasks, shared))

    def update(self, inputs: StepInputs) -> DataStep:
        """See `base.DataGradient`. As `_tasks_step`, and the auxiliary losses; metrics: "auxiliary" as in `joint`."""
        step = self._tasks_step(inputs)
        if not inputs.objective.auxiliary:
            return step
        added = auxiliary_step(inputs)
        return step._replace(
            extra=step.extra + added.extra,
            gradient=jax.tree.map(jnp.add, step.gradient, self._moving(added.gradient)),
            metrics={**step.metrics, "auxiliary": added.losses},
        )

    def _tasks_step(self, inputs: StepInputs) -> DataStep:
        """Losses are those of the query after adaptation; for Reptile the mean over the inner steps. present: tasks of
        this step that have query examples. metrics: {"support": [K], loss of the first inner step}; where gradients are
        compared those of `stacked.balance_metrics`, too.
        """
        meta, count = self.meta, len(inputs.objective.tasks)
        adapted, examples = _adaptation(meta, inputs)
        chosen = jnp.arange(count, dtype=jnp.int32)
        if meta.tasks_per_step < count:
            drawn = jax.random.permutation(jax.random.fold_in(inputs.key, name_key("tasks")), count)
            chosen = jnp.sort(drawn[: meta.tasks_per_step]).astype(jnp.int32)
        present = (examples > 0) & jnp.zeros((count,), bool).at[chosen].set(True)

        def by_task(values):
            return jnp.zeros((count, *values.shape[1:]), jnp.float32).at[chosen].set(values)

        method = self.loss_weights(**inputs.hyper.loss_weights)
        if self.shared is not None:
            return self._aggregated(inputs, method, self.shared, present, jax.lax.map(adapted, chosen), by_task)
        if method.needs_losses:  # α depends on the losses of all tasks: all gradients are in memory
            results = jax.lax.map(adapted, chosen)
            losses, before = by_task(results.loss), results.loss_before
            weighted = weigh_losses(method, inputs, losses, present)
            scaled = jax.vmap(_scaled)(results, weighted.applied[chosen])
            summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), scaled)
        else:
            weighted = weigh_losses(method, inputs, jnp.zeros((count,), jnp.float32), present)

            def add(carry, task):
                result = adapted(task)
                scaled = _scaled(result, weighted.applied[task])
                return jax.tree.map(jnp.add, carry, scaled), (result.loss, result.loss_before)

            zero = jax.tree.map(jnp.zeros_like, inputs.trained)
            summed, (values, before) = jax.lax.scan(add, zero, chosen)
            losses = by_task(values)
        metrics = {"support": by_task(before)}
        return DataStep(
            losses, weighted.alpha, weighted.extra, self._moving(summed), weighted.balance, present, metrics
        )

    def _aggregated(
        self,
        inputs: StepInputs,
        method: LossWeights,
        shared: SharedSlices,
        present: jax.Array,
        results: inner_loop.MetaGradient,
        by_task: Callable[[jax.Array], jax.Array],
    ) -> DataStep:
        """The outer gradients of the tasks, combined.

        Args:
          inputs: of the step.
          method: the loss weights.
          shared: the slices that several losses reach.
          present: bool [K].
          results: leaves [n, ...] of the tasks of this step.
          by_task: [n, ...] -> [K, ...], zeros for other tasks.
        """
        losses, stacks = by_task(results.loss), self._moving(jax.tree.map(by_task, {**results.fast, **results.slow}))
        products = stacked.stack_products(shared, stacks)
        norms = stacked.task_norms(products)
        gradients = stacked.masked(shared, stacks, 1)
        weighted = weigh_losses(
            method, inputs, losses, present, gradient_norms=norms, gram=products, gradients=gradients
        )
        combined = stacked.combine_stacks(
            shared,
            inputs,
            self.aggregation(**inputs.hyper.aggregation),
            stacks,
            products=products,
            applied=weighted.applied,
            losses=losses,
            present=present,
        )
        summed = {path: leaf.sum(axis=0) for path, leaf in stacks.items() if path not in shared.masks}
        gradient = combined.gradient | stacked.scale_private(shared, summed, weighted.applied)
        metrics = stacked.balance_metrics(combined.weights, products, norms)
        metrics["support"] = by_task(results.loss_before)
        balance = weighted.balance._replace(aggregation=combined.state)
        return DataStep(losses, weighted.alpha, weighted.extra, gradient, balance, present, metrics)

    def _moving(self, gradient: FlatParams) -> dict[str, jax.Array]:
        """The gradient, zero for what starts from zero in each step."""
        return {p: jnp.zeros_like(leaf) if p in self.meta.zeroed else leaf for p, leaf in gradient.items()}


def _scaled(result: inner_loop.MetaGradient, alpha: jax.Array) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: alpha * leaf, {**result.fast, **result.slow})


def _adaptation(meta: MetaSpec, inputs: StepInputs) -> tuple[Callable[[jax.Array], inner_loop.MetaGradient], jax.Array]:
    """(number of a task) -> its loss and gradient after adaptation; and the query examples of each task, [K]."""
    objective, hyper, key, axis = inputs.objective, inputs.hyper, inputs.key, inputs.axis
    number = assign_split(objective.layout, meta.records, inputs.batch, key)

    def side(low, high):
        part = mask_labels(objective.layout, inputs.batch, number, low, high)
        return part, psum(
            jax.vmap(lambda micro: terms.loss_denominators(objective, micro, hyper))(part).sum(axis=0), axis
        )

    start = {path: jnp.zeros_like(leaf) if path in meta.zeroed else leaf for path, leaf in inputs.trained.items()}
    fast = {path: leaf for path, leaf in start.items() if path in meta.adapts}
    slow = {path: leaf for path, leaf in start.items() if path not in meta.adapts}
    inner = jax.random.fold_in(key, name_key("inner"))

    def loss(task, sided, key, fast, slow):
        part, counted = sided
        params = with_leaves(inputs.params, {**inputs.flat, **fast, **slow})
        inner_inputs = inputs._replace(params=params, key=key)
        total = _over_micro_batches(lambda micro: _task_loss(meta, inner_inputs, micro, task), part)
        return total / jnp.where(counted[task] > 0, counted[task], 1.0)

    def reduce(tree):
        return psum(tree, axis)

    def reptile(task):
        def minibatch(fast, slow, i):
            low = i.astype(jnp.float32) / meta.steps
            return loss(task, side(low, low + 1.0 / meta.steps), jax.random.fold_in(inner, i), fast, slow)

        return inner_loop.reptile(minibatch, fast, slow, hyper.inner_learning_rate, meta.steps, reduce)

    def maml(task):
        return inner_loop.maml(
            lambda fast, slow, i: loss(task, support, jax.random.fold_in(inner, i), fast, slow),
            lambda fast, slow: loss(task, query, key, fast, slow),
            fast,
            slow,
            hyper.inner_learning_rate,
            meta.steps,
            first_order=meta.method == "fomaml",
            reduce=reduce,
        )

    if meta.method == "reptile":
        return reptile, side(0.0, 1.0)[1]
    support, query = side(0.0, meta.support_fraction), side(meta.support_fraction, 1.0)
    return maml, query[1]


def _over_micro_batches(loss: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
    """Σ loss over the leading axis; of several micro-batches the activations of one are in memory at a time."""
    if batch.tokens.shape[0] == 1:
        return loss(jax.tree.map(lambda leaf: leaf[0], batch))
    return jax.lax.map(jax.checkpoint(loss), batch).sum()


def _task_loss(meta: MetaSpec, inputs: StepInputs, micro: Batch, task: jax.Array) -> jax.Array:
    """Σ loss of task number `task` (traced) over its rows, with the parameters and the key of `inputs`; `micro` has
    leaves [B, R, ...].
    """
    objective, params, hyper = meta.view, inputs.params, inputs.hyper
    task_batch = task_view(inputs.objective.layout, micro, task)
    dropout = terms.dropout_rates(objective, hyper)
    head_inputs = objective.network.apply(params, task_batch, dropout, inputs.key).features

    def branch(group: TaskGroup) -> Callable[[HeadInputs], jax.Array]:
        def loss(head_inputs):
            labels = view_labels(inputs.objective.layout, micro, group.name, task)
            part = group_batch(objective.layout, group, task_batch._replace(labels={group.name: labels}))
            scores = part.logits(params, head_inputs, dropout, inputs.key)
            return part.loss_sums(params, scores, hyper.teaching).sum()

        return loss

    group_of = {number: index for index, group in enumerate(objective.groups) for number in group.numbers}
    which = jnp.asarray([group_of[number] for number in range(len(objective.tasks))])[task]
    return jax.lax.switch(which, [branch(group) for group in objective.groups], head_inputs)
