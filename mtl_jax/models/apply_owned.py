"""A layer applied to streams, each with the parameters of its owner."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.activation_sharding import join_rows, shard_activations, split_rows
from mtl_jax.models.dropout import Noise
from mtl_jax.models.remat import with_remat


def layer_function(module: nn.Module, remat_policy: str):
    """(params of one owner, inputs, noise) -> [R, T, D]."""

    def function(params, inputs, noise):
        return shard_activations(apply_module(module, {"params": params}, inputs, noise))

    return with_remat(function, remat_policy)


@functools.partial(jax.jit, static_argnums=0)
def apply_module(module: nn.Module, variables, inputs, noise) -> jax.Array:
    """Applies a module; an embedding takes four arrays and the noise, then the pictures (patch, pixels).

    Within `jit`, so that equal layers are traced and lowered once; XLA inlines the calls. Therefore the fields of a
    module have to be hashable: no NumPy arrays.
    """
    return module.apply(variables, *inputs[:4], noise, *inputs[4:])


def group_by_pictures(inputs) -> list[list[int]]:
    """Indices of the streams in two groups: those with pictures, and those of text only."""
    groups: dict[int, list[int]] = {}
    for index, arrays in enumerate(inputs):
        groups.setdefault(len(arrays), []).append(index)
    return list(groups.values())


class OwnedParams(NamedTuple):
    """Some of a layer's parameters, and the owners of the streams.

    params  leaves [O, ...]
    owners  of each stream: an int where it is static, else an int32 scalar
    """

    params: Any
    owners: Sequence[int | jax.Array]


def apply_owned(function, parts: Sequence[OwnedParams], inputs, noises, run_columns) -> list[jax.Array]:
    """Applies a layer to S streams, each with the parameters of its owners. Returns S arrays [R, T, D].

    Args:
      function: (params of each part, inputs, noise) -> [R, T, D].
      parts: the parameters, from several sources (layer, adapter).
      inputs: of each stream.
      noises: of each stream, or None.
      run_columns: one of `COLUMN_EXECUTIONS`.
    """
    groups = group_by_owner(
        list(zip(*(part.owners for part in parts), strict=True))
    )  # one owner: a larger matrix product
    kinds = group_by_pictures(inputs)
    if len(kinds) == 1:  # owners of equally many streams are computed at once
        by_size: dict[int, list[int]] = {}
        for group in groups.values():
            by_size.setdefault(len(group), []).extend(group)
        kinds = list(by_size.values())
    if len(kinds) > 1:
        outputs = {}
        for kind in kinds:
            kind_parts = [OwnedParams(part.params, [part.owners[i] for i in kind]) for part in parts]
            kind_inputs, kind_noises = ([values[i] for i in kind] if values else None for values in (inputs, noises))
            kind_outputs = apply_owned(function, kind_parts, kind_inputs, kind_noises, run_columns)
            outputs |= dict(zip(kind, kind_outputs, strict=True))
        return [outputs[index] for index in range(len(inputs))]
    noises = noises or [None] * len(inputs)
    members = list(groups.values())
    merged = [_concatenate([(inputs[i], noises[i]) for i in group]) for group in members]
    by_group, common = [], []  # (index in `parts`, parameters): different by group; the same for all
    for place, part in enumerate(parts):
        chosen = [part.owners[group[0]] for group in members]
        if len(members) == 1 or all(isinstance(o, int) and o == chosen[0] for o in chosen):
            common.append((place, _slice(part.params, chosen[0])))
        else:
            by_group.append((place, _select_owners(part.params, chosen)))

    def call(group_params, inputs, noise):
        params = dict([*common, *zip((place for place, _ in by_group), group_params, strict=True)])
        return function([params[place] for place in range(len(parts))], inputs, noise)

    if len(members) == 1:
        outputs = [call([], *merged[0])]
    else:
        outputs = run_columns(call, [params for _, params in by_group], merged)
    result: dict[int, jax.Array] = {}
    for group, output in zip(members, outputs, strict=True):
        result |= dict(zip(group, split_rows(output, len(group)), strict=True))
    return [result[number] for number in range(len(inputs))]


def _slice(params, owner):
    return jax.tree.map(lambda leaf: leaf[owner], params)


def _select_owners(params, owners):
    """Leaves [groups, ...]."""
    if all(isinstance(o, int) for o in owners) and owners == list(range(owners[0], owners[0] + len(owners))):
        return _slice(params, slice(owners[0], owners[0] + len(owners)))
    index = jnp.stack([jnp.asarray(o, jnp.int32) for o in owners])
    return _slice(params, index)


def group_by_owner(owners: Sequence[tuple[int | jax.Array, ...]]) -> dict[Any, list[int]]:
    """{owners: indices of the streams that have them}; a stream with a drawn owner is a group of its own."""
    groups: dict[Any, list[int]] = {}
    for number, owner in enumerate(owners):
        static = all(isinstance(o, int) for o in owner)
        groups.setdefault(owner if static else ("drawn", number), []).append(number)
    return groups


def _concatenate(parts):
    """Joins (inputs, noise) of several streams on the row axis; the rates are scalars, the same in all."""
    if len(parts) == 1:
        return parts[0]
    inputs = tuple(join_rows(arrays) for arrays in zip(*(p[0] for p in parts), strict=True))
    noise = parts[0][1]
    if noise is not None:
        noise = noise._replace(keys=join_rows([p[1].keys for p in parts]))
    return inputs, noise


def stack_streams(merged):
    """[S] trees to one tree with leading axis S; the rates of the noise stay scalars, with axis None."""
    inputs = tuple(jnp.stack(arrays) for arrays in zip(*(m[0] for m in merged), strict=True))
    noise = merged[0][1]
    if noise is None:
        return inputs, None, None
    axes = Noise(0, None, None)
    return inputs, noise._replace(keys=jnp.stack([m[1].keys for m in merged])), axes


def _vmap(function, params, merged):
    inputs, noise, axes = stack_streams(merged)
    return list(jax.vmap(function, in_axes=(0, 0, axes))(params, inputs, noise))


def _map(function, params, merged):
    inputs, noise, _ = stack_streams(merged)
    if noise is None:
        return list(jax.lax.map(lambda args: function(args[0], args[1], None), (params, inputs)))
    rebuild = functools.partial(Noise, rate=noise.rate, attention_rate=noise.attention_rate)
    return list(jax.lax.map(lambda args: function(args[0], args[1], rebuild(args[2])), (params, inputs, noise.keys)))


def _unroll(function, params, merged):
    return [function(jax.tree.map(lambda leaf, i=i: leaf[i], params), *m) for i, m in enumerate(merged)]


COLUMN_EXECUTIONS = {"vmap": _vmap, "map": _map, "unroll": _unroll}
