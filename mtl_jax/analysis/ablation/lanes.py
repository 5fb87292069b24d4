"""The train step over seeds and settings: leaves [S, L, ...], many steps in one call, lanes over the devices.

Lanes of one seed share initial values, dropout bits and batches, and differ only in their hyperparameters. Each lane
computes the same as when it is trained alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtl_jax.analysis.ablation.device_rows import Draws, ResidentRows, gather
from mtl_jax.data.batch import Batch
from mtl_jax.errors import UserError
from mtl_jax.models.activation_sharding import ROW_AXES, axis_size
from mtl_jax.runtime import distributed
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.placement import AXES, Placement, mesh_placement
from mtl_jax.training.state import StepSpec, TrainState
from mtl_jax.training.step import train_step

T = TypeVar("T")
LAYOUTS = ("vmap", "map")
NO_MESH: Mapping[str, int] = {}  # each lane on one device
_WHOLE = PartitionSpec()

LaneShardings = Callable[[Any, str], Any]  # tree of one lane, leading axes as in `Shape.sharding` -> shardings


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
    if source is not None:
        batch = jax.vmap(lambda dataset, row: gather(source, spec.objective.layout, dataset, row))(*batch)
    return split_rows(batch, 2)


class Steps(NamedTuple):
    """The steps of one call: rows on the devices (None where batches come from the host), and their number."""

    source: ResidentRows | None
    count: jax.Array


def advance(
    spec: StepSpec,
    constrain: Callable[[TrainState], TrainState],
    lane: tuple[TrainState, Losses],
    hyper: Hyperparameters,
    active: jax.Array,
    inputs: Draws | Batch,
    steps: Steps,
) -> tuple[TrainState, Losses]:
    """The state and the losses of one lane after some steps; unchanged where it is not `active`.

    `constrain` gives a state its shardings on the mesh of the lane.
    """

    def step(number: jax.Array, carry: tuple[TrainState, Losses]) -> tuple[TrainState, Losses]:
        state, losses = carry
        state, metrics = train_step(spec, state, batch_at(spec, steps.source, inputs, number), hyper)
        counted = metrics["present"] & jnp.isfinite(metrics["losses"])
        total = losses.total + jnp.where(counted, metrics["losses"], 0.0)
        ratio = metrics["penalty_ratio"]
        finite = {name: jnp.isfinite(value) for name, value in ratio.items()}
        return constrain(state), Losses(
            total,
            losses.count + counted.astype(jnp.float32),
            {name: losses.ratio[name] + jnp.where(finite[name], value, 0.0) for name, value in ratio.items()},
            {name: losses.ratios[name] + finite[name].astype(jnp.float32) for name in ratio},
        )

    return jax.lax.cond(active, lambda carry: jax.lax.fori_loop(0, steps.count, step, carry), lambda carry: carry, lane)


class Shape(NamedTuple):
    """How S seeds × L settings are placed on the devices.

    seeds, lanes  S and L, padded so that they can be divided evenly along the axis `lane` of the mesh
    axis          0 if the seeds are divided, 1 for the settings
    layout        "vmap", the lanes of a part at once, or "map", sequentially
    mesh          all devices: `lane`, and the axes of the mesh on which each lane is trained
    """

    seeds: int
    lanes: int
    axis: int
    layout: str
    mesh: Mesh

    def sharding(self, leading: str, spec: PartitionSpec = _WHOLE) -> NamedSharding:
        """Of leaves [S, L, ...] ("l"), [S, ...] ("s") or others ("-"); `spec` of what follows these axes."""
        return NamedSharding(self.mesh, PartitionSpec(*self.leading_spec(leading), *spec))

    def leading_spec(self, leading: str) -> PartitionSpec:
        """Of the axes of the lanes alone."""
        axes = {"l": 2, "s": 1, "-": 0}[leading]
        return PartitionSpec(*("lane" if i == self.axis else None for i in range(axes)))

    @property
    def one_device(self) -> bool:
        """Whether each lane is on one device."""
        return self.mesh.size == self.mesh.shape["lane"]

    def local_cells(self) -> list[tuple[int, int]]:
        """The cells [s, i] that are on devices of this process, and not on those of an earlier one."""
        size = (self.seeds, self.lanes)[self.axis] // len(self.mesh.devices)
        owners = [np.ravel(devices)[0].process_index for devices in self.mesh.devices]
        cells = itertools.product(range(self.seeds), range(self.lanes))
        return [cell for cell in cells if owners[cell[self.axis] // size] == jax.process_index()]


def shape_of(seeds: int, lanes: int, layout: str, mesh: Mapping[str, int] = NO_MESH) -> Shape:
    """S × L on all devices, with as few padding lanes as possible.

    Args:
      seeds, lanes: S and L.
      layout: see `Shape`.
      mesh: devices of each lane, by axis of `AXES`; -1, all that are left, is 1: other lanes are trained on them.

    Raises:
      UserError: the devices cannot be divided so.
    """
    sizes = [abs(int(mesh.get(axis, 1))) for axis in AXES]
    count, each = jax.device_count(), math.prod(sizes)
    if count % each:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UserError(
            f"config.training.mesh: a lane on {' × '.join(map(str, sizes))} devices ({', '.join(AXES)}) takes {each}, "
            f"which {count} devices cannot be divided by; together the sizes may be {fitting}"
        )
    parts = count // each
    padded = [(seeds + -seeds % parts, lanes), (seeds, lanes + -lanes % parts)]
    axis = min((1, 0), key=lambda i: padded[i][0] * padded[i][1])
    names = ("lane", *AXES)
    return Shape(
        *padded[axis], axis, layout, jax.make_mesh((parts, *sizes), names, axis_types=(AxisType.Auto,) * len(names))
    )


def lane_placement(shape: Shape, slices: Mapping[str, tuple[int, ...]], tasks: int) -> Placement:
    """The placement of a single run on the mesh of one lane; see `make_placement` for the arguments."""
    return mesh_placement(Mesh(shape.mesh.devices[0], AXES), slices, tasks, offload_optimizer=False)


def lane_shardings(shape: Shape, placement: Placement, one_lane: T, leading: str) -> T:
    """Of one lane's leaves after the axes that `Shape.sharding` names: parameters are split as in a single run."""
    return jax.tree.map(lambda of_lane: shape.sharding(leading, of_lane.spec), placement.shardings(one_lane))


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
    return jax.shard_map(
        mapped,
        mesh=shape.mesh,
        in_specs=tuple(map(shape.leading_spec, axes)),
        out_specs=shape.leading_spec("l"),
        axis_names=set(shape.mesh.axis_names if shape.one_device else ("lane",)),  # the compiler divides the others
        check_vma=False,
    )


def split_rows(batch: Batch, axis: int) -> Batch:
    """A batch of one lane with its rows, an axis of its leaves, over the devices of the lane."""
    if axis_size(*ROW_AXES) == 1:
        return batch
    spec = PartitionSpec(*(None,) * axis, ROW_AXES)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec) if x.ndim > axis else x, batch)


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


def stack_states(states: Sequence[TrainState], shape: Shape, shardings: LaneShardings) -> TrainState:
    """The initial states of S seeds as one tree with leaves [S, L, ...], placed."""

    def spread(*leaves):
        stacked = jnp.stack(leaves)
        return jnp.broadcast_to(stacked[:, None], (shape.seeds, shape.lanes, *stacked.shape[1:]))

    if shape.one_device:  # otherwise they are placed already
        states = [distributed.place(state, shardings(state, "-")) for state in states]
    return jax.jit(lambda states: jax.tree.map(spread, *states), out_shardings=shardings(states[0], "l"))(list(states))
