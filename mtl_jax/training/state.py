"""What a run carries from step to step, and what is static about the step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.training.gradients.base import Balance, DataGradient
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.objective import FlatParams, Objective, Params
from mtl_jax.training.optimizer import OptimizerSpec
from mtl_jax.training.parameter_paths import PyTree, flatten

IMPORTANCE = "importance/"


class TrainState(NamedTuple):
    """Everything that a run carries from step to step, and that a checkpoint stores.

    step       int32 scalar, the number of the next step
    params     {path of layer: leaves [O, ...], "heads": {group of tasks: leaves [K_g, ...]}}, float32
    opt_state  of optax, over the flat dict of trained leaves
    balance    states of the loss weights and of the aggregation
    anchor     flat dict of the initial values, for penalties that draw towards them, and {IMPORTANCE + path: how much
               each of them matters}, where a penalty asks for it; empty without such penalties
    key        raw key data uint32 [2] of the run
    skipped    int32 [K + 1], steps skipped because of a task's loss or gradient; the last: of shared parameters
    left_out   int32 scalar, steps skipped for any reason
    bad_steps  int32 scalar, steps skipped in a row
    """

    step: jax.Array
    params: Params
    opt_state: PyTree
    balance: Balance
    anchor: Mapping[str, jax.Array]
    key: jax.Array
    skipped: jax.Array
    left_out: jax.Array
    bad_steps: jax.Array


class StepSpec(NamedTuple):
    """The static settings of the step.

    data_gradient  from losses to a gradient: `joint`, `aggregated` or `meta_learning` of `training/gradients/`
    slices       {path: owner group of each slice}, see `ownership.slice_owners`
    multipliers  {path: factor on the learning rate} of the trained paths; all other paths are frozen
    clip_norm    largest gradient norm by owner, 0 = off
    max_nonfinite_steps  after this many non-finite steps in a row the state no longer changes
    frozen       {trained path: bool numpy array, broadcastable to the leaf}, the parts that stay as they are
    """

    objective: Objective
    data_gradient: DataGradient
    optimizer: OptimizerSpec
    slices: Mapping[str, tuple[int, ...]]
    multipliers: Mapping[str, float]
    clip_norm: float
    max_nonfinite_steps: int
    frozen: Mapping[str, np.ndarray] = {}

    def without_frozen(self, flat: FlatParams, kept: FlatParams | None = None) -> dict[str, jax.Array]:
        """{path: leaf} with the frozen parts as in `kept`; None: zero."""
        result = dict(flat)
        for path, mask in self.frozen.items():
            result[path] = jnp.where(mask, jnp.zeros_like(flat[path]) if kept is None else kept[path], flat[path])
        return result


def init_state(
    spec: StepSpec, params: Params, hyper: Hyperparameters, key: jax.Array, remembered: Collection[str] = ()
) -> TrainState:
    """The state before the first step. `remembered`: "anchor", "importance" (zeros yet), see `TrainState.anchor`."""
    flat = flatten(params)
    trained = trained_leaves(spec, flat)
    step = jnp.zeros((), jnp.int32)
    tasks = len(spec.objective.tasks)
    layers = {path: leaf for path, leaf in flat.items() if not path.startswith("heads/")}
    anchor = {path: jnp.copy(leaf) for path, leaf in layers.items()} if "anchor" in remembered else {}
    if "importance" in remembered:
        anchor |= {f"{IMPORTANCE}{path}": jnp.zeros_like(leaf) for path, leaf in layers.items()}
    return TrainState(
        step=step,
        params=params,
        opt_state=spec.optimizer.transformation(hyper, step, spec.multipliers).init(trained),
        balance=spec.data_gradient.init(trained, tasks),
        anchor=anchor,
        key=jax.random.key_data(key),
        skipped=jnp.zeros((tasks + 1,), jnp.int32),
        left_out=jnp.zeros((), jnp.int32),
        bad_steps=jnp.zeros((), jnp.int32),
    )


def importance(anchor: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """{path: importance} of what `TrainState.anchor` holds."""
    return {path.removeprefix(IMPORTANCE): leaf for path, leaf in anchor.items() if path.startswith(IMPORTANCE)}


def trained_leaves(spec: StepSpec, flat: FlatParams) -> dict[str, jax.Array]:
    """The leaves that the optimizer moves, by path."""
    return {path: flat[path] for path in spec.multipliers}
