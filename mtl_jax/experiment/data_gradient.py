"""From a config to the data gradient of the step: loss weights, aggregation of gradients, meta-learning."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.balancing import GRADIENT_TRANSFORMS, WEIGHTINGS, loss_weights, weightings
from mtl_jax.balancing.gradient_combination import Aggregation, initial_state
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.meta_spec import make_meta_spec
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.ownership import Owners, SliceOwners
from mtl_jax.models.readouts import READOUTS
from mtl_jax.training.gradients import aggregated, per_task
from mtl_jax.training.gradients.aggregated import AggregatedGradient
from mtl_jax.training.gradients.base import DataGradient
from mtl_jax.training.gradients.joint import JointGradient
from mtl_jax.training.gradients.meta_learning import MetaLearningGradient
from mtl_jax.training.gradients.per_task import SharedParameters
from mtl_jax.training.objective import Objective
from mtl_jax.training.parameter_paths import PyTree

MakeLossWeights = Callable[..., LossWeights]  # (**traced options) -> the method
MakeAggregation = Callable[..., Aggregation]  # (**traced options) -> the method


class TrainedParameters(NamedTuple):
    """paths of the trained parameters, with the names of tasks; owners of layers; slices {path: owner group of each
    slice}.
    """

    paths: Collection[str]
    owners: Owners
    slices: SliceOwners


def make_data_gradient(
    config: Config, objective_for: Callable[[BatchLayout], Objective], parameters: TrainedParameters, data: Corpus
) -> DataGradient:
    """The aggregated gradient where a method reads the gradients of the tasks, else that of meta-learning, else joint.

    Raises:
      UserError: methods or options that do not fit the config.
    """
    objective = objective_for(data.layout)
    sizes = [data.statistics["tasks"][name]["train"]["known"] for name in objective.tasks]
    method, aggregation = _loss_weights(config, sizes), _aggregation(config, len(objective.tasks))
    shared = _shared_parameters(config, method, aggregation, parameters, objective)
    meta = make_meta_spec(config, objective_for, parameters.paths, data, method)
    if "divergences" in method().needs and not any(task.defines("class_sums") for task in objective.tasks.values()):
        raise UserError(f"config.loss_weights.method: {config.loss_weights.method!r} needs a task with classes")
    if shared:
        return AggregatedGradient(method, aggregation or _plain_sum, shared, parameters.slices)
    return MetaLearningGradient(method, meta) if meta else JointGradient(method)


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


def _plain_sum() -> Aggregation:
    """The aggregation where only the loss weights read gradients."""
    return weightings.sum()


def _shared_parameters(
    config: Config,
    method: MakeLossWeights,
    aggregation: MakeAggregation | None,
    parameters: TrainedParameters,
    objective: Objective,
) -> SharedParameters | None:
    """The parameters for which the gradients are split by task; None where no method reads them."""
    needs = method().needs & {"gradient_norms", "gram", "gradients"}
    if aggregation is None and not needs:
        return None
    entry, halves = config.aggregation, 1
    who = f"config.loss_weights.method: {config.loss_weights.method!r}"
    if aggregation is not None:
        who = f"config.aggregation.method: {entry.method!r}{' with smoothing' * (entry.smoothing > 0)}"
        made = aggregation()
        halves = 2 if isinstance(made, Weighting) and made.halves else 1
    if needs and (entry.level, entry.gradient_storage, halves) != ("parameters", "copies", 1):
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} reads gradients of complete batches over "
            "parameters: take config.aggregation.level = 'parameters', gradient_storage = 'copies', and no method of "
            "halves"
        )
    _require_separable(config, who, objective)
    shared = per_task.shared_parameters(
        tuple(parameters.paths), parameters.owners, entry.level, entry.gradient_storage, halves
    )
    if shared is None:
        groups = ", config.sharing.task_groups" * bool(config.sharing.task_groups)
        raise UserError(
            f"{who} reads the gradients of the tasks over shared parameters, and no trained parameter is shared "
            f"(config.sharing.trunk = {config.sharing.trunk!r}{groups}); take method = 'sum', or loss weights that "
            "read losses"
        )
    readout = READOUTS[config.sharing.readout](**config.sharing.readout_options)
    if shared.level == "representation" and (readout.reads_all or config.sharing.head_layers):
        raise UserError(
            "config.aggregation.level: 'representation' needs heads that read only the last layer "
            "(config.sharing.readout = 'top', no head_layers)"
        )
    training = config.training
    problem = aggregated.batch_refusal(
        shared, config.data.rows_per_block, training.grad_accum_steps, training.placement
    )
    if problem:
        raise UserError(problem)
    return shared


def _require_separable(config: Config, who: str, objective: Objective) -> None:
    """Raises UserError, naming the method `who`, where the loss of a task reaches shared parameters in several ways."""
    sharing = config.sharing
    adapter = ADAPTERS[sharing.adapter](**sharing.adapter_options) if sharing.adapter else None
    for field, joins in (
        ("mixer", sharing.mixer),
        ("cascades", sharing.cascades),
        ("adapter", adapter is not None and adapter.bind is not None),  # parameters of a layer that tasks share
    ):
        if joins:
            raise UserError(
                f"{who} needs the gradients of each task separately, which config.sharing.{field} combines; leave it "
                "out, or take methods that read losses"
            )
    if objective.auxiliary:
        raise UserError(
            f"{who} combines the losses of the tasks, but not {', '.join(objective.auxiliary)}; take methods that "
            "read losses"
        )
    if tied := [name for name, task in objective.tasks.items() if task.tied]:
        raise UserError(
            f"{who} needs the gradients of each task separately; that of task {tied[0]!r} reaches the word vectors "
            f"through its head too: set config.tasks.{tied[0]}.options.tied = False"
        )
