"""From `config.penalties` to the terms λ·Ω of the objective: which leaves, grouped how, with which factors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from mtl_jax import sharing
from mtl_jax.config.entries import Penalty as PenaltyEntry
from mtl_jax.errors import UserError
from mtl_jax.models.adapters.base import Adapter, joined
from mtl_jax.models.ownership import ExpertColumns, Owners, adapter_path, owner_count, shared_adapter_path
from mtl_jax.sharing import LowRankStack, leaf_selection
from mtl_jax.training.objective import FlatParams, Penalty
from mtl_jax.training.placement import spread_features
from mtl_jax.training.schedules import PENALTY_SCHEDULES
from mtl_jax.training.state import IMPORTANCE, importance

_FACTORS = re.compile(r"^adapter_[^/]+/.*/(a|b)$")  # those of LoRA, see `models.adapters`
FISHER = "fisher"  # the option importance: of the initial values for earlier tasks, see `runs.importance`
GRAPH_OPTIONS = ("adjacency", "weights")  # arguments of penalties that are a graph of tasks


def task_stacks(flat: FlatParams, owners: Owners) -> dict[str, jax.Array]:
    """{path: leaf [K, ...]} of leaves that not all tasks share; the slice of a group is repeated for each of its tasks.

    Of experts those that are private to a task, [K, P, ...] where each task has P > 1. With K = 1 all leaves of layers.
    """
    stacks = {}
    for path, leaf in flat.items():
        owner = owners.get(path.split("/")[0])
        if isinstance(owner, ExpertColumns):
            if (private := _private_experts(owner)).size:
                stacks[path] = leaf[private]
        elif owner is not None and (owner_count(owner) > 1 or len(owner) == 1):
            stacks[path] = leaf if owner_count(owner) == len(owner) else leaf[np.asarray(owner)]
    return stacks


def adapter_products(flat: FlatParams, owners: Owners, adapters: Mapping[str, Adapter]) -> dict[str, LowRankStack]:
    """{path of adapter/path of kernel: the K products A_k B_k} of adapters that add such to kernels and that not all
    tasks share; of groups repeated for each of their tasks.
    """
    products = {}
    for path, adapter in adapters.items():
        name, owner = adapter_path(path), owners[adapter_path(path)]
        if adapter.factors is None or isinstance(owner, ExpertColumns) or owner_count(owner) < min(len(owner), 2):
            continue
        if not (stacks := _subtree(flat, name)):  # no anchor is kept
            continue
        own = jax.tree.map(lambda leaf, owner=owner: leaf[np.asarray(owner)], stacks)
        shared = jax.tree.map(lambda leaf: leaf[0], _subtree(flat, shared_adapter_path(path)))
        pairs = jax.vmap(lambda own, adapter=adapter, shared=shared: adapter.factors(joined(own, shared)))(own)
        products |= {f"{name}/{kernel}": LowRankStack(*pair) for kernel, pair in pairs.items()}
    return products


def _subtree(flat: FlatParams, name: str) -> dict[str, Any]:
    leaves = {path.removeprefix(f"{name}/"): leaf for path, leaf in flat.items() if path.startswith(f"{name}/")}
    return unflatten_dict(leaves, sep="/")


def _private_experts(owner: ExpertColumns) -> np.ndarray:
    """int [K] or [K, P], the columns that are private to each task; empty where all are shared."""
    tasks = dict.fromkeys(task for task in owner.tasks if task is not None)
    columns = np.asarray([[i for i, other in enumerate(owner.tasks) if other == task] for task in tasks], np.int64)
    return columns[:, 0] if columns.ndim == 2 and columns.shape[1] == 1 else columns


def build_penalties(
    penalties: Mapping[str, PenaltyEntry],
    owners: Owners,
    tasks: Sequence[str],
    all_tasks: Sequence[str],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    adapters: Mapping[str, Adapter],
) -> tuple[dict[str, Penalty], frozenset[str]]:
    """The penalties of a config, and what they need to remember: "anchor", the initial values; "importance" of these.

    Args:
      penalties: {name: entry of `config.penalties`}.
      owners: path of layer -> owner of each task.
      tasks: the K trained tasks.
      all_tasks: the tasks of the config, in the order of matrices in options.
      shapes: {path: shape of the parameter}.
      adapters: path of a layer -> the adapter on it.

    Raises:
      UserError: what does not fit, by field: leaves that no regex matches or of different K, options, ...
    """
    built, needs = {}, frozenset()
    stacked = bool(jax.eval_shape(lambda flat: task_stacks(flat, owners), dict(shapes)))
    for name, entry in penalties.items():
        where = f"config.penalties.{name}"
        if not stacked and not entry.shared and entry.strength == 0:
            continue  # hard sharing by one override: trunk = "all" and λ = 0
        try:
            penalty, remembered = _penalty(_Context(where, entry, owners, tasks, all_tasks, adapters), shapes)
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError(f"{where}: {error}") from None
        built[name] = penalty
        needs |= remembered
    return built, needs


def shared_stacks(flat: FlatParams, owners: Owners) -> dict[str, jax.Array]:
    """{path: leaf [1, ...]} of the leaves that all tasks share."""
    owner_of = {path: owners.get(path.split("/")[0]) for path in flat}
    return {path: leaf for path, leaf in flat.items() if (o := owner_of[path]) is not None and owner_count(o) == 1}


class _Context(NamedTuple):
    """A penalty that is built: its field `where` and its entry in the config; owners, tasks, all_tasks as above."""

    where: str
    entry: PenaltyEntry
    owners: Owners
    tasks: Sequence[str]
    all_tasks: Sequence[str]
    adapters: Mapping[str, Adapter]

    def stacks(self, flat: FlatParams) -> dict[str, jax.Array]:
        """What is penalised, by path; with `shared` leaves [1, ...]."""
        if self.entry.shared:
            return spread_features(shared_stacks(flat, self.owners))
        if self.entry.on == "product":
            return adapter_products(flat, self.owners, self.adapters)
        stacks = spread_features(task_stacks(flat, self.owners))
        if self.reads_factors:  # those that tasks share too
            stacks |= {path: leaf for path, leaf in flat.items() if path not in stacks and _FACTORS.search(path)}
        return stacks

    @property
    def reads_factors(self) -> bool:
        """Whether Ω is of factors, of any shape."""
        return "factors" in inspect.signature(sharing.PENALTIES[self.entry.kind]).parameters


def _penalty(context: _Context, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Penalty, frozenset[str]]:
    """The term, and what it needs to remember."""
    where, entry, owners, tasks = context[:4]
    options = _options(context)
    parameters = inspect.signature(sharing.PENALTIES[entry.kind]).parameters
    needs = {"anchor"} if "anchor" in parameters or options.get("center") == "anchor" else set()
    if (weighted := "importance" in parameters and options.pop("importance", "")) and weighted != FISHER:
        raise UserError(f"{where}.options.importance: {weighted!r} should be {FISHER!r}, or left out")
    needs |= {"importance"} if weighted else set()
    if entry.shared and "anchor" not in parameters:
        known = [kind for kind, make in sharing.PENALTIES.items() if "anchor" in inspect.signature(make).parameters]
        raise UserError(
            f"{where}.shared: {entry.kind!r} compares the parameters of tasks, and shared ones are the same; "
            f"{', '.join(known)} compare them with their initial values"
        )
    evaluate = leaf_selection.build(entry.kind, entry.params, entry.scope, options)
    stacks = jax.eval_shape(context.stacks, dict(shapes))
    if entry.on == "product":
        if weighted or entry.shared:
            field = "options.importance" if weighted else "shared"
            raise UserError(f"{where}.{field}: is of single parameters; take on = 'factors'")
        _require_products(context, stacks)
    if not stacks and entry.shared:
        raise UserError(f"{where}.shared: there is no layer that all tasks share (config.sharing.trunk)")
    if not stacks:
        raise UserError(f"{where}: no task has parameters of its own that could be penalised; {_why_shared(owners)}")
    groups = leaf_selection.group_leaves(stacks, entry.params, entry.scope, not context.reads_factors)
    paths = [path for group in groups.values() for path in group]
    if context.reads_factors:
        _require_factors(where, entry.kind, paths)
    for layer in entry.by_layer:
        if layer not in {group.split("/")[0] for group in groups}:
            known = "with scope 'tree' λ is one number" if entry.scope == "tree" else f"there are {', '.join(groups)}"
            raise UserError(f"{where}.by_layer: {layer!r} is no layer of this penalty; {known}")

    def value(flat: FlatParams, anchor: FlatParams, by_layer: Mapping[str, jax.Array]) -> jax.Array:
        values = evaluate(context.stacks(flat), context.stacks(anchor), importance_of(anchor))
        return sum((_factor(by_layer, group) * omega for group, omega in values.items()), jnp.float32(0.0))

    def importance_of(anchor: FlatParams) -> FlatParams | None:
        return context.stacks(importance(anchor)) if weighted else None

    # errors are raised here and not inside the step
    remembered = dict(shapes) | ({f"{IMPORTANCE}{path}": shape for path, shape in shapes.items()} if weighted else {})
    jax.eval_shape(lambda flat, anchor: value(flat, anchor, entry.by_layer), dict(shapes), remembered)
    proximal, reason = _proximal(context, options, groups, importance_of)
    if entry.proximal and proximal is None:
        raise UserError(f"{where}.proximal: {reason}")
    way = "proximal" if entry.proximal else "gradient"
    curvature = None if weighted or entry.on == "product" else sharing.curvature(entry.kind, options, len(tasks))

    def penalised(flat: FlatParams) -> dict[str, jax.Array]:
        stacks = {} if entry.shared else task_stacks(flat, owners)
        stacks = stacks or context.stacks(flat)  # the latter: what all tasks share
        chosen = [path for path in stacks if path in paths or path.rpartition("/")[0] in paths]
        return spread_features({path: stacks[path] for path in chosen})

    return Penalty(value, proximal, way, curvature, PENALTY_SCHEDULES[entry.schedule], penalised), frozenset(needs)


def _why_shared(owners: Owners) -> str:
    """Why no task has parameters of its own, and what would give it some."""
    if experts := [path for path, owner in owners.items() if isinstance(owner, ExpertColumns)]:
        return (
            f"the experts at {', '.join(experts)} serve all tasks (config.sharing.mixer). Take 'cgc' or 'ple' with "
            "private experts, or columns instead of experts (config.sharing.mixer = '')"
        )
    return (
        "with this config.sharing.trunk all layers are shared. Set it to 'none' (a separate model for each task) or to "
        "a lower layer"
    )


def _require_factors(where: str, kind: str, paths: Sequence[str]) -> None:
    """Raises UserError for leaves that are no factors: only of factors does ½(‖U‖² + ‖V‖²) bound a trace norm."""
    if others := [path for path in paths if not _FACTORS.search(path)]:
        raise UserError(
            f"{where}.kind: {kind!r} is half the squares of factors, but {others[0]} is no factor: that would be "
            "weight decay. Factors are those of config.sharing.adapter = 'lora' (leaves = '^adapter_'); for full "
            "parameters take 'trace_norm'"
        )


def _require_products(context: _Context, stacks: Mapping[str, LowRankStack]) -> None:
    """Raises UserError where there are no products, or Ω would have to form them."""
    where, kind = context.where, context.entry.kind
    if kind not in sharing.OF_PRODUCTS:
        raise UserError(
            f"{where}.on: {kind!r} reads the entries of a matrix, and a product of factors is not formed; take "
            f"'factors', or one of {', '.join(sharing.OF_PRODUCTS)}"
        )
    if not stacks:
        raise UserError(
            f"{where}.on: 'product' is of adapters that add a matrix of low rank to kernels and that not all tasks "
            "share (config.sharing.adapter = 'lora', config.sharing.adapter_owner), and there are none"
        )


def _factor(by_layer: Mapping[str, jax.Array | float], group: str) -> jax.Array:
    """The factor on λ in the layer of a group."""
    return jnp.asarray(by_layer.get(group.split("/")[0], 1.0), jnp.float32)


def _proximal(
    context: _Context,
    options: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    importance_of: Callable[[FlatParams], FlatParams | None],
) -> tuple[Callable[..., FlatParams] | None, str]:
    """The operator and "", or None and the reason."""
    entry, owners = context.entry, context.owners
    if entry.on == "product":
        return None, (
            "what the operator gives are sums of the products of all tasks, whose rank is above that of the factors; "
            "take on = 'factors' or a gradient"
        )
    if entry.kind not in sharing.PROXIMAL:
        return None, f"there is no exact operator for {entry.kind!r}; there is for {', '.join(sharing.PROXIMAL)}"
    for path in (path for group in groups.values() for path in group):
        owner = owners[path.split("/")[0]]
        if not entry.shared and not isinstance(owner, ExpertColumns) and owner_count(owner) < len(owner):
            return None, (
                f"{path} is owned by groups of tasks, where the operator is not exact; "
                "narrow `leaves` to layers that each task owns, or set proximal=False"
            )
    try:
        transform = leaf_selection.build_proximal(entry.kind, entry.params, entry.scope, options)
    except ValueError as error:  # an option of the penalty that the operator does not have
        return None, str(error)

    def proximal(
        updates: FlatParams, flat: FlatParams, anchor: FlatParams, by_layer: Mapping[str, jax.Array], t: jax.Array
    ) -> FlatParams:
        stacks = context.stacks(flat)
        strengths = {group: t * _factor(by_layer, group) for group in groups}
        before = context.stacks({path: updates[path] for path in stacks})
        operator = transform(strengths, context.stacks(anchor), importance_of(anchor))
        after, _ = operator.update(before, optax.EmptyState(), stacks)
        return {**updates, **{path: insert(path, updates[path], leaf) for path, leaf in after.items()}}

    def insert(path: str, leaf: jax.Array, moved: jax.Array) -> jax.Array:
        """The private experts put back among those that tasks share."""
        owner = owners[path.split("/")[0]]
        return leaf.at[_private_experts(owner)].set(moved) if isinstance(owner, ExpertColumns) else moved

    return proximal, ""


def _graph_option(kind: str) -> str | None:
    """The argument of a penalty that is a graph of tasks."""
    return next((name for name in inspect.signature(sharing.PENALTIES[kind]).parameters if name in GRAPH_OPTIONS), None)


def _options(context: _Context) -> dict[str, Any]:
    """Options, with matrices as float32 [K, K] over the trained tasks and graphs of task names as such matrices."""
    where, entry, _, tasks, all_tasks, _ = context
    options = dict(entry.options.items())
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
