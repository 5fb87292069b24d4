"""Streams: the features of one block as they pass through the layers of one task.

Tasks that have used the same owners so far have one stream: a trunk is computed once per block, whoever reads it. The
features of all streams are one array [S, R, T, D]; which of them a task uses is a static table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.ownership import ExpertColumns, Owner, name_key, sole_tasks


class Owners(NamedTuple):
    """The owner of each of S streams.

    known  int[S]; −1 where it depends on the data set that the stream's block holds
    index  int32[S]: `known`, or traced where any is −1
    """

    known: np.ndarray
    index: np.ndarray | jax.Array

    def take(self, streams: np.ndarray) -> Owners:
        """Those of some streams."""
        return Owners(self.known[streams], self.index[streams])


class Streams:
    """Which (block, slot) pairs are one stream. Slot m of a block = the m-th task on its data set.

    block   int[M], the block of each of the M pairs, which are sorted
    place   int[K, B], the pair of task k in block b; −1 where it does not pass through it
    task    int[M, C], the task of a pair if its block holds the c-th of its candidate data sets; where that has no such
            slot, nobody reads the pair, and it counts like the first; −1 where the data set has no task
    exists  bool[M, C], whether the data set has such a slot
    stream  int[M], the stream of each pair, numbered by the first pairs; −1 for pairs that were left out
    first   int[S], the first pair of each stream

    Args:
      layout: of the batch.
      everyone: the slots of a block are all K tasks, whether they read it or not: for mixers over the columns of all
        tasks.
      also: {task: tasks whose labels it receives}; they pass through the blocks of that task too, though none of their
        labels are there. If the data set of a block is drawn, this requires `everyone`.
    """

    def __init__(self, layout: BatchLayout, everyone: bool = False, also: Mapping[int, tuple[int, ...]] | None = None):
        self.layout = layout
        tasks = [_tasks_on(layout, d, everyone, also or {}) for d in range(len(layout.datasets))]
        most = max(len(candidates) for candidates in layout.candidates)
        self.candidates = np.asarray([[*c, *c[:1] * (most - len(c))] for c in layout.candidates])
        counts = [max((len(tasks[d]) for d in candidates), default=0) for candidates in layout.candidates]
        self.block = np.repeat(np.arange(len(counts)), counts)
        self.slot = np.concatenate([np.arange(count) for count in counts])
        by_slot = np.full((len(tasks), max(map(len, tasks), default=0)), -1)  # task of each slot of a data set
        for d, on in enumerate(tasks):
            by_slot[d, : len(on)] = on
        task = by_slot[self.candidates[self.block], self.slot[:, None]]
        self.exists = task >= 0
        self.task = np.where(self.exists, task, by_slot[self.candidates[self.block], 0])
        self.place = np.full((len(layout.tasks), len(counts)), -1)
        pair, candidate = np.nonzero(self.exists)
        self.place[self.task[pair, candidate], self.block[pair]] = pair
        self._active = np.ones(len(self.block), bool)
        self._group = self.block  # pairs with equal numbers are one stream
        self._join()

    def separate_all(self) -> None:
        """Makes every pair a stream of its own from here on."""
        self.separate(np.arange(len(self.block)))

    def separate(self, pairs: np.ndarray) -> None:
        """Makes these pairs streams of their own from here on."""
        number = np.zeros(len(self.block), int)
        number[pairs] = 1 + pairs
        self._split(number[:, None])

    def keep(self, pairs: np.ndarray) -> None:
        """Leaves out all other pairs from here on."""
        active = np.zeros_like(self._active)
        active[pairs] = True
        self._active &= active
        self._join()

    def enter_layer(self, owner: tuple[int, ...]) -> None:
        """Enters the next layer: pairs stay one stream only if they have the same owner for every candidate data
        set.
        """
        self._split(np.where(self.task >= 0, np.asarray(owner)[self.task], -1))

    def _split(self, numbers: np.ndarray) -> None:
        """Separates the pairs of a stream that differ in `numbers` int[M, n]."""
        rows = np.column_stack([self._group, numbers])
        self._group = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
        self._join()

    def _join(self) -> None:
        pairs = self.pairs
        _, first, number = np.unique(self._group[pairs], return_index=True, return_inverse=True)
        order = np.argsort(first)
        self.stream = np.full(len(self.block), -1)
        self.stream[pairs] = np.argsort(order)[number.reshape(-1)]
        self.first = pairs[first[order]]

    @property
    def pairs(self) -> np.ndarray:
        """int[M'], the pairs that were not left out."""
        return np.flatnonzero(self._active)

    @property
    def blocks(self) -> np.ndarray:
        """int[S], the block of each stream."""
        return self.block[self.first]

    def pairs_of(self, tasks: Sequence[int]) -> np.ndarray:
        """int[n], the pairs of some tasks, sorted, also in blocks that they do not read."""
        places = np.unique(self.place[list(tasks)])
        return places[(places >= 0) & self._active[places]]

    def values(self, by_task: Sequence[int] | np.ndarray, batch: Batch, pairs: np.ndarray) -> np.ndarray | jax.Array:
        """[n], the value of the task of each pair; 0 where it has none. Traced only if it depends on what is drawn."""
        return self._lookup(self._table(by_task, pairs), batch, pairs)

    def owners(self, owner: Sequence[int] | np.ndarray, batch: Batch, pairs: np.ndarray | None = None) -> Owners:
        """The owners of all streams, or of some pairs, where `owner` has that of each task."""
        pairs = self.first if pairs is None else pairs
        table = self._table(np.asarray(owner, np.int32), pairs)
        known = np.where((table == table[:, :1]).all(axis=1), table[:, 0], -1)
        return Owners(known, self._lookup(table, batch, pairs))

    def reads_labels(self, batch: Batch, pairs: np.ndarray) -> np.ndarray | jax.Array:
        """float32[n], 1 for pairs whose task reads labels of the data set that the block holds."""
        reads = np.asarray(self.layout.dataset_of)[self.task[pairs]] == self.candidates[self.block[pairs]]
        return self._lookup((reads & self.exists[pairs]).astype(np.float32), batch, pairs)

    def task_numbers(self, batch: Batch) -> np.ndarray | jax.Array:
        """int32[M], the task of each pair, −1 where the data set that its block holds has no such slot."""
        pairs = np.arange(len(self.block))
        return self._lookup(np.where(self.exists, self.task, -1).astype(np.int32), batch, pairs)

    def _table(self, by_task: Sequence[int] | np.ndarray, pairs: np.ndarray) -> np.ndarray:
        by_task, task = np.asarray(by_task), self.task[pairs]
        return np.where(task >= 0, by_task[task], np.zeros((), by_task.dtype))

    def _lookup(self, table: np.ndarray, batch: Batch, pairs: np.ndarray) -> np.ndarray | jax.Array:
        """[n] of `table` [n, C], by the data set that the block of each pair holds."""
        if (table == table[:, :1]).all():
            return table[:, 0]
        blocks, rows = self.block[pairs], np.arange(len(pairs))
        by_dataset = np.zeros((len(pairs), len(self.layout.datasets)), table.dtype)
        by_dataset[rows[:, None], self.candidates[blocks]] = table
        return jnp.asarray(by_dataset)[rows, batch.dataset[blocks]]


def stream_entries(layout: BatchLayout) -> list[tuple[int, int]]:
    """All (block, slot) of a layout: the order of the axis M of taps."""
    streams = Streams(layout)
    return list(zip(streams.block.tolist(), streams.slot.tolist(), strict=True))


def _tasks_on(
    layout: BatchLayout, dataset: int, everyone: bool, also: Mapping[int, tuple[int, ...]]
) -> tuple[int, ...]:
    """Indices of the tasks that pass through the blocks of a data set."""
    if everyone:
        return tuple(range(len(layout.tasks)))
    passing, new = set(), set(layout.tasks_on(dataset))
    while new:
        passing |= new
        new = {source for task in new for source in also.get(task, ())} - passing
    return tuple(sorted(passing))


def owner_salts(owner: Owner, layout: BatchLayout) -> np.ndarray:
    """uint32[O], for each owner the key of its task's name, 0 if tasks share it: a column draws the same, joint or
    separate.

    Experts have names of their own; the first one draws like a trunk.
    """
    if isinstance(owner, ExpertColumns):
        salts = [name_key(name) if number else 0 for number, name in enumerate(owner.names)]
    else:
        salts = [0 if task is None else name_key(layout.tasks[task]) for task in sole_tasks(owner)]
    return np.asarray(salts, np.uint32)
