"""What meta-learning makes of a batch: the blocks of one task, and the examples of one side of a split."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.ownership import name_key


def task_view_layout(layout: BatchLayout) -> BatchLayout:
    """The layout of `task_view`: a separate data set for each task, and blocks that may hold any of them."""
    tasks = tuple(range(len(layout.tasks)))
    blocks = len(layout.reads(layout.tasks[0]))
    datasets = tuple(layout.datasets[d] for d in layout.dataset_of)
    return BatchLayout(datasets, layout.tasks, tasks, (tasks,) * blocks, groups=layout.groups)


def task_view(layout: BatchLayout, batch: Batch, task: jax.Array) -> Batch:
    """The blocks of task number `task` (traced), leaves [P, R, ...], without labels, see `view_labels`."""
    if all(len(names) == 1 for names in layout.candidates):
        block = jnp.asarray(np.asarray([layout.reads(name) for name in layout.tasks]))[task]  # [P]
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[block], batch._replace(labels={}))
    # where data sets are drawn, blocks of other data sets remain, without labels that count
    return batch._replace(labels={}, dataset=jnp.full(batch.dataset.shape, task, jnp.int32))


def view_labels(layout: BatchLayout, batch: Batch, group: str, task: jax.Array) -> dict[str, jax.Array]:
    """The labels [P, R, ...] of task number `task` (traced) of a group in the blocks of its `task_view`.

    Zeros in blocks that hold another data set.
    """
    entries, labels = layout.entries[group], batch.labels[group]
    numbers = np.asarray([layout.tasks.index(name) for name in entries.tasks])
    if entries.fixed is not None:
        entry = np.zeros(len(layout.tasks), np.int32)
        entry[numbers[entries.fixed]] = np.arange(len(entries.fixed))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.asarray(entry)[task]][None], dict(labels))
    # each drawn block has an entry for each place: that of the task, if the block holds its data set
    places = entries.task_at.shape[1]
    place_of = np.zeros(len(layout.tasks), np.int32)
    for index, number in enumerate(numbers):
        place_of[number] = np.flatnonzero(entries.task_at[layout.dataset_of[number]] == index)[0]
    entry = np.arange(len(entries.blocks) // places) * places + jnp.asarray(place_of)[task]
    is_task_block = batch.dataset == jnp.asarray(np.asarray(layout.dataset_of))[task]

    def of_task(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)[entry]
        return jnp.where(is_task_block.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(of_task, dict(labels))


def assign_split(layout: BatchLayout, records: np.ndarray | None, batch: Batch, key: jax.Array) -> jax.Array:
    """A number in [0, 1) for each example, float32 [..., B, R, E], the same for all examples of a record.

    Args:
      layout: of the batch.
      records: as in `meta_learning.MetaSpec`.
      batch: leaves [..., B, R, ...].
      key: of the step.
    """
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    key = jax.random.fold_in(key, name_key("sides"))

    def draw(dataset: jax.Array, example: jax.Array) -> jax.Array:
        record = example if records is None else jnp.asarray(records)[dataset, example]
        record_key = jax.random.fold_in(jax.random.fold_in(key, names[dataset]), record.astype(jnp.uint32))
        return jax.random.uniform(record_key, (), jnp.float32)

    dataset = jnp.broadcast_to(batch.dataset[..., None, None], batch.example.shape)
    numbers = jax.vmap(draw)(dataset.reshape(-1), jnp.maximum(batch.example, 0).reshape(-1))
    return numbers.reshape(batch.example.shape)


def mask_labels(
    layout: BatchLayout, batch: Batch, number: jax.Array, low: jax.Array | float, high: jax.Array | float
) -> Batch:
    """The batch with the labels of those examples whose `number` [A, B, R, E] is in [low, high); bounds may be traced.

    `batch` has leaves [A, B, R, ...].
    """
    chosen = (number >= low) & (number < high)

    def masked(group: str, labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        of_task = chosen[:, layout.entries[group].blocks]
        if "slot" in labels:
            of_task = jnp.take_along_axis(of_task, labels["slot"], axis=-1)
        masks = {field: labels[field] & of_task for field in ("mask", "teacher_mask") if field in labels}
        return {**labels, **masks}

    return batch._replace(labels={name: masked(name, labels) for name, labels in batch.labels.items()})
