"""Distances between the parameters of the tasks."""

from __future__ import annotations

import jax
import numpy as np

from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.runtime import distributed
from mtl_jax.sharing import gram
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten


def task_distances(experiment: Experiment, params: Params) -> dict[str, dict[str, float]]:
    """{"task | task": {"distance": ‖Θi − Θj‖, "relative": to the mean norm}} of parameters that not all tasks share."""
    stacks = task_stacks(flatten({path: tree for path, tree in params.items() if path != "heads"}), experiment.owners)
    names = list(experiment.tasks)
    if not stacks or len(names) < 2:
        return {}
    centred, products = distributed.to_host(jax.jit(lambda tree: (gram(tree, "mean"), gram(tree)))(stacks))
    norm = float(np.sqrt(np.diag(products)).mean())
    result = {}
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            squared = centred[i, i] + centred[j, j] - 2 * centred[i, j]
            distance = float(np.sqrt(max(squared, 0.0)))
            result[f"{first} | {names[j]}"] = {"distance": distance, "relative": distance / norm if norm else 0.0}
    return result
