"""Which task has which copy of each parameter, over any model that is a function apply(params, x).

    columns = sharing.columns(params, tasks=3, owners={"^layers/1": range(3), "^head": range(3)})
    stored = columns.stack(params)                  # shared leaves [1, ...], columns [3, ...]
    y = columns.apply(apply)(stored, x)             # x [3, ...]: the inputs of each task
    penalty = sharing.l2_to_mean(columns.stacks(stored))

Params are any pytree: nested dicts (Linen, Haiku), `nnx.State`, an Equinox module without its static parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import Tree
from mtl_jax.sharing.leaf_selection import flatten_paths


class Columns(NamedTuple):
    """The owner of each leaf for each of K tasks. Static: no arrays.

    tasks   K
    owners  {path of a leaf: for each task the number of the copy that it has}, numbered from 0 without gaps
    """

    tasks: int
    owners: Mapping[str, tuple[int, ...]]

    def stack(self, *trees: Tree) -> Tree:
        """Leaves [O, ...]: O copies of one tree of initial values, or what K trees have, one for each task; a copy of
        several tasks is that of the first of them.

        Raises:
          ValueError: neither one tree nor K.
        """
        if len(trees) not in (1, self.tasks):
            raise ValueError(f"one tree, or one for each of {self.tasks} tasks, not {len(trees)}")
        trees = trees if len(trees) == self.tasks else trees * self.tasks
        firsts = [tuple(map(owner.index, range(max(owner) + 1))) for owner in self.owners.values()]
        leaves = [jax.tree.leaves(tree) for tree in trees]
        stacked = [jnp.stack([leaves[k][n] for k in first]) for n, first in enumerate(firsts)]
        return jax.tree.unflatten(jax.tree.structure(trees[0]), stacked)

    def of_task(self, stored: Tree, task: int) -> Tree:
        """The parameters of one task, leaves [...]."""
        leaves, structure = jax.tree.flatten(stored)
        chosen = [leaf[owner[task]] for leaf, owner in zip(leaves, self.owners.values(), strict=True)]
        return jax.tree.unflatten(structure, chosen)

    def apply(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function(params, *inputs) of one task as a function (stored, *inputs [K, ...]) of all: leaves [K, ...].

        A parameter that all tasks have is not copied, and its gradient is the sum over the tasks.
        """

        def over_tasks(stored: Tree, *inputs: Any) -> Any:
            leaves, structure = jax.tree.flatten(stored)
            by_task = [
                leaf[0] if len(leaf) == 1 else leaf if is_range(owner) else leaf[np.asarray(owner)]
                for leaf, owner in zip(leaves, self.owners.values(), strict=True)
            ]
            in_axes = [None if len(leaf) == 1 else 0 for leaf in leaves]

            def one_task(leaves: list[jax.Array], *inputs: Any) -> Any:
                return function(jax.tree.unflatten(structure, leaves), *inputs)

            return jax.vmap(one_task, in_axes=(in_axes, *(0 for _ in inputs)))(by_task, *inputs)

        return over_tasks

    def stacks(self, stored: Tree) -> dict[str, jax.Array]:
        """{path: leaf [K, ...]} of the leaves that each task has for itself: what penalties read."""
        return {
            path: leaf
            for (path, owner), leaf in zip(self.owners.items(), jax.tree.leaves(stored), strict=True)
            if self.tasks > 1 and is_range(owner)
        }


def columns(params: Tree, tasks: int, owners: Mapping[str, Sequence[int]]) -> Columns:
    """The columns of a model.

    Args:
      params: of the model, arrays or shapes.
      tasks: K.
      owners: {regular expression, searched in paths: for each task the number of its copy}; range(K) gives each task
        its own, (0, 0, 1) a group of two and one alone. The last expression that fits a path decides; all tasks share
        what none fits.

    Raises:
      ValueError: an expression that fits no path; not one owner for each task; numbers with gaps.
    """
    paths = list(flatten_paths(params))
    chosen: dict[str, tuple[int, ...]] = dict.fromkeys(paths, (0,) * tasks)
    for expression, numbers in owners.items():
        owner = tuple(int(number) for number in numbers)
        if len(owner) != tasks or set(owner) != set(range(len(set(owner)))):
            raise ValueError(f"{expression!r}: an owner from 0 on for each of {tasks} tasks, not {owner}")
        fitting = [path for path in paths if re.search(expression, path)]
        if not fitting:
            raise ValueError(f"{expression!r} fits no parameter; there are {', '.join(paths)}")
        chosen |= dict.fromkeys(fitting, owner)
    return Columns(tasks, chosen)


def is_range(owner: Sequence[int]) -> bool:
    """Whether each task has a copy of its own, in the order of the tasks."""
    return list(owner) == list(range(len(owner)))
