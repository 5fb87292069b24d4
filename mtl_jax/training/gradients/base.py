"""The interface of the data gradient: from one batch to the K losses, their weights α, and the gradient of Σ α_k·L_k.

Four implementations: `joint` (one pass over the weighted sum), `aggregated` (K gradients of one tapped pass, combined),
`pullbacks` (likewise, of K backward passes, whatever is shared) and `meta_learning` (gradients after adaptation of each
task by itself). Each is an (init, update) pair, as in optax.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.data.batch import Batch
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.objective import FlatParams, Objective, Params
from mtl_jax.training.parameter_paths import PyTree


class Balance(NamedTuple):
    """The state of balancing, carried from step to step.

    loss_weights, aggregation   states of the methods; () without an aggregation
    losses_after  float32[K], losses of the last batch after its update, where the loss weights need them, else None
    scores        float32[K], last scores on dev, NaN before the first, where the loss weights need them, else None
    """

    loss_weights: PyTree
    aggregation: PyTree
    losses_after: jax.Array | None
    scores: jax.Array | None


class StepInputs(NamedTuple):
    """The inputs of every part of one step.

    objective  static
    params     {path of layer: leaves [O, ...], "heads": {group: leaves [K_g, ...]}} before the step
    flat       the same leaves by path
    trained    those of `flat` that are trained
    anchor     flat dict of initial values; empty where no penalty draws towards them
    balance    of the step before
    batch      leaves [A, B, R, ...]: A micro-batches
    hyper      traced, schedules that follow the progress applied
    key        of this step
    step       int32 scalar
    progress   float32 scalar, step / steps
    total      float32 [K], denominators of the K mean losses over all micro-batches and devices
    axis       name of the device axis under pmap, else None
    """

    objective: Objective
    params: Params
    flat: FlatParams
    trained: FlatParams
    anchor: FlatParams
    balance: Balance
    batch: Batch
    hyper: Hyperparameters
    key: jax.Array
    step: jax.Array
    progress: jax.Array
    total: jax.Array
    axis: str | None


class DataStep(NamedTuple):
    """Losses and gradient of the data in one step.

    losses    float32 [K], means over the labelled examples of each task
    alpha     float32 [K], weights α_k, with `tasks.*.weight`
    extra     float32 scalar, terms in addition to Σ α_k·L_k: of the loss weights, and auxiliary losses
    gradient  {path: leaf} of the trained leaves, without λ·∇Ω
    balance   for the next step
    present   bool [K], tasks that took part
    metrics   further ones by name
    """

    losses: jax.Array
    alpha: jax.Array
    extra: jax.Array
    gradient: dict[str, jax.Array]
    balance: Balance
    present: jax.Array
    metrics: dict[str, PyTree]


class DataGradient(Protocol):
    """init(trained leaves by path, K) -> Balance;  update(inputs) -> DataStep. Pure."""

    def init(self, trained: FlatParams, tasks: int) -> Balance: ...

    def update(self, inputs: StepInputs) -> DataStep: ...


def initial_balance(
    method: LossWeights, tasks: int, shared: FlatParams | None = None, aggregation: PyTree = ()
) -> Balance:
    """The balance before the first step. `shared`: leaves that the K gradients belong to, by path."""
    return Balance(
        loss_weights=method.init(tasks, shared or {}) if "gradients" in method.needs else method.init(tasks),
        aggregation=aggregation,
        losses_after=jnp.ones((tasks,), jnp.float32) if "losses_after" in method.needs else None,
        scores=jnp.full((tasks,), jnp.nan, jnp.float32) if "scores" in method.needs else None,
    )
