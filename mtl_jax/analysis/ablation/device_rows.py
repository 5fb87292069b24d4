"""Packed rows that stay on the device: the host sends indices, the step gathers the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout, PackedRows
from mtl_jax.data.batch_gathering import blank_labels
from mtl_jax.data.sampler import BatchSampler


class ResidentRows(NamedTuple):
    """The training rows of all data sets, concatenated; N = total number of rows.

    offset  int32 [data sets]  the first row of each
    fields  {name: [N, ...]} of `Batch`
    labels  {group of tasks: {name: [rows of all tasks of the group, ...]}}
    first   {group of tasks: int32 [K_g], the first row of each task there}
    pixels  uint8[n, F], the patches of all pictures, indexed by `fields["patch"]`; None without pictures
    """

    offset: jax.Array
    fields: dict[str, jax.Array]
    labels: dict[str, dict[str, jax.Array]]
    first: dict[str, jax.Array]
    pixels: jax.Array | None = None


class Draws(NamedTuple):
    """The rows of n steps: dataset int32 [n, A, B], row int32 [n, A, B, R]."""

    dataset: np.ndarray | jax.Array
    row: np.ndarray | jax.Array


def resident_rows(batches: BatchSampler) -> ResidentRows:
    """The rows of `batches` as numpy arrays, to be placed on the devices once."""
    rows = [r for r in batches.rows if r is not None]
    counts = [len(r.tokens) if r is not None else 0 for r in batches.rows]
    separate = ("labels", "patch", "pixels")
    names = [name for name in PackedRows._fields if name not in separate and getattr(rows[0], name) is not None]
    fields = {name: np.concatenate([getattr(r, name) for r in rows]) for name in names}
    pixels = None
    if batches.layout.pictured:
        fields["patch"], pixels = _joined_patches(rows)
    labels, first = {}, {}
    for group, blank in blank_labels(batches.rows, batches.layout).items():
        tasks = batches.layout.entries[group].tasks
        none = {name: empty[None][:0] for name, empty in blank.items()}
        sources = [batches.rows[batches.layout.dataset_of[batches.layout.tasks.index(task)]] for task in tasks]
        of_tasks = [none if r is None else r.labels[task] for r, task in zip(sources, tasks, strict=True)]
        labels[group] = {
            name: np.concatenate([_padded(arrays[name], empty.shape) for arrays in of_tasks])
            for name, empty in blank.items()
        }
        lengths = [len(next(iter(arrays.values()))) for arrays in of_tasks]
        first[group] = np.cumsum([0, *lengths[:-1]]).astype(np.int32)
    return ResidentRows(
        offset=np.cumsum([0, *counts[:-1]]).astype(np.int32),
        fields=fields,
        labels=labels,
        first=first,
        pixels=pixels,
    )


def _padded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """[N, ...] with zeros up to [N, *shape]."""
    return np.pad(array, [(0, 0), *((0, most - length) for length, most in zip(array.shape[1:], shape, strict=True))])


def _joined_patches(rows: Sequence[PackedRows]) -> tuple[np.ndarray, np.ndarray]:
    """`patch` of all rows, and the table that it indexes; row 0 stands for no patch."""
    tables, patches, count = [next(r.pixels for r in rows if r.pixels is not None)[:1]], [], 1
    for part in rows:
        if part.patch is None:
            patches.append(np.zeros_like(part.tokens))
            continue
        patches.append(np.where(part.patch > 0, part.patch + count - 1, 0).astype(np.int32))
        tables.append(part.pixels[1:])
        count += len(part.pixels) - 1
    return np.concatenate(patches), np.concatenate(tables)


def draws(batches: BatchSampler, start: int, steps: int, accumulate: int) -> Draws:
    """The rows of steps start, start + 1, ...; numpy."""
    indices = [batches.indices(step) for step in range(start * accumulate, (start + steps) * accumulate)]
    dataset = np.stack([d for d, _ in indices]).reshape(steps, accumulate, -1)
    row = np.stack([r for _, r in indices])
    return Draws(dataset, row.reshape(steps, accumulate, *row.shape[1:]))


def gather(rows: ResidentRows, layout: BatchLayout, dataset: jax.Array, row: jax.Array) -> Batch:
    """The batch of rows `row` int32 [B, R] of the data sets `dataset` int32 [B], as `BatchSampler.batch` makes it."""
    index = rows.offset[dataset][:, None] + row
    labels = {}
    for group, arrays in rows.labels.items():
        entries = layout.entries[group]
        of_entries = row[entries.blocks]
        if entries.fixed is not None:
            of_entries = of_entries + rows.first[group][entries.fixed][:, None]
            labels[group] = {name: array[of_entries] for name, array in arrays.items()}
            continue
        task = jnp.asarray(entries.task_at)[dataset[entries.blocks], entries.places]
        of_entries = of_entries + rows.first[group][jnp.maximum(task, 0)][:, None]
        labels[group] = {name: _masked_rows(task >= 0, array, of_entries) for name, array in arrays.items()}
    fields = {name: array[index] for name, array in rows.fields.items() if name != "patch"}
    if rows.pixels is not None:
        patch = rows.fields["patch"][index[np.asarray(layout.picture_blocks())]]
        fields |= {"patch": patch > 0, "pixels": rows.pixels[patch]}
    return Batch(dataset, row, **fields, labels=labels)


def _masked_rows(mask: jax.Array, array: jax.Array, row: jax.Array) -> jax.Array:
    """array[row] in blocks where `mask` is set, zeros in others."""
    rows = array[jnp.where(mask[:, None], row, 0)]
    return jnp.where(mask.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros((), array.dtype))
