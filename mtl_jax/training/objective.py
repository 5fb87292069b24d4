"""The objective Σ_k α_k·L_k + λ·Ω, as the pieces that the step differentiates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.mixers import text_count
from mtl_jax.models.network import Network
from mtl_jax.models.network_spec import DropoutRates
from mtl_jax.tasks import distillation
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.distillation import Distillation
from mtl_jax.tasks.groups import TaskGroup, split_heads
from mtl_jax.training.group_batch import GroupBatch, group_batch
from mtl_jax.training.hyperparameters import Hyperparameters

Params = Mapping[str, Any]
FlatParams = Mapping[str, jax.Array]


class Objective(NamedTuple):
    """Everything about a model that the step needs. Static: functions and names, no arrays.

    layout   tasks and blocks of a batch
    tasks    {task: Task}, in the order of the K axis
    network  the shared and private layers
    penalties  {name: Penalty}
    dropout, attention_dropout, adapter_dropout   whether there is any; the rates are in `Hyperparameters`
    auxiliary  names of what is added to the losses by mixers and heads, the A axis; the factors are in
               `Hyperparameters`
    teaching  {task: how it learns from its teachers}; their weight is in `Hyperparameters`
    groups   of tasks that are computed together
    """

    layout: BatchLayout
    tasks: Mapping[str, Task]
    network: Network
    penalties: Mapping[str, Penalty]
    dropout: bool
    attention_dropout: bool
    auxiliary: tuple[str, ...] = ()
    teaching: Mapping[str, Distillation] = {}
    groups: tuple[TaskGroup, ...] = ()
    adapter_dropout: bool = False


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


def group_batches(objective: Objective, batch: Batch, tasks: Collection[str] | None = None) -> list[GroupBatch]:
    """The groups that read a block of a batch [B, R, ...]; with `tasks` only those with one of them."""
    return [
        group_batch(objective.layout, group, batch)
        for group in objective.groups
        if len(objective.layout.entries[group.name].blocks)
        and (tasks is None or not set(tasks).isdisjoint(group.tasks))
    ]


def task_batch(objective: Objective, batch: Batch, task: str) -> GroupBatch:
    """One task as a group of its own, its labels with the classes that it has; not where data sets are drawn.

    `params` of its methods are those of `task_params`.
    """
    layout, group = objective.layout, group_of(objective, task)
    index = list(group.tasks).index(task)
    single = dataclasses.replace(layout, groups=((task,),))
    kind, labels = objective.tasks[task], layout.labels_of(batch, task)
    for name in ("value", "teacher"):
        if name in labels and labels[name].ndim > labels["mask"].ndim:
            labels[name] = labels[name][..., : len(kind.names)]
    alone = TaskGroup(
        {task: kind}, (group.numbers[index],), kind, {}, (group.shapes[index],), group.teaching, group.table
    )
    return group_batch(single, alone, batch._replace(labels={task: labels}))


def task_params(objective: Objective, params: Params, task: str) -> Params:
    """The parameters with the head of this task alone, in its true shapes [1, ...]."""
    group = group_of(objective, task)
    head = split_heads((group,), params["heads"])[task]
    return {**params, "heads": {task: jax.tree.map(lambda leaf: leaf[None], head)}}


def group_of(objective: Objective, task: str) -> TaskGroup:
    """The group of a task."""
    return next(group for group in objective.groups if task in group.tasks)


def by_task(objective: Objective, parts: Sequence[tuple[GroupBatch, jax.Array]]) -> jax.Array:
    """float32 [K, ...]: the sums [n, ...] of the groups added up by task."""
    total = jnp.zeros((len(objective.tasks), *parts[0][1].shape[1:]), jnp.float32)
    numbers = jnp.concatenate([jnp.asarray(group.numbers) for group, _ in parts])
    return total.at[numbers].add(jnp.concatenate([sums for _, sums in parts]), mode="drop")


def logits(
    objective: Objective,
    params: Params,
    batch: Batch,
    dropout: DropoutRates | None,
    key: jax.Array | None,
    *,
    taps: Taps | None = None,
    tap_spec: TapSpec | None = None,
) -> list[tuple[GroupBatch, Any]]:
    """The scores of each group. `taps`, `tap_spec`: see `models.gradient_taps`."""
    head_inputs = objective.network.apply(params, batch, dropout, key, taps, tap_spec).features
    return _logits(objective, params, batch, head_inputs, dropout, key)


def _logits(
    objective: Objective,
    params: Params,
    batch: Batch,
    head_inputs: HeadInputs,
    dropout: DropoutRates | None,
    key: jax.Array | None,
) -> list[tuple[GroupBatch, Any]]:
    """The outputs of the heads, from the features of the network."""
    return [(group, group.logits(params, head_inputs, dropout, key)) for group in group_batches(objective, batch)]


def training_logits(
    objective: Objective, params: Params, batch: Batch, hyper: Hyperparameters, key: jax.Array | None
) -> list[tuple[GroupBatch, Any]]:
    """`logits` with the dropout of training."""
    return logits(objective, params, batch, dropout_rates(objective, hyper), key)


def loss_denominators(objective: Objective, batch: Batch, hyper: Hyperparameters) -> jax.Array:
    """The denominators of the K mean losses, float32 [K], from the labels alone, before any forward pass."""
    groups = group_batches(objective, batch)
    return by_task(objective, [(group, group.weight_sums(hyper.teaching)) for group in groups])


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
    halves: int = 1,
    taps: Taps | None = None,
    tap_spec: TapSpec | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What this batch adds to the K mean losses, and to the A auxiliary ones: float32 [K], [A]. One forward pass.

    `progress` = step / steps. With 2 `halves` the losses are [2, K], of the labels in either half of the rows of each
    block. `taps`, `tap_spec`: see `models.gradient_taps`.
    """
    dropout = dropout_rates(objective, hyper)
    outputs = objective.network.apply(params, batch, dropout, key, taps, tap_spec, progress=progress)
    scores = _logits(objective, params, batch, outputs.features, dropout, key)
    of_halves = (
        [scores] if halves == 1 else [[(part.half(h), outputs) for part, outputs in scores] for h in range(halves)]
    )
    losses = [_divided(_loss_sums(objective, params, hyper, part), totals.losses) for part in of_halves]
    added = dict(outputs.auxiliary)
    for group, _ in scores:
        if group.group.form.auxiliary:  # such a task is a group by itself
            task, name = group.group.form, group.group.name
            inputs = group.features(outputs.features)._replace(length=_lengths(objective, batch, name))
            sums = task.auxiliary_losses(group.heads(params), inputs, group.row_keys(key))
            added |= {auxiliary_name(name, loss): value for loss, value in sums.items()}
    auxiliary = jnp.stack([added[name] for name in objective.auxiliary]) if objective.auxiliary else jnp.zeros((0,))
    return losses[0] if halves == 1 else jnp.stack(losses), _divided(auxiliary, totals.auxiliary)


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
    scores = logits(objective, params, batch, dropout, key, taps=taps, tap_spec=tap_spec)
    return _divided(_loss_sums(objective, params, hyper, scores), total)


def _loss_sums(
    objective: Objective, params: Params, hyper: Hyperparameters, scores: Sequence[tuple[GroupBatch, Any]]
) -> jax.Array:
    """float32 [K]."""
    sums = [(group, group.loss_sums(params, logits, hyper.teaching)) for group, logits in scores]
    return by_task(objective, sums)


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


def dropout_rates(objective: Objective, hyper: Hyperparameters) -> DropoutRates | None:
    """The rates of dropout in training; None where there is none at all."""
    if not (objective.dropout or objective.attention_dropout or objective.adapter_dropout):
        return None
    return DropoutRates(
        hyper.dropout,
        hyper.attention_dropout if objective.attention_dropout else None,
        hyper.adapter_dropout if objective.adapter_dropout else None,
    )
