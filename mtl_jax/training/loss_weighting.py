"""The weights α of the K losses: the signals that a method asks for, its update, and the factors of the config."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.balancing.loss_weights import LossWeights, Signals, class_divergence
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients.base import Balance, StepInputs
from mtl_jax.training.group_batch import GroupBatch
from mtl_jax.training.objective import Objective, Params
from mtl_jax.training.parameter_paths import PyTree


class WeightedLosses(NamedTuple):
    """alpha float32 [K]; applied: alpha where a task is present, else 0; extra: scalar that the method adds."""

    alpha: jax.Array
    applied: jax.Array
    extra: jax.Array
    balance: Balance


def weigh_losses(
    method: LossWeights,
    inputs: StepInputs,
    losses: jax.Array,
    present: jax.Array,
    **of_gradients: PyTree,
) -> WeightedLosses:
    """α_k = weight of the method · `tasks.*.weight`, from the losses [K] of the step.

    `of_gradients`: fields of `Signals` about gradients, where they are known.
    """
    before = inputs.balance
    signals = make_signals(method.needs, inputs, losses, present, **of_gradients)
    alpha, extra, after = method.update(signals, before.loss_weights)
    chex.assert_equal_shape([alpha, losses])  # one number for all tasks would broadcast
    alpha = alpha * inputs.hyper.alpha
    applied = jnp.where(present, alpha, 0.0)
    return WeightedLosses(alpha, applied, extra, before._replace(loss_weights=after))


def make_signals(
    needs: frozenset[str],
    inputs: StepInputs,
    losses: jax.Array,
    present: jax.Array,
    **of_gradients: PyTree,
) -> Signals:
    """The `Signals` of one step, as far as `needs` asks for them; `losses` and `present` are [K]."""
    divergences = _divergences(inputs) if "divergences" in needs else None
    before = inputs.balance
    return Signals(
        losses, present, losses_after=before.losses_after, scores=before.scores, divergences=divergences, **of_gradients
    )


def mean_losses(inputs: StepInputs, params: Params) -> jax.Array:
    """The K mean losses over all micro-batches and devices, by a forward pass with `params`."""
    objective, hyper, key, total = inputs.objective, inputs.hyper, inputs.key, inputs.total
    by_batch = jax.lax.map(
        lambda micro: terms.loss_contributions(objective, params, micro, hyper, key, total), inputs.batch
    )
    return psum(by_batch.sum(axis=0), inputs.axis)


def _divergences(inputs: StepInputs) -> jax.Array:
    """KL(labels ‖ predictions) of each task's classes over the batch, float32 [K], by a forward pass; else NaN."""
    objective = inputs.objective

    def sums(micro):
        scores = terms.training_logits(objective, inputs.params, micro, inputs.hyper, inputs.key)
        return {
            part.group.name: _class_sums(objective, part, logits)
            for part, logits in scores
            if part.group.form.defines("class_sums")
        }

    by_group = psum(jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.lax.map(sums, inputs.batch)), inputs.axis)
    divergences = jnp.full((len(objective.tasks),), jnp.nan)
    for group in objective.groups:
        if group.name in by_group:
            of_group = jax.vmap(class_divergence)(*by_group[group.name])
            divergences = divergences.at[np.asarray(group.numbers)].set(of_group)
    return divergences


def _class_sums(objective: Objective, part: GroupBatch, logits: PyTree) -> tuple[jax.Array, jax.Array]:
    """How often each class is the label, and is predicted, float32 [K_g, C] each."""
    sums = part.sums(lambda task, head, *arguments: task.class_sums(*arguments), {}, {}, logits, part.labels)
    numbers = np.asarray(part.group.numbers)
    return jax.tree.map(lambda leaf: terms.by_task(objective, [(part, leaf)])[numbers], sums)
