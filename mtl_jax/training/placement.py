"""Where a pure step runs: `jit` on a mesh with the axes `AXES` (default), or `pmap` over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtl_jax.data.batch import Batch
from mtl_jax.errors import UserError
from mtl_jax.models import activation_sharding
from mtl_jax.models.activation_sharding import ROW_AXES, longest_axis
from mtl_jax.models.tensor_parallel import split_axes
from mtl_jax.training.parameter_paths import PyTree

AXES = ("data", "fsdp", "task", "sequence", "model")  # the last has the nearest neighbours
HOST_MEMORY = "pinned_host"

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
    mesh_shape   devices on each axis
    """

    train: Callable[[Callable], Callable]
    put_state: Callable[[PyTree], PyTree]
    put_batch: Callable[[Batch], Batch]
    put_eval: Callable[[Batch], Batch]
    replicated: Callable[[PyTree], PyTree]
    shardings: Callable[[PyTree], PyTree]
    row_shards: int
    mesh_shape: Mapping[str, int]


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
    kind: str,
    mesh_shape: Mapping[str, int],
    slices: Mapping[str, tuple[int, ...]],
    tasks: int,
    *,
    offload_optimizer: bool = False,
) -> Placement:
    """The placement for a config.

    Args:
      kind: "jit" or "pmap".
      mesh_shape: devices for each of `AXES`, 1 where it is absent; -1 once = all that are left.
      slices: owner groups of each leaf, by which stacks [K, ...] are recognised.
      tasks: K.
      offload_optimizer: between steps the large leaves of the optimizer's state are in host memory.

    Raises:
      UserError: sizes that do not fit the devices; what pmap, or the platform, does not have.
    """
    count = jax.device_count()
    if kind == "pmap":
        if split := [axis for axis in AXES[1:] if mesh_shape.get(axis, 1) > 1]:
            raise UserError(f"config.training.mesh.{split[0]}: 'pmap' splits rows only; set it to 1, or use 'jit'")
        if offload_optimizer:
            raise UserError("config.training.offload_optimizer: 'pmap' has one kind of memory; use 'jit'")
        return _pmap(count)
    if kind != "jit":
        raise UserError(f"config.training.placement: {kind!r} is none of 'jit', 'pmap'")
    sizes = [int(mesh_shape.get(axis, 1)) for axis in AXES]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(
            f"config.training.mesh: sizes are positive, one may be -1 = all that are left; got {dict(mesh_shape)}"
        )
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(f"config.training.mesh: {dict(zip(AXES, sizes, strict=True))} does not make {count} devices")
    if offload_optimizer:
        require_host_memory("config.training.offload_optimizer")
    mesh = jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return mesh_placement(mesh, slices, tasks, offload_optimizer)


def require_host_memory(field: str) -> None:
    """Raises UserError where the platform cannot move arrays of a program to host memory and back."""
    device = jax.local_devices()[0]
    if HOST_MEMORY not in (kinds := [memory.kind for memory in device.addressable_memories()]):
        raise UserError(
            f"{field}: {device.platform} has no memory of kind {HOST_MEMORY!r} here, only {', '.join(kinds)}; it is "
            "there on TPUs, on NVIDIA GPUs and on CPUs"
        )


def spread_features(stacks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Stacks [K, ...] with features over the mesh axes `task` and `model` instead of tasks over `task`.

    Products between tasks are then computed where the features are, at the price of one all-to-all; without it the
    compiler gathers complete stacks. Unchanged where no step on a mesh is traced, or `task` is 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("task", 1) == 1:
        return dict(stacks)
    return {path: _spread_leaf(path, leaf, mesh.shape) for path, leaf in stacks.items()}


def _spread_leaf(path: str, leaf: jax.Array, sizes: Mapping[str, int]) -> jax.Array:
    before = _parameter_spec(path, leaf.shape, sizes, leaf.shape[0])
    after = [None, *before[1:]]
    free = [i for i in range(1, leaf.ndim) if after[i] is None and leaf.shape[i] % sizes["task"] == 0]
    if free:
        after[max(free, key=lambda i: leaf.shape[i])] = "task"
    else:
        for i in range(1, leaf.ndim):
            if isinstance(split := after[i], str) and leaf.shape[i] % (sizes["task"] * sizes[split]) == 0:
                after[i] = (split, "task")
                break
    for spec in (before, after):  # both, or the gradient would change the sharding of the rest of the step
        leaf = jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))
    return leaf


def _parameter_spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int], tasks: int) -> list[MeshAxes]:
    """The mesh axis that splits each axis of a parameter, or of a state of the optimizer for it."""
    spec: list[MeshAxes] = [None] * len(shape)
    is_layer = not path.startswith("heads/")
    if is_layer and shape[0] == tasks > 1 and tasks % sizes["task"] == 0:
        spec[0] = "task"
    axes = split_axes(path) if is_layer else None
    if axes is None:
        longest = longest_axis(shape, sizes["model"], range(1, len(shape)))
        axes = tuple(i == longest for i in range(1, len(shape)))
    if len(axes) == len(shape) - 1:  # factored moments have fewer axes
        for i, split in enumerate(axes, 1):
            if split and sizes["model"] > 1 and shape[i] % sizes["model"] == 0:
                spec[i] = "model"
    free = [i for i in range(1, len(shape)) if spec[i] is None]
    if (axis := longest_axis(shape, sizes["fsdp"], free)) is not None:
        spec[axis] = "fsdp"
    return spec


def mesh_placement(
    mesh: jax.sharding.Mesh, slices: Mapping[str, tuple[int, ...]], tasks: int, offload_optimizer: bool
) -> Placement:
    """`make_placement` on a mesh with the axes `AXES`, of any devices."""

    def leaf_sharding(path, leaf):
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        parameter = next((path for path in _paths(names) if path in slices), None)
        if parameter is None:  # neither a parameter, nor state of the optimizer for it: on every device
            return NamedSharding(mesh, PartitionSpec())
        sharding = NamedSharding(mesh, PartitionSpec(*_parameter_spec(parameter, leaf.shape, mesh.shape, tasks)))
        large = math.prod(leaf.shape) >= activation_sharding.LARGE_LEAF
        offload = offload_optimizer and large and names[0] == "opt_state"
        return sharding.with_memory_kind(HOST_MEMORY) if offload else sharding

    def shardings(state):
        return jax.tree_util.tree_map_with_path(leaf_sharding, state)

    def rows_on(axis: int, by_process: bool):
        """Placement with rows over `data` and `fsdp`. `by_process`: each process has a part of the rows, else all."""
        split = NamedSharding(mesh, PartitionSpec(*(None,) * axis, ROW_AXES))
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

    def on_device(state):
        return jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings(state))

    def train(function):
        def placed(state, batch, hyper):
            if offload_optimizer:
                state = jax.device_put(state, on_device(state))
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `spread_features`, `activation_sharding`
                new, metrics = function(state, batch, hyper, None)
            if offload_optimizer:
                new = jax.lax.with_sharding_constraint(new, on_device(new))
                return jax.device_put(new, shardings(new)), metrics
            return jax.lax.with_sharding_constraint(new, shardings(new)), metrics

        return jax.jit(placed, donate_argnums=0)

    return Placement(
        train=train,
        put_state=lambda state: jax.device_put(_local(state), shardings(state)),
        put_batch=rows_on(2, True),
        put_eval=rows_on(1, False),
        replicated=lambda state: state,
        shardings=shardings,
        row_shards=math.prod(mesh.shape[axis] for axis in ROW_AXES),
        mesh_shape=dict(mesh.shape),
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
        mesh_shape={"data": count},
    )
