"""What the training tells the loss weights, as far as they ask for it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.balancing.loss_weights import Signals, class_divergence
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum


def told(objective, needs: frozenset[str], balance, params, batch, hyper, key, axis, losses, present, **of_gradients):
    """The `Signals` of one step.

    Args:
      objective, params, batch, hyper, key, axis: as in the step; batch leaves [A, B, R, ...].
      needs: of the method.
      balance: the step's `Balance`, which holds what is known from before.
      losses, present: [K].
      of_gradients: further fields.
    """
    divergences = None
    if "divergences" in needs:
        divergences = _divergences(objective, params, batch, hyper, key, axis)
    return Signals(
        losses, present, losses_after=balance.losses_after, scores=balance.scores, divergences=divergences,
        **of_gradients,
    )  # fmt: skip


def mean_losses(objective, params, batch, hyper, key, total, axis) -> jax.Array:
    """The K mean losses over all micro-batches and devices, by a forward pass; `total` [K] are their denominators."""
    found = jax.lax.map(lambda micro: terms.loss_shares(objective, params, micro, hyper, key, total), batch)
    return psum(found.sum(axis=0), axis)


def _divergences(objective, params, batch, hyper, key, axis) -> jax.Array:
    """KL(labels ‖ predictions) of each task's classes over the batch, float32 [K], by a forward pass; else NaN."""

    def sums(micro):
        scores = terms.scores(objective, params, micro, hyper, key)
        return {
            name: task.class_sums(scores[name], terms.rows_of(micro.labels[name]))
            for name, task in objective.tasks.items()
            if has_classes(task)
        }

    found = psum(jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.lax.map(sums, batch)), axis)
    return jnp.stack([
        class_divergence(*found[name]) if name in found else jnp.full((), jnp.nan) for name in objective.tasks
    ])  # fmt: skip


def has_classes(task) -> bool:
    """Whether a task tells how often it predicts each class: `class_sums(logits, labels) -> (labels [C],
    predictions [C])`.
    """
    return hasattr(task, "class_sums")
