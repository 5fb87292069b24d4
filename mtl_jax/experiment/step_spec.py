"""From a config to the static settings of the step: what is trained, its data gradient, its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from mtl_jax.config.sections import Config, Optimizer
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.data_gradient import TrainedParameters, make_data_gradient
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
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    data: Corpus,
) -> StepSpec:
    """The static settings of the step.

    Args:
      config: checked.
      objective_for: layout -> objective.
      owners: path of layer -> owner of each task.
      shapes: {path: shape of the parameter}.
      data: of the run.

    Raises:
      UserError: regexes that match nothing, methods that do not fit.
    """
    optimizer, steps, objective = config.optimizer, config.training.steps, objective_for(data.layout)
    trained = _trained_paths(optimizer, shapes)
    factors = multipliers(shapes, optimizer.param_groups)
    slices = ownership.slice_owners(shapes, owners, tuple(objective.tasks))
    return StepSpec(
        objective=objective,
        data_gradient=make_data_gradient(config, objective_for, TrainedParameters(trained, owners, slices), data),
        optimizer=OptimizerSpec(
            name=optimizer.name,
            options=optimizer.options.to_dict(),
            schedule=ScheduleSpec(
                optimizer.schedule, optimizer.schedule_options.to_dict(), round(optimizer.warmup_ratio * steps), steps
            ),
        ),
        slices=slices,
        multipliers={path: factors[path] for path in trained},
        clip_norm=optimizer.clip_norm,
        max_nonfinite_steps=config.training.max_nonfinite_steps,
    )


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
