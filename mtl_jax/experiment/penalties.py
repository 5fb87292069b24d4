"""From `config.penalties` to the terms λ·Ω of the objective: which leaves, grouped how, with which factors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import sharing
from mtl_jax.errors import UserError
from mtl_jax.models.ownership import ExpertColumns, Owners, owner_count
from mtl_jax.sharing import select
from mtl_jax.training.objective import FlatParams, Penalty
from mtl_jax.training.placement import spread_features

SCHEDULES = {"constant": jnp.ones_like, "rise": lambda progress: progress, "fall": lambda progress: 1.0 - progress}
_FACTORS = re.compile(r"^adapter_[^/]+/.*/(a|b)$")  # those of LoRA, see `models.adapters`
GRAPH_OPTIONS = ("adjacency", "weights")  # arguments of penalties that are a graph of tasks


def task_stacks(flat: FlatParams, owners: Owners) -> dict[str, jax.Array]:
    """The leaves that tasks do not all share, each `[K, ...]`: a group's slice stands once for each of its tasks. Of
    experts those of the tasks' own; `[K, P, ...]` where a task has P > 1 of them.

    With K = 1 these are all leaves of layers.
    """
    stacks = {}
    for path, leaf in flat.items():
        owner = owners.get(path.split("/")[0])
        if isinstance(owner, ExpertColumns):
            if (own := _own_experts(owner)).size:
                stacks[path] = leaf[own]
        elif owner is not None and (owner_count(owner) > 1 or len(owner) == 1):
            stacks[path] = leaf if owner_count(owner) == len(owner) else leaf[np.asarray(owner)]
    return stacks


def _own_experts(owner: ExpertColumns) -> np.ndarray:
    """int[K], or int[K, P]: the columns of each task's own; empty where all are shared."""
    tasks = dict.fromkeys(task for task in owner.tasks if task is not None)
    own = np.asarray([[column for column, of in enumerate(owner.tasks) if of == task] for task in tasks], np.int64)
    return own[:, 0] if own.ndim == 2 and own.shape[1] == 1 else own


def build_penalties(
    penalties: Mapping[str, Any],
    owners: Mapping[str, tuple[int, ...]],
    tasks: Sequence[str],
    all_tasks: Sequence[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[dict[str, Penalty], bool]:
    """The penalties of a config, and whether one of them needs the initial values as anchor.

    Args:
      penalties: name -> `config.default.penalty`.
      owners: path of layer -> owner of each task.
      tasks: the K tasks that are trained.
      all_tasks: the tasks of the config: the order of matrices in options.
      shapes: flat dict of the parameters' shapes.

    Raises:
      UserError: naming the field, for what does not fit: leaves that no regex finds or of different K, options, ...
    """
    built, anchored = {}, False
    stacked = bool(jax.eval_shape(lambda flat: task_stacks(flat, owners), dict(shapes)))
    for name, entry in penalties.items():
        where = f"config.penalties.{name}"
        if not stacked and entry.strength == 0:
            continue  # hard sharing by one override: trunk = "all" and λ = 0
        try:
            penalty, needs_anchor = _penalty(where, entry, owners, tasks, all_tasks, shapes)
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError(f"{where}: {error}") from None
        built[name] = penalty
        anchored |= needs_anchor
    return built, anchored


def _penalty(where, entry, owners, tasks, all_tasks, shapes):
    options = _options(where, entry, tasks, all_tasks)
    parameters = inspect.signature(sharing.PENALTIES[entry.kind]).parameters
    anchored = "anchor" in parameters or options.get("center") == "anchor"
    evaluate = select.build(entry.kind, entry.leaves, entry.scope, options)
    stacks = jax.eval_shape(lambda flat: task_stacks(flat, owners), dict(shapes))
    if not stacks:
        experts = [path for path, owner in owners.items() if isinstance(owner, ExpertColumns)]
        if experts:
            raise UserError(
                f"{where}: no task has parameters of its own that could be drawn together; the experts at "
                f"{', '.join(experts)} serve all tasks (config.sharing.mixer). Take 'cgc' or 'ple' with private "
                "experts, or columns in the place of experts (config.sharing.mixer = '')"
            )
        raise UserError(
            f"{where}: no task has parameters of its own that could be drawn together; config.sharing.trunk is such "
            "that all layers are shared. Set it to 'none' (each task a model of its own) or to a lower layer"
        )
    groups = select.group_leaves(stacks, entry.leaves, entry.scope)
    if "factors" in parameters:
        _require_factors(where, entry.kind, [path for group in groups.values() for path in group])
    for layer in entry.by_layer:
        if layer not in {group.split("/")[0] for group in groups}:
            raise UserError(
                f"{where}.by_layer: {layer!r} is no layer of this penalty; "
                + ("with scope 'tree' λ is one number" if entry.scope == "tree" else f"there are {', '.join(groups)}")
            )

    def value(flat, anchor, by_layer):
        values = evaluate(spread_features(task_stacks(flat, owners)), spread_features(task_stacks(anchor, owners)))
        return sum((_factor(by_layer, group) * omega for group, omega in values.items()), jnp.float32(0.0))

    # what does not fit is said here and not inside the step
    jax.eval_shape(lambda flat: value(flat, flat, entry.by_layer), dict(shapes))
    proximal, reason = _proximal(entry, options, owners, groups)
    if entry.proximal and proximal is None:
        raise UserError(f"{where}.proximal: {reason}")
    way = "proximal" if entry.proximal else "gradient"
    curvature = sharing.curvature(entry.kind, options, len(tasks))
    paths = [path for group in groups.values() for path in group]

    def chosen(flat):
        found = task_stacks(flat, owners)
        return spread_features({path: found[path] for path in paths})

    return Penalty(value, proximal, way, curvature, SCHEDULES[entry.schedule], chosen), anchored


def _require_factors(where, kind, paths):
    """½(‖U‖² + ‖V‖²) is about the rank of U·V; of leaves that are no factors it is weight decay."""
    if whole := [path for path in paths if not _FACTORS.search(path)]:
        raise UserError(
            f"{where}.kind: {kind!r} is half the squares of factors, but {whole[0]} is no factor: that would be "
            "weight decay. Factors are those of config.sharing.adapter = 'lora' (leaves = '^adapter_'); on whole "
            "parameters take 'trace_norm'"
        )


def _factor(by_layer, group):
    return jnp.asarray(by_layer.get(group.split("/")[0], 1.0), jnp.float32)


def _proximal(entry, options, owners, groups):
    """The operator and "", or None and why there is none."""
    if entry.kind not in sharing.PROXIMAL:
        return None, f"there is no exact operator for {entry.kind!r}; there is for {', '.join(sharing.PROXIMAL)}"
    for path in (path for group in groups.values() for path in group):
        owner = owners[path.split("/")[0]]
        if not isinstance(owner, ExpertColumns) and owner_count(owner) < len(owner):
            return None, (
                f"{path} is owned by groups of tasks, where the operator is not exact; "
                "narrow `leaves` to layers that each task owns, or set proximal=False"
            )
    try:
        transform = select.build_proximal(entry.kind, entry.leaves, entry.scope, options)
    except ValueError as error:  # an option that the penalty has and the operator has not
        return None, f"of the operator: {error}"

    def proximal(updates, flat, anchor, by_layer, t):
        own = spread_features(task_stacks(flat, owners))
        strengths = {group: t * _factor(by_layer, group) for group in groups}
        entering = spread_features(task_stacks({path: updates[path] for path in own}, owners))
        moved, _ = transform(strengths, task_stacks(anchor, owners)).update(entering, optax.EmptyState(), own)
        return {**updates, **{path: into(path, updates[path], leaf) for path, leaf in moved.items()}}

    def into(path, leaf, moved):
        """Back among the experts that tasks share."""
        owner = owners[path.split("/")[0]]
        return leaf.at[_own_experts(owner)].set(moved) if isinstance(owner, ExpertColumns) else moved

    return proximal, ""


def _graph_option(kind: str) -> str | None:
    """The argument of a penalty that is a graph of tasks."""
    return next((name for name in inspect.signature(sharing.PENALTIES[kind]).parameters if name in GRAPH_OPTIONS), None)


def _options(where, entry, tasks, all_tasks):
    """Options with matrices as float32 [K, K] over the trained tasks, and graphs of task names as such matrices."""
    options = {key: value for key, value in entry.options.items()}
    chosen = [all_tasks.index(task) for task in tasks]
    if "edges" in options:
        graph = _graph_option(entry.kind)
        if graph is None:
            others = [name for name in sharing.PENALTIES if _graph_option(name)]
            raise UserError(f"{where}.options.edges: {entry.kind!r} has no graph of tasks; {', '.join(others)} have")
        matrix = np.zeros((len(all_tasks), len(all_tasks)), np.float32)
        for edge in options.pop("edges"):
            first, second, weight = edge
            for task in (first, second):
                if task not in all_tasks:
                    raise UserError(
                        f"{where}.options.edges: there is no task {task!r}; there are {', '.join(all_tasks)}"
                    )
            i, j = all_tasks.index(first), all_tasks.index(second)
            matrix[i, j] = matrix[j, i] = float(weight)
        options[graph] = matrix
    for key, value in options.items():
        if isinstance(value, tuple | list | np.ndarray) and np.ndim(value) == 2:
            matrix = np.asarray(value, np.float32)
            if matrix.shape != (len(all_tasks),) * 2:
                raise UserError(
                    f"{where}.options.{key}: a matrix over the {len(all_tasks)} tasks of the config is "
                    f"[{len(all_tasks)}, {len(all_tasks)}], not {list(matrix.shape)}"
                )
            options[key] = matrix[np.ix_(chosen, chosen)]
    return options
