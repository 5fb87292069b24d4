"""Which tasks are computed together: those of one form that the config treats alike, see `mtl_jax.tasks.groups`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple

import jax

from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.models.network import Network
from mtl_jax.models.network_spec import SharingSpec
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.distillation import Distillation
from mtl_jax.tasks.groups import TaskGroup, TaskTraits, make_groups
from mtl_jax.training.optimizer import ignores_zeros
from mtl_jax.training.parameter_paths import flatten


class Treatment(NamedTuple):
    """How a config treats parameters, by path with the names of tasks.

    multipliers  {path: factor on the learning rate}
    trained      paths that are not frozen
    adapted      paths that the inner steps of meta-learning change
    """

    multipliers: Mapping[str, float]
    trained: Collection[str]
    adapted: Collection[str]

    def of_head(self, task: str, shapes: Any) -> Hashable:
        """What happens to each leaf of a head."""
        paths = {leaf: f"heads/{task}/{leaf}" for leaf in flatten(shapes)}
        return tuple(
            (leaf, self.multipliers[path], path in self.trained, path in self.adapted) for leaf, path in paths.items()
        )


def head_shapes(network: Network, sharing: SharingSpec, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """{task: tree of the shapes of the parameters of its head}."""
    known: dict[Hashable, Any] = {}

    def shapes(name: str, task: Task) -> Any:
        form = task.form(len(task.names))
        alone = form is None or name in sharing.cascades
        key = name if alone else (form, len(task.names), network.width[name], sharing.head_layers.get(name))
        if key not in known:
            known[key] = jax.eval_shape(
                lambda key: {**task.init(key, network.width[name]), **network.init_head(name, key)}, jax.random.key(0)
            )
        return known[key]

    return {name: shapes(name, task) for name, task in tasks.items()}


def build_groups(
    data: Corpus,
    tasks: Mapping[str, Task],
    shapes: Mapping[str, Any],
    *,
    network: Network,
    sharing: SharingSpec,
    treatment: Treatment,
    teaching: Mapping[str, Distillation],
    tables: Mapping[str, int],
    optimizer: str,
) -> tuple[TaskGroup, ...]:
    """The groups of the tasks of a run.

    Args:
      data: of the run.
      tasks: by name.
      shapes: of the heads, see `head_shapes`.
      network: of the run.
      sharing: what stands between layers and tasks. Tasks that give or get labels are groups by themselves.
      treatment: of the parameters.
      teaching: {task: how it learns from teachers}.
      tables: {task: slice of the word vectors} of heads that are tied to them.
      optimizer: its name. Only where it computes nothing from whole arrays are classes padded.
    """
    fed = {name for task, sources in sharing.cascades.items() for name in (task, *sources)}

    def traits(name: str) -> TaskTraits:
        alike = (
            treatment.of_head(name, shapes[name]),
            sharing.head_layers.get(name),
            network.width[name],
            data.vocabularies[name].soft,
        )
        return TaskTraits(shapes[name], None if name in fed else alike, teaching.get(name), tables.get(name))

    return make_groups(tasks, {name: traits(name) for name in tasks}, pad=ignores_zeros(optimizer))


def group_names(groups: Collection[TaskGroup]) -> tuple[tuple[str, ...], ...]:
    """The names of the tasks of each group, see `BatchLayout.groups`."""
    return tuple(tuple(group.tasks) for group in groups)


def grouped_path(layout: BatchLayout, path: str) -> str:
    """The path of the leaf that has a parameter, by the group of its task; that of a layer is its own."""
    layer, *rest = path.split("/", 2)
    return "/".join([layer, layout.member[rest[0]][0], *rest[1:]]) if layer == "heads" else path
