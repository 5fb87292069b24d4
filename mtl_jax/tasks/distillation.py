"""Distillation: a student learns from the predictions of teachers, in addition to gold labels or in place of them.

    loss = (1 − s)·L(y) + s·T²·L(q; scores / T),   q = Σ_j w_j softmax(teacher_j / T) / Σ_j w_j

Hinton et al. (2015): temperature T, whose square keeps the size of the gradient. Annealing, s = w·(1 − progress): Clark
et al. (2019, BAM), from the teacher to the gold label; L is linear in its target, so with T = 1 it is the loss of their
mixed target, for a CRF of its marginals. Averaging over teachers: You et al. (2017).

Soft labels are labels like any other: arrays `teacher` and `teacher_mask` of a task, of the form of a soft `value` and
its `mask`, see `mtl_jax.data.batch`. An example without a gold label counts s, one without a teacher has s = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from mtl_jax.tasks.base import Labels, Params, Task


class Distillation(NamedTuple):
    """How one task learns from its teachers; static. The weight of the teachers is a hyperparameter.

    temperature  T > 0, of teachers and student alike; 1 where labels are numbers
    annealing    whether the share of the teachers falls linearly to 0 over the run
    """

    temperature: float
    annealing: bool


def teacher_share(distillation: Distillation, weight: jax.Array, progress: jax.Array) -> jax.Array:
    """s in [0, 1], float32: the share of the teachers in the target. `weight` w in [0, 1], `progress` = step /
    steps.
    """
    return weight * (1.0 - progress) if distillation.annealing else weight


def loss(
    task: Task, distillation: Distillation, params: Params, logits: jax.Array, labels: Labels, share: jax.Array
) -> jax.Array:
    """As `Task.loss`, with the teachers' share; the plain loss where the labels have no teacher."""
    gold = task.loss(params, logits, labels)
    if "teacher" not in labels:
        return gold
    soft = task.loss(*scale_logits(params, logits, distillation.temperature), _teacher_labels(labels))
    chex.assert_equal_shape([gold, soft])
    chex.assert_rank(share, 0)
    return (1.0 - share) * gold + share * distillation.temperature**2 * soft


def weight(task: Task, labels: Labels, share: jax.Array) -> jax.Array:
    """As `Task.weight`, with the teachers' share; the plain weight where the labels have no teacher."""
    gold = task.weight(labels)
    if "teacher" not in labels:
        return gold
    return (1.0 - share) * gold + share * task.weight(_teacher_labels(labels))


def soften_targets(task: Task, params: Params, logits: jax.Array, labels: Labels, temperature: float) -> jax.Array:
    """What a teacher says at a temperature: float32 [R, E, C], [R, E] (numbers) or [R, Q, C], see
    `Task.soft_labels`.
    """
    return task.soft_labels(*scale_logits(params, logits, temperature), labels)


def scale_logits(params: Params, logits: jax.Array, temperature: float) -> tuple[Params, jax.Array]:
    """Head and scores with every score divided by T; those of a CRF's moves stand in its parameters."""
    if temperature == 1.0:
        return params, logits
    if "crf" in params:
        params = {**params, "crf": jax.tree.map(lambda score: score / temperature, params["crf"])}
    return params, logits / temperature


def average_predictions(
    predictions: Sequence[np.ndarray], known: Sequence[np.ndarray], weights: Sequence[float] = ()
) -> Any:
    """The mean of the predictions of several teachers for each label.

    Args:
      predictions: of each teacher float[n] numbers or float[n, C] probabilities.
      known: of each teacher bool[n], whether it predicts the label.
      weights: of the teachers, above 0; () = equal.

    Returns:
      float32[n] or [n, C], the mean over the teachers that predict it, 0 for none; bool[n], whether there is one.
    """
    factors = np.asarray(weights or (1.0,) * len(predictions), np.float64)[:, None] * np.stack(known)
    total = factors.sum(axis=0)
    fractions = factors / np.where(total > 0, total, 1.0)
    values = np.stack(predictions).astype(np.float64)
    fractions = fractions.reshape(*fractions.shape, *(1,) * (values.ndim - 2))
    return np.where(fractions > 0, fractions * values, 0.0).sum(axis=0).astype(np.float32), total > 0


def _teacher_labels(labels: Labels) -> Labels:
    return {**labels, "value": labels["teacher"], "mask": labels["teacher_mask"]}
