"""A layer applied to streams, each with the parameters of its owner."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.dropout import Noise


def layer_function(module: nn.Module, remat: bool):
    def function(params, inputs, noise):
        return module.apply({"params": params}, *inputs, noise)

    return jax.checkpoint(function) if remat else function


def apply_owned(function, params, owner_ids, count, inputs, noises, run_columns) -> list[jax.Array]:
    """Applies a layer to S streams, each with the parameters of its owner. Returns S arrays [R, T, D]."""
    rows = inputs[0][-1].shape[0]
    noises = noises or [None] * len(inputs)
    groups = by_owner(owner_ids)  # streams of one static owner are one larger matrix product
    if len({len(group) for group in groups.values()}) > 1:
        groups = {("single", number): [number] for number in range(len(inputs))}
    members = list(groups.values())
    merged = [_concatenate([(inputs[i], noises[i]) for i in group]) for group in members]
    chosen = [owner_ids[group[0]] for group in members]
    if len(members) == 1:
        outputs = [function(jax.tree.map(lambda leaf: leaf[chosen[0]], params), *merged[0])]
    else:
        if not all(isinstance(o, int) for o in chosen) or chosen != list(range(count)):
            index = jnp.stack([jnp.asarray(o, jnp.int32) for o in chosen])
            params = jax.tree.map(lambda leaf: leaf[index], params)
        outputs = run_columns(function, params, merged)
    result: dict[int, jax.Array] = {}
    for group, output in zip(members, outputs, strict=True):
        for place, number in enumerate(group):
            result[number] = output[place * rows : (place + 1) * rows]
    return [result[number] for number in range(len(inputs))]


def by_owner(owner_ids) -> dict[Any, list[int]]:
    """{owner: numbers of its streams}; a stream whose owner is drawn stands alone."""
    groups: dict[Any, list[int]] = {}
    for number, owner in enumerate(owner_ids):
        groups.setdefault(owner if isinstance(owner, int) else ("drawn", number), []).append(number)
    return groups


def _concatenate(parts):
    """Joins (inputs, noise) of several streams on the row axis; the rates are scalars and the same in all."""
    if len(parts) == 1:
        return parts[0]
    inputs = tuple(jnp.concatenate(arrays) for arrays in zip(*(p[0] for p in parts), strict=True))
    noise = parts[0][1]
    if noise is not None:
        noise = noise._replace(keys=jnp.concatenate([p[1].keys for p in parts]))
    return inputs, noise


def stack(merged):
    """[S] trees to one tree with leading axis S; the rates of the noise stay scalars, with axis None."""
    inputs = tuple(jnp.stack(arrays) for arrays in zip(*(m[0] for m in merged), strict=True))
    noise = merged[0][1]
    if noise is None:
        return inputs, None, None
    axes = Noise(0, None, None)
    return inputs, noise._replace(keys=jnp.stack([m[1].keys for m in merged])), axes


def _vmap(function, params, merged):
    inputs, noise, axes = stack(merged)
    return list(jax.vmap(function, in_axes=(0, 0, axes))(params, inputs, noise))


def _map(function, params, merged):
    inputs, noise, _ = stack(merged)
    if noise is None:
        return list(jax.lax.map(lambda args: function(args[0], args[1], None), (params, inputs)))
    rebuild = functools.partial(Noise, rate=noise.rate, attention_rate=noise.attention_rate)
    return list(jax.lax.map(lambda args: function(args[0], args[1], rebuild(args[2])), (params, inputs, noise.keys)))


def _unroll(function, params, merged):
    return [function(jax.tree.map(lambda leaf, i=i: leaf[i], params), *m) for i, m in enumerate(merged)]


COLUMNS = {"vmap": _vmap, "map": _map, "unroll": _unroll}
