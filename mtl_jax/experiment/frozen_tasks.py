"""What stays as it is of a run that another one continues: the parts of each parameter that frozen tasks read, and
those that untrained tasks alone own, which no gradient reaches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from mtl_jax.config.sections import InitFrom
from mtl_jax.errors import UserError
from mtl_jax.models.network_spec import SharingSpec
from mtl_jax.models.ownership import ExpertColumns, Owner, Owners, mixer_path, owner_count

Masks = dict[str, np.ndarray]  # {path: bool, broadcastable to the leaf}


def frozen_parts(
    config: InitFrom,
    tasks: Sequence[str],
    owners: Owners,
    sharing: SharingSpec,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> Masks:
    """The parts that stay: of heads, of layers by owner, of mixers by the rows of tasks.

    Args:
      config: names frozen and untrained tasks.
      tasks: the K tasks.
      owners: path of layer -> owner of each task.
      sharing: what stands between layers and tasks.
      shapes: {path: shape}, those of heads by the names of their tasks.
    """
    frozen, untrained = _with_feeding(config.freeze, sharing.cascades), set(config.untrained)
    numbers, idle = ([k for k, task in enumerate(tasks) if task in names] for names in (frozen, untrained))
    if not numbers and not idle:
        return {}
    mixers = {mixer_path(path): mixer for path, mixer in sharing.mixers.items()}
    masks: Masks = {}
    for path, shape in shapes.items():
        layer, leaf = path.split("/", 1)
        if layer == "heads":
            if leaf.split("/")[0] in frozen | untrained:
                masks[path] = np.ones((1,) * len(shape.shape), bool)
            continue
        if layer in mixers:
            roles = mixers[layer].axes.get(leaf, ())
            mask = locked_rows(roles, shape.shape[1:], len(tasks), numbers, bool(numbers))[None]
            mask = mask | locked_rows(roles, shape.shape[1:], len(tasks), idle, False)[None]
        else:
            slices = _read_by(owners[layer], numbers) | _owned_by(owners[layer], idle)
            mask = slices.reshape((-1,) + (1,) * (len(shape.shape) - 1))
        if mask.any():
            masks[path] = mask
    return masks


def require_separable(
    frozen: Collection[str], continued: Mapping[str, str], known: Sequence[str], sharing: SharingSpec
) -> None:
    """Raises UserError where a frozen task reads columns of a task of its run that goes on learning.

    `continued`: {task here: task of the run `known`}.
    """
    if not frozen or not sharing.passes_all_columns:
        return
    if others := [task for task in continued if task not in frozen]:
        raise UserError(
            f"config.init_from.freeze: the mixer gives {', '.join(sorted(frozen))} features of all columns of the run, "
            f"also of {', '.join(others)}, which would go on learning; freeze these too"
        )


def locked_rows(
    roles: Sequence[str], shape: Sequence[int], tasks: int, chosen: Sequence[int], shared: bool = True
) -> np.ndarray:
    """bool, broadcastable to `shape` [...]: the rows of a mixer that give chosen tasks, and if `shared` the shared
    stream, their features; `roles` as `Mixer.axes`.
    """
    axis = next((i for i, role in enumerate(roles) if role in ("task", "stream")), None)
    if axis is None:
        return np.zeros((1,) * len(shape), bool)
    units = max(shape[axis] // tasks, 1) if roles[axis] == "task" else 1
    row_task = np.arange(shape[axis]) // units
    mask = np.isin(row_task, list(chosen)) | ((row_task >= tasks) & shared)
    return mask.reshape((-1,) + (1,) * (len(shape) - axis - 1))


def _read_by(owner: Owner, tasks: Sequence[int]) -> np.ndarray:
    """bool[O]: the owners that serve one of the tasks."""
    if isinstance(owner, ExpertColumns):
        return np.asarray([bool(tasks) and (task is None or task in tasks) for task in owner.tasks])
    return np.isin(np.arange(owner_count(owner)), [owner[k] for k in tasks])


def _owned_by(owner: Owner, tasks: Sequence[int]) -> np.ndarray:
    """bool[O]: the owners that serve none but the tasks."""
    if isinstance(owner, ExpertColumns):
        return np.asarray([task is not None and task in tasks for task in owner.tasks])
    others = [owner[k] for k in range(len(owner)) if k not in tasks]
    return ~np.isin(np.arange(owner_count(owner)), others)


def _with_feeding(frozen: Collection[str], cascades: Mapping[str, Sequence[str]]) -> set[str]:
    """The tasks, and those whose labels they receive."""
    result, new = set(frozen), list(frozen)
    while new:
        sources = cascades.get(new.pop(), ())
        new += [task for task in sources if task not in result]
        result.update(sources)
    return result
