"""The train step over seeds and settings: leaves [S, L, ...], many steps in one call, lanes over the devices.

Lanes of one seed share initial values, dropout bits and batches, and differ only in their hyperparameters. Each lane
computes the same as when it is trained alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.analysis.ablation.device_rows import Draws, ResidentRows, gather
from mtl_jax.data.batch import Batch
from mtl_jax.runtime import distributed
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.state import StepSpec, TrainState
from mtl_jax.training.step import train_step

LAYOUTS = ("vmap", "map")


class Losses(NamedTuple):
    """Sums since the last point of the curve: training losses, and the effects of penalties.

    total, count   sums of the losses and their numbers, float32 [K]
    ratio, ratios  sums of {penalty: penalty_ratio}, see `training.penalty_effect`, and their numbers; float32 scalars
    """

    total: jax.Array
    count: jax.Array
    ratio: dict[str, jax.Array]
    ratios: dict[str, jax.Array]


def no_losses(tasks: int, penalties: Iterable[str] = ()) -> Losses:
    """The sums before any step."""
    zeros, by_penalty = jnp.zeros((tasks,), jnp.float32), {name: jnp.zeros((), jnp.float32) for name in penalties}
    return Losses(zeros, zeros, by_penalty, dict(by_penalty))


def batch_at(spec: StepSpec, source: ResidentRows | None, inputs: Draws | Batch, number: jax.Array) -> Batch:
    """Batch `number` of a call, leaves [A, B, R, ...].

    Args:
      spec: static.
      source: `ResidentRows`; None where batches come from the host.
      inputs: `Draws`; or, from the host, a `Batch` with leaves [n, A, B, R, ...].
      number: index of the batch.
    """
    batch = jax.tree.map(lambda leaf: leaf[number], inputs)
    if source is None:
        return batch
    return jax.vmap(lambda dataset, row: gather(source, spec.objective.layout, dataset, row))(*batch)


class Steps(NamedTuple):
    """The steps of one call: rows on the devices (None where batches come from the host), and their number."""

    source: ResidentRows | None
    count: jax.Array


def advance(
    spec: StepSpec,
    lane: tuple[TrainState, Losses],
    hyper: Hyperparameters,
    active: jax.Array,
    inputs: Draws | Batch,
    steps: Steps,
) -> tuple[TrainState, Losses]:
    """The state and the losses of one lane after some steps; unchanged where it is not `active`."""

    def step(number: jax.Array, carry: tuple[TrainState, Losses]) -> tuple[TrainState, Losses]:
        state, losses = carry
        state, metrics = train_step(spec, state, batch_at(spec, steps.source, inputs, number), hyper)
        counted = metrics["present"] & jnp.isfinite(metrics["losses"])
        total = losses.total + jnp.where(counted, metrics["losses"], 0.0)
        ratio = metrics["penalty_ratio"]
        finite = {name: jnp.isfinite(value) for name, value in ratio.items()}
        return state, Losses(
            total,
            losses.count + counted.astype(jnp.float32),
            {name: losses.ratio[name] + jnp.where(finite[name], value, 0.0) for name, value in ratio.items()},
            {name: losses.ratios[name] + finite[name].astype(jnp.float32) for name in ratio},
        )

    return jax.lax.cond(active, lambda carry: jax.lax.fori_loop(0, steps.count, step, carry), lambda carry: carry, lane)


class Shape(NamedTuple):
    """How S seeds × L settings are placed on the devices.

    seeds, lanes  S and L, padded so that they can be divided evenly among the devices
    axis          0 if the seeds are divided among the devices, 1 for the settings
    layout        "vmap", the lanes of a device at once, or "map", sequentially
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

    def _spec(self, leading: str) -> PartitionSpec:
        axes = {"l": 2, "s": 1, "-": 0}[leading]
        return PartitionSpec(*("lane" if i == self.axis else None for i in range(axes)))

    def local_cells(self) -> list[tuple[int, int]]:
        """The cells [s, i] that are on devices of this process, and not on those of an earlier one."""
        size = (self.seeds, self.lanes)[self.axis] // len(self.mesh.devices)
        owners = [np.ravel(devices)[0].process_index for devices in self.mesh.devices]
        cells = itertools.product(range(self.seeds), range(self.lanes))
        return [cell for cell in cells if owners[cell[self.axis] // size] == jax.process_index()]


def shape_of(seeds: int, lanes: int, layout: str) -> Shape:
    """S × L on all devices, with as few padding lanes as possible."""
    devices = jax.devices()
    padded = [(seeds + -seeds % len(devices), lanes), (seeds, lanes + -lanes % len(devices))]
    axis = min((1, 0), key=lambda i: padded[i][0] * padded[i][1])
    mesh = Mesh(np.asarray(devices), ("lane",), axis_types=(AxisType.Auto,))
    return Shape(*padded[axis], axis, layout, mesh)


def over_lanes(function: Callable, axes: str, shape: Shape) -> Callable:
    """A function of one lane as a function of S × L lanes.

    Args:
      function: of as many arguments as `axes` has letters.
      axes: for each argument "l" its leaves have leading axes [S, L], "s" [S], "-" none.
      shape: of the lanes.

    Returns:
      the function over lanes, to be jitted; results have leaves [S, L, ...].
    """
    if shape.layout == "vmap":
        inner = jax.vmap(function, in_axes=[0 if a == "l" else None for a in axes])
        mapped = jax.vmap(inner, in_axes=[None if a == "-" else 0 for a in axes])
    else:
        mapped = _sequential(_sequential(function, [a == "l" for a in axes]), [a != "-" for a in axes])
    if shape.mesh.size == 1:
        return mapped
    specs = tuple(shape.sharding(a).spec for a in axes)
    return jax.shard_map(mapped, mesh=shape.mesh, in_specs=specs, out_specs=shape.sharding("l").spec, check_vma=False)


def _sequential(function: Callable, is_mapped: Sequence[bool]) -> Callable:
    """`jax.lax.map` over the leading axis of the arguments that are mapped."""

    def run(*arguments):
        def call(slices):
            slices = iter(slices)
            return function(*(next(slices) if m else a for m, a in zip(is_mapped, arguments, strict=True)))

        return jax.lax.map(call, tuple(a for m, a in zip(is_mapped, arguments, strict=True) if m))

    return run


def stack_hypers(hypers: Sequence[Hyperparameters], seeds: int) -> Hyperparameters:
    """Hyperparameters of L settings as one tree with leaves [S, L]."""
    stacked = jax.tree.map(lambda *leaves: np.stack(jax.device_get(leaves)), *hypers)
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (seeds, *leaf.shape)), stacked)


def stack_states(states: Sequence[TrainState], shape: Shape) -> TrainState:
    """The initial states of S seeds as one tree with leaves [S, L, ...], placed."""

    def spread(*leaves):
        stacked = jnp.stack(leaves)
        return jnp.broadcast_to(stacked[:, None], (shape.seeds, shape.lanes, *stacked.shape[1:]))

    arguments = [distributed.place(state, shape.sharding("-")) for state in states]
    return jax.jit(lambda states: jax.tree.map(spread, *states), out_shardings=shape.sharding("l"))(arguments)
