"""Columns of which a task reads only the shared ones and its own: which are computed in a block, and which are mixed.

A block passes through the S shared columns, once per input stream, and through the P columns of the task at each of its
slots. A name is (block, number, slot): number < S is a shared column, S + p the p-th column of the task at that slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.mixers import TaskColumns
from mtl_jax.models.ownership import ExpertColumns
from mtl_jax.models.task_streams import Streams, owner_salts

Name = tuple[int, int, int]


class ComputedColumns(NamedTuple):
    """The columns of one layer that are computed.

    names  of the columns
    ids    the column of each: an int, or an int32 scalar where the block's data set is drawn
    salts  {name: uint32}, by which the dropout of columns differs
    """

    names: list[Name]
    ids: list[int | jax.Array]
    salts: dict[Name, jax.Array]


def columns_to_compute(owner: ExpertColumns, streams: Streams, layout: BatchLayout, batch: Batch) -> ComputedColumns:
    """The columns of a layer that the tasks of the batch need; `streams` are their inputs."""
    shared = [column for column, task in enumerate(owner.tasks) if task is None]
    column_salts, pairs = owner_salts(owner, layout), sorted(streams.parent)
    names = [(block, column, slot) for block, slot in sorted(set(streams.parent.values())) for column in shared]
    ids: list[int | jax.Array] = [column for _, column, _ in names]
    salts = {name: jnp.uint32(column_salts[name[1]]) for name in names}
    by_task = [[column for column, task in enumerate(owner.tasks) if task == k] for k in range(len(layout.tasks))]
    for number, columns in enumerate(zip(*by_task, strict=True), len(shared)):  # the p-th column of each task
        task_salts = [column_salts[column] for column in columns]
        names += [(block, number, slot) for block, slot in pairs]
        ids += streams.owner_ids(columns, batch, pairs)
        salts |= {(block, number, slot): streams.value_of_task(task_salts, block, slot, batch) for block, slot in pairs}
    return ComputedColumns(names, ids, salts)


def columns_to_mix(
    owner: ExpertColumns,
    streams: Streams,
    layout: BatchLayout,
    batch: Batch,
    block: int,
    *,
    outputs: Mapping[Name, jax.Array],
    inputs: Mapping[tuple[int, int], jax.Array],
) -> TaskColumns:
    """The columns that the tasks of a block mix: `outputs` of the top layer, `inputs` of the lowest by (block,
    slot).
    """
    slots = [slot for b, slot in sorted(streams.parent) if b == block]
    parents = [streams.parent[block, slot][1] for slot in slots]
    count = owner.tasks.count(None)
    shared, private = range(count), range(count, count + owner.tasks.count(0))
    like = next(value for name, value in outputs.items() if name[0] == block)

    def stacked(numbers: Sequence[int], slot: int):
        if not numbers:
            return jnp.zeros((0, *like.shape), like.dtype)
        return jnp.stack([outputs[block, number, slot] for number in numbers])

    several, tasks = len(set(parents)) > 1, range(len(layout.tasks))  # several input streams
    return TaskColumns(
        jnp.stack([streams.value_of_task(tasks, block, slot, batch).astype(jnp.int32) for slot in slots]),
        streams.reads_labels(block, slots, batch),
        jnp.stack([stacked(shared, slot) for slot in parents]) if several else stacked(shared, parents[0]),
        jnp.stack([stacked(private, slot) for slot in slots]),
        jnp.stack([inputs[block, slot] for slot in slots]) if several else inputs[block, slots[0]],
    )
