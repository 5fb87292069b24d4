"""The mixers by name, and how one is applied to the streams of a batch. A new mixer is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.models.mixers.base import Mixer, Params
from mtl_jax.models.mixers.column_mixers import attention, cross_stitch, sluice
from mtl_jax.models.mixers.experts import cgc, mmoe, ple
from mtl_jax.models.mixers.shared_private import shared_private
from mtl_jax.models.static_gather import take

_HIGHEST = jax.lax.Precision.HIGHEST

MIXERS: dict[str, Callable[..., Mixer]] = {  # (K, **options) -> Mixer
    "cross_stitch": cross_stitch,
    "sluice": sluice,
    "attention": attention,
    "mmoe": mmoe,
    "cgc": cgc,
    "ple": ple,
    "shared_private": shared_private,
}

Sums = dict[str, jax.Array]


def mix(
    mixer: Mixer,
    params: Params,
    outputs: jax.Array,
    inputs: jax.Array,
    blocks: np.ndarray,
    batch: Batch,
    progress: jax.Array | None,
) -> tuple[jax.Array, Sums]:
    """Applies a mixer to the columns of all blocks.

    Args:
      params: of the mixer.
      outputs: [B', C, R, T, D] of the columns.
      inputs: [B', G, R, T, D'] of the columns since the last mixer.
      blocks: int[B'], static: the blocks.
      batch: leaves [B, R, ...].
      progress: step / steps; None leaves out the losses of the mixer.

    Returns:
      [B', G, R, T, D'], and {name: float32 sum over the texts of all blocks}.
    """
    segment = take(batch.segment, blocks)
    mixed = jax.vmap(mixer.apply, (None, 0, 0, 0))(params, outputs, inputs, segment)
    chex.assert_shape(mixed, (len(blocks), None, *segment.shape[1:], None))
    if not mixer.losses or progress is None:
        return mixed, {}
    losses = jax.vmap(mixer.losses, (None, 0, 0, 0, 0, None))(
        params, outputs, inputs, segment, batch.dataset[blocks], progress
    )
    return mixed, {name: _sum_over_texts(values, batch, blocks) for name, values in losses.items()}


class TaskColumns(NamedTuple):
    """The columns that the M tasks of each of B' blocks mix: S shared ones, and P private ones per task.

    tasks    int32[B', M]
    reads    float32[B', M], 1 for tasks that read labels of the block's data set
    shared   [B', S, R, T, D], or [B', M, S, R, T, D] if the inputs differ from task to task
    private  [B', M, P, R, T, D]
    inputs   [B', R, T, D'], of the columns; or [B', M, R, T, D']
    """

    tasks: jax.Array
    reads: jax.Array
    shared: jax.Array
    private: jax.Array
    inputs: jax.Array


def mix_by_task(
    mixer: Mixer, params: Params, columns: TaskColumns, blocks: np.ndarray, batch: Batch, progress: jax.Array | None
) -> tuple[jax.Array, Sums]:
    """As `mix`, for a mixer at the top: [B', M, R, T, D'], and the sums of the losses."""
    tasks, reads, shared, private, inputs = columns
    segment = take(batch.segment, blocks)
    axes = (None, 0, 0 if shared.ndim == 6 else None, 0, 0 if inputs.ndim == 5 else None, None)
    arguments = (params, tasks, shared, private, inputs, segment)
    by_block = (None, 0, 0, 0, 0, 0)
    mixed = jax.vmap(jax.vmap(mixer.apply_to_task, axes), by_block)(*arguments)
    if not mixer.task_losses or progress is None:
        return mixed, {}
    task_losses = jax.vmap(jax.vmap(mixer.task_losses, (*axes, None, None)), (*by_block, 0, None))
    losses = task_losses(*arguments, batch.dataset[blocks], progress)
    weights = reads / reads.sum(axis=1, keepdims=True)
    means = {name: jnp.einsum("bm,bmrt->brt", weights, values, precision=_HIGHEST) for name, values in losses.items()}
    return mixed, {name: _sum_over_texts(mean, batch, blocks) for name, mean in means.items()}


def text_count(batch: Batch) -> jax.Array:
    """Number of texts in all blocks, float32: the denominator of the sums of `mix`."""
    return (batch.length > 0).sum().astype(jnp.float32)


def _sum_over_texts(values: jax.Array, batch: Batch, blocks: np.ndarray) -> jax.Array:
    """Σ over the texts of some blocks of the mean over their tokens; `values` float32[B', R, T]."""
    segment, length = take(batch.segment, blocks), take(batch.length, blocks)
    chex.assert_equal_shape([values, segment])
    weight = jnp.where(length > 0, 1.0 / jnp.maximum(length, 1), 0.0)
    padded = jnp.pad(weight, ((0, 0), (0, 0), (1, 0)))  # segment e + 1 is example e, segment 0 padding
    return (values * jnp.take_along_axis(padded, segment, axis=2)).sum()
