"""Who owns which layer: partitions of the tasks, from one owner (hard sharing) to K (a column for each task).

A path is a layer's name: `embed`, `layer_00`, `layer_01`, ... `owner[path]` gives for each of the K tasks the index
of the slice of the layer's leaves `[O, ...]` that it uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ExpertColumns:
    """The C owners of a layer of experts, which no task owns by itself.

    tasks  for each column the task that it serves, None where it serves all
    names  of the columns, in terms of the tasks' names
    """

    tasks: tuple[int | None, ...]
    names: tuple[str, ...]


Owner = tuple[int, ...] | ExpertColumns
Owners = Mapping[str, Owner]  # path -> owner of each task, numbered in order of first use; or experts


def layer_path(number: int) -> str:
    """Path of layer `number`, counted from 0."""
    return f"layer_{number:02d}"


def mixer_path(path: str) -> str:
    """Path of the mixer after a layer: `mixer_03` after `layer_03`, `mixer_embed` after the embeddings."""
    return f"mixer_{path.removeprefix('layer_')}"


def adapter_path(path: str) -> str:
    """Path of the adapters on a layer: `adapter_03` on `layer_03`."""
    return f"adapter_{path.removeprefix('layer_')}"


def shared_adapter_path(path: str) -> str:
    """Path of what the owners of the adapters on a layer have in common: `adapter_shared_03` on `layer_03`."""
    return f"adapter_shared_{path.removeprefix('layer_')}"


def layer_paths(layers: int) -> tuple[str, ...]:
    """The paths of a network with this number of layers, bottom first."""
    return ("embed", *(layer_path(i) for i in range(layers)))


def assign_owners(
    tasks: Sequence[str],
    layers: int,
    trunk: str = "all",
    groups: Mapping[str, Sequence[Sequence[str]]] | None = None,
    known_tasks: Sequence[str] | None = None,
    fields: tuple[str, str] = ("trunk", "task_groups"),
) -> dict[str, tuple[int, ...]]:
    """The owner of every layer for every task.

    Args:
      tasks: names of the K tasks, in order.
      layers: number of layers above the embeddings.
      trunk: last layer shared by all: "all", "none", "embed" or "layer_XX".
      groups: layer -> partition of the tasks, from this layer up to the next one named. Takes precedence over `trunk`.
      known_tasks: names that groups may contain in addition to `tasks` (tasks of the config that are not trained).
      fields: of `config.sharing` that have `trunk` and `groups`, for errors.

    Returns:
      path -> int tuple of length K.

    Raises:
      UserError: an unknown layer or task, a task in no group or in two.
    """
    every = layer_paths(layers)
    if trunk not in ("all", "none", *every):
        raise UserError(
            f"config.sharing.{fields[0]}: {trunk!r} is none of 'all', 'none', {', '.join(map(repr, every))}"
        )
    groups = dict(groups or {})
    for path in groups:
        if path not in every:
            raise UserError(
                f"config.sharing.{fields[1]}: there is no layer {path!r}; the layers are {', '.join(every)}"
            )
    shared_until = {"all": len(every), "none": 0}.get(trunk, every.index(trunk) + 1 if trunk in every else 0)
    owners, partition = {}, None
    for number, path in enumerate(every):
        if path in groups:
            where = f"config.sharing.{fields[1]}.{path}"
            partition = _partition(where, groups[path], tasks, known_tasks or tasks)
        if partition is not None:
            owners[path] = partition
        else:
            owners[path] = (0,) * len(tasks) if number < shared_until else tuple(range(len(tasks)))
    return owners


def mixed_layers(owners: Owners, chosen: Sequence[str], where: str) -> tuple[str, ...]:
    """The layers after which the columns of the tasks are mixed.

    Args:
      owners: of every layer.
      chosen: `config.sharing.mixer_layers`; (): by `where`, "each" layer above the embeddings of which each task owns
        a column | the "top" one of them.

    Raises:
      UserError: a layer that is unknown, or that tasks share; none that could be mixed.
    """
    columns = [path for path, owner in owners.items() if len(set(owner)) == len(owner)]
    _require_known(owners, chosen)
    for path in chosen:
        if path not in columns:
            raise UserError(
                f"config.sharing.mixer_layers: {path!r} is shared by tasks, so there are not as many columns as tasks "
                f"to be mixed; columns are {', '.join(columns) or 'none'} (config.sharing.trunk, "
                "config.sharing.task_groups)"
            )
    layers = [path for path in owners if path in chosen] if chosen else [p for p in columns if p != "embed"]
    if not layers:
        raise UserError(
            "config.sharing.mixer: no layer has a column for each task; set config.sharing.trunk = 'none' or to a "
            "lower layer"
        )
    return tuple(layers if chosen or where == "each" else layers[-1:])


def expert_layers(
    owners: Owners, mixer: str, chosen: Sequence[str], where: str, trunk: str = "all"
) -> tuple[tuple[str, ...], ...]:
    """The layers that are experts, all above the trunk, and those of them after which gates stand.

    Args:
      owners: of every layer; the trunk is shared by all, each other layer stands for experts.
      mixer: its name, for errors.
      chosen: `config.sharing.mixer_layers`; (): by `where`, after "each" layer of experts | the "top" one.
      trunk: `config.sharing.trunk`; of a single task, which owns all layers, it alone tells where experts begin.

    Raises:
      UserError: no shared layer below or none above it, groups of tasks, no gate at the top.
    """
    shared = [path for path, owner in owners.items() if owner_count(owner) == 1]
    if all(len(owner) == 1 for owner in owners.values()):
        shared = shared[: {"all": len(shared), "none": 0}.get(trunk, [*shared, trunk].index(trunk) + 1)]
    above = [path for path in owners if path not in shared]
    where_set = "config.sharing.trunk, config.sharing.task_groups"
    if not shared or list(owners)[: len(shared)] != shared or not above:
        raise UserError(
            f"config.sharing.mixer: {mixer!r} has experts above a trunk that all tasks share, at least 'embed'; here "
            f"these are shared by all: {', '.join(shared) or 'none'}, and these are not: {', '.join(above) or 'none'} "
            f"({where_set})"
        )
    _require_known(owners, chosen)
    for path in chosen:
        if path in shared:
            raise UserError(
                f"config.sharing.mixer_layers: {path!r} is below the experts {', '.join(above)} ({where_set})"
            )
    if chosen and above[-1] not in chosen:
        raise UserError(
            f"config.sharing.mixer_layers: heads read the gates after the top layer; name {above[-1]!r} too"
        )
    gates = [path for path in above if path in chosen] if chosen else above if where == "each" else above[-1:]
    return tuple(above), tuple(gates)


def expert_names(tasks: Sequence[str], columns: Sequence[int | None]) -> tuple[str, ...]:
    """ "shared 0", "shared 1", ..., "ner 0", ...: column by column."""
    numbers: dict[int | None, int] = {}
    names = []
    for task in columns:
        number = numbers[task] = numbers.get(task, -1) + 1
        names.append(f"{'shared' if task is None else tasks[task]} {number}")
    return tuple(names)


def cascade_order(tasks: Sequence[str], feeds: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The tasks in an order in which each comes after those whose labels it receives.

    Raises:
      UserError: naming the cycle, or a task that is not known.
    """
    for task, sources in feeds.items():
        for name in (task, *sources):
            if name not in tasks:
                raise UserError(f"config.sharing.cascades: there is no task {name!r}; the tasks are {', '.join(tasks)}")
    order: list[str] = []

    def visit(task, above):
        if task in above:
            cycle = " → ".join([*above[above.index(task) :], task][::-1])
            raise UserError(f"config.sharing.cascades: labels would be passed on in a circle: {cycle}")
        if task not in order:
            for source in feeds.get(task, ()):
                visit(source, (*above, task))
            order.append(task)

    for task in tasks:
        visit(task, ())
    return tuple(order)


def _require_known(owners: Owners, chosen: Sequence[str]) -> None:
    for path in chosen:
        if path not in owners:
            raise UserError(
                f"config.sharing.mixer_layers: there is no layer {path!r}; the layers are {', '.join(owners)}"
            )


def _partition(where, groups, tasks, known_tasks):
    group_of: dict[str, int] = {}
    for number, group in enumerate(groups):
        if isinstance(group, str):
            raise UserError(f"{where}: a group is a tuple of task names, got the text {group!r}; write ({group!r},)")
        for name in group:
            if name not in known_tasks:
                raise UserError(f"{where}: there is no task {name!r}; the tasks are {', '.join(known_tasks)}")
            if name in group_of:
                raise UserError(f"{where}: task {name!r} is in two groups")
            group_of[name] = number
    if missing := [name for name in tasks if name not in group_of]:
        raise UserError(f"{where}: in no group: {', '.join(missing)}")
    order: dict[int, int] = {}
    return tuple(order.setdefault(group_of[name], len(order)) for name in tasks)


def owner_count(owner: Owner) -> int:
    """O, the number of owners of a layer."""
    return len(owner.tasks) if isinstance(owner, ExpertColumns) else max(owner) + 1


def sole_tasks(owner: Owner) -> tuple[int | None, ...]:
    """For each of the O owners the one task that it serves, or None where several tasks share it."""
    if isinstance(owner, ExpertColumns):
        return owner.tasks
    served: list[list[int]] = [[] for _ in range(owner_count(owner))]
    for task, o in enumerate(owner):
        served[o].append(task)
    return tuple(tasks[0] if len(tasks) == 1 else None for tasks in served)


def owner_names(owner: Owner, tasks: Sequence[str]) -> tuple[str, ...]:
    """A name for each of the O owners: that of its task, or of its tasks one after another."""
    if isinstance(owner, ExpertColumns):
        return owner.names
    return tuple(
        "+".join(task for task, o in zip(tasks, owner, strict=True) if o == number)
        for number in range(owner_count(owner))
    )


def name_key(name: str) -> int:
    """A number for a name, uint32, the same in every process: randomness is keyed by names, not by positions."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


SliceOwners = Mapping[str, tuple[int, ...]]


def slice_owners(
    paths: Iterable[str], owners: Owners, groups: Mapping[str, tuple[int, ...]], tasks: int
) -> dict[str, tuple[int, ...]]:
    """For each path the owner group of each slice of its leaf: 0..K-1 a task, K shared by several.

    Args:
      paths: of layers, leaves [O, ...], and of heads by group of tasks, leaves [K_g, ...].
      owners: of each layer.
      groups: {group of tasks: indices of its tasks}.
      tasks: K.
    """
    result = {}
    for path in paths:
        layer, *rest = path.split("/")
        if layer == "heads":
            result[path] = groups[rest[0]]
        else:
            result[path] = tuple(tasks if task is None else task for task in sole_tasks(owners[layer]))
    return result
