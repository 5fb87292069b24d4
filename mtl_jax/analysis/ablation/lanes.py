"""The train step over seeds and settings: leaves [S, L, ...], many steps in one call, lanes over the devices.

Lanes of one seed share initial values, dropout bits and batches: what differs between them is their hyperparameters.
Each lane computes what it computes when it is trained alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.analysis.ablation.device_rows import ResidentRows, gather
from mtl_jax.training.state import StepSpec, TrainState
from mtl_jax.training.step import train_step

LAYOUTS = ("vmap", "map")


def use_all_cores() -> None:
    """On CPU a device for each core, which then share the lanes. Call before JAX is used; GPUs and TPUs stay as found.

    A lane of a small model leaves all cores but one idle.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)


class Losses(NamedTuple):
    """Training losses since the last line of the curve, and what penalties did beside them.

    total, count   sums of the losses and how many there were, float32 [K]
    ratio, ratios  likewise {penalty: penalty_ratio}, see `training.penalty_effect`; float32 scalars
    """

    total: jax.Array
    count: jax.Array
    ratio: dict[str, jax.Array]
    ratios: dict[str, jax.Array]


def no_losses(tasks: int, penalties: Iterable[str] = ()) -> Losses:
    """The sums before any step."""
    zeros, by_penalty = jnp.zeros((tasks,), jnp.float32), {name: jnp.zeros((), jnp.float32) for name in penalties}
    return Losses(zeros, zeros, by_penalty, dict(by_penalty))


def batch_at(spec: StepSpec, source: Any, draws: Any, number: jax.Array):
    """Batch `number` of a call, leaves [A, B, R, ...].

    Args:
      spec: static.
      source: `ResidentRows`; None where batches come from the host.
      draws: `Draws`; or, from the host, a `Batch` with leaves [n, A, B, R, ...].
    """
    one = jax.tree.map(lambda leaf: leaf[number], draws)
    if source is None:
        return one
    return jax.vmap(lambda dataset, row: gather(source, spec.objective.layout, dataset, row))(*one)


def advance(
    spec: StepSpec,
    state: TrainState,
    losses: Losses,
    hyper: Any,
    active: jax.Array,
    draws: Any,
    source: ResidentRows | None,
    count: jax.Array,
):
    """`count` steps of one lane; nothing where it is not `active`.

    Returns:
      the state and the losses after them
    """

    def step(number, carry):
        state, losses = carry
        state, metrics = train_step(spec, state, batch_at(spec, source, draws, number), hyper)
        counted = metrics["present"] & jnp.isfinite(metrics["losses"])
        total = losses.total + jnp.where(counted, metrics["losses"], 0.0)
        ratio = metrics["penalty_ratio"]
        known = {name: jnp.isfinite(value) for name, value in ratio.items()}
        return state, Losses(
            total,
            losses.count + counted.astype(jnp.float32),
            {name: losses.ratio[name] + jnp.where(known[name], value, 0.0) for name, value in ratio.items()},
            {name: losses.ratios[name] + known[name].astype(jnp.float32) for name in ratio},
        )

    def steps(carry):
        return jax.lax.fori_loop(0, count, step, carry)

    return jax.lax.cond(active, steps, lambda carry: carry, (state, losses))


class Shape(NamedTuple):
    """How S seeds × L settings lie on the devices.

    seeds, lanes  S and L, filled up so that the devices share them evenly
    axis          which of the two the devices share
    layout        "vmap", the lanes of a device at once, or "map", in turns
    mesh          the devices
    """

    seeds: int
    lanes: int
    axis: int
    layout: str
    mesh: Mesh

    def sharding(self, leading: str) -> NamedSharding:
        """Of leaves [S, L, ...] ("l"), [S, ...] ("s") or others ("-")."""
        return NamedSharding(self.mesh, self._spec(leading))

    def _spec(self, leading):
        axes = {"l": 2, "s": 1, "-": 0}[leading]
        return PartitionSpec(*("lanes" if i == self.axis else None for i in range(axes)))


def shape_of(seeds: int, lanes: int, layout: str) -> Shape:
    """S × L on all devices, with as few lanes as possible added to fill them."""
    devices = jax.devices()
    filled = [(seeds + -seeds % len(devices), lanes), (seeds, lanes + -lanes % len(devices))]
    axis = min((1, 0), key=lambda i: filled[i][0] * filled[i][1])
    mesh = Mesh(np.asarray(devices), ("lanes",), axis_types=(AxisType.Auto,))
    return Shape(*filled[axis], axis, layout, mesh)


def over_lanes(function: Callable, axes: str, shape: Shape) -> Callable:
    """A function of one lane as a function of S × L lanes.

    Args:
      function: of as many arguments as `axes` has letters.
      axes: for each argument "l" its leaves have leading axes [S, L], "s" [S], "-" none.
      shape: how the lanes lie.

    Returns:
      the function over lanes, to be jitted; results have leaves [S, L, ...].
    """
    if shape.layout == "vmap":
        inner = jax.vmap(function, in_axes=[0 if a == "l" else None for a in axes])
        whole = jax.vmap(inner, in_axes=[None if a == "-" else 0 for a in axes])
    else:
        whole = _in_turns(_in_turns(function, [a == "l" for a in axes]), [a != "-" for a in axes])
    if shape.mesh.size == 1:
        return whole
    specs = tuple(shape.sharding(a).spec for a in axes)
    return jax.shard_map(whole, mesh=shape.mesh, in_specs=specs, out_specs=shape.sharding("l").spec, check_vma=False)


def _in_turns(function, mapped):
    """`jax.lax.map` over the leading axis of the arguments that are `mapped`."""

    def run(*arguments):
        def one(leading):
            leading = iter(leading)
            return function(*(next(leading) if m else a for m, a in zip(mapped, arguments, strict=True)))

        return jax.lax.map(one, tuple(a for m, a in zip(mapped, arguments, strict=True) if m))

    return run


def stack_hypers(hypers: Sequence[Any], seeds: int) -> Any:
    """Hyperparameters of L settings as one tree with leaves [S, L]."""
    stacked = jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *hypers)
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (seeds, *leaf.shape)), stacked)


def stack_states(states: Sequence[TrainState], shape: Shape) -> TrainState:
    """The initial states of S seeds as one tree with leaves [S, L, ...], placed."""

    def spread(*leaves):
        stacked = jnp.stack(leaves)
        return jnp.broadcast_to(stacked[:, None], (shape.seeds, shape.lanes, *stacked.shape[1:]))

    return jax.jit(lambda states: jax.tree.map(spread, *states), out_shardings=shape.sharding("l"))(list(states))
