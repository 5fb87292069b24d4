"""Taps: where the gradients of streams that share their parameters are read off apart, in one backward pass.

Streams with examples of their own meet in the gradient of a weight only: δW = Σ_s X_sᵀ δ_s. Everything up to there is
computed jointly. A tap is a value of zeros that goes into a layer and does nothing; its cotangent is what the layer
tells of each stream: the terms of that sum, or only the products between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.models.apply_owned import apply_module, group_by_owner, group_by_pictures, layer_function, stack_streams
from mtl_jax.models.dropout import Noise
from mtl_jax.models.row_chunks import is_single_cpu

Function = Callable[[Any, Any, Noise | None], jax.Array]
Measure = Callable[[Any, Any], Any]


class TapSpec(NamedTuple):
    """What is tapped; static. M = the entries of the layout, see `streams.stream_entries`, times `halves`.

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


def apply_with_tap(
    function: Function, measure: Measure, in_turns: bool, params: Any, tap: Any, inputs: Any, noise: Noise | None
) -> jax.Array:
    """`function` on g·m streams with the same parameters, of which each m hold the same: computed once on the way up,
    told apart on the way down. Its derivatives are as without the tap, whose cotangent is `measure` (gradients of the
    streams, `params` with leaves [g·m, ...]; tap).

    Args:
      function: (params, inputs, noise) -> array, for one stream.
      measure: static, see above.
      in_turns: static; whether the m of a group take their way down one after another instead of at once.
      params: of all streams.
      tap: zeros.
      inputs: leaves [g, m, ...], equal along m.
      noise: keys [g, m, ...], equal along m; rates that are those of all; or None.

    Returns:
      outputs [g, m, ...].
    """
    leaves, structure = jax.tree.flatten((inputs, None if noise is None else noise.keys))
    copies = leaves[0].shape[1]
    moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    moved = [leaf for leaf, move in zip(leaves, moves, strict=True) if move]
    fixed = [leaf[:, 0] for leaf, move in zip(leaves, moves, strict=True) if not move]
    rates = None if noise is None else noise._replace(keys=None)

    def stream(params, moved, rates, fixed):
        of_kind = iter(moved), iter(fixed)
        inputs, keys = jax.tree.unflatten(structure, [next(of_kind[0 if move else 1]) for move in moves])
        return function(params, inputs, None if rates is None else rates._replace(keys=keys))

    def copied(outputs):
        return jnp.broadcast_to(outputs[:, None], (outputs.shape[0], copies, *outputs.shape[1:]))

    @jax.custom_vjp
    def call(params, tap, moved, rates, fixed):
        return copied(jax.vmap(stream, (None, 0, None, 0))(params, _first_copies(moved), rates, fixed))

    def forward(params, tap, moved, rates, fixed):
        found = []

        def one(params, moved, rates, fixed):
            outputs, pullback = jax.vjp(lambda *floats: stream(*floats, fixed), params, moved, rates)
            residuals, structure = jax.tree.flatten(pullback)
            found.append(structure)
            return outputs, residuals

        moved = _first_copies(moved)
        first = jax.tree.map(lambda leaf: leaf[0], (moved, fixed))
        axes = _batched_residuals(one, (params, first[0], rates, first[1]), (False, True, False, True))
        outputs, residuals = jax.vmap(one, (None, 0, None, 0), (0, axes))(params, moved, rates, fixed)
        return copied(outputs), (_Pullback(residuals, found[-1], tuple(axes)), tap)

    def backward(kept, cotangent):
        pullback, tap = kept

        def one(residuals, cotangents):
            back = jax.tree.unflatten(pullback.structure, residuals)
            if copies == 1:
                return jax.tree.map(lambda leaf: leaf[None], back(cotangents[0]))
            return jax.lax.map(back, cotangents) if in_turns else jax.vmap(back)(cotangents)

        by_stream, moved, rates = jax.vmap(one, (list(pullback.axes), 0))(pullback.leaves, cotangent)
        total, rates = jax.tree.map(lambda leaf: leaf.sum(axis=(0, 1)), (by_stream, rates))
        by_stream = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), by_stream)
        return total, measure(by_stream, tap), moved, rates, None

    call.defvjp(forward, backward)
    return call(params, tap, moved, rates, fixed)


def _first_copies(leaves):
    return jax.tree.map(lambda leaf: leaf[:, 0], leaves)


def _batched_residuals(one: Callable, arguments: tuple, batched: tuple[bool, ...]) -> list[int | None]:
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


def apply_tapped_layer(
    module, remat, path, params, taps: Taps, spec: TapSpec, owner_ids, inputs, noises, same: Sequence[Any]
) -> list[jax.Array]:
    """As `apply_owned.apply_owned`, of a layer that is tapped: streams of one owner are joint, owners come in turns.

    `same` names for each stream what it holds: those of one name have equal inputs and noise, and pass together.
    """
    tokens_apart = path == "embed" and spec.tokens
    function = _embedding_function(module, remat) if tokens_apart else layer_function(module, remat)
    # of a transformer's K gradients at once XLA's CPU compiler would turn each around
    in_turns = is_single_cpu() and getattr(module, "rows_in_parts", False)
    halves, outputs = spec.halves, {}
    for owner, groups in _groups(owner_ids, inputs, same, spec.products):
        members, copies = [member for group in groups for member in group], len(groups[0])
        stacked, noise, _ = stack_streams([(inputs[i], noises[i] if noises else None) for i in members])
        if tokens_apart:
            of_stream = taps.tokens.reshape(len(inputs), *stacked[0].shape[1:], -1)
            stacked = (*stacked, _chosen(of_stream, np.asarray(members)))
        stacked, keys = _split_rows((stacked, None if noise is None else noise.keys), copies, halves)
        entry = np.asarray(members).reshape(-1, 1, copies) * halves + np.arange(halves)[:, None]  # [groups, halves, m]
        tap, measure = _tap_of_streams(taps, spec, path, entry.ravel())
        own = _slice(params, owner)
        noise = None if noise is None else noise._replace(keys=keys)
        result = apply_with_tap(function, measure, in_turns, own, tap, stacked, noise)
        result = jnp.swapaxes(result.reshape(-1, halves, copies, *result.shape[2:]), 1, 2)
        result = result.reshape(len(members), -1, *result.shape[4:])
        outputs |= dict(zip(members, result, strict=True))
    return [outputs[number] for number in range(len(inputs))]


def _groups(owner_ids, inputs, same, products: bool):
    """[(owner, groups of equally many streams)]: a group's streams hold the same.

    For products all streams of an owner stay together, alone where groups are of different sizes.
    """
    found = []
    for kind in group_by_pictures(inputs):
        for members in group_by_owner([(owner_ids[i],) for i in kind]).values():
            together: dict[Any, list[int]] = {}
            for number in members:
                together.setdefault(same[kind[number]], []).append(kind[number])
            by_size: dict[int, list[list[int]]] = {}
            for group in together.values():
                by_size.setdefault(len(group), []).append(group)
            if products and len(by_size) > 1:
                by_size = {1: [[kind[number]] for number in members]}
            found += [(owner_ids[kind[members[0]]], groups) for groups in by_size.values()]
    return found


def _split_rows(tree, copies: int, halves: int):
    """Leaves [g · m, R, ...] -> [g · halves, m, R / halves, ...]."""

    def of_leaf(a):
        parts = a.reshape(-1, copies, halves, a.shape[1] // halves, *a.shape[2:])
        return jnp.swapaxes(parts, 1, 2).reshape(-1, copies, *parts.shape[3:])

    return jax.tree.map(of_leaf, tree)


def _tap_of_streams(taps: Taps, spec: TapSpec, path: str, places: np.ndarray):
    """The part of a layer's tap that belongs to some streams, and what measures its cotangent."""
    if path not in spec.layers:
        return {}, _leaf_gradients
    tap = taps.layers[path]
    if spec.products:
        return tap[np.ix_(places, places)], functools.partial(_gradient_products, leaves=spec.layers[path])
    return jax.tree.map(lambda leaf: _chosen(leaf, places), tap), _leaf_gradients


def _chosen(leaf: jax.Array, places: np.ndarray) -> jax.Array:
    """leaf[places]; the whole leaf as it is, since the compiler would work out a gather of its zeros."""
    return leaf if np.array_equal(places, np.arange(leaf.shape[0])) else leaf[places]


def _slice(params, owner):
    return jax.tree.map(lambda leaf: leaf[owner], params)


def _leaf_gradients(gradients, tap):
    """A measure for taps: the gradients that are asked for."""
    flat = flatten_dict(gradients, sep="/")
    return {leaf: flat[leaf].astype(jnp.float32) for leaf in tap}


def _gradient_products(gradients, tap, leaves):
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
        return apply_module(module, variables, inputs, noise)

    return jax.checkpoint(function) if remat else function
