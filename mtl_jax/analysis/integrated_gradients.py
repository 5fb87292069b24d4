"""Integrated gradients: how much each token contributes to the prediction of each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.training import objective as terms
from mtl_jax.training.group_batch import GroupBatch
from mtl_jax.training.objective import Objective, Params

STEPS = 32  # of the path from no words to the text
LEVELS = ("text", "pair", "word", "predicate")  # whose predictions are classes or numbers
GREY = 127.5  # of pixels from 0 to 255: the baseline of pictures, as `config.images.blank`
BACKGROUND = "O"  # the class of words without entity or role, which is not what a tagger looks for


class TaskAttributions(NamedTuple):
    """Of one task: attributions float32[R, T] of the tokens, and the scores of the examples with and without words."""

    attributions: jax.Array
    score: jax.Array
    baseline: jax.Array


Attributions = dict[str, TaskAttributions]  # by task


def integrated_gradients(objective: Objective, steps: int = STEPS) -> Callable[[Params, Batch], Attributions]:
    """(params, batch) -> {task: attributions [R, T], score [R, E], baseline [R, E]}.

    A_t = Σ_d x_td · ∫₀¹ ∂S(α x) / ∂x_td dα by the midpoint rule (Sundararajan et al. 2017, equation 1), x the word
    vectors, the baseline zero vectors; positions and token types stay. Columns with tables of their own contribute all
    of theirs. Of a patch x is the difference of its pixels from grey. Over the tokens of a text they add up to S(x) −
    S(baseline), up to the error of the rule (completeness). Texts of one row do not attend to each other, so a pass for
    each task is enough for all; whatever connects the columns of the tasks is a part of S.

    Args:
      objective: over batches of one block, see `sampler.evaluation_layout`.
      steps: of the rule.
    """
    layout = objective.layout
    on_block = [layout.tasks[k] for k in layout.tasks_on(layout.candidates[0][0])]
    tasks = [task for task in on_block if objective.tasks[task].level in LEVELS]

    def run(params, batch: Batch):
        rows, size = batch.tokens.shape[1:]
        table = params["embed"]["word"]["embedding"]
        words = jnp.take(table, batch.tokens.reshape(-1), axis=1, mode="fill")  # [O, R·T, D], a row for each token
        own_rows = batch._replace(tokens=jnp.arange(rows * size, dtype=jnp.int32).reshape(1, rows, size))
        parts = {task: terms.task_batch(objective, batch, task) for task in tasks}
        pixels = None if batch.pixels is None else batch.pixels.astype(jnp.float32) - GREY
        inputs = {"words": words} if pixels is None else {"words": words, "pixels": pixels}

        def logits(inputs):
            embed = params["embed"] | {"word": {"embedding": inputs["words"]}}
            seen = own_rows._replace(pixels=inputs["pixels"] + GREY) if "pixels" in inputs else own_rows
            head_inputs = objective.network.apply({**params, "embed": embed}, seen).features
            return {t: parts[t].logits(terms.task_params(objective, params, t), head_inputs) for t in tasks}

        masks = {
            task: _predicted_mask(parts[task], terms.task_params(objective, params, task), values)
            for task, values in logits(inputs).items()
        }

        def scores(inputs):
            return {
                task: _by_example(parts[task], jnp.sum(values * masks[task], axis=tuple(range(2, values.ndim))))
                for task, values in logits(inputs).items()
            }

        def slopes(alpha):
            """The gradients of all tasks, leaves [tasks, ...]."""
            at = jax.tree.map(lambda x: alpha * x, inputs)
            total, pullback = jax.vjp(lambda x: jnp.stack([s.sum() for s in scores(x).values()]), at)
            return jax.lax.map(lambda unit: pullback(unit)[0], jnp.eye(len(tasks), dtype=total.dtype))

        def add(total, alpha):
            return jax.tree.map(jnp.add, total, slopes(alpha)), None

        midpoints = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
        zeros = jax.tree.map(lambda x: jnp.zeros((len(tasks), *x.shape), x.dtype), inputs)
        total, _ = jax.lax.scan(add, zeros, midpoints)
        terms_of = {name: leaf / steps * inputs[name][None] for name, leaf in total.items()}
        by_token = terms_of["words"].sum(axis=(1, 3)).reshape(len(tasks), rows, size)
        if pixels is not None:
            patches = jnp.where(batch.patch[0], terms_of["pixels"][:, 0].sum(axis=-1), 0.0)
            by_token = jnp.where(batch.patch[0], patches, by_token)
        full, empty = scores(inputs), scores(jax.tree.map(jnp.zeros_like, inputs))
        return {task: TaskAttributions(by_token[i], full[task], empty[task]) for i, task in enumerate(tasks)}

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
