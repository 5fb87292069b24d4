"""Task groups: tasks of one form are computed together, so that the size of a program depends on the number of forms.

The heads of a group are one tree of stacked leaves [K_g, ...]; losses and predictions are a `vmap` over its entries in
a batch. The number of classes is padded to that of the task of most classes; classes that a task lacks have the score
`losses.ABSENT`, and their parameters stay zero. Files and messages know only the names of tasks: `split_heads`,
`join_heads`.

Which tasks are of one form is for `Task.form` to say; what else must be equal (learning rate, layer of the head, ...)
is their `treatment`. Numbers of classes up to the next power of two are of one form, so that many do not pad few.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.data.batch import group_name
from mtl_jax.tasks.base import Params, Task
from mtl_jax.tasks.distillation import Distillation


class TaskGroup(NamedTuple):
    """Tasks that are computed together; static.

    tasks     by name, in the order of the leading axis
    numbers   of each its index on the K axis
    form      stands for all of them, with the classes of the one of most; the task itself where it is the only one
    values    {attribute of the form: leaves [K_g, ...]}, what differs between the tasks
    shapes    of each task the tree of the shapes of its head
    teaching  how they learn from their teachers; None without
    table     the slice of the word vectors that the heads are tied to; None without
    """

    tasks: Mapping[str, Task]
    numbers: tuple[int, ...]
    form: Task
    values: Mapping[str, Any]
    shapes: tuple[Any, ...]
    teaching: Distillation | None = None
    table: int | None = None

    @property
    def name(self) -> str:
        """Its key in the trees of parameters and labels."""
        return group_name(tuple(self.tasks))

    def bound_form(self, values: Mapping[str, Any]) -> Task:
        """The form with the `values` of one task; they may be traced."""
        return self.form.with_attributes(**values) if values else self.form


class TaskTraits(NamedTuple):
    """What decides on the group of a task in addition to its form.

    shapes     tree of the shapes of its head
    treatment  whatever else must be equal in a group; None: the task is a group by itself
    teaching, table  as in `TaskGroup`
    """

    shapes: Any
    treatment: Hashable | None
    teaching: Distillation | None = None
    table: int | None = None


def make_groups(tasks: Mapping[str, Task], traits: Mapping[str, TaskTraits], pad: bool = True) -> tuple[TaskGroup, ...]:
    """The groups in the order of their first tasks. `pad` False: only tasks with equally many classes in a group."""
    members: dict[Any, list[str]] = {}
    for name, task in tasks.items():
        form = task.form(_bucket(len(task.names)) if pad else len(task.names))
        alone = form is None or traits[name].treatment is None
        key = name if alone else (form, traits[name]._replace(shapes=None))
        members.setdefault(key, []).append(name)
    number = {name: k for k, name in enumerate(tasks)}
    return tuple(
        _group({name: tasks[name] for name in names}, [number[name] for name in names], traits)
        for names in members.values()
    )


def _bucket(classes: int) -> int:
    return 1 << max(classes - 1, 0).bit_length()


def _group(tasks: Mapping[str, Task], numbers: Sequence[int], traits: Mapping[str, TaskTraits]) -> TaskGroup:
    first = next(iter(tasks))
    teaching, table = traits[first].teaching, traits[first].table
    shapes = tuple(traits[name].shapes for name in tasks)
    if len(tasks) == 1:
        return TaskGroup(tasks, tuple(numbers), tasks[first], {}, shapes, teaching, table)
    counts = [len(task.names) for task in tasks.values()]
    form = tasks[first].form(max(counts))
    assert form is not None
    by_task = [task.values(max(counts)) for task in tasks.values()]
    values = {
        field: jax.tree.map(lambda *leaves: np.stack(leaves), *(v[field] for v in by_task)) for field in by_task[0]
    }
    if len(form.names) > min(counts):
        values["class_count"] = np.asarray(counts, np.int32)
    return TaskGroup(tasks, tuple(numbers), form, values, shapes, teaching, table)


def stacked_shapes(group: TaskGroup) -> Any:
    """The shapes of the leaves [K_g, ...] of a group: each axis as long as the longest of its tasks."""

    def stacked(*leaves):
        longest = np.max([leaf.shape for leaf in leaves], axis=0) if leaves[0].shape else ()
        return jax.ShapeDtypeStruct((len(leaves), *map(int, longest)), leaves[0].dtype)

    return jax.tree.map(stacked, *group.shapes)


def pad_stacked(group: TaskGroup, heads: Params) -> Params:
    """The heads [n, ...] of some tasks of a group, padded to the shapes of the group."""
    return jax.tree.map(lambda leaf, shape: _padded(leaf, (len(leaf), *shape.shape[1:])), heads, stacked_shapes(group))


def split_heads(groups: Sequence[TaskGroup], heads: Mapping[str, Params]) -> dict[str, Params]:
    """{task: parameters of its head}, in their true shapes, from {group: leaves [K_g, ...]}; numpy or jax."""
    by_task = {}
    for group in groups:
        for index, (task, shapes) in enumerate(zip(group.tasks, group.shapes, strict=True)):
            by_task[task] = jax.tree.map(
                lambda leaf, shape, i=index: leaf[(i, *map(slice, shape.shape))], heads[group.name], shapes
            )
    order = sorted((number, task) for group in groups for number, task in zip(group.numbers, group.tasks, strict=True))
    return {task: by_task[task] for _, task in order}


def join_heads(
    groups: Sequence[TaskGroup], by_task: Mapping[str, Params], stack: Callable[..., Any] = np.stack
) -> dict[str, Params]:
    """The inverse of `split_heads`; `stack` is that of numpy or jax.numpy."""

    def joined(shape, *leaves):
        return stack([_padded(leaf, shape.shape[1:]) for leaf in leaves])

    return {
        group.name: jax.tree.map(joined, stacked_shapes(group), *(by_task[task] for task in group.tasks))
        for group in groups
    }


def _padded(leaf: Any, shape: Sequence[int]) -> Any:
    if leaf.shape == tuple(shape):
        return leaf
    pad = np.pad if isinstance(leaf, np.ndarray) else jax.numpy.pad
    return pad(leaf, [(0, longest - length) for length, longest in zip(leaf.shape, shape, strict=True)])


def unpadded_predictions(group: TaskGroup, predictions: Mapping[str, Any], entries: Sequence[int], axis: int = 0):
    """{task: its predictions}, from arrays with entries [E] along `axis`.

    Args:
      group: of tasks.
      predictions: {name: [..., E, R, ...]}, as `Task.predict` of the form.
      entries: int[E], index in the group of the task of each entry.
      axis: of the entries.
    """
    tasks = list(group.tasks.values())
    leading = (slice(None),) * axis
    return {
        tasks[index].name: tasks[index].unpadded(
            {name: array[(*leading, entry)] for name, array in predictions.items()}
        )
        for entry, index in enumerate(entries)
    }
