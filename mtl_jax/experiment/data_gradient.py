"""From a config to the data gradient of the step: loss weights, aggregation of gradients, meta-learning."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from mtl_jax.balancing import GRADIENT_TRANSFORMS, WEIGHTINGS, loss_weights, weightings
from mtl_jax.balancing.gradient_combination import Aggregation, initial_state
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.meta_spec import make_meta_spec
from mtl_jax.experiment.task_gradients import (
    MakeAggregation,
    MakeLossWeights,
    Methods,
    TrainedParameters,
    make_task_gradients,
    plain_sum,
    shared_by_losses,
)
from mtl_jax.training.gradients.base import DataGradient
from mtl_jax.training.gradients.joint import JointGradient
from mtl_jax.training.gradients.meta_learning import MetaLearningGradient
from mtl_jax.training.objective import Objective
from mtl_jax.training.parameter_paths import PyTree


def make_data_gradient(
    config: Config, objective_for: Callable[[BatchLayout], Objective], parameters: TrainedParameters, data: Corpus
) -> DataGradient:
    """That of meta-learning, else one that splits the gradients by task where a method reads them, else joint.

    Raises:
      UserError: methods or options that do not fit the config.
    """
    objective = objective_for(data.layout)
    sizes = [data.statistics["tasks"][name]["train"]["known"] for name in objective.tasks]
    method = _loss_weights(config, sizes)
    methods = Methods(method, _aggregation(config, len(objective.tasks)))
    meta = make_meta_spec(config, objective_for, parameters.paths, data, methods)
    if "divergences" in method().needs and not any(task.defines("class_sums") for task in objective.tasks.values()):
        raise UserError(f"config.loss_weights.method: {config.loss_weights.method!r} needs a task with classes")
    if meta:
        shared = shared_by_losses(config, methods, parameters, objective) if methods.read_gradients else None
        return MetaLearningGradient(method, meta, methods.aggregation or plain_sum, shared)
    if methods.read_gradients:
        return make_task_gradients(config, methods, parameters, objective)
    return JointGradient(method)


def _loss_weights(config: Config, sizes: Sequence[int]) -> MakeLossWeights:
    """The method of `config.loss_weights`. `sizes`: labelled examples of each task."""
    method = loss_weights.LOSS_WEIGHTS[config.loss_weights.method]
    given = {"sizes": sizes} if "sizes" in inspect.signature(method).parameters else {}
    make = functools.partial(method, **config.loss_weights.options.to_dict() | given)
    try:
        make()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.loss_weights.options: {error}") from None
    return make


def _aggregation(config: Config, tasks: int) -> MakeAggregation | None:
    """The method of `config.aggregation`; None for the plain sum."""
    entry = config.aggregation
    options = entry.options.to_dict()
    if entry.method == "sum" and not entry.smoothing:
        if options:
            raise UserError(f"config.aggregation.options: 'sum' has no option {next(iter(options))!r}")
        return None
    if tasks < 2:
        raise UserError(f"config.aggregation.method: {entry.method!r} needs at least two tasks, there is one")
    if entry.method in GRADIENT_TRANSFORMS:
        _check_transform(config, options)
        transform = GRADIENT_TRANSFORMS[entry.method]
        if "tasks" in inspect.signature(transform).parameters:
            options["tasks"] = tasks

    def make(**traced: jax.Array) -> Aggregation:
        if entry.method in GRADIENT_TRANSFORMS:
            return GRADIENT_TRANSFORMS[entry.method](**{**options, **traced})
        weighting = WEIGHTINGS[entry.method](**{**options, **traced})
        if entry.smoothing:
            weighting = weightings.cr_mogm(weighting, entry.smoothing)
        return weighting

    try:
        jax.eval_shape(functools.partial(_try_aggregation, make, tasks))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.aggregation.options: {error}") from None
    return make


def _check_transform(config: Config, options: Mapping[str, object]) -> None:
    """Fields that do not apply to an aggregation that reads the gradients themselves."""
    entry = config.aggregation
    for field, value, only in (
        ("level", entry.level, "parameters"),
        ("gradient_storage", entry.gradient_storage, "copies"),
    ):
        if value != only:
            raise UserError(f"config.aggregation.{field}: {entry.method!r} reads the gradients, it needs {only!r}")
    if entry.smoothing:
        raise UserError(f"config.aggregation.smoothing: {entry.method!r} has no weights that could be smoothed")
    if "halves" in options:
        raise UserError("config.aggregation.options: a method that reads gradients gets no halves of the batch")


def _try_aggregation(make: MakeAggregation, tasks: int) -> PyTree:
    """One update, for options whose shape depends on K."""
    method, products, present = make(), jnp.zeros((tasks, tasks)), jnp.ones(tasks, bool)
    state = initial_state(method, tasks, {"x": products[0]})
    if isinstance(method, Weighting):
        return method.update(products, state, key=jax.random.key(0), present=present)[0]
    return method.update({"x": products}, state, present=present)[0]
