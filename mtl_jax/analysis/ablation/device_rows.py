"""Packed rows that live on the device: the host names rows, the step gathers them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout, PackedRows
from mtl_jax.data.sampler import BatchSampler


class ResidentRows(NamedTuple):
    """The training rows of all data sets, one after the other; N = rows of all together.

    offset  int32 [data sets]  where the rows of each begin
    fields  {name: [N, ...]} of `Batch`
    labels  {task: {name: [N of its data set, ...]}}
    pixels  uint8[n, F], the patches of all pictures, to which `fields["patch"]` points; None without pictures
    """

    offset: jax.Array
    fields: dict[str, jax.Array]
    labels: dict[str, dict[str, jax.Array]]
    pixels: jax.Array | None = None


class Draws(NamedTuple):
    """Which rows some steps read: dataset int32 [n, A, B], row int32 [n, A, B, R]."""

    dataset: Any
    row: Any


def resident_rows(batches: BatchSampler) -> ResidentRows:
    """The rows of `batches` as numpy arrays, to be put on the devices once."""
    rows = batches.rows
    counts = [len(r.tokens) for r in rows]
    apart = ("labels", "patch", "pixels")
    names = [name for name in PackedRows._fields if name not in apart and getattr(rows[0], name) is not None]
    fields = {name: np.concatenate([getattr(r, name) for r in rows]) for name in names}
    pixels = None
    if batches.layout.pictured:
        fields["patch"], pixels = _joined_patches(rows)
    return ResidentRows(
        offset=np.cumsum([0, *counts[:-1]]).astype(np.int32),
        fields=fields,
        labels={
            task: dict(rows[d].labels[task])
            for task, d in zip(batches.layout.tasks, batches.layout.dataset_of, strict=True)
        },
        pixels=pixels,
    )


def _joined_patches(rows) -> tuple[np.ndarray, np.ndarray]:
    """`patch` of all rows, and the one table to which it points; its row 0 is none."""
    tables, patches, count = [next(r.pixels for r in rows if r.pixels is not None)[:1]], [], 1
    for own in rows:
        if own.patch is None:
            patches.append(np.zeros_like(own.tokens))
            continue
        patches.append(np.where(own.patch > 0, own.patch + count - 1, 0).astype(np.int32))
        tables.append(own.pixels[1:])
        count += len(own.pixels) - 1
    return np.concatenate(patches), np.concatenate(tables)


def draws(batches: BatchSampler, start: int, steps: int, accumulate: int) -> Draws:
    """The rows of steps start, start + 1, ...; numpy."""
    found = [batches.indices(step) for step in range(start * accumulate, (start + steps) * accumulate)]
    dataset = np.stack([d for d, _ in found]).reshape(steps, accumulate, -1)
    row = np.stack([r for _, r in found])
    return Draws(dataset, row.reshape(steps, accumulate, *row.shape[1:]))


def gather(rows: ResidentRows, layout: BatchLayout, dataset: jax.Array, row: jax.Array) -> Batch:
    """The batch of rows `row` int32 [B, R] of the data sets `dataset` int32 [B], as `BatchSampler.batch` makes it."""
    whole = rows.offset[dataset][:, None] + row
    labels = {}
    for task, arrays in rows.labels.items():
        reads = np.asarray(layout.reads(task))
        own = layout.dataset_of[layout.tasks.index(task)]
        if all(layout.candidates[b] == (own,) for b in reads):
            labels[task] = {name: array[row[reads]] for name, array in arrays.items()}
            continue
        drawn = dataset[reads] == own
        labels[task] = {name: _where_drawn(drawn, array, row[reads]) for name, array in arrays.items()}
    fields = {name: array[whole] for name, array in rows.fields.items() if name != "patch"}
    if rows.pixels is not None:
        patch = rows.fields["patch"][whole[np.asarray(layout.picture_blocks())]]
        fields |= {"patch": patch > 0, "pixels": rows.pixels[patch]}
    return Batch(dataset, row, **fields, labels=labels)


def _where_drawn(drawn, array, row):
    """array[row] in blocks that hold the task's data set, zeros in others."""
    taken = array[jnp.where(drawn[:, None], row, 0)]
    return jnp.where(drawn.reshape(-1, *(1,) * (taken.ndim - 1)), taken, jnp.zeros((), array.dtype))
