"""The mixers by name, and how one is applied to the streams of a batch. A new mixer is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.models.mixers.base import Mixer, Params
from mtl_jax.models.mixers.column_mixers import attention, cross_stitch, sluice
from mtl_jax.models.mixers.experts import cgc, mmoe, ple
from mtl_jax.models.mixers.shared_private import shared_private

MIXERS: dict[str, Callable[..., Mixer]] = {  # (K, **options) -> Mixer
    "cross_stitch": cross_stitch,
    "sluice": sluice,
    "attention": attention,
    "mmoe": mmoe,
    "cgc": cgc,
    "ple": ple,
    "shared_private": shared_private,
}

StreamFeatures = Mapping[tuple[int, int], jax.Array]  # (block, number) -> [R, T, D]


def mix(
    mixer: Mixer,
    params: Params,
    outputs: StreamFeatures,
    inputs: StreamFeatures,
    batch: Batch,
    progress: jax.Array | None,
):
    """Applies a mixer to the columns of all blocks.

    Args:
      params: of the mixer.
      outputs: (block, column) -> output of the column.
      inputs: (block, stream) -> input of the columns since the last mixer.
      batch: leaves [B, R, ...].
      progress: step / steps; None leaves out the losses of the mixer.

    Returns:
      {(block, stream): [R, T, D']}, and {name: float32 sum over the texts of all blocks}.
    """
    mixed, auxiliary = {}, {}
    for block in sorted({block for block, _ in outputs}):
        column_outputs = jnp.stack([outputs[block, c] for c in range(len(mixer.columns))])
        column_inputs = jnp.stack([inputs[block, g] for g in range(mixer.streams)])
        segment = batch.segment[block]
        streams = mixer.apply(params, column_outputs, column_inputs, segment)
        chex.assert_equal_shape_prefix([segment, *streams], 2)
        mixed |= {(block, g): streams[g] for g in range(len(streams))}
        if mixer.losses and progress is not None:
            losses = mixer.losses(params, column_outputs, column_inputs, segment, batch.dataset[block], progress)
            for name, values in losses.items():
                chex.assert_equal_shape([values, segment])
                auxiliary[name] = auxiliary.get(name, jnp.float32(0.0)) + _sum_over_texts(values, batch, block)
    return mixed, auxiliary


class TaskColumns(NamedTuple):
    """The columns that the M tasks of a block mix: S shared ones, and P private ones per task.

    tasks    int32[M]
    reads    float32[M], 1 for tasks that read labels of the block's data set
    shared   [S, R, T, D], or [M, S, R, T, D] if the inputs differ from task to task
    private  [M, P, R, T, D]
    inputs   [R, T, D'], of the columns; or [M, R, T, D']
    """

    tasks: jax.Array
    reads: jax.Array
    shared: jax.Array
    private: jax.Array
    inputs: jax.Array


def mix_by_task(
    mixer: Mixer, params: Params, blocks: Mapping[int, TaskColumns], batch: Batch, progress: jax.Array | None
) -> tuple[dict[int, jax.Array], dict[str, jax.Array]]:
    """As `mix`, for a mixer at the top: {block: [M, R, T, D']}, and the sums of the losses."""
    mixed, auxiliary = {}, {}
    for block, (tasks, reads, shared, private, inputs) in blocks.items():
        segment = batch.segment[block]
        axes = (None, 0, 0 if shared.ndim == 5 else None, 0, 0 if inputs.ndim == 4 else None, None)
        mixed[block] = jax.vmap(mixer.apply_to_task, axes)(params, tasks, shared, private, inputs, segment)
        if mixer.task_losses and progress is not None:
            task_losses = jax.vmap(mixer.task_losses, (*axes, None, None))
            losses = task_losses(params, tasks, shared, private, inputs, segment, batch.dataset[block], progress)
            for name, values in losses.items():
                mean = jnp.einsum("m,mrt->rt", reads / reads.sum(), values, precision=jax.lax.Precision.HIGHEST)
                auxiliary[name] = auxiliary.get(name, jnp.float32(0.0)) + _sum_over_texts(mean, batch, block)
    return mixed, auxiliary


def text_count(batch: Batch) -> jax.Array:
    """Number of texts in all blocks, float32: the denominator of the sums of `mix`."""
    return (batch.length > 0).sum().astype(jnp.float32)


def _sum_over_texts(values: jax.Array, batch: Batch, block: int) -> jax.Array:
    """Σ over the texts of a block of the mean over their tokens; `values` float32[R, T]."""
    length = batch.length[block]  # [R, E]
    weight = jnp.where(length > 0, 1.0 / jnp.maximum(length, 1), 0.0)
    padded = jnp.pad(weight, ((0, 0), (1, 0)))  # segment e + 1 is example e, segment 0 padding
    return (values * jnp.take_along_axis(padded, batch.segment[block], axis=1)).sum()
