"""From a config to the static settings of the step: what is trained, its data gradient, its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from mtl_jax.config.sections import Config, Optimizer
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.data_gradient import make_data_gradient
from mtl_jax.experiment.frozen_tasks import Masks
from mtl_jax.experiment.task_gradients import TrainedParameters
from mtl_jax.experiment.task_groups import Treatment, grouped_path
from mtl_jax.models import ownership
from mtl_jax.models.ownership import Owners
from mtl_jax.training.objective import Objective
from mtl_jax.training.optimizer import OptimizerSpec, multipliers
from mtl_jax.training.parameter_paths import matching
from mtl_jax.training.schedules import ScheduleSpec
from mtl_jax.training.state import StepSpec


def make_step_spec(
    config: Config,
    objective_for: Callable[[BatchLayout], Objective],
    owners: Owners,
    treatment: Treatment,
    data: Corpus,
) -> StepSpec:
    """The static settings of the step.

    Args:
      config: checked.
      objective_for: layout -> objective.
      owners: path of layer -> owner of each task.
      treatment: of the parameters.
      data: of the run, its layout with the groups of tasks.

    Raises:
      UserError: methods that do not fit.
    """
    optimizer, steps, objective = config.optimizer, config.training.steps, objective_for(data.layout)
    numbers = {group.name: group.numbers for group in objective.groups}
    paths = {path: grouped_path(data.layout, path) for path in treatment.multipliers}
    slices = ownership.slice_owners(dict.fromkeys(paths.values()), owners, numbers, len(objective.tasks))
    trained = [paths[path] for path in treatment.trained]
    parameters = TrainedParameters(treatment.trained, owners, slices, list(dict.fromkeys(trained)))
    return StepSpec(
        objective=objective,
        data_gradient=make_data_gradient(config, objective_for, parameters, data),
        optimizer=OptimizerSpec(
            name=optimizer.name,
            options=optimizer.options.to_dict(),
            schedule=ScheduleSpec(
                optimizer.schedule, optimizer.schedule_options.to_dict(), round(optimizer.warmup_ratio * steps), steps
            ),
            columns=_columns(owners) if optimizer.skip_absent_tasks else None,
        ),
        slices=slices,
        multipliers={paths[path]: treatment.multipliers[path] for path in treatment.trained},
        clip_norm=optimizer.clip_norm,
        max_nonfinite_steps=config.training.max_nonfinite_steps,
    )


def _columns(owners: Owners) -> frozenset[str]:
    """The layers of which each task owns a column."""
    return frozenset(
        path for path, owner in owners.items() if isinstance(owner, tuple) and len(set(owner)) == len(owner) > 1
    )


def treat(config: Config, shapes: Mapping[str, jax.ShapeDtypeStruct], frozen: Masks) -> Treatment:
    """How the config treats the parameters of these paths, which have the names of the tasks.

    `frozen`: the parts that frozen tasks read; what is such a part as a whole is not trained.

    Raises:
      UserError: regexes that match nothing.
    """
    trained = [path for path in _trained_paths(config.optimizer, shapes) if not frozen.get(path, np.False_).all()]
    if not trained:
        raise UserError("config.init_from.freeze: nothing is left to train; give a task parameters of its own")
    factors = multipliers(shapes, config.optimizer.param_groups)
    adapted = matching(trained, (config.meta.inner_params,)) if config.meta.method else set()
    return Treatment(factors, dict.fromkeys(trained), adapted)


def _trained_paths(optimizer: Optimizer, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """The paths that no regex of `freeze` matches."""
    for regex in optimizer.freeze:
        if not matching(shapes, (regex,)):
            raise UserError(
                f"config.optimizer.freeze: {regex!r} matches no parameter; paths look like {next(iter(shapes))}"
            )
    frozen = matching(shapes, optimizer.freeze)
    for name, group in optimizer.param_groups.items():
        if (matched := matching(shapes, (group["params"],))) and matched <= frozen:
            raise UserError(
                f"config.optimizer.param_groups.{name}.params: {group['params']!r} matches only frozen parameters, "
                "which have no learning rate; narrow config.optimizer.freeze"
            )
    trained = [path for path in shapes if path not in frozen]
    if not trained:
        raise UserError("config.optimizer.freeze: nothing is left to train")
    return trained
