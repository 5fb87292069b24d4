"""The objective Σ_k α_k·L_k + λ·Ω, as the pieces that the step differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.dropout import Noise
from mtl_jax.models.forward_pass import dropout_row_keys
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.models.mixers import text_count
from mtl_jax.models.network import Network
from mtl_jax.models.network_spec import DropoutRates
from mtl_jax.models.ownership import name_key
from mtl_jax.tasks import distillation
from mtl_jax.tasks.base import Features, Task
from mtl_jax.tasks.distillation import Distillation
from mtl_jax.training.hyperparameters import Hyperparameters

Params = Mapping[str, Any]
FlatParams = Mapping[str, jax.Array]


class Objective(NamedTuple):
    """Everything about a model that the step needs. Static: functions and names, no arrays.

    layout   tasks and blocks of a batch
    tasks    {task: Task}, in the order of the K axis
    network  the shared and private layers
    penalties  {name: Penalty}
    dropout, attention_dropout   whether there is any; the rates are in `Hyperparameters`
    auxiliary  names of what is added to the losses by mixers and heads, the A axis; the factors are in
               `Hyperparameters`
    teaching  {task: how it learns from its teachers}; their weight is in `Hyperparameters`
    tables   {task: slice of the word vectors} of heads that are tied to them
    """

    layout: BatchLayout
    tasks: Mapping[str, Task]
    network: Network
    penalties: Mapping[str, Penalty]
    dropout: bool
    attention_dropout: bool
    auxiliary: tuple[str, ...] = ()
    teaching: Mapping[str, Distillation] = {}
    tables: Mapping[str, int] = MappingProxyType({})


class Penalty(NamedTuple):
    """One term λ·Ω.

    value     (flat params, anchor, {layer: factor on λ}) -> Ω without λ
    proximal  (updates, flat params, anchor, {layer: factor on λ}, t) -> updates such that params + updates =
              prox_{t·Ω}(params + the given updates); None where there is no exact operator
    mode      "gradient" | "proximal" | "either": `Hyperparameters.proximal` says which
    curvature  largest eigenvalue of the Hessian of Ω, beyond lr·λ·curvature > 2 gradient steps diverge; None where Ω
              is not quadratic
    schedule  (step / steps) -> factor on λ
    stacks    flat params -> the leaves [K, ...] that Ω penalises
    """

    value: Callable[[FlatParams, FlatParams, Mapping[str, jax.Array]], jax.Array]
    proximal: Callable[[FlatParams, FlatParams, FlatParams, Mapping[str, jax.Array], jax.Array], FlatParams] | None
    mode: str
    curvature: float | None
    schedule: Callable[[jax.Array], jax.Array]
    stacks: Callable[[FlatParams], FlatParams]


def features(
    batch: Batch,
    layout: BatchLayout,
    task: str,
    hidden: jax.Array,
    dropout: DropoutRates | None = None,
    key: jax.Array | None = None,
) -> Features:
    """The inputs of the head of `task`, R = all rows of its blocks. `dropout`, `key`: for heads with dropout."""
    blocks = np.asarray(layout.reads(task))

    def rows(array: jax.Array) -> jax.Array:
        return array[blocks].reshape(-1, array.shape[-1])

    noise = None
    if dropout is not None and key is not None:
        noise = Noise(row_keys(key, task, batch, layout), dropout.rate, dropout.attention_rate)
    segment, start, length, tokens = map(rows, (batch.segment, batch.start, batch.length, batch.tokens))
    return Features(hidden, segment, start, length, tokens, noise, _patches(batch, layout, blocks))


def _patches(batch: Batch, layout: BatchLayout, blocks: np.ndarray) -> jax.Array | None:
    """Which tokens of the rows of these blocks are patches of pictures; None without pictures."""
    if batch.patch is None:
        return None
    pictured, no_patches = layout.picture_blocks(), jnp.zeros(batch.patch.shape[1:], bool)
    return jnp.concatenate([batch.patch[pictured.index(b)] if b in pictured else no_patches for b in blocks.tolist()])


def join_blocks(labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A task's labels with the axes [P, R, ...] joined to [P·R, ...]."""
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in labels.items()}


def logits(
    objective: Objective,
    params: Params,
    batch: Batch,
    dropout: DropoutRates | None,
    key: jax.Array | None,
    *,
    taps: Taps | None = None,
    tap_spec: TapSpec | None = None,
) -> dict[str, jax.Array]:
    """{task: scores with leading axis P·R}. `taps`, `tap_spec`: see `models.gradient_taps`."""
    hidden = objective.network.apply(params, batch, dropout, key, taps, tap_spec).hidden
    return _logits(objective, params, batch, hidden, dropout, key)


def _logits(
    objective: Objective,
    params: Params,
    batch: Batch,
    hidden: Mapping[str, jax.Array],
    dropout: DropoutRates | None,
    key: jax.Array | None,
) -> dict[str, jax.Array]:
    """The outputs of the heads, from the features {task: hidden} of the network."""

    def task_logits(name: str, task: Task) -> jax.Array:
        inputs = features(batch, objective.layout, name, hidden[name], dropout, key)
        return task.logits(head_params(objective, params, name), inputs, join_blocks(batch.labels[name]))

    return {name: task_logits(name, task) for name, task in objective.tasks.items() if name in hidden}


def training_logits(
    objective: Objective, params: Params, batch: Batch, hyper: Hyperparameters, key: jax.Array | None
) -> dict[str, jax.Array]:
    """`logits` with the dropout of training."""
    return logits(objective, params, batch, dropout_rates(objective, hyper), key)


def loss_denominators(objective: Objective, batch: Batch, hyper: Hyperparameters) -> jax.Array:
    """The denominators of the K mean losses, float32 [K], from the labels alone, before any forward pass."""

    def count(name: str, task: Task) -> jax.Array:
        labels = join_blocks(batch.labels[name])
        if name in objective.teaching:
            return distillation.weight(task, labels, hyper.teaching[name]).sum()
        return task.weight(labels).sum()

    return jnp.stack([count(name, task) for name, task in objective.tasks.items()])


def auxiliary_denominators(objective: Objective, batch: Batch) -> jax.Array:
    """The denominators of the A auxiliary losses, float32 [A]: examples of the batch; of a head those of its task."""

    def count(name: str) -> jax.Array:
        task = auxiliary_task(name)
        return (_lengths(objective, batch, task) > 0).sum().astype(jnp.float32) if task else text_count(batch)

    return jnp.stack([count(name) for name in objective.auxiliary]) if objective.auxiliary else jnp.zeros((0,))


def _lengths(objective: Objective, batch: Batch, task: str) -> jax.Array:
    """int32 [P·R, E], lengths of the examples of a task; 0 in blocks that hold another data set in this step."""
    layout, blocks = objective.layout, np.asarray(objective.layout.reads(task))
    of_task = batch.dataset[blocks] == layout.dataset_of[layout.tasks.index(task)]
    return jnp.where(of_task[:, None, None], batch.length[blocks], 0).reshape(-1, batch.length.shape[-1])


def auxiliary_name(task: str, loss: str) -> str:
    """The name of what the head of a task adds."""
    return f"{task}/{loss}"


def auxiliary_task(name: str) -> str:
    """The task whose head adds a loss of this name, "" where a mixer does."""
    return name.rpartition("/")[0]


class Denominators(NamedTuple):
    """Denominators over all devices and micro-batches of a step: of the K losses, of the A auxiliary ones."""

    losses: jax.Array
    auxiliary: jax.Array


def contributions(
    objective: Objective,
    params: Params,
    batch: Batch,
    hyper: Hyperparameters,
    key: jax.Array,
    *,
    totals: Denominators,
    progress: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What this batch adds to the K mean losses, and to the A auxiliary ones: float32 [K], [A]. One forward pass.

    `progress` = step / steps.
    """
    dropout = dropout_rates(objective, hyper)
    outputs = objective.network.apply(params, batch, dropout, key, progress=progress)
    logits_by_task = _logits(objective, params, batch, outputs.hidden, dropout, key)
    losses = _loss_sums(objective, params, batch, hyper, logits_by_task)
    added = dict(outputs.auxiliary)
    for name, task in objective.tasks.items():
        if task.auxiliary:
            inputs = features(batch, objective.layout, name, outputs.hidden[name])
            inputs = inputs._replace(length=_lengths(objective, batch, name))
            sums = task.auxiliary_losses(params["heads"][name], inputs, row_keys(key, name, batch, objective.layout))
            added |= {auxiliary_name(name, loss): value for loss, value in sums.items()}
    auxiliary = jnp.stack([added[name] for name in objective.auxiliary]) if objective.auxiliary else jnp.zeros((0,))
    return _divided(losses, totals.losses), _divided(auxiliary, totals.auxiliary)


def row_keys(key: jax.Array, task: str, batch: Batch, layout: BatchLayout) -> jax.Array:
    """Keys [P·R] for what the head of a task draws in the rows that it reads; they do not depend on a row's place."""
    keys = dropout_row_keys(jax.random.fold_in(key, name_key(task)), batch, layout)
    return keys[np.asarray(layout.reads(task))].reshape(-1)


def loss_contributions(
    objective: Objective,
    params: Params,
    batch: Batch,
    hyper: Hyperparameters,
    key: jax.Array | None,
    total: jax.Array,
    *,
    taps: Taps | None = None,
    tap_spec: TapSpec | None = None,
) -> jax.Array:
    """What this batch adds to the K mean losses, float32 [K]: Σ loss / `total`, zero for a task without labels.

    `total` [K] is the sum of `loss_denominators` over all devices and micro-batches of the step.
    """
    dropout = dropout_rates(objective, hyper)
    logits_by_task = logits(objective, params, batch, dropout, key, taps=taps, tap_spec=tap_spec)
    return _divided(_loss_sums(objective, params, batch, hyper, logits_by_task), total)


def _loss_sums(
    objective: Objective,
    params: Params,
    batch: Batch,
    hyper: Hyperparameters,
    logits_by_task: Mapping[str, jax.Array],
) -> jax.Array:
    """float32 [K]."""
    return jnp.stack(
        [loss_sum(objective, name, params, batch, hyper, logits_by_task[name]) for name in objective.tasks]
    )


def loss_sum(
    objective: Objective, name: str, params: Params, batch: Batch, hyper: Hyperparameters, scores: jax.Array
) -> jax.Array:
    """Σ loss of one task over the rows that it reads, from its `scores`; float32 scalar."""
    task, arguments = objective.tasks[name], (params["heads"][name], scores, join_blocks(batch.labels[name]))
    if name in objective.teaching:
        return distillation.loss(task, objective.teaching[name], *arguments, hyper.teaching[name]).sum()
    return task.loss(*arguments).sum()


def _divided(sums: jax.Array, total: jax.Array) -> jax.Array:
    return sums / jnp.where(total > 0, total, 1.0)


def penalty_strengths(objective: Objective, hyper: Hyperparameters, progress: jax.Array) -> dict[str, jax.Array]:
    """{penalty: λ} at `progress` = step / steps."""
    return {name: hyper.strength[name] * penalty.schedule(progress) for name, penalty in objective.penalties.items()}


def hyper_at_progress(objective: Objective, hyper: Hyperparameters, progress: jax.Array) -> Hyperparameters:
    """The hyperparameters with the weight of the teachers at `progress` = step / steps."""
    weights = {
        name: distillation.teacher_share(teaching, hyper.teaching[name], progress)
        for name, teaching in objective.teaching.items()
    }
    return hyper._replace(teaching=weights)


def head_params(objective: Objective, params: Params, task: str) -> Params:
    """The parameters of a task's head, with the word vectors as `table` where it is tied to them."""
    output_params = params["heads"][task]
    if task not in objective.tables:
        return output_params
    return {**output_params, "table": params["embed"]["word"]["embedding"][objective.tables[task]]}


def dropout_rates(objective: Objective, hyper: Hyperparameters) -> DropoutRates | None:
    """The rates of dropout in training; None where there is none at all."""
    if not (objective.dropout or objective.attention_dropout):
        return None
    return DropoutRates(hyper.dropout, hyper.attention_dropout if objective.attention_dropout else None)
