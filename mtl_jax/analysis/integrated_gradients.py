"""Integrated gradients: how much each token contributes to the prediction of each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.models.gradient_taps import TapSpec
from mtl_jax.training import objective as terms
from mtl_jax.training.group_batch import GroupBatch
from mtl_jax.training.objective import Objective, Params

STEPS = 32  # of the path from no words to the text
LEVELS = ("text", "pair", "word", "predicate")  # whose predictions are classes or numbers
BACKGROUND = "O"  # the class of words without entity or role, which is not what a tagger looks for


class TaskAttributions(NamedTuple):
    """Of one task: attributions float32[R, T] of the tokens, and the scores of the examples with and without words."""

    attributions: jax.Array
    score: jax.Array
    baseline: jax.Array


def integrated_gradients(
    objective: Objective, owner: Sequence[int], steps: int = STEPS
) -> Callable[[Params, Batch], dict[str, TaskAttributions]]:
    """(params, batch) -> {task: attributions [R, T], score [R, E], baseline [R, E]}.

    A_t = Σ_d x_td · ∫₀¹ ∂S(α x) / ∂x_td dα by the midpoint rule (Sundararajan et al. 2017, equation 1), x the word
    vectors, the baseline zero vectors; positions and token types stay. Over the tokens of a text they add up to
    S(x) − S(0), up to the error of the rule (completeness). Texts of one row do not attend to each other and tasks have
    separate streams, so a single pass is enough for all.

    Args:
      objective: over batches of one block, see `sampler.evaluation_layout`.
      owner: of each of the K tasks, in the embedding layer.
      steps: of the rule.
    """
    layout = objective.layout
    streams = [layout.tasks[k] for k in layout.tasks_on(layout.candidates[0][0])]
    tasks = [task for task in streams if objective.tasks[task].level in LEVELS]
    spec = TapSpec({"embed": ()}, tokens=True)

    def run(params, batch: Batch):
        table = params["embed"]["word"]["embedding"]
        words = jnp.stack([table[owner[layout.tasks.index(task)]][batch.tokens[0]] for task in streams])  # [M, R, T, D]
        taps = objective.network.taps(params, batch, spec)
        parts = {task: terms.task_batch(objective, batch, task) for task in tasks}

        def logits(tap):
            head_inputs = objective.network.apply(params, batch, None, None, taps._replace(tokens=tap), spec).features
            return {task: logits_of(task, head_inputs) for task in tasks}

        def logits_of(task, head_inputs):
            return parts[task].logits(terms.task_params(objective, params, task), head_inputs)

        masks = {
            task: _predicted_mask(parts[task], terms.task_params(objective, params, task), values)
            for task, values in logits(taps.tokens).items()
        }

        def scores(tap):
            return {
                task: _by_example(parts[task], jnp.sum(values * masks[task], axis=tuple(range(2, values.ndim))))
                for task, values in logits(tap).items()
            }

        def slope(alpha):
            return jax.grad(lambda tap: sum(s.sum() for s in scores(tap).values()))((alpha - 1.0) * words)

        def add(total, alpha):
            return total + slope(alpha), None

        midpoints = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
        total, _ = jax.lax.scan(add, jnp.zeros_like(words), midpoints)
        attributions = jnp.sum(total / steps * words, axis=-1)
        full, empty = scores(taps.tokens), scores(-words)
        return {task: TaskAttributions(attributions[streams.index(task)], full[task], empty[task]) for task in tasks}

    return run


def _predicted_mask(part: GroupBatch, params: Params, logits: jax.Array) -> jax.Array:
    """1 at the logits [R, E or Q, ...] of what was predicted, else 0."""
    kind, labels = part.group.form, part.labels
    if logits.ndim == 2:  # a number
        return jnp.ones_like(logits)
    value = kind.predict(part.heads(params), logits, labels)["value"]
    if value.ndim == logits.ndim:  # any set of classes
        return value.astype(logits.dtype)
    mask = jax.nn.one_hot(value, logits.shape[-1], dtype=logits.dtype)
    if kind.level in ("word", "predicate"):
        mask = mask * (labels["segment"] > 0)[..., None]
        if BACKGROUND in kind.names:
            mask = mask.at[..., kind.names.index(BACKGROUND)].set(0.0)
    return mask


def _by_example(part: GroupBatch, scores: jax.Array) -> jax.Array:
    """Scores [R, E] of the examples, from scores [R, E] of texts or [R, Q] of words."""
    batch, labels = part.batch, part.labels
    if "slot" not in labels:
        return jnp.where(batch.length[0] > 0, scores, 0.0)
    member = jax.nn.one_hot(labels["slot"], batch.length.shape[-1], dtype=scores.dtype)
    member = member * (labels["segment"] > 0)[..., None]
    return jnp.einsum("rq,rqe->re", scores, member, precision=jax.lax.Precision.HIGHEST)
