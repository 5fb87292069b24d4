"""Penalties and proximal operators on the leaves that a regular expression chooses, over the tree, by layer or by leaf.

Leaves are named by their path, "/" between the keys: "layer_03/attention/query/kernel". A group is what a penalty sees
as one tree: all chosen leaves ("tree"), those with one first component ("layer"), or each alone ("leaf").
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.sharing.gram import Tree
from mtl_jax.sharing.low_rank_stack import is_stack
from mtl_jax.sharing.proximal import as_transform
from mtl_jax.sharing.registry import PENALTIES, PROXIMAL

SCOPES = ("tree", "layer", "leaf")
FlatTree = Mapping[str, jax.Array]


def flatten_paths(params: Tree) -> dict[str, jax.Array]:
    """Nested dicts {"layer_03": {"kernel": x}} as {"layer_03/kernel": x}; a flat dict stays as it is."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_stack)
    return {_path_name(path): leaf for path, leaf in leaves}


def build(
    kind: str, params: str = ".*", scope: str = "tree", options: Mapping[str, Any] | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """A penalty by name, on the leaves chosen by path.

    Args:
      kind: a name of `PENALTIES`.
      params: regular expression, searched anywhere in the path ("^" and "$" anchor it).
      scope: "tree", "layer" or "leaf": what is one group.
      options: arguments of the penalty other than the tree, such as {"center": "mean"}; center "anchor" is the anchor.

    Returns:
      penalty(leaves, anchor=None, importance=None): flat dict of paths to leaves [K, ...] (nested dicts are flattened)
      -> dict of group name to Ω, scalars; the group of scope "tree" is named "tree". `anchor` is a tree with the same
      paths (it may have more) and leaves [...] or [K, ...]: an argument, so that pretrained parameters are not compiled
      in as constants. `importance` likewise, of penalties that have it.

    Raises:
      ValueError: here for an unknown kind, scope or option or an invalid expression; at the call if no leaf is chosen,
        the leaves of one group differ in K, or an anchor is needed and absent.
    """
    function = _look_up("penalty", kind, PENALTIES)
    options = _check(kind, function, params, scope, options)
    same_tasks = "factors" not in inspect.signature(function).parameters  # those of any shape

    def penalty(leaves: Tree, anchor: Tree | None = None, importance: Tree | None = None) -> dict[str, jax.Array]:
        return {
            name: function(group, **_arguments(kind, function, options, group, anchor), **_of_group(group, importance))
            for name, group in group_leaves(flatten_paths(leaves), params, scope, same_tasks).items()
        }

    return penalty


def build_proximal(
    kind: str, params: str = ".*", scope: str = "tree", options: Mapping[str, Any] | None = None
) -> Callable[..., optax.GradientTransformation]:
    """A proximal operator by name, on the leaves chosen by path; arguments as for `build`, kind a name of `PROXIMAL`.

    Returns:
      transform(t, anchor=None, importance=None) -> optax.GradientTransformation to chain after the optimizer; t =
      lr · λ, a scalar or a dict of group name to scalar, may be traced; `anchor` and `importance` as for `build`.
      Updates of other leaves are unchanged.
    """
    function = _look_up("proximal operator", kind, PROXIMAL)
    options = _check(kind, function, params, scope, options)

    def groups(tree):
        return group_leaves(flatten_paths(tree), params, scope)

    def transform(
        t: jax.typing.ArrayLike | Mapping[str, jax.typing.ArrayLike],
        anchor: Tree | None = None,
        importance: Tree | None = None,
    ):
        def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
            if params is None:
                raise ValueError("a proximal operator acts on parameters: call update(updates, state, params)")
            flat = flatten_paths(updates)
            for name, group in groups(params).items():
                arguments = _arguments(kind, function, options, group, anchor)
                strength = t[name] if isinstance(t, Mapping) else t
                proximal = as_transform(function, strength, **arguments, **_of_group(group, importance))
                changed, _ = proximal.update({path: flat[path] for path in group}, state, group)
                flat |= flatten_paths(changed)
            return jax.tree_util.tree_map_with_path(lambda path, _: flat[_path_name(path)], updates), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    return transform


def group_leaves(leaves: FlatTree, params: str, scope: str, same_tasks: bool = True) -> dict[str, dict[str, jax.Array]]:
    """The chosen leaves by group name, in the order of the paths. Raises ValueError as `build` says.

    `same_tasks`: their first axis must be the K tasks.
    """
    chosen = {path: leaf for path, leaf in leaves.items() if re.search(params, path)}
    if not chosen:
        shown = ", ".join(list(leaves)[:8]) + (f", … ({len(leaves)} in all)" if len(leaves) > 8 else "")
        raise ValueError(f"params={params!r} matches no leaf; the paths are: {shown or 'none'}")
    groups: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in chosen.items():
        name = {"tree": "tree", "layer": path.split("/")[0], "leaf": path}[scope]
        groups.setdefault(name, {})[path] = leaf
    for name, group in groups.items():
        if same_tasks:
            _check_task_axis(name, group)
    return groups


def _check_task_axis(name: str, group: FlatTree) -> None:
    by_count: dict[int | None, str] = {}
    for path, leaf in group.items():
        shape = leaf.shape if is_stack(leaf) else jnp.shape(leaf)
        by_count.setdefault(shape[0] if shape else None, f"{path} {shape}")
    if len(by_count) > 1 or None in by_count:
        raise ValueError(
            "a penalty over leaves of different shapes: the first axis must be the tasks, equally long within group "
            f"{name!r}, but there are {', '.join(by_count.values())}; narrow `params`, or take scope 'layer' or 'leaf'"
        )


def _look_up(what: str, kind: str, registry: Mapping[str, Callable]) -> Callable:
    if kind not in registry:
        raise ValueError(f"there is no {what} named {kind!r}; there are {', '.join(sorted(registry))}")
    return registry[kind]


def _check(kind: str, function: Callable, params: str, scope: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, not {scope!r}")
    try:
        re.compile(params)
    except re.error as error:
        raise ValueError(f"params={params!r} is not a regular expression: {error}") from error
    options = dict(options or {})
    parameters = inspect.signature(function).parameters
    known = [name for name in list(parameters)[1:] if name not in ("t", "anchor", "importance", "others")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{kind} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in options]
    if required:
        raise ValueError(f"{kind} needs the option {', '.join(required)}")
    return options


def _arguments(
    kind: str, function: Callable, options: Mapping[str, Any], group: FlatTree, anchor: Tree | None
) -> dict[str, Any]:
    """The options, with the group's part of the anchor where the function takes it or is centred on it."""
    takes_anchor = "anchor" in inspect.signature(function).parameters
    if not takes_anchor and options.get("center") != "anchor":
        return dict(options)
    anchors = {} if anchor is None else flatten_paths(anchor)
    absent = [path for path in group if path not in anchors]
    if absent:
        raise ValueError(f"{kind} needs an anchor for every chosen leaf; there is none for {', '.join(absent[:8])}")
    return {**options, "anchor" if takes_anchor else "center": {path: anchors[path] for path in group}}


def _of_group(group: FlatTree, importance: Tree | None) -> dict[str, Any]:
    """The group's part of the importance, as an argument; {} without one."""
    if importance is None:
        return {}
    weights = flatten_paths(importance)
    return {"importance": {path: weights[path] for path in group}}


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
