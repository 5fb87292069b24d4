"""The mixers by name, and what one does to the streams of a batch. A further one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.models.experts import cgc, mmoe, ple
from mtl_jax.models.mixers import Mixer, Params, attention, cross_stitch, sluice
from mtl_jax.models.shared_private import shared_private

MIXERS: dict[str, Callable[..., Mixer]] = {  # (K, **options) -> Mixer
    "cross_stitch": cross_stitch, "sluice": sluice, "attention": attention,
    "mmoe": mmoe, "cgc": cgc, "ple": ple, "shared_private": shared_private,
}  # fmt: skip

Streams = Mapping[tuple[int, int], jax.Array]  # (block, number) -> [R, T, D]


def mix(mixer: Mixer, params: Params, outputs: Streams, inputs: Streams, batch: Batch, progress: jax.Array | None):
    """What a mixer makes of the columns of all blocks.

    Args:
      params: of the mixer.
      outputs: (block, column) -> what the column gives out.
      inputs: (block, stream) -> what went in since the last mixer.
      batch: leaves [B, R, ...].
      progress: step / steps; None leaves out what the mixer adds to the objective.

    Returns:
      {(block, stream): [R, T, D']}, and {name: float32 sum over the texts of all blocks}.
    """
    mixed, added = {}, {}
    for block in sorted({block for block, _ in outputs}):
        out = jnp.stack([outputs[block, c] for c in range(len(mixer.columns))])
        into = jnp.stack([inputs[block, g] for g in range(mixer.streams)])
        segment = batch.segment[block]
        streams = mixer.apply(params, out, into, segment)
        mixed |= {(block, g): streams[g] for g in range(len(streams))}
        if mixer.losses and progress is not None:
            found = mixer.losses(params, out, into, segment, batch.dataset[block], progress)
            for name, values in found.items():
                added[name] = added.get(name, jnp.float32(0.0)) + _over_texts(values, batch, block)
    return mixed, added


def texts(batch: Batch) -> jax.Array:
    """Number of texts in all blocks, float32: what the sums of `mix` are divided by."""
    return (batch.length > 0).sum().astype(jnp.float32)


def _over_texts(values: jax.Array, batch: Batch, block: int) -> jax.Array:
    """Σ over the texts of a block of the mean over their tokens; `values` float32[R, T]."""
    length = batch.length[block]  # [R, E]
    share = jnp.where(length > 0, 1.0 / jnp.maximum(length, 1), 0.0)
    padded = jnp.pad(share, ((0, 0), (1, 0)))  # segment e + 1 is example e, segment 0 padding
    return (values * jnp.take_along_axis(padded, batch.segment[block], axis=1)).sum()
