"""Taps: separate gradients of streams that share their parameters, in one backward pass.

Streams with different examples meet only in the gradient of a weight: δW = Σ_s X_sᵀ δ_s. Everything else is computed
jointly. A tap is an input of zeros without effect on the layer; its cotangent contains the terms of that sum for each
stream, or only the products between them.
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

from mtl_jax.models.activation_sharding import shard_activations
from mtl_jax.models.apply_owned import apply_module, classes_by_size, layer_function, select_owners
from mtl_jax.models.dropout import Noise
from mtl_jax.models.remat import with_remat
from mtl_jax.models.static_gather import inverse, take
from mtl_jax.models.task_streams import Owners

Function = Callable[[Any, Any, Noise | None], jax.Array]
Measure = Callable[[Any, Any], Any]


class TapSpec(NamedTuple):
    """What is tapped; static. M = the entries of the layout, see `task_streams.stream_entries`, times `halves`.

    layers     {path of layer: (paths of its leaves)} whose gradients by stream are needed
    products   whether only the products [M, M] between these gradients are needed, layer by layer
    tokens     whether the gradients of the looked-up word vectors are needed, which give that of the table
    hidden_at  layer whose outputs are tapped, "" = none; below it streams are joint
    halves     2: the rows of each stream are tapped in two halves
    by_block   whether the tap of `hidden_at` has an entry for each block, which all of its streams have in common
    """

    layers: Mapping[str, tuple[str, ...]]
    products: bool = False
    tokens: bool = False
    hidden_at: str = ""
    halves: int = 1
    by_block: bool = False


class Taps(NamedTuple):
    """Zeros, float32. Their cotangents:

    layers  {path of layer: {path of leaf: [M, ...]}, gradients of the slice that the stream uses; or [M, M] products}
    tokens  [M, R, T, D], None where not tapped
    hidden  [M, R, T, D'], or [B, R, T, D'] `by_block`; None where not tapped
    """

    layers: Mapping[str, Any]
    tokens: jax.Array | None
    hidden: jax.Array | None


@flax.struct.dataclass
class _Pullback:
    """A pullback of n streams; `axes` says which residuals have an axis of streams (0) and which have none (None)."""

    leaves: list[jax.Array]
    structure: Any = flax.struct.field(pytree_node=False)
    axes: tuple[int | None, ...] = flax.struct.field(pytree_node=False)


class TappedFunction(NamedTuple):
    """What is static about a tapped computation.

    function    (params, inputs, noise) -> array, for one stream
    measure     (gradients of the streams, `params` with leaves [g·m, ...]; tap) -> cotangent of the tap
    sequential  whether the backward passes of the m streams of a group run one after another instead of at once
    """

    function: Function
    measure: Measure
    sequential: bool


def apply_with_tap(tapped: TappedFunction, params: Any, tap: Any, inputs: Any, noise: Noise | None) -> jax.Array:
    """Applies a function to g·m streams with the same parameters, in groups of m streams with equal inputs. The forward
    pass computes each group once, the backward pass its streams separately. The derivatives are those of the function;
    the cotangent of the tap is the `measure`.

    Args:
      tapped: the function.
      params: of all streams.
      tap: zeros.
      inputs: leaves [g, m, ...], equal along m.
      noise: keys [g, m, ...], equal along m; rates that are those of all; or None.

    Returns:
      outputs [g, m, ...].
    """
    leaves, structure = jax.tree.flatten((inputs, None if noise is None else noise.keys))
    copies = leaves[0].shape[1]
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    floats = [leaf for leaf, flag in zip(leaves, is_float, strict=True) if flag]
    others = [leaf[:, 0] for leaf, flag in zip(leaves, is_float, strict=True) if not flag]
    rates = None if noise is None else noise._replace(keys=None)

    def stream(params, floats, rates, others):
        parts = iter(floats), iter(others)
        inputs, keys = jax.tree.unflatten(structure, [next(parts[0 if flag else 1]) for flag in is_float])
        return tapped.function(params, inputs, None if rates is None else rates._replace(keys=keys))

    def copy_outputs(outputs):
        return jnp.broadcast_to(outputs[:, None], (outputs.shape[0], copies, *outputs.shape[1:]))

    @jax.custom_vjp
    def call(params, tap, floats, rates, others):
        return copy_outputs(jax.vmap(stream, (None, 0, None, 0))(params, _first_copies(floats), rates, others))

    def forward(params, tap, floats, rates, others):
        outputs, pullback = _forward_groups(stream, params, _first_copies(floats), rates, others)
        return copy_outputs(outputs), (pullback, tap)

    def backward(residuals, cotangent):
        pullback, tap = residuals
        by_stream, floats, rates = _backward_streams(pullback, cotangent, copies, tapped.sequential)
        total, rates = jax.tree.map(lambda leaf: leaf.sum(axis=(0, 1)), (by_stream, rates))
        by_stream = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), by_stream)
        return total, tapped.measure(by_stream, tap), floats, rates, None

    call.defvjp(forward, backward)
    return call(params, tap, floats, rates, others)


def _forward_groups(stream: Callable, params: Any, floats: Any, rates: Any, others: Any) -> tuple[jax.Array, _Pullback]:
    """Outputs [g, ...] of `stream`, and the pullback of its float arguments."""
    structures = []

    def with_residuals(params, floats, rates, others):
        outputs, pullback = jax.vjp(lambda *arguments: stream(*arguments, others), params, floats, rates)
        residuals, structure = jax.tree.flatten(pullback)
        structures.append(structure)
        return outputs, residuals

    first = jax.tree.map(lambda leaf: leaf[0], (floats, others))
    axes = _batched_residuals(with_residuals, (params, first[0], rates, first[1]), (False, True, False, True))
    vectorised = jax.vmap(with_residuals, (None, 0, None, 0), (0, axes))
    outputs, residuals = vectorised(params, floats, rates, others)
    return outputs, _Pullback(residuals, structures[-1], tuple(axes))


def _backward_streams(pullback: _Pullback, cotangent: jax.Array, copies: int, sequential: bool):
    """The pullback of cotangents [g, m, ...]: leaves [g, m, ...] of params, float inputs and rates."""

    def group(residuals, cotangents):
        back = jax.tree.unflatten(pullback.structure, residuals)
        if copies == 1:
            return jax.tree.map(lambda leaf: leaf[None], back(cotangents[0]))
        return jax.lax.map(back, cotangents) if sequential else jax.vmap(back)(cotangents)

    return jax.vmap(group, (list(pullback.axes), 0))(pullback.leaves, cotangent)


def _first_copies(leaves):
    return jax.tree.map(lambda leaf: leaf[:, 0], leaves)


def _batched_residuals(function: Callable, arguments: tuple, batched: tuple[bool, ...]) -> list[int | None]:
    """For each residual that `function` returns: 0 if it depends on a batched argument, else None.

    Otherwise `vmap` would store n copies of every weight, and multiply by each of them.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    flags = [flag for flag, tree in zip(batched, arguments, strict=True) for _ in jax.tree.leaves(tree)]
    depends = {variable for variable, flag in zip(traced.jaxpr.invars, flags, strict=True) if flag}
    for equation in traced.jaxpr.eqns:
        if any(variable in depends for variable in equation.invars if not hasattr(variable, "val")):
            depends.update(equation.outvars)
    outputs = [not hasattr(v, "val") and v in depends for v in traced.jaxpr.outvars]
    return [0 if flag else None for flag in outputs[len(jax.tree.leaves(shapes[0])) :]]


class TappedLayer(NamedTuple):
    """A layer: its module, its path, and what of it is kept for the backward pass."""

    module: nn.Module
    path: str
    remat_policy: str


class TappedStreams(NamedTuple):
    """The streams of a layer, leaves [S, R, ...].

    contents  int[S]; streams with one number have equal inputs and noise, and are computed once
    entries   int[S], which of the M entries of the taps they are
    """

    owners: Owners
    inputs: Any
    noise: Noise | None
    contents: np.ndarray
    entries: np.ndarray


def apply_tapped_layer(layer: TappedLayer, params: Any, taps: Taps, spec: TapSpec, streams: TappedStreams) -> jax.Array:
    """As `apply_owned.apply_owned`, for a tapped layer.

    Args:
      layer: the module, its path, and what of it is kept for the backward pass.
      params: leaves [O, ...].
      taps, spec: of the network.
      streams: owner, inputs and noise of each.
    """
    classes = _classes(streams.owners.known, streams.contents, spec.products)
    outputs = [_apply_class(layer, params, taps, spec, streams, members) for members in classes]
    order = np.concatenate([members.ravel() for members in classes])
    return take(jnp.concatenate(outputs), inverse(order))


def _apply_class(layer, params, taps: Taps, spec: TapSpec, streams: TappedStreams, members: np.ndarray) -> jax.Array:
    """[G·g·m, R, T, D] for the streams `members` int[G, g, m]: of G owners, in g groups of m with equal contents."""
    module, path, halves = layer.module, layer.path, spec.halves
    taps_tokens = path == "embed" and spec.tokens
    function = (_embedding_function if taps_tokens else layer_function)(module, layer.remat_policy)
    # XLA's CPU compiler would transpose each of K simultaneous gradients of a transformer
    sequential = _on_single_cpu() and getattr(module, "attends", False)
    copies, noise, inputs = members.shape[2], streams.noise, streams.inputs
    stacked, keys = jax.tree.map(lambda leaf: take(leaf, members), (inputs, None if noise is None else noise.keys))
    entries = streams.entries[members]
    if taps_tokens:
        token_taps = taps.tokens.reshape(-1, *inputs[0].shape[1:], taps.tokens.shape[-1])
        stacked = (*stacked, take(token_taps, entries))
    stacked, keys = jax.vmap(lambda tree: _split_rows(tree, halves))((stacked, keys))
    entries = entries[:, :, None, :] * halves + np.arange(halves)[:, None]  # [G, g, halves, m]
    tap, measure = _tap_of_streams(taps, spec, path, entries.reshape(len(members), -1))
    tapped = TappedFunction(function, measure, sequential)

    def apply_owner(params, tap, inputs, keys):
        owner_noise = None if noise is None else noise._replace(keys=keys)
        return apply_with_tap(tapped, params, tap, inputs, owner_noise)

    owners = streams.owners.take(members[:, 0, 0])
    if len(members) == 1:
        first = jax.tree.map(lambda leaf: leaf[0], (tap, stacked, keys))
        result = apply_owner(jax.tree.map(lambda leaf: leaf[owners.index[0]], params), *first)[None]
    else:
        arguments = select_owners(params, owners), tap, stacked, keys
        result = jax.lax.map(lambda a: apply_owner(*a), arguments) if sequential else jax.vmap(apply_owner)(*arguments)
    result = jnp.swapaxes(result.reshape(-1, halves, copies, *result.shape[3:]), 1, 2)
    return result.reshape(members.size, -1, *result.shape[4:])


def _on_single_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _classes(owners: np.ndarray, contents: np.ndarray, products: bool) -> list[np.ndarray]:
    """Owners of one form are computed at once: [streams int[G, g, m]], G owners with g groups of m equal streams each.

    For products all streams of an owner stay together; if its groups have different sizes, each stream is a group.
    """
    classes: dict[tuple[int, int], list[list[list[int]]]] = {}
    for members in (row for kind in classes_by_size(owners[:, None]) for row in kind.tolist()):
        together: dict[int, list[int]] = {}
        for stream in members:
            together.setdefault(int(contents[stream]), []).append(stream)
        by_size: dict[int, list[list[int]]] = {}
        for group in together.values():
            by_size.setdefault(len(group), []).append(group)
        if products and len(by_size) > 1:
            by_size = {1: [[stream] for stream in members]}
        for copies, groups in by_size.items():
            classes.setdefault((len(groups), copies), []).append(groups)
    return [np.asarray(groups) for groups in classes.values()]


def _split_rows(tree, halves: int):
    """Leaves [g, m, R, ...] -> [g · halves, m, R / halves, ...]."""

    def split_leaf(a):
        parts = a.reshape(*a.shape[:2], halves, a.shape[2] // halves, *a.shape[3:])
        return jnp.swapaxes(parts, 1, 2).reshape(-1, a.shape[1], *parts.shape[3:])

    return jax.tree.map(split_leaf, tree)


def _tap_of_streams(taps: Taps, spec: TapSpec, path: str, entries: np.ndarray):
    """The parts of a layer's tap that belong to the entries int[G, n] of G owners, leading axis G; and the measure."""
    if path not in spec.layers:
        return {}, _leaf_gradients
    tap = taps.layers[path]
    if spec.products:
        measure = functools.partial(_gradient_products, leaves=spec.layers[path])
        if np.array_equal(entries, np.arange(len(tap))[None]):  # a gather of its zeros would be folded by the compiler
            return tap[None], measure
        return tap[entries[:, :, None], entries[:, None, :]], measure
    return jax.tree.map(lambda leaf: take(leaf, entries), tap), _leaf_gradients


def _leaf_gradients(gradients, tap):
    """A measure: the gradients of the leaves in the tap."""
    flat = flatten_dict(gradients, sep="/")
    return {leaf: flat[leaf].astype(jnp.float32) for leaf in tap}


def _gradient_products(gradients, tap, leaves):
    """A measure: the inner products between streams, summed over `leaves`."""
    flat = flatten_dict(gradients, sep="/")

    def leaf_products(leaf):
        axes = tuple(range(1, leaf.ndim))
        return jnp.tensordot(leaf, leaf, (axes, axes), precision=jax.lax.Precision.HIGHEST)

    return sum((leaf_products(flat[leaf].astype(jnp.float32)) for leaf in leaves), jnp.zeros_like(tap))


def _embedding_function(module: nn.Module, remat_policy: str):
    """The embedding with tapped word vectors; their table gets no gradient, which the tap provides."""

    def function(params, inputs, noise):
        *inputs, tap = inputs
        table = jax.tree.map(jax.lax.stop_gradient, params["word"])
        variables = {"params": {**params, "word": table}, "perturbations": {"words": tap}}
        return shard_activations(apply_module(module, variables, inputs, noise))

    return with_remat(function, remat_policy)
