"""A layer applied to streams, each with the parameters of its owner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.activation_sharding import join_rows, shard_activations, split_rows
from mtl_jax.models.dropout import Noise
from mtl_jax.models.key_values import KEYS
from mtl_jax.models.remat import with_remat
from mtl_jax.models.static_gather import inverse, take
from mtl_jax.models.task_streams import Owners


def layer_function(module: nn.Module, remat_policy: str):
    """(params of one owner, inputs, noise) -> [R, T, D]."""

    def function(params, inputs, noise):
        return shard_activations(apply_module(module, {"params": params}, inputs, noise))

    return with_remat(function, remat_policy)


def keeping_function(module: nn.Module):
    """(params of one owner, inputs, noise) -> ([R, T, D], the layer's `KEYS`): for passes without gradients."""

    def function(params, inputs, noise):
        x, segment, *memory = inputs
        y, variables = module.apply({"params": params}, x, segment, noise, *memory, mutable=[KEYS])
        return y, variables.get(KEYS, {})

    return function


@functools.partial(jax.jit, static_argnums=0)
def apply_module(module: nn.Module, variables, inputs, noise) -> jax.Array:
    """Applies a module; an embedding takes four arrays and the noise, then the pictures (patch, pixels).

    Within `jit`, so that equal layers are traced and lowered once; XLA inlines the calls. Therefore the fields of a
    module have to be hashable: no NumPy arrays.
    """
    return module.apply(variables, *inputs[:4], noise, *inputs[4:])


class OwnedParams(NamedTuple):
    """Some of a layer's parameters, leaves [O, ...], and the owner of each stream."""

    params: Any
    owners: Owners


def apply_owned(
    function: Callable, parts: Sequence[OwnedParams], inputs: Any, noise: Noise | None, run_columns: Callable
) -> jax.Array:
    """Applies a layer to S streams, each with the parameters of its owners: [S, R, T, D].

    The streams of one owner are joined on the row axis, into one larger matrix product; owners of equally many streams
    are computed at once.

    Args:
      function: (params of each part, inputs, noise) -> [R, T, D], or a tree of arrays with leading axis R.
      parts: the parameters, from several sources (layer, adapter).
      inputs: leaves [S, R, ...].
      noise: keys [S, R], or None.
      run_columns: one of `COLUMN_EXECUTIONS`.
    """
    classes = classes_by_size(np.column_stack([part.owners.known for part in parts]))
    outputs = [_apply_class(function, parts, members, inputs, noise, run_columns) for members in classes]
    order = np.concatenate([members.ravel() for members in classes])

    def ordered(*leaves):
        return take(leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves), inverse(order))

    return jax.tree.map(ordered, *outputs)


def classes_by_size(owners: np.ndarray) -> list[np.ndarray]:
    """For each number n of streams that an owner has: int[G, n], the streams of each of the G owners that have n.

    `owners` int[S, parts], equal rows have equal owners. A stream with −1, a drawn owner, counts as one with an owner
    of its own.
    """
    groups: dict[Any, list[int]] = {}
    for number, owner in enumerate(map(tuple, owners.tolist())):
        groups.setdefault(("drawn", number) if -1 in owner else owner, []).append(number)
    by_size: dict[int, list[list[int]]] = {}
    for members in groups.values():
        by_size.setdefault(len(members), []).append(members)
    return [np.asarray(members) for members in by_size.values()]


def _apply_class(function, parts, members: np.ndarray, inputs, noise: Noise | None, run_columns) -> jax.Array:
    """[G·n, R, T, D] for the streams `members` int[G, n] of G owners."""
    by_owner, common = [], []  # (index in `parts`, parameters): different by owner; the same for all
    for place, part in enumerate(parts):
        owners = part.owners.take(members[:, 0])
        if len(members) == 1 or (owners.known[0] >= 0 and (owners.known == owners.known[0]).all()):
            common.append((place, _slice(part.params, owners.index[0])))
        else:
            by_owner.append((place, select_owners(part.params, owners)))

    def call(owner_params, inputs, noise):
        """One owner; rows [n, R, ...]."""
        params = dict([*common, *zip((place for place, _ in by_owner), owner_params, strict=True)])
        rows, keys = jax.tree.map(join_rows, (inputs, None if noise is None else noise.keys))
        noise = None if noise is None else noise._replace(keys=keys)
        result = function([params[place] for place in range(len(parts))], rows, noise)
        return jax.tree.map(lambda leaf: split_rows(leaf, members.shape[1]), result)

    inputs, keys = jax.tree.map(lambda leaf: take(leaf, members), (inputs, None if noise is None else noise.keys))
    noise = None if noise is None else noise._replace(keys=keys)
    if len(members) == 1:
        first = jax.tree.map(lambda leaf: leaf[0], (inputs, keys))
        return call([], first[0], None if noise is None else noise._replace(keys=first[1]))
    outputs = run_columns(call, [params for _, params in by_owner], inputs, noise)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), outputs)


def _slice(params, owner):
    return jax.tree.map(lambda leaf: leaf[owner], params)


def select_owners(params, owners: Owners):
    """Leaves [G, ...], those of each owner."""
    if (owners.known >= 0).all():
        return jax.tree.map(lambda leaf: take(leaf, owners.known), params)
    return _slice(params, owners.index)


# Each runs function(params, inputs, noise) for G owners: leaves [G, ...] of params, inputs and keys -> [G, ...]


def _vmap(function, params, inputs, noise):
    return jax.vmap(function, (0, 0, noise_axes(noise)))(params, inputs, noise)


def noise_axes(noise: Noise | None) -> Noise | None:
    """The axes of `vmap` for noise: keys differ, the rates are those of all."""
    return None if noise is None else Noise(0, None, None, None)


def _map(function, params, inputs, noise):
    if noise is None:
        return jax.lax.map(lambda args: function(*args, None), (params, inputs))
    one = lambda params, inputs, keys: function(params, inputs, noise._replace(keys=keys))  # noqa: E731
    return jax.lax.map(lambda args: one(*args), (params, inputs, noise.keys))


def _unroll(function, params, inputs, noise):
    def one(number):
        at = jax.tree.map(lambda leaf: leaf[number], (params, inputs, None if noise is None else noise.keys))
        return function(at[0], at[1], None if noise is None else noise._replace(keys=at[2]))

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, range(jax.tree.leaves(inputs)[0].shape[0])))


COLUMN_EXECUTIONS = {"vmap": _vmap, "map": _map, "unroll": _unroll}
