"""The objective Σ_k α_k·L_k + λ·Ω, as the pieces that the step differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, Layout
from mtl_jax.models.network import Dropout, Network
from mtl_jax.tasks.base import Features, Task
from mtl_jax.training.optimizer import Hyper

Params = Mapping[str, Any]
Flat = Mapping[str, jax.Array]


class Objective(NamedTuple):
    """Everything about a model that the step needs. Static: functions and names, no arrays.

    layout   tasks and blocks of a batch
    tasks    {task: Task}, in the order of the K axis
    network  the shared and private layers
    penalties  {name: Penalty}
    dropout, attention_dropout   whether there is any; the rates are in `Hyper`
    """

    layout: Layout
    tasks: Mapping[str, Task]
    network: Network
    penalties: Mapping[str, Penalty]
    dropout: bool
    attention_dropout: bool


class Penalty(NamedTuple):
    """One term λ·Ω.

    value     (flat params, anchor, {layer: factor on λ}) -> Ω without λ
    proximal  (updates, flat params, anchor, {layer: factor on λ}, t) -> updates to params + updates = prox_{t·Ω} of
              what they were before; None where there is no exact operator
    way       "gradient" | "proximal" | "either": `Hyper.proximal` says which
    curvature  largest eigenvalue of the Hessian of Ω, beyond lr·λ·curvature > 2 gradient steps diverge; None where Ω
              is not quadratic
    schedule  (step / steps) -> factor on λ
    """

    value: Callable[[Flat, Flat, Mapping[str, jax.Array]], jax.Array]
    proximal: Callable[[Flat, Flat, Flat, Mapping[str, jax.Array], jax.Array], Flat] | None
    way: str
    curvature: float | None
    schedule: Callable[[jax.Array], jax.Array]


def features(batch: Batch, layout: Layout, task: str, hidden: jax.Array) -> Features:
    """What the head of `task` reads, R = all rows of its blocks."""
    blocks = np.asarray(layout.reads(task))

    def rows(array):
        return array[blocks].reshape(-1, array.shape[-1])

    return Features(hidden, rows(batch.segment), rows(batch.start), rows(batch.length))


def rows_of(labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A task's labels with the axes [P, R, ...] joined to [P·R, ...]."""
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in labels.items()}


def logits(
    objective: Objective, params: Params, batch: Batch, dropout: Dropout | None, key, taps=None, tap_spec=None
) -> dict[str, jax.Array]:
    """The scores of every task, by task, leading axis P·R. `taps`: see `models.taps`."""
    hidden = objective.network.apply(params, batch, dropout, key, taps, tap_spec)
    return {
        name: task.logits(
            params["heads"][name], features(batch, objective.layout, name, hidden[name]), rows_of(batch.labels[name])
        )
        for name, task in objective.tasks.items()
        if name in hidden
    }


def scores(objective: Objective, params: Params, batch: Batch, hyper: Hyper, key, taps=None, tap_spec=None):
    """`logits` with the dropout of training."""
    return logits(objective, params, batch, _rates(objective, hyper), key, taps, tap_spec)


def counts(objective: Objective, batch: Batch) -> jax.Array:
    """The denominators of the K mean losses, float32 [K]: from the labels alone, before any forward pass."""
    return jnp.stack([task.weight(rows_of(batch.labels[name])).sum() for name, task in objective.tasks.items()])


def loss_shares(
    objective: Objective, params: Params, batch: Batch, hyper: Hyper, key, total: jax.Array, taps=None, tap_spec=None
) -> jax.Array:
    """What this batch adds to the K mean losses, float32 [K]: Σ loss / `total`, zero for a task without labels.

    `total` [K] is the sum of `counts` over all devices and micro-batches of the step, so shares add up to the mean.
    """
    found = scores(objective, params, batch, hyper, key, taps, tap_spec)
    sums = jnp.stack([
        task.loss(params["heads"][name], found[name], rows_of(batch.labels[name])).sum()
        for name, task in objective.tasks.items()
    ])  # fmt: skip
    return sums / jnp.where(total > 0, total, 1.0)


def penalty_values(objective: Objective, flat: Flat, anchor: Flat, hyper: Hyper) -> dict[str, jax.Array]:
    """{penalty: Ω} without λ, float32 scalars."""
    return {name: penalty.value(flat, anchor, hyper.by_layer[name]) for name, penalty in objective.penalties.items()}


def strengths(objective: Objective, hyper: Hyper, progress: jax.Array) -> dict[str, jax.Array]:
    """{penalty: λ} at `progress` = step / steps."""
    return {name: hyper.strength[name] * penalty.schedule(progress) for name, penalty in objective.penalties.items()}


def _rates(objective: Objective, hyper: Hyper) -> Dropout | None:
    if not (objective.dropout or objective.attention_dropout):
        return None
    return Dropout(hyper.dropout, hyper.attention_dropout if objective.attention_dropout else None)
