"""Where a pure step runs: `jit` on a mesh with axes data, task, model (default), or `pmap` over rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtl_jax.data.batch import Batch
from mtl_jax.errors import UserError
from mtl_jax.training.parameter_paths import PyTree

AXES = ("data", "task", "model")
LARGE_LEAF = 1 << 16  # leaves with at least so many elements are split over the axis `model`

MeshAxes: TypeAlias = str | tuple[str, ...] | None  # along which an axis of an array is split


class Placement(NamedTuple):
    """The placement of state and batches on the devices.

    train        (function(state, batch, hyper, axis)) -> compiled function(state, batch, hyper) of placed arguments
    put_state    host or device state -> placed state
    put_batch    numpy batch with leaves [A, B, R, ...], in each process its rows -> placed batch
    put_eval     numpy batch with leaves [B, R, ...], in each process all rows -> placed for ordinary jitted functions
    replicated   a placed state -> one for ordinary jitted functions (a view under jit, device 0 under pmap)
    shardings    abstract state -> shardings to restore a checkpoint with
    row_shards   R must be a multiple of this
    """

    train: Callable[[Callable], Callable]
    put_state: Callable[[PyTree], PyTree]
    put_batch: Callable[[Batch], Batch]
    put_eval: Callable[[Batch], Batch]
    replicated: Callable[[PyTree], PyTree]
    shardings: Callable[[PyTree], PyTree]
    row_shards: int


def require_platform(platform: str) -> None:
    """Raises UserError where the platform asked for ("cpu", "gpu", "tpu"; "" = any) has no device."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"JAX found no device of the requested platform ({jax.config.values['jax_platforms'] or 'any'})"
            f"{f': {error}' if str(error) else ''}. "
            "Unset JAX_PLATFORMS or install the build for your device: pip install -e '.[cuda12]'"
        ) from None
    present = devices[0].platform
    if platform and present != platform:
        hint = {"gpu": "pip install -e '.[cuda12]' on a machine with an NVIDIA GPU", "tpu": "pip install -e '.[tpu]'"}
        raise UserError(
            f"config.training.platform asks for {platform!r}, but JAX runs on {present!r} here"
            + (f"; {hint[platform]}, or set it to ''" if platform in hint else "")
        )


def make_placement(
    kind: str, mesh_shape: Mapping[str, int], slices: Mapping[str, tuple[int, ...]], tasks: int
) -> Placement:
    """The placement for a config.

    Args:
      kind: "jit" or "pmap".
      mesh_shape: devices for each axis; -1 once = all that are left.
      slices: owner groups of each leaf, by which stacks [K, ...] are recognised.
      tasks: K.

    Raises:
      UserError: sizes that do not fit the devices; axes other than data under pmap.
    """
    count = jax.device_count()
    if kind == "pmap":
        if any(mesh_shape.get(axis, 1) > 1 for axis in ("task", "model")):
            raise UserError("config.training.mesh: 'pmap' splits rows only; task and model must be 1, or use 'jit'")
        return _pmap(count)
    if kind != "jit":
        raise UserError(f"config.training.placement: {kind!r} is none of 'jit', 'pmap'")
    sizes = [int(mesh_shape[axis]) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(
            f"config.training.mesh: sizes are positive, one may be -1 = all that are left; got {dict(mesh_shape)}"
        )
    known = int(np.prod([size for size in sizes if size > 0]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = count // known
    if int(np.prod(sizes)) != count:
        raise UserError(f"config.training.mesh: {dict(zip(AXES, sizes, strict=True))} does not make {count} devices")
    mesh = jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return _jit(mesh, slices, tasks)


def spread_features(stacks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Stacks [K, ...] with features over the mesh axes `task` and `model` instead of tasks over `task`.

    Products between tasks are then computed where the features are, at the price of one all-to-all; without it the
    compiler gathers complete stacks. Unchanged where no step on a mesh is traced, or `task` is 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("task", 1) == 1:
        return dict(stacks)
    return {path: _spread_leaf(leaf, mesh.shape["task"], mesh.shape["model"]) for path, leaf in stacks.items()}


def _spread_leaf(leaf: jax.Array, tasks: int, models: int) -> jax.Array:
    before: list[MeshAxes] = [None] * leaf.ndim
    after: list[MeshAxes] = [None] * leaf.ndim
    if leaf.shape[0] % tasks == 0:
        before[0] = "task"
    split = _over_model(leaf, 1, models)
    if split is not None:
        before[split] = after[split] = "model"
    free = [i for i in range(1, leaf.ndim) if i != split and leaf.shape[i] % tasks == 0]
    if free:
        after[max(free, key=lambda i: leaf.shape[i])] = "task"
    elif split is not None and leaf.shape[split] % (tasks * models) == 0:
        after[split] = ("model", "task")
    for spec in (before, after):  # both, or the gradient would change the sharding of the rest of the step
        leaf = jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))
    return leaf


def _over_model(leaf: jax.Array, first: int, devices: int) -> int | None:
    """The axis, from `first` on, along which a leaf is split over `model`; None where it is not."""
    free = [i for i in range(first, len(leaf.shape)) if leaf.shape[i] % devices == 0]
    return max(free, key=lambda i: leaf.shape[i]) if free and devices > 1 and leaf.size >= LARGE_LEAF else None


def _jit(mesh, slices, tasks) -> Placement:
    def leaf_sharding(path, leaf):
        spec: list[MeshAxes] = [None] * len(leaf.shape)
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        parameter = next((path for path in _paths(names) if path in slices), None)
        if parameter is not None:  # a parameter, or state of the optimizer for it; all else is on every device
            stacked = not parameter.startswith("heads/")
            if stacked and leaf.shape[0] == tasks > 1 and tasks % mesh.shape["task"] == 0:
                spec[0] = "task"
            split = _over_model(leaf, int(stacked), mesh.shape["model"])
            if split is not None:
                spec[split] = "model"
        return NamedSharding(mesh, PartitionSpec(*spec))

    def shardings(state):
        return jax.tree_util.tree_map_with_path(leaf_sharding, state)

    def rows_on(axis: int, by_process: bool):
        """Placement with rows over `data`. `by_process`: each process has a part of the rows, else all of them."""
        split = NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))
        replicated = NamedSharding(mesh, PartitionSpec())

        def put(batch):
            shardings = jax.tree.map(lambda leaf: split if leaf.ndim > axis else replicated, batch)
            if jax.process_count() == 1:
                return jax.device_put(batch, shardings)
            if by_process:
                return jax.tree.map(jax.make_array_from_process_local_data, shardings, batch)
            return jax.tree.map(
                lambda s, leaf: jax.make_array_from_callback(leaf.shape, s, lambda index: leaf[index]), shardings, batch
            )

        return put

    def train(function):
        def constrained(state, batch, hyper):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `spread_features`
                new, metrics = function(state, batch, hyper, None)
            return jax.lax.with_sharding_constraint(new, shardings(new)), metrics

        return jax.jit(constrained, donate_argnums=0)

    return Placement(
        train=train,
        put_state=lambda state: jax.device_put(_local(state), shardings(state)),
        put_batch=rows_on(2, True),
        put_eval=rows_on(1, False),
        replicated=lambda state: state,
        shardings=shardings,
        row_shards=mesh.shape["data"],
    )


def _local(state):
    """The state on the host, from where one that every process computed can be placed over all of them."""
    return state if jax.process_count() == 1 else jax.tree.map(_on_host, state)


def _on_host(leaf):
    return np.asarray(leaf) if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable else leaf


def _paths(names):
    """Candidates for the path of a parameter: the ends of the path to a leaf of the state, which is nested or flat."""
    for start in range(len(names)):
        yield "/".join(names[start:])


def _pmap(count: int) -> Placement:
    if jax.process_count() > 1:
        raise UserError("config.training.placement: 'pmap' runs in one process; take 'jit' for several")
    devices = jax.local_devices()
    mesh = jax.make_mesh((count,), ("devices",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("devices"))

    def by_device(batch, axis):
        """Splits the R axis by device and moves the devices to the front: [devices, ..., R / devices, ...]."""

        def move(leaf):
            if leaf.ndim <= axis:
                return np.broadcast_to(leaf, (count, *leaf.shape))
            shape = leaf.shape
            parts = leaf.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])
            return np.moveaxis(parts, axis, 0)

        return jax.tree.map(move, batch)

    def train(function):
        mapped = jax.pmap(
            lambda s, b, h: function(s, b, h, "rows"),
            axis_name="rows",
            in_axes=(0, 0, None),
            donate_argnums=0,
            devices=devices,
        )

        def run(state, batch, hyper):
            state, metrics = mapped(state, batch, hyper)
            return state, jax.tree.map(lambda leaf: leaf[0], metrics)

        return run

    def put_state(state):
        return jax.tree.map(lambda leaf: jax.device_put(np.broadcast_to(leaf, (count, *leaf.shape)), split), state)

    return Placement(
        train=train,
        put_state=put_state,
        put_batch=lambda batch: jax.device_put(by_device(batch, 2), split),
        put_eval=lambda batch: jax.device_put(batch, devices[0]),
        replicated=lambda state: jax.tree.map(lambda leaf: jax.device_put(leaf[0], devices[0]), state),
        shardings=lambda state: jax.tree.map(lambda _: None, state),
        row_shards=count,
    )
