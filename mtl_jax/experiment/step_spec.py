"""From a config to what is static about the step: the data gradient, the optimizer, what is trained."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp

from mtl_jax.balancing import GRADIENT_TRANSFORMS, WEIGHTINGS, loss_weights, weightings
from mtl_jax.balancing.combination import Aggregation, initial_state
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.errors import UserError
from mtl_jax.experiment import meta_spec
from mtl_jax.models import ownership
from mtl_jax.training.gradients import aggregated, per_task
from mtl_jax.training.gradients.aggregated import AggregatedGradient
from mtl_jax.training.gradients.base import DataGradient
from mtl_jax.training.gradients.joint import JointGradient
from mtl_jax.training.gradients.meta_learning import MetaLearningGradient
from mtl_jax.training.optimizer import OptimizerSpec, multipliers
from mtl_jax.training.parameter_paths import matching
from mtl_jax.training.state import StepSpec


def _loss_weights(config, sizes):
    """(options of the method that are traced) -> the method."""
    method = loss_weights.LOSS_WEIGHTS[config.loss_weights.method]
    given = {"sizes": sizes} if "sizes" in inspect.signature(method).parameters else {}
    make = functools.partial(method, **config.loss_weights.options.to_dict() | given)
    try:
        make()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.loss_weights.options: {error}") from None
    return make


def _with_classes(config, method, objective):
    """The method, unless it asks for distributions of classes and no task has classes."""
    if "divergences" in method().needs and not any(task.defines("class_sums") for task in objective.tasks.values()):
        raise UserError(f"config.loss_weights.method: {config.loss_weights.method!r} needs a task with classes")
    return method


def _aggregation(config, tasks: int):
    """(options of the method that are traced) -> the method. None for the plain sum."""
    entry = config.aggregation
    options = entry.options.to_dict()
    if entry.method == "sum" and not entry.smoothing:
        if options:
            raise UserError(f"config.aggregation.options: 'sum' has no option {next(iter(options))!r}")
        return None
    if tasks < 2:
        raise UserError(f"config.aggregation.method: {entry.method!r} needs two tasks at least, there is one")
    if entry.method in GRADIENT_TRANSFORMS:
        for field, value, only in (
            ("level", entry.level, "parameters"),
            ("gradient_storage", entry.gradient_storage, "copies"),
        ):
            if value != only:
                raise UserError(f"config.aggregation.{field}: {entry.method!r} reads the gradients, it needs {only!r}")
        if entry.smoothing:
            raise UserError(f"config.aggregation.smoothing: {entry.method!r} has no weights that could be smoothed")
        if "halves" in options:
            raise UserError("config.aggregation.options: training gives no halves to a method that reads gradients")
    by_method = GRADIENT_TRANSFORMS.get(entry.method)
    if by_method and "tasks" in inspect.signature(by_method).parameters:
        options["tasks"] = tasks

    def make(**traced) -> Aggregation:
        if by_method:
            return by_method(**{**options, **traced})
        weighting = WEIGHTINGS[entry.method](**{**options, **traced})
        if entry.smoothing:
            weighting = weightings.cr_mogm(weighting, entry.smoothing)
        return weighting

    def tried():
        """Once, on shapes, for what depends on K."""
        method, some = make(), jnp.zeros((tasks, tasks))
        present = jnp.ones(tasks, bool)
        state = initial_state(method, tasks, {"x": some[0]})
        if isinstance(method, Weighting):
            return method.update(some, state, key=jax.random.key(0), present=present)[0]
        return method.update({"x": some}, state, present=present)[0]

    try:
        jax.eval_shape(tried)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.aggregation.options: {error}") from None
    return make


def _plain_sum() -> Aggregation:
    """What is taken where the loss weights alone read the gradients."""
    return weightings.sum()


def _shared(config, method, aggregation, trained, owned, tasks, auxiliary):
    """What the K gradients are told apart for; None where no method asks for them."""
    needs = method().needs & {"gradient_norms", "gram", "gradients"}
    if aggregation is None and not needs:
        return None
    weighting = aggregation() if aggregation else None
    halves = 2 if isinstance(weighting, Weighting) and weighting.halves else 1
    who = (
        f"config.aggregation.method: {config.aggregation.method!r}"
        f"{' with smoothing' * (config.aggregation.smoothing > 0)}"
        if aggregation
        else f"config.loss_weights.method: {config.loss_weights.method!r}"
    )
    if needs and (config.aggregation.level, config.aggregation.gradient_storage, halves) != ("parameters", "copies", 1):
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} reads gradients of whole batches over "
            "parameters: take config.aggregation.level = 'parameters', gradient_storage = 'copies', and no method of "
            "halves"
        )
    for field, joins in (
        ("mixer", config.sharing.mixer),
        ("cascades", config.sharing.cascades),
        ("adapter", config.sharing.adapter == "lora"),
    ):
        if joins:
            raise UserError(
                f"{who} needs the gradients of the tasks apart, which config.sharing.{field} brings together; leave it "
                "out, or take methods that read losses"
            )
    if auxiliary:
        raise UserError(
            f"{who} combines the losses of the tasks, and knows nothing of {', '.join(auxiliary)}; take methods that "
            "read losses"
        )
    if tied := [name for name, task in tasks.items() if task.tied]:
        raise UserError(
            f"{who} needs the gradients of the tasks apart; that of task {tied[0]!r} reaches the word vectors through "
            f"its head too: set config.tasks.{tied[0]}.options.tied = False"
        )
    found = per_task.shared_parameters(
        tuple(trained), owned, config.aggregation.level, config.aggregation.gradient_storage, halves
    )
    if found is None:
        groups = ", config.sharing.task_groups" * bool(config.sharing.task_groups)
        raise UserError(
            f"{who} reads the gradients of the tasks over what they share, and no parameter that is trained is shared "
            f"(config.sharing.trunk = {config.sharing.trunk!r}{groups}); take method = 'sum', or loss weights that "
            "read losses"
        )
    if found.level == "representation" and (config.sharing.readout != "top" or config.sharing.head_layers):
        raise UserError(
            "config.aggregation.level: 'representation' needs heads that read the last layer alone "
            "(config.sharing.readout = 'top', no head_layers)"
        )
    training = config.training
    if problem := aggregated.batch_refusal(
        found, config.data.rows_per_block, training.grad_accum_steps, training.placement
    ):
        raise UserError(problem)
    return found


def make_step_spec(config, objective_for, owned, shapes, data) -> StepSpec:
    """What is static about the step.

    Args:
      config: checked.
      objective_for: layout -> objective.
      owned: path of layer -> owner of each task.
      shapes: flat dict of the parameters' shapes.
      data: of the run.

    Raises:
      UserError: regexes that match nothing, methods that do not fit.
    """
    optimizer, steps, objective = config.optimizer, config.training.steps, objective_for(data.layout)
    trained = _trained_paths(optimizer, shapes)
    factors = multipliers(shapes, optimizer.param_groups)
    slices = ownership.slice_owners(shapes, owned, tuple(objective.tasks))
    return StepSpec(
        objective=objective,
        data_gradient=_data_gradient(config, objective_for, owned, trained, slices, data),
        optimizer=OptimizerSpec(
            name=optimizer.name,
            options=optimizer.options.to_dict(),
            warmup_steps=round(optimizer.warmup_ratio * steps),
            schedule=optimizer.schedule,
            schedule_options=optimizer.schedule_options.to_dict(),
            steps=steps,
        ),
        slices=slices,
        multipliers={path: factors[path] for path in trained},
        clip_norm=optimizer.clip_norm,
        max_nonfinite_steps=config.training.max_nonfinite_steps,
    )


def _trained_paths(optimizer, shapes) -> list[str]:
    for regex in optimizer.freeze:
        if not matching(shapes, (regex,)):
            raise UserError(
                f"config.optimizer.freeze: {regex!r} matches no parameter; paths look like {next(iter(shapes))}"
            )
    frozen = matching(shapes, optimizer.freeze)
    for name, group in optimizer.param_groups.items():
        if (matched := matching(shapes, (group["params"],))) and matched <= frozen:
            raise UserError(
                f"config.optimizer.param_groups.{name}.params: {group['params']!r} finds none but frozen parameters, "
                "which have no learning rate; narrow config.optimizer.freeze"
            )
    trained = [path for path in shapes if path not in frozen]
    if not trained:
        raise UserError("config.optimizer.freeze: nothing is left to train")
    return trained


def _data_gradient(config, objective_for, owned, trained, slices, data) -> DataGradient:
    """Aggregated where a method reads the gradients of the tasks, else of meta-learning, else joint."""
    objective = objective_for(data.layout)
    sizes = [data.statistics["tasks"][name]["train"]["known"] for name in objective.tasks]
    method, aggregation = _loss_weights(config, sizes), _aggregation(config, len(objective.tasks))
    shared = _shared(config, method, aggregation, trained, owned, objective.tasks, objective.auxiliary)
    meta = meta_spec.make_meta_spec(config, objective_for, trained, data, method)
    method = _with_classes(config, method, objective)
    if shared:
        return AggregatedGradient(method, aggregation or _plain_sum, shared, slices)
    return MetaLearningGradient(method, meta) if meta else JointGradient(method)
