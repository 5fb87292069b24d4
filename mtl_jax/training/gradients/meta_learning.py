"""The gradient of the data where it is found by meta-learning: each task adapts by itself, on part of its examples.

1. The examples of a batch are dealt by a key of (run, step, data set, record), so that pieces of one record, wherever
   they were packed, stand on one side. A side is a mask on labels: examples of a row do not see each other.
2. In turns, each task of the step takes some steps of gradient descent from Θ, and gives a loss and a gradient.
3. The gradients are weighed by α and added up; clipping, λ·Ω and the optimizer follow in the step.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, Layout
from mtl_jax.models.ownership import name_key
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients import inner_loop
from mtl_jax.training.loss_weighting import told
from mtl_jax.training.objective import Objective
from mtl_jax.training.parameter_paths import with_leaves


class MetaSpec(NamedTuple):
    """What is static about meta-learning; see `config.meta`.

    method   "maml" | "fomaml" | "reptile"
    steps    of the inner loop
    support  share of the examples that the inner loop of MAML sees
    tasks    of a step, drawn anew each time
    adapts   trained paths that the inner loop moves
    zeroed   those of them that it starts from zero
    view     the objective over what one task reads, in the layout of `view_layout`
    records  int32 [data sets, pieces]: the record of each piece of train; None where each piece is a record
    """

    method: str
    steps: int
    support: float
    tasks: int
    adapts: frozenset[str]
    zeroed: frozenset[str]
    view: Objective
    records: np.ndarray | None


def view_layout(layout: Layout) -> Layout:
    """The layout of `view`: each task has a data set of its own, of which its blocks may hold any."""
    tasks = tuple(range(len(layout.tasks)))
    blocks = len(layout.reads(layout.tasks[0]))
    return Layout(tuple(layout.datasets[d] for d in layout.dataset_of), layout.tasks, tasks, (tasks,) * blocks)


def view(layout: Layout, batch: Batch, task: jax.Array) -> Batch:
    """The blocks that task number `task` (traced) reads, leaves [P, R, ...]; labels are those of all tasks."""
    if all(len(names) == 1 for names in layout.candidates):
        block = jnp.asarray(np.asarray([layout.reads(name) for name in layout.tasks]))[task]  # [P]
        rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[block], batch._replace(labels={}))
        batch = rows._replace(labels=batch.labels)
    # where data sets are drawn, blocks of others come along; no label in them counts
    return batch._replace(dataset=jnp.full(batch.dataset.shape, task, jnp.int32))


def dealt(layout: Layout, records: np.ndarray | None, batch: Batch, key: jax.Array) -> jax.Array:
    """A number in [0, 1) for each example, float32 [..., B, R, E], the same for all pieces of a record.

    Args:
      layout: of the batch.
      records: as in `MetaSpec`.
      batch: leaves [..., B, R, ...].
      key: of the step.
    """
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    key = jax.random.fold_in(key, name_key("sides"))

    def one(dataset, piece):
        record = piece if records is None else jnp.asarray(records)[dataset, piece]
        own = jax.random.fold_in(jax.random.fold_in(key, names[dataset]), record.astype(jnp.uint32))
        return jax.random.uniform(own, (), jnp.float32)

    dataset = jnp.broadcast_to(batch.dataset[..., None, None], batch.example.shape)
    found = jax.vmap(one)(dataset.reshape(-1), jnp.maximum(batch.example, 0).reshape(-1))
    return found.reshape(batch.example.shape)


def only(layout: Layout, batch: Batch, number: jax.Array, low, high) -> Batch:
    """The batch with the labels of those examples whose `number` [A, B, R, E] is in [low, high); bounds may be traced.

    `batch` has leaves [A, B, R, ...].
    """
    kept = (number >= low) & (number < high)

    def masked(name, labels):
        mine = kept[:, np.asarray(layout.reads(name))]
        if "slot" in labels:
            mine = jnp.take_along_axis(mine, labels["slot"], axis=-1)
        masks = {field: labels[field] & mine for field in ("mask", "teacher_mask") if field in labels}
        return {**labels, **masks}

    return batch._replace(labels={name: masked(name, labels) for name, labels in batch.labels.items()})


def data_gradient(spec, state, trained, flat, batch, hyper, key, total, axis):
    """As the plain gradient in `step`, found by meta-learning.

    Args:
      spec: `StepSpec` with `meta`.
      state, trained, flat, batch, hyper, key, axis: as in the step; batch leaves [A, B, R, ...].
      total: not read: examples are counted by the side they stand on.

    Returns:
      losses [K] (of the query after adaptation; of Reptile the mean of the inner steps), α [K], extra loss, Balance,
      gradient {path: leaf}, and metrics {"support": [K], loss of the first inner step, "present": bool[K], tasks of
      this step that have query examples}.
    """
    own, objective, count = spec.meta, spec.objective, len(spec.objective.tasks)
    number = dealt(objective.layout, own.records, batch, key)

    def side(low, high):
        part = only(objective.layout, batch, number, low, high)
        return part, psum(jax.vmap(lambda micro: terms.counts(objective, micro, hyper))(part).sum(axis=0), axis)

    start = {path: jnp.zeros_like(leaf) if path in own.zeroed else leaf for path, leaf in trained.items()}
    fast = {path: leaf for path, leaf in start.items() if path in own.adapts}
    slow = {path: leaf for path, leaf in start.items() if path not in own.adapts}
    inner = jax.random.fold_in(key, name_key("inner"))

    def loss(task, sided, key, fast, slow):
        part, counted = sided
        params = with_leaves(state.params, {**flat, **fast, **slow})
        share = _over_micro_batches(lambda micro: _task_loss(spec, params, micro, hyper, key, task), part)
        return share / jnp.where(counted[task] > 0, counted[task], 1.0)

    def of_task(task) -> inner_loop.Meta:
        def reduce(tree):
            return psum(tree, axis)

        if own.method == "reptile":

            def minibatch(fast, slow, i):
                low = i.astype(jnp.float32) / own.steps
                sided = side(low, low + 1.0 / own.steps)
                return loss(task, sided, jax.random.fold_in(inner, i), fast, slow)

            return inner_loop.reptile(minibatch, fast, slow, hyper.inner_rate, own.steps, reduce)
        return inner_loop.maml(
            lambda fast, slow, i: loss(task, support, jax.random.fold_in(inner, i), fast, slow),
            lambda fast, slow: loss(task, query, key, fast, slow),
            fast, slow, hyper.inner_rate, own.steps, first_order=own.method == "fomaml", reduce=reduce,
        )  # fmt: skip

    support, query = side(0.0, own.support), side(own.support, 1.0)
    if own.method == "reptile":
        query = side(0.0, 1.0)
    chosen = jnp.arange(count, dtype=jnp.int32)
    if own.tasks < count:
        drawn = jax.random.permutation(jax.random.fold_in(key, name_key("tasks")), count)
        chosen = jnp.sort(drawn[: own.tasks]).astype(jnp.int32)
    present = (query[1] > 0) & jnp.zeros((count,), bool).at[chosen].set(True)

    def by_task(values):
        return jnp.zeros((count,), jnp.float32).at[chosen].set(values)

    method = spec.loss_weights(**hyper.loss_weights)

    def weigh(losses):
        before = state.balance
        signals = told(objective, method.needs, before, state.params, batch, hyper, key, axis, losses, present)
        alpha, extra, after = method.update(signals, before.loss_weights)
        chex.assert_equal_shape([alpha, losses])
        alpha = alpha * jnp.stack([hyper.alpha[name] for name in objective.tasks])
        return alpha, extra, before._replace(loss_weights=after)

    def weighted(found: inner_loop.Meta, alpha):
        return jax.tree.map(lambda leaf: alpha * leaf, {**found.fast, **found.slow})

    if method.needs_losses:  # α depends on the losses of all tasks: their gradients are held
        found = jax.lax.map(of_task, chosen)
        losses, before = by_task(found.loss), found.before
        alpha, extra, balance = weigh(losses)
        applied = jnp.where(present, alpha, 0.0)[chosen]
        summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.vmap(weighted)(found, applied))
    else:
        alpha, extra, balance = weigh(jnp.zeros((count,), jnp.float32))
        applied = jnp.where(present, alpha, 0.0)

        def add(carry, task):
            found = of_task(task)
            return jax.tree.map(jnp.add, carry, weighted(found, applied[task])), (found.loss, found.before)

        summed, (values, before) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trained), chosen)
        losses = by_task(values)
    gradient = {path: jnp.zeros_like(leaf) if path in own.zeroed else summed[path] for path, leaf in trained.items()}
    return losses, alpha, extra, balance, gradient, {"support": by_task(before), "present": present}


def _over_micro_batches(loss, batch):
    """Σ loss over the leading axis; of several micro-batches the activations of one are held at a time."""
    if batch.tokens.shape[0] == 1:
        return loss(jax.tree.map(lambda leaf: leaf[0], batch))
    return jax.lax.map(jax.checkpoint(loss), batch).sum()


def _task_loss(spec, params, micro, hyper, key, task) -> jax.Array:
    """Σ loss of task number `task` (traced) over the rows that it reads; `micro` has leaves [B, R, ...]."""
    objective = spec.meta.view
    seen = view(spec.objective.layout, micro, task)
    dropout = terms.rates(objective, hyper)
    hidden = objective.network.apply(params, seen, dropout, key).hidden

    def of(name):
        def branch(hidden):
            head, labels = params["heads"][name], terms.rows_of(seen.labels[name])
            read = terms.features(seen, objective.layout, name, hidden[name], dropout, key)
            scores = objective.tasks[name].logits(head, read, labels)
            return terms.loss_sum(objective, name, params, seen, hyper, scores)

        return branch

    return jax.lax.switch(task, [of(name) for name in objective.tasks], hidden)
