"""Taps: where the gradients of streams that share their parameters are read off apart, in one backward pass.

Streams with examples of their own meet in the gradient of a weight only: δW = Σ_s X_sᵀ δ_s. Everything up to there is
computed jointly. A tap is a value of zeros that goes into a layer and does nothing; its cotangent is what the layer
tells of each stream: the terms of that sum, or only the products between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.models.dropout import Noise
from mtl_jax.models.owned import applied, by_kind, by_owner, layer_function, stack

Function = Callable[[Any, Any, Noise | None], jax.Array]
Measure = Callable[[Any, Any], Any]


class TapSpec(NamedTuple):
    """What is tapped; static. M = the entries of the layout, see `streams.entries`, times `halves`.

    layers     {path of layer: (paths of its leaves)}, of which the gradient by stream is wanted
    products   whether only the products [M, M] between these gradients are, layer by layer
    tokens     whether that of the looked-up word vectors is, from which the gradient of the table follows
    hidden_at  layer whose outputs are tapped, "" = none; below it streams are still joint
    halves     2: the rows of each stream are tapped in two halves
    """

    layers: Mapping[str, tuple[str, ...]]
    products: bool = False
    tokens: bool = False
    hidden_at: str = ""
    halves: int = 1


class Taps(NamedTuple):
    """Zeros, float32. Their cotangents:

    layers  {path of layer: {path of leaf: [M, ...]}, gradients of the slice that the stream uses; or [M, M] products}
    tokens  [M, R, T, D], None where not tapped
    hidden  [M, R, T, D'], None where not tapped
    """

    layers: Mapping[str, Any]
    tokens: jax.Array | None
    hidden: jax.Array | None


@flax.struct.dataclass
class _Pullback:
    """A pullback of n streams; `axes` says which residuals they have apart (0) and which are of all (None)."""

    leaves: list[jax.Array]
    structure: Any = flax.struct.field(pytree_node=False)
    axes: tuple[int | None, ...] = flax.struct.field(pytree_node=False)


def tapped(function: Function, measure: Measure, params: Any, tap: Any, inputs: Any, noise: Noise | None) -> jax.Array:
    """`function` on n streams with the same parameters. Its derivatives are as without the tap, whose cotangent is
    `measure` (gradients of the streams, `params` with leaves [n, ...]; tap).

    Args:
      function: (params, inputs, noise) -> array, for one stream.
      measure: static, see above.
      params: of all streams.
      tap: zeros.
      inputs: leaves [n, ...].
      noise: keys [n, ...], rates that are those of all; or None.

    Returns:
      outputs [n, ...].
    """
    leaves, structure = jax.tree.flatten((inputs, None if noise is None else noise.keys))
    moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    moved = [leaf for leaf, move in zip(leaves, moves, strict=True) if move]
    fixed = [leaf for leaf, move in zip(leaves, moves, strict=True) if not move]
    rates = None if noise is None else noise._replace(keys=None)

    def stream(params, moved, rates, fixed):
        of_kind = iter(moved), iter(fixed)
        inputs, keys = jax.tree.unflatten(structure, [next(of_kind[0 if move else 1]) for move in moves])
        return function(params, inputs, None if rates is None else rates._replace(keys=keys))

    @jax.custom_vjp
    def call(params, tap, moved, rates, fixed):
        return jax.vmap(stream, (None, 0, None, 0))(params, moved, rates, fixed)

    def forward(params, tap, moved, rates, fixed):
        found = []

        def one(params, moved, rates, fixed):
            outputs, pullback = jax.vjp(lambda *floats: stream(*floats, fixed), params, moved, rates)
            residuals, structure = jax.tree.flatten(pullback)
            found.append(structure)
            return outputs, residuals

        first = jax.tree.map(lambda leaf: leaf[0], (moved, fixed))
        axes = _apart(one, (params, first[0], rates, first[1]), (False, True, False, True))
        outputs, residuals = jax.vmap(one, (None, 0, None, 0), (0, axes))(params, moved, rates, fixed)
        return outputs, (_Pullback(residuals, found[-1], tuple(axes)), tap)

    def backward(kept, cotangent):
        pullback, tap = kept

        def one(residuals, cotangent):
            return jax.tree.unflatten(pullback.structure, residuals)(cotangent)

        by_stream, moved, rates = jax.vmap(one, (list(pullback.axes), 0))(pullback.leaves, cotangent)
        total, rates = jax.tree.map(lambda leaf: leaf.sum(axis=0), (by_stream, rates))
        return total, measure(by_stream, tap), moved, rates, None

    call.defvjp(forward, backward)
    return call(params, tap, moved, rates, fixed)


def _apart(one: Callable, arguments: tuple, batched: tuple[bool, ...]) -> list[int | None]:
    """For each residual that `one` returns 0 where it depends on what the streams have apart, None where it is one.

    Without it `vmap` would keep n copies of every weight, and multiply with each of them.
    """
    traced, shapes = jax.make_jaxpr(one, return_shape=True)(*arguments)
    flags = [flag for flag, tree in zip(batched, arguments, strict=True) for _ in jax.tree.leaves(tree)]
    depends = {variable for variable, flag in zip(traced.jaxpr.invars, flags, strict=True) if flag}
    for equation in traced.jaxpr.eqns:
        if any(variable in depends for variable in equation.invars if not hasattr(variable, "val")):
            depends.update(equation.outvars)
    outputs = [not hasattr(v, "val") and v in depends for v in traced.jaxpr.outvars]
    return [0 if flag else None for flag in outputs[len(jax.tree.leaves(shapes[0])) :]]


def apply_tapped(module, remat, path, params, taps: Taps, spec: TapSpec, owner_ids, inputs, noises) -> list[jax.Array]:
    """As `owned.apply_owned`, of a layer that is tapped: streams of one owner are joint, owners come in turns."""
    tokens_apart = path == "embed" and spec.tokens
    function = _embedding_function(module, remat) if tokens_apart else layer_function(module, remat)
    outputs: dict[int, jax.Array] = {}
    groups = [
        [kind[i] for i in members]
        for kind in by_kind(inputs)
        for members in by_owner([(owner_ids[i],) for i in kind]).values()
    ]
    for members in groups:
        owner = owner_ids[members[0]]
        stacked, noise, _ = stack([(inputs[i], noises[i] if noises else None) for i in members])
        if tokens_apart:
            of_stream = taps.tokens.reshape(len(inputs), *stacked[0].shape[1:], -1)
            stacked = (*stacked, of_stream[np.asarray(members)])
        stacked, keys = _halved((stacked, None if noise is None else noise.keys), spec.halves)
        places = np.asarray([member * spec.halves + half for member in members for half in range(spec.halves)])
        tap, measure = _of_streams(taps.layers[path], places, spec.products, spec.layers[path])
        own = _slice(params, owner)
        noise = None if noise is None else noise._replace(keys=keys)
        result = tapped(function, measure, own, tap, stacked, noise)
        for member, output in zip(members, result.reshape(len(members), -1, *result.shape[2:]), strict=True):
            outputs[member] = output
    return [outputs[number] for number in range(len(inputs))]


def _halved(tree, halves: int):
    """Leaves [n, R, ...] -> [n · halves, R / halves, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[1] // halves, *a.shape[2:]), tree)


def _of_streams(tap, places: np.ndarray, products: bool, leaves: tuple[str, ...]):
    """The part of a layer's tap that belongs to some streams, and what measures its cotangent."""
    if products:
        return tap[np.ix_(places, places)], functools.partial(_products, leaves=leaves)
    return jax.tree.map(lambda leaf: leaf[places], tap), _leaves


def _slice(params, owner):
    return jax.tree.map(lambda leaf: leaf[owner], params)


def _leaves(gradients, tap):
    """A measure for taps: the gradients that are asked for."""
    flat = flatten_dict(gradients, sep="/")
    return {leaf: flat[leaf].astype(jnp.float32) for leaf in tap}


def _products(gradients, tap, leaves):
    """A measure for taps: the inner products between streams, summed over the leaves that are asked for."""
    flat = flatten_dict(gradients, sep="/")

    def of_leaf(leaf):
        axes = tuple(range(1, leaf.ndim))
        return jnp.tensordot(leaf, leaf, (axes, axes), precision=jax.lax.Precision.HIGHEST)

    return sum((of_leaf(flat[leaf].astype(jnp.float32)) for leaf in leaves), jnp.zeros_like(tap))


def _embedding_function(module: nn.Module, remat: bool):
    """The embedding with its word vectors tapped; nothing flows into their table, whose gradient is told by the tap."""

    def function(params, inputs, noise):
        *inputs, tap = inputs
        table = jax.tree.map(jax.lax.stop_gradient, params["word"])
        variables = {"params": {**params, "word": table}, "perturbations": {"words": tap}}
        return applied(module, variables, inputs, noise)

    return jax.checkpoint(function) if remat else function
