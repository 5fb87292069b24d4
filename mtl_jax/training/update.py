"""From the gradient of the step to the trained leaves after it: optimizer, proximal operators, tied columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax

from mtl_jax.training import penalty_effect
from mtl_jax.training.gradients.base import StepInputs
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import PyTree
from mtl_jax.training.penalty import leaves_of
from mtl_jax.training.state import StepSpec


class Update(NamedTuple):
    """The result of the optimizer for one gradient.

    trained    {path: leaf} after the step; not to be used where `ok` is False
    opt_state  after the step; unchanged where `ok` is False
    ok         bool scalar, whether the step counts
    bad        bool [K + 1], whether the loss or gradient of a task (last: of shared parameters) is not finite
    rate       float32 scalar, the learning rate
    ratios     {penalty: how far its proximal operator moves the updates, relative to them}, of penalties with one
    """

    trained: FlatParams
    opt_state: PyTree
    ok: jax.Array
    bad: jax.Array
    rate: jax.Array
    ratios: dict[str, jax.Array]


def update(
    spec: StepSpec,
    inputs: StepInputs,
    opt_state: PyTree,
    gradient: FlatParams,
    strengths: Mapping[str, jax.Array],
    *,
    norms: jax.Array,
    losses: jax.Array,
    bad_steps: jax.Array,
) -> Update:
    """One update of the trained leaves.

    Args:
      spec: static.
      inputs: of the step.
      opt_state: before it.
      gradient: clipped, by path.
      strengths: {penalty: λ}.
      norms: float32 [K + 1], of the gradient before it was clipped, by owner.
      losses: float32 [K].
      bad_steps: int32 scalar, steps skipped in a row before this one.
    """
    rate = inputs.hyper.learning_rate * spec.optimizer.schedule.rate(inputs.step)
    length = norms * jnp.maximum(rate * spec.optimizer.gain, 1.0)  # a step of this length must not overflow
    bad = ~jnp.isfinite(length) | jnp.append(~jnp.isfinite(losses), False)
    ok = ~bad.any() & (bad_steps < spec.max_nonfinite_steps)
    present = None if spec.optimizer.columns is None else present_slices(inputs)
    optimizer = spec.optimizer.transformation(inputs.hyper, inputs.step, spec.multipliers, ok, present)
    updates, opt_state = optimizer.update(gradient, opt_state, inputs.trained)
    updates, ratios = _proximal(inputs, cast(FlatParams, updates), rate * spec.optimizer.gain, strengths)
    chex.assert_trees_all_equal_shapes(updates, inputs.trained)
    trained = cast(FlatParams, optax.apply_updates(inputs.trained, updates))
    if inputs.hyper.tied is not None:
        trained = _if(inputs.hyper.tied, _tie, dict, trained)
    return Update(spec.without_frozen(trained, inputs.trained), opt_state, ok, bad, rate, ratios)


def present_slices(inputs: StepInputs) -> dict[str, jax.Array]:
    """{group of tasks: int32[n] indices of those that have a block in this step, K_g for none}, and "" for the indices
    on the K axis; {} where every task has a block in each step.
    """
    layout, found = inputs.objective.layout, {}
    every = []
    for group in inputs.objective.groups:
        entries = layout.entries[group.name]
        if entries.fixed is not None:
            return {}
        dataset = inputs.batch.dataset[:, entries.blocks]  # [A, E]
        index = jnp.asarray(entries.task_at)[dataset, entries.places].reshape(-1)
        found[group.name] = jnp.where(index >= 0, index, len(group.tasks))
        numbers = jnp.asarray((*group.numbers, len(layout.tasks)), jnp.int32)
        every.append(numbers[found[group.name]])
    return {**found, "": jnp.concatenate(every)}


def _proximal(
    inputs: StepInputs, updates: FlatParams, rate: jax.Array, strengths: Mapping[str, jax.Array]
) -> tuple[FlatParams, dict[str, jax.Array]]:
    """The updates after the proximal operators, with t = rate · λ, and the ratio of each, see `penalty_effect`."""
    hyper, ratios = inputs.hyper, {}
    for name, penalty in inputs.objective.penalties.items():
        if penalty.mode == "gradient" or penalty.proximal is None:
            continue
        acts = hyper.proximal[name] if penalty.mode == "either" else True
        t = rate * strengths[name]
        arguments = (updates, inputs.trained, inputs.anchor, hyper.by_layer[name], t)
        entering, updates = updates, _if(acts, penalty.proximal, lambda updates, *_: dict(updates), *arguments)
        before, after = (leaves_of(penalty, inputs, tree) for tree in (entering, updates))
        moved = penalty_effect.tree_norm(b - a for a, b in zip(before, after, strict=True))
        ratios[name] = penalty_effect.safe_ratio(moved, penalty_effect.tree_norm(before))
    return updates, ratios


def _tie(flat: FlatParams) -> FlatParams:
    """Each stack [O, ...] replaced by its mean over the owners."""
    return {
        path: leaf if path.startswith("heads/") else jnp.broadcast_to(leaf.mean(axis=0, keepdims=True), leaf.shape)
        for path, leaf in flat.items()
    }


def _if(condition: jax.Array | bool, then: Callable, otherwise: Callable, *arguments: PyTree) -> PyTree:
    """`jax.lax.cond`, without the branch where the condition is static."""
    return then(*arguments) if condition is True else jax.lax.cond(condition, then, otherwise, *arguments)
