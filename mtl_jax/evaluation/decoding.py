"""Answers that a causal trunk itself writes after prompts in packed rows, with keys and values kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.models.key_values import KeyMemory, empty_written
from mtl_jax.models.network import NetworkOutputs
from mtl_jax.models.relative_positions import segment_positions
from mtl_jax.tasks import beam_search
from mtl_jax.training.group_batch import GroupBatch
from mtl_jax.training.objective import Objective, Params


def continue_prompts(
    objective: Objective, params: Params, batch: Batch, part: GroupBatch, outputs: NetworkOutputs
) -> dict[str, jax.Array]:
    """The best answer to each prompt of a task that `continues`.

    All sequences of a batch are written at once, a token each in a step; they attend to their prompts where these are
    in the rows.

    Args:
      objective, params: of the run.
      batch: leaves [B, R, ...]; answers may follow the prompts in its rows, they are not read.
      part: of the task, a group by itself.
      outputs: of the pass over the batch, with its keys.

    Returns:
      value int32[P·R, E, L], the tokens of the P blocks that the task reads, -1 after them; score float32[P·R, E], log
      p, with beams over the length penalty.
    """
    task, blocks = part.group.form, part.entries.blocks
    count, rows, slots = batch.start.shape
    beams, sequences, width = task.beam, slots * task.beam, len(blocks)
    given = part.labels["prompt"].reshape(width, rows, -1)
    prompt = jnp.zeros((count, rows, slots), jnp.int32).at[blocks, :, : given.shape[-1]].set(given)
    last = jnp.maximum(prompt - 1, 0)  # the place in its text of the token that is read first
    begin = jnp.take_along_axis(batch.tokens, batch.start + last, axis=2)
    by_token = jnp.take_along_axis(prompt, jnp.maximum(batch.segment - 1, 0), axis=2)
    within = jax.vmap(segment_positions)(batch.segment) < by_token - 1
    slot = jnp.repeat(jnp.arange(slots, dtype=jnp.int32), beams)
    shape = (count, rows, sequences)
    steps = batch._replace(segment=jnp.broadcast_to(slot + 1, shape), token_type=jnp.zeros(shape, jnp.int32))
    steps = steps._replace(hidden=None, patch=None, pixels=None)
    memory = KeyMemory(outputs.keys, {}, jnp.where(within, batch.segment, 0), jnp.int32(0))

    def step(written: Any, tokens: jax.Array, number: jax.Array) -> tuple[jax.Array, Any]:
        new = jnp.zeros(shape, jnp.int32).at[blocks].set(tokens.reshape(width, rows, sequences))
        now = steps._replace(tokens=new, position=jnp.repeat(last, beams, axis=2) + number)
        after = objective.network.apply(params, now, memory=memory._replace(written=written, number=number))
        scores = part.apply(_scores, part.heads(params), params, part.features(after.features).hidden)
        return jax.nn.log_softmax(scores).reshape(width * rows * slots, beams, -1), after.keys

    def reorder(written: Any, parents: jax.Array) -> Any:
        chosen = parents.reshape(width, rows, slots, beams) + beams * jnp.arange(slots)[None, None, :, None]
        index = jnp.broadcast_to(jnp.arange(sequences), shape).at[blocks].set(chosen.reshape(width, rows, sequences))

        def layer(path: str) -> Any:
            at = index[outputs.key_blocks[path]][..., None, None, None]
            return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, at, axis=2), written[path])

        return {path: layer(path) for path in written}

    written = {path: empty_written(keys, sequences, task.max_length) for path, keys in outputs.keys.items()}
    active = (prompt[blocks] > 0).reshape(-1)
    ends = {"begin": begin[blocks].reshape(-1), "end": task.end, "max_length": task.max_length}
    if beams == 1:
        result = beam_search.greedy_search(step, written, active, **ends)
    else:
        options = {"width": beams, "alpha": task.length_penalty, "reorder": reorder}
        result = beam_search.beam_search(step, written, active, **ends, **options)
    return {
        "value": result.tokens[:, 0].reshape(width * rows, slots, -1),
        "score": result.score[:, 0].reshape(width * rows, slots),
    }


def _scores(task: Any, head: Params, hidden: jax.Array) -> jax.Array:
    return task.scores(head, hidden)
