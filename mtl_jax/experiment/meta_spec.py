"""From a config to what is static about meta-learning."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.training.gradients.meta_learning import MetaSpec, task_view_layout
from mtl_jax.training.objective import Objective
from mtl_jax.training.parameter_paths import matching


def make_meta_spec(
    config: Any, objective_for: Callable[[BatchLayout], Objective], trained: Sequence[str], data: Corpus, method: Any
) -> MetaSpec | None:
    """What is static about meta-learning; None where there is none.

    Args:
      config: checked.
      objective_for: layout -> objective.
      trained: paths.
      data: of the run.
      method: the loss weights.

    Raises:
      UserError: loss weights that need more than losses, losses that mixers or heads add, more tasks
        than there are, nothing that adapts.
    """
    chosen, tasks = config.meta, data.layout.tasks
    if not chosen.method:
        return None
    seen = objective_for(task_view_layout(data.layout))
    if method().needs - {"losses", "scores"}:
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} reads more than losses, which "
            f"config.meta.method = {chosen.method!r} does not tell"
        )
    if seen.auxiliary:
        raise UserError(
            f"config.meta.method: {chosen.method!r} adapts to the losses of tasks, and knows nothing of "
            f"{', '.join(seen.auxiliary)}; leave out what adds them, or take ''"
        )
    if chosen.tasks_per_step > len(tasks):
        raise UserError(
            f"config.meta.tasks_per_step: {chosen.tasks_per_step} tasks a step, but {len(tasks)} are trained"
        )
    adapts = matching(trained, (chosen.inner_params,))
    if not adapts:
        raise UserError(
            f"config.meta.inner_params: {chosen.inner_params!r} matches no parameter that is trained; paths look like "
            f"{trained[0]}"
        )
    zeroed = matching(adapts, ("^heads/[^/]+/output/",)) if chosen.head_init == "zero" else set()
    if chosen.head_init == "zero" and (
        lacking := [name for name in tasks if not matching(zeroed, (f"^heads/{re.escape(name)}/",))]
    ):
        raise UserError(
            f"config.meta.head_init: task {lacking[0]!r} has no output layer that adapts from zero; take 'own'"
        )
    return MetaSpec(
        method=chosen.method,
        steps=chosen.inner_steps,
        support_fraction=chosen.support_fraction,
        tasks_per_step=chosen.tasks_per_step or len(tasks),
        adapts=frozenset(adapts),
        zeroed=frozenset(zeroed),
        view=seen,
        records=_records(data),
    )


def _records(data):
    """int32 [data sets, examples]: the record of each example of train; None where each example is one."""
    by_dataset = [
        data.splits[name]["train"].encoded.record if "train" in data.splits.get(name, {}) else np.zeros(0, np.int32)
        for name in data.layout.datasets
    ]
    if all(len(set(record.tolist())) == len(record) for record in by_dataset):
        return None
    table = np.zeros((len(by_dataset), max(map(len, by_dataset))), np.int32)
    for own, record in zip(table, by_dataset, strict=True):
        own[: len(record)] = record
    return table
