"""Streams: the features of one block as they pass through the layers of one task.

Tasks that have used the same owners so far have one stream: a trunk is computed once per block, whoever reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.ownership import ExpertColumns, Owner, name_key, sole_tasks


def stream_entries(layout: BatchLayout) -> list[tuple[int, int]]:
    """All (block, slot) of a layout: the order of the axis M of taps."""
    return sorted(Streams(layout).parent)


class Streams:
    """Which (block, slot) pairs are one stream. Slot m of a block = the m-th task on its data set.

    Args:
      layout: of the batch.
      everyone: the slots of a block are all K tasks, whether they read it or not: for mixers over the columns of all
        tasks.
      also: {task: tasks whose labels it receives}; they pass through the blocks of that task too, though none of their
        labels are there. If the data set of a block is drawn, this requires `everyone`.
    """

    def __init__(self, layout: BatchLayout, everyone: bool = False, also: Mapping[int, tuple[int, ...]] | None = None):
        self.layout = layout
        self.tasks = {d: _tasks_on(layout, d, everyone, also or {}) for d in range(len(layout.datasets))}
        self.parent: dict[tuple[int, int], tuple[int, int]] = {}  # slot -> the stream it belongs to
        for block, candidates in enumerate(layout.candidates):
            for slot in range(max((len(self.tasks[d]) for d in candidates), default=0)):
                self.parent[block, slot] = (block, 0)
        self._prefix = {pair: () for pair in self.parent}  # owners so far, by candidate

    def separate_all(self) -> None:
        """Makes every slot a stream of its own from here on."""
        self.separate(self._prefix)

    def separate(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Makes these slots streams of their own from here on."""
        self._prefix |= {pair: (*self._prefix[pair], pair) for pair in pairs}
        self._join()

    def keep(self, pairs: Collection[tuple[int, int]]) -> None:
        """Leaves out all other slots from here on."""
        self._prefix = {pair: prefix for pair, prefix in self._prefix.items() if pair in pairs}
        self._join()

    def enter_layer(self, owner: tuple[int, ...]) -> None:
        """Enters the next layer: slots stay one stream only if they have the same owner for every candidate data set.
        If a data set has no such slot, nobody reads it, and it counts like the first.
        """
        for (block, slot), prefix in list(self._prefix.items()):
            tasks = [self.tasks[d] for d in self.layout.candidates[block]]
            slot_owners = tuple(owner[ts[slot if slot < len(ts) else 0]] if ts else None for ts in tasks)
            self._prefix[block, slot] = (*prefix, slot_owners)
        self._join()

    def _join(self) -> None:
        first: dict[Any, tuple[int, int]] = {}
        self.parent = {pair: first.setdefault((pair[0], prefix), pair) for pair, prefix in sorted(self._prefix.items())}
        self.names = sorted(set(self.parent.values()))

    def slots(self, task: int) -> list[tuple[int, int]]:
        """The (block, slot) pairs of task k, also in blocks that it does not read."""
        pairs = {
            (block, self.tasks[d].index(task))
            for block, candidates in enumerate(self.layout.candidates)
            for d in candidates
            if task in self.tasks[d]
        }
        return sorted(pair for pair in pairs if pair in self.parent)

    def slot(self, block: int, task: int) -> int:
        """The slot of task k in a block that it reads."""
        return self.tasks[self.layout.dataset_of[task]].index(task)

    def _by_dataset(self, by_task: Sequence[int], slot: int, candidates: Sequence[int]) -> list[int]:
        """For every data set the value of the task at a slot; 0 where the data set has no such slot."""
        return [by_task[ts[slot]] if d in candidates and slot < len(ts) else 0 for d, ts in self.tasks.items()]

    def owner_ids(
        self, owner: tuple[int, ...], batch: Batch, pairs: Iterable[tuple[int, int]] | None = None
    ) -> list[int | jax.Array]:
        """The owner of each stream (of each of the `pairs`): an int where it is static, else an int32 scalar that
        depends on the draw.
        """
        ids: list[int | jax.Array] = []
        for block, slot in self.names if pairs is None else pairs:
            candidates = self.layout.candidates[block]
            table = self._by_dataset(owner, slot, candidates)
            if len({table[d] for d in candidates}) == 1:
                ids.append(table[candidates[0]])
            else:
                ids.append(jnp.asarray(np.asarray(table, np.int32))[batch.dataset[block]])
        return ids

    def salt(self, owner: tuple[int, ...], block: int, slot: int, batch: Batch) -> jax.Array:
        """uint32 that distinguishes the dropout of a stream from that of the other streams of its block."""
        salts = owner_salts(owner, self.layout)
        return self.value_of_task([salts[o] for o in owner], block, slot, batch)

    def value_of_task(self, by_task: Sequence[int], block: int, slot: int, batch: Batch) -> jax.Array:
        """uint32, the value of the task at a slot; `by_task` has one value per task."""
        table = self._by_dataset(by_task, slot, self.layout.candidates[block])
        return jnp.asarray(np.asarray(table, np.uint32))[batch.dataset[block]]

    def reads_labels(self, block: int, slots: Sequence[int], batch: Batch) -> jax.Array:
        """float32[M], 1 for slots whose task reads labels of the data set that the block holds."""
        table = [
            [float(slot < len(ts) and ts[slot] in self.layout.tasks_on(d)) for slot in slots]
            for d, ts in self.tasks.items()
        ]
        return jnp.asarray(np.asarray(table, np.float32))[batch.dataset[block]]


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


def owner_salts(owner: Owner, layout: BatchLayout) -> list[int]:
    """For each owner the key of its task's name, 0 if tasks share it: a column draws the same, joint or separate.

    Experts have names of their own; the first one draws like a trunk.
    """
    if isinstance(owner, ExpertColumns):
        return [name_key(name) if number else 0 for number, name in enumerate(owner.names)]
    return [0 if task is None else name_key(layout.tasks[task]) for task in sole_tasks(owner)]
