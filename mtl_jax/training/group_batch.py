"""The heads of one group of tasks in one batch: what they read, their scores, losses and predictions.

A group of one task is computed in one call, its rows are those of all of its blocks, [R] = [E·R]. Of more tasks each
entry of the batch is computed by a `vmap` of the form of the group, with the head and the values of its task; what a
step costs does not depend on how many tasks the group has, only on its entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout, GroupEntries
from mtl_jax.models.dropout import Noise
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.network_spec import DropoutRates
from mtl_jax.models.ownership import name_key
from mtl_jax.tasks import distillation
from mtl_jax.tasks.base import Features, Params, Task
from mtl_jax.tasks.groups import TaskGroup


class GroupBatch(NamedTuple):
    """The entries of a group in a batch with leaves [B, R, ...]; [E·R, ...] stands for [E, R, ...] in a group of one.

    layout   of the batch
    group    of tasks
    batch    the batch
    entries  of the group
    index    int32[E], the task of each entry in the group; numpy where it is static
    exists   bool[E], whether there is one; None where there always is
    labels   {name: [E, R, ...]}
    """

    layout: BatchLayout
    group: TaskGroup
    batch: Batch
    entries: GroupEntries
    index: np.ndarray | jax.Array
    exists: jax.Array | None
    labels: Mapping[str, jax.Array]

    @property
    def joined(self) -> bool:
        """Whether all rows are computed in one call."""
        return len(self.group.tasks) == 1

    @property
    def numbers(self) -> np.ndarray | jax.Array:
        """int32: for each of the results of `sums` the index of its task on the K axis, K for none."""
        numbers, none = np.asarray(self.group.numbers, np.int32), len(self.layout.tasks)
        if self.joined:
            return numbers
        if self.exists is None:
            return numbers[self.index]
        return jnp.where(self.exists, jnp.asarray(numbers)[self.index], none)

    def of_entries(self, by_task: Any) -> Any:
        """Leaves [K_g, ...] of the tasks as leaves [E, ...] of the entries; [...] in a group of one."""
        if self.joined:
            return jax.tree.map(lambda leaf: leaf[0], by_task)
        if isinstance(self.index, np.ndarray) and np.array_equal(self.index, np.arange(len(self.group.tasks))):
            return by_task
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[self.index], by_task)

    def rows(self, of_blocks: jax.Array) -> jax.Array:
        """[B, ...] of the blocks as [E, ...] of the entries."""
        return self.join(of_blocks[self.entries.blocks])

    def join(self, leaf: jax.Array) -> jax.Array:
        """[E, R, ...] as the functions of `apply` read it."""
        return leaf.reshape(-1, *leaf.shape[2:]) if self.joined else leaf

    def split(self, leaf: jax.Array) -> jax.Array:
        """The inverse of `join`."""
        return leaf.reshape(len(self.entries.blocks), -1, *leaf.shape[1:]) if self.joined else leaf

    def half(self, number: int) -> GroupBatch:
        """With the labels of the first (0) or second (1) half of the rows of each block alone."""

        def of_half(leaf: jax.Array) -> jax.Array:
            leaf = self.split(leaf)
            rows = np.arange(leaf.shape[1]) // (leaf.shape[1] // 2) == number
            return self.join(leaf & rows.reshape(1, -1, *(1,) * (leaf.ndim - 2)))

        masks = {name: of_half(self.labels[name]) for name in ("mask", "teacher_mask") if name in self.labels}
        return self._replace(labels={**self.labels, **masks})

    def heads(self, params: Params) -> Params:
        """The parameters of the heads of the entries, without the word vectors to which they are tied."""
        return self.of_entries(params["heads"][self.group.name])

    def apply(self, function: Callable[..., Any], heads: Params, params: Params, *trees: Any) -> Any:
        """function(task, head, *trees) for each entry.

        Args:
          function: of a task, the parameters of its head, and its rows of the trees.
          heads: see `heads`.
          params: all parameters, which have the word vectors; {} for functions that read none.
          trees: leaves [E, R, ...], or [E, ...] where the function reads no rows.
        """
        tied = {}
        if self.group.table is not None and params:
            tied["table"] = params["embed"]["word"]["embedding"][self.group.table]
        if self.joined:
            return function(self.group.form, {**heads, **tied}, *trees)

        def entry(values, head, *trees):
            return function(self.group.bound_form(values), {**head, **tied}, *trees)

        return jax.vmap(entry)(self.of_entries(dict(self.group.values)), heads, *trees)

    def sums(self, function: Callable[..., Any], heads: Params, params: Params, *trees: Any) -> Any:
        """As `apply`, of a function that returns sums over its rows: leaves [n, ...] of the tasks in `numbers`."""
        result = self.apply(function, heads, params, *trees)
        return jax.tree.map(lambda leaf: leaf[None], result) if self.joined else result

    def features(self, head_inputs: HeadInputs) -> Features:
        """The inputs of the heads, without noise."""
        batch, numbers = self.batch, np.append(self.group.numbers, -1)  # task −1: none
        tasks = numbers[self.entries.task_at[:, self.entries.places].T]  # [E, data sets]
        hidden = self.join(head_inputs.take(self.entries.blocks, tasks))
        segment, start, length, tokens = map(self.rows, (batch.segment, batch.start, batch.length, batch.tokens))
        return Features(hidden, segment, start, length, tokens, None, self._patches())

    def _patches(self) -> jax.Array | None:
        """Which tokens are patches of pictures; None without pictures."""
        patch = self.batch.patch
        if patch is None:
            return None
        pictured = self.layout.picture_blocks()
        of_block = [pictured.index(b) if b in pictured else len(pictured) for b in self.entries.blocks.tolist()]
        return self.join(jnp.concatenate([patch, jnp.zeros_like(patch[:1])])[np.asarray(of_block)])

    def row_keys(self, key: jax.Array) -> jax.Array:
        """Keys [E, R] for what the heads draw in their rows; they do not depend on a row's place."""
        fold = jax.vmap(jax.random.fold_in)
        tasks = np.asarray([name_key(name) for name in self.group.tasks], np.uint32)
        datasets = np.asarray([name_key(name) for name in self.layout.datasets], np.uint32)
        blocks = self.entries.blocks
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(tasks)[self.index])
        keys = fold(keys, jnp.asarray(datasets)[self.batch.dataset[blocks]])
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, self.batch.row[blocks].astype(jnp.uint32))
        return self.join(keys)

    def logits(
        self, params: Params, head_inputs: HeadInputs, dropout: DropoutRates | None = None, key: jax.Array | None = None
    ) -> Any:
        """Scores, see `Task.logits`. `dropout`, `key`: for heads with dropout."""
        keys = None if dropout is None or key is None else self.row_keys(key)

        def scores(task: Task, head: Params, features: Features, keys: jax.Array | None, labels: Any) -> Any:
            noise = None if dropout is None or keys is None else Noise(keys, dropout.rate, dropout.attention_rate)
            return task.logits(head, features._replace(noise=noise), labels)

        return self.apply(scores, self.heads(params), params, self.features(head_inputs), keys, self.labels)

    def loss_sums(self, params: Params, logits: Any, teaching: Mapping[str, jax.Array]) -> jax.Array:
        """Σ loss over the rows, float32 [n]. `teaching`: {task: the share of its teachers}."""

        def loss(task: Task, head: Params, logits: Any, labels: Any, share: jax.Array | None) -> jax.Array:
            if self.group.teaching is None or share is None:
                return task.loss(head, logits, labels).sum()
            return distillation.loss(task, self.group.teaching, head, logits, labels, share).sum()

        return self.sums(loss, self.heads(params), params, logits, self.labels, self._shares(teaching))

    def weight_sums(self, teaching: Mapping[str, jax.Array]) -> jax.Array:
        """Σ weight over the rows, float32 [n]: from the labels alone."""

        def weight(task: Task, head: Params, labels: Any, share: jax.Array | None) -> jax.Array:
            if share is None:
                return task.weight(labels).sum()
            return distillation.weight(task, labels, share).sum()

        return self.sums(weight, {}, {}, self.labels, self._shares(teaching))

    def _shares(self, teaching: Mapping[str, jax.Array]) -> jax.Array | None:
        if self.group.teaching is None:
            return None
        return self.of_entries(jnp.stack([teaching[name] for name in self.group.tasks]))


def group_batch(layout: BatchLayout, group: TaskGroup, batch: Batch) -> GroupBatch:
    """The entries of a group in a batch with leaves [B, R, ...]."""
    entries, exists = layout.entries[group.name], None
    if entries.fixed is not None:
        index = entries.fixed
    else:
        index = jnp.asarray(entries.task_at)[batch.dataset[entries.blocks], entries.places]
        exists, index = index >= 0, jnp.maximum(index, 0)
    view = GroupBatch(layout, group, batch, entries, index, exists, {})
    labels = {name: _all_classes(group, batch.labels[group.name], name) for name in batch.labels[group.name]}
    return view._replace(labels=jax.tree.map(view.join, labels))


def _all_classes(group: TaskGroup, labels: Mapping[str, jax.Array], name: str) -> jax.Array:
    """An array of labels; distributions over classes as long as those of any task of the group."""
    array, classes = labels[name], len(group.form.names)
    if name not in ("value", "teacher") or array.ndim == labels["mask"].ndim or array.shape[-1] == classes:
        return array
    return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, classes - array.shape[-1])])
