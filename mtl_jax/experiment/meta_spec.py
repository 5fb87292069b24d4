"""From a config to the static settings of meta-learning."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import numpy as np

from mtl_jax.config.sections import Config
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.task_gradients import Methods
from mtl_jax.experiment.task_groups import grouped_path
from mtl_jax.training.gradients.meta_learning import MetaSpec
from mtl_jax.training.gradients.task_views import task_view_layout
from mtl_jax.training.objective import Objective
from mtl_jax.training.parameter_paths import matching


def make_meta_spec(
    config: Config,
    objective_for: Callable[[BatchLayout], Objective],
    trained: Collection[str],
    data: Corpus,
    methods: Methods,
) -> MetaSpec | None:
    """The static settings of meta-learning; None without meta-learning.

    Args:
      config: checked.
      objective_for: layout -> objective.
      trained: paths, with the names of the tasks.
      data: of the run.
      methods: of balancing.

    Raises:
      UserError: methods that need more than a loss and a gradient of each task, more tasks than there are, nothing that
        adapts.
    """
    meta, tasks = config.meta, data.layout.tasks
    if not meta.method:
        return None
    view = objective_for(task_view_layout(data.layout))
    if methods.loss_weights().needs - methods.needs - {"losses", "scores"}:
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} needs more than losses and gradients, and "
            f"config.meta.method = {meta.method!r} gives no more"
        )
    if methods.halves == 2:
        raise UserError(
            f"config.aggregation.method: {config.aggregation.method!r} compares the halves of a batch, of which "
            f"config.meta.method = {meta.method!r} makes one gradient of each task"
        )
    if meta.tasks_per_step > len(tasks):
        raise UserError(f"config.meta.tasks_per_step: {meta.tasks_per_step} tasks a step, but {len(tasks)} are trained")
    adapts = matching(trained, (meta.inner_params,))
    if not adapts:
        raise UserError(
            f"config.meta.inner_params: {meta.inner_params!r} matches no parameter that is trained; paths look like "
            f"{next(iter(trained))}"
        )
    zeroed = matching(adapts, ("^heads/[^/]+/output/",)) if meta.head_init == "zero" else set()
    if meta.head_init == "zero" and (
        lacking := [name for name in tasks if not matching(zeroed, (f"^heads/{re.escape(name)}/",))]
    ):
        raise UserError(
            f"config.meta.head_init: task {lacking[0]!r} has no output layer that adapts from zero; take 'own'"
        )
    return MetaSpec(
        method=meta.method,
        steps=meta.inner_steps,
        support_fraction=meta.support_fraction,
        tasks_per_step=meta.tasks_per_step or len(tasks),
        adapts=frozenset(grouped_path(data.layout, path) for path in adapts),
        zeroed=frozenset(grouped_path(data.layout, path) for path in zeroed),
        view=view,
        records=_records(data),
    )


def _records(data: Corpus) -> np.ndarray | None:
    """int32 [data sets, examples]: the record of each example of train; None where each example is one."""
    by_dataset = [
        data.splits[name]["train"].encoded.record if "train" in data.splits.get(name, {}) else np.zeros(0, np.int32)
        for name in data.layout.datasets
    ]
    if all(len(set(record.tolist())) == len(record) for record in by_dataset):
        return None
    table = np.zeros((len(by_dataset), max(map(len, by_dataset))), np.int32)
    for row, record in zip(table, by_dataset, strict=True):
        row[: len(record)] = record
    return table
