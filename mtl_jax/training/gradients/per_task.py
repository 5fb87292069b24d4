"""Gradients of the K losses over shared parameters, split by task in one backward pass: products, weighted sums.

Two forms. Leaves have shape [K, ...]: for each task the gradient of the slice that it uses. For word vectors these are
(token, gradient) pairs of each stream, from which products and sums are computed without K copies of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.models.ownership import owner_count, sole_tasks
from mtl_jax.models.task_streams import Streams, stream_entries
from mtl_jax.sharing.gram import inner_products, total
from mtl_jax.training.objective import FlatParams

EMBEDDING_TABLE = "embed/word/embedding"
_HIGHEST = jax.lax.Precision.HIGHEST


class SharedParameters(NamedTuple):
    """Parameters that several tasks share, and how their gradients are split by task; static.

    taps    taps in the network
    owners  {path of leaf: owner of each task}, of all shared leaves that are trained
    level   "parameters" | "representation", see `config.sections.Aggregation`
    gradient_storage  "copies" | "layers"
    """

    taps: TapSpec
    owners: Mapping[str, tuple[int, ...]]
    level: str
    gradient_storage: str

    @property
    def twice(self) -> bool:
        """Whether the combined gradient comes from a second pass, since the K gradients are never in memory."""
        return self.level == "representation" or self.gradient_storage == "layers"


class Tokens(NamedTuple):
    """Gradients of looked-up word vectors, by stream: n blocks, each read by s streams.

    ids      int32[n, R·T]
    values   float32[n, s, R·T, D]
    task_of  float32[n, s, K], one-hot; zeros where a stream belongs to no task
    """

    ids: jax.Array
    values: jax.Array
    task_of: jax.Array


class TaskGradients(NamedTuple):
    """Gradients over the shared parameters.

    leaves  {path: float32 [K, ...]}, with halves [2, K, ...], whose sum is the gradient
    tokens  of the word vectors
    gram    [K, K] of leaves that are not stored; with halves entry (i, j) = first half of i · second half of j
    """

    leaves: Mapping[str, jax.Array]
    tokens: Tokens | None
    gram: jax.Array | None


def shared_parameters(
    trained: tuple[str, ...], owners: Mapping[str, tuple[int, ...]], level: str, gradient_storage: str, halves: int
) -> SharedParameters | None:
    """The trained leaves of which several tasks use a slice. None where there is none."""
    owner_of = {
        path: owners[layer]
        for path in trained
        if (layer := path.split("/")[0]) != "heads" and None in sole_tasks(owners[layer])
    }
    if not owner_of:
        return None
    layers: dict[str, tuple[str, ...]] = {}
    if level == "representation":
        # streams split above the last layer that all share; the layers below are pulled back once
        layers_of = [path for path in owners if path == "embed" or path.startswith("layer_")]
        common = [path for path in layers_of if owner_count(owners[path]) == 1]
        return (
            SharedParameters(TapSpec({}, hidden_at=common[-1], halves=halves), owner_of, level, gradient_storage)
            if common
            else None
        )
    for path in owner_of:
        layer, leaf = path.split("/", 1)
        layers[layer] = (*layers.get(layer, ()), *([leaf] if path != EMBEDDING_TABLE else []))
    if EMBEDDING_TABLE in owner_of:
        layers.setdefault("embed", ())
    spec = TapSpec(layers, products=gradient_storage == "layers", tokens=EMBEDDING_TABLE in owner_of, halves=halves)
    return SharedParameters(spec, owner_of, level, gradient_storage)


def split_by_task(shared: SharedParameters, layout: BatchLayout, batch: Batch, cotangents: Taps) -> TaskGradients:
    """The gradients of the K tasks from the cotangents of the taps. `batch` has leaves [B, R, ...]."""
    spec, halves = shared.taps, shared.taps.halves
    task_of = _task_of(layout, batch)
    leaves, gram = {}, None
    if cotangents.hidden is not None:  # level "representation"
        gram = _by_task_products(_within_blocks(layout, cotangents.hidden, halves), task_of, halves)
    elif spec.products:
        owners = {layer: owner for path, owner in shared.owners.items() for layer in [path.split("/")[0]]}
        products = (
            _by_task_products(by_stream, task_of, halves) * _same_owner(owners[layer])
            for layer, by_stream in cotangents.layers.items()
        )
        gram = total(products, jnp.float32)
    else:
        leaves = {
            f"{layer}/{leaf}": _by_task(value, task_of, halves)
            for layer, values in cotangents.layers.items()
            for leaf, value in values.items()
        }
    tokens = None
    if cotangents.tokens is not None:
        tokens = _tokens(layout, batch, cotangents.tokens, task_of, halves)
    return TaskGradients(leaves, tokens, gram)


def gradient_products(shared: SharedParameters, gradients: TaskGradients) -> jax.Array:
    """float32[K, K]: the Gram matrix of the K gradients, or the products between their halves."""
    halves = shared.taps.halves
    products = jnp.zeros(()) if gradients.gram is None else gradients.gram
    for path, leaf in gradients.leaves.items():
        if halves == 2:
            first, second = leaf[0], leaf[1]
            axes = tuple(range(1, first.ndim))
            product = jnp.tensordot(first, second, (axes, axes), precision=_HIGHEST)
        else:
            product = inner_products(leaf)
        products = products + product * _same_owner(shared.owners[path])
    if gradients.tokens is not None:
        products = products + _token_products(gradients.tokens, halves) * _same_owner(shared.owners[EMBEDDING_TABLE])
    return products


def combine_gradients(
    shared: SharedParameters, gradients: TaskGradients, weights: jax.Array, alpha: jax.Array, shapes: FlatParams
) -> dict[str, jax.Array]:
    """{path: [O, ...]}: Σ_k weights_k g_k in slices that several tasks share, α_k g_k in those of one task."""
    flat = {}
    for path, leaf in gradients.leaves.items():
        leaf = leaf.sum(axis=0) if shared.taps.halves == 2 else leaf
        owner = shared.owners[path]
        by_slice = slice_factors(owner, weights, alpha)[:, None] * _one_hot(owner)  # [K, O]
        used = jnp.where(_broadcast_flags(by_slice.any(axis=1), leaf), leaf, 0.0)  # with weight 0 not even NaN counts
        flat[path] = jnp.tensordot(by_slice.T, used, 1, precision=_HIGHEST)
    if gradients.tokens is not None:
        owner = shared.owners[EMBEDDING_TABLE]
        flat[EMBEDDING_TABLE] = token_sum(
            gradients.tokens, slice_factors(owner, weights, alpha), owner, shapes[EMBEDDING_TABLE].shape
        )
    return flat


def token_sum(tokens: Tokens, by_task: jax.Array, owner: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """[O, V, D]: the gradients of the tokens times the factors `by_task` [K], added up in the rows of the table."""
    factor = (tokens.task_of @ by_task)[..., None, None]
    values = jnp.where(factor != 0, tokens.values, 0.0) * factor
    if shape[0] == 1:  # one slice: the streams of a block are added before they are scattered
        return jnp.zeros(shape).at[0, tokens.ids].add(values.sum(axis=1))
    slices = (tokens.task_of @ jnp.asarray(owner, jnp.float32)).astype(jnp.int32)
    return jnp.zeros(shape).at[slices[..., None], tokens.ids[:, None]].add(values)


def dense_gradients(shared: SharedParameters, gradients: TaskGradients, shapes: FlatParams) -> dict[str, jax.Array]:
    """{path: [K, O, ...]}, zero in slices that are not shared: for methods that read each parameter. K copies."""
    count = task_count(shared)
    flat = {}
    for path, leaf in gradients.leaves.items():
        mask = _one_hot(shared.owners[path]) * shared_slices(shared.owners[path])[None, :]
        flat[path] = leaf[:, None] * mask.reshape(*mask.shape, *(1,) * (leaf.ndim - 1))
    if (tokens := gradients.tokens) is not None:
        owner = shared.owners[EMBEDDING_TABLE]
        is_shared = jnp.asarray(shared_slices(owner)[np.asarray(owner)], jnp.float32)
        shape, one_hot = shapes[EMBEDDING_TABLE].shape, np.eye(count, dtype=np.float32)
        flat[EMBEDDING_TABLE] = jax.lax.map(
            lambda task: token_sum(tokens, is_shared * task, owner, shape), jnp.asarray(one_hot)
        )
    return flat


def unshared_slices(
    shared: SharedParameters, gradients: TaskGradients, alpha: jax.Array, shapes: FlatParams
) -> dict[str, jax.Array]:
    """`combine_gradients` in slices of one task, zero in shared slices."""
    return combine_gradients(shared, gradients, jnp.zeros_like(alpha), alpha, shapes)


def shared_slices(owner: tuple[int, ...]) -> np.ndarray:
    """bool[O]: which slices several tasks use."""
    return np.asarray([task is None for task in sole_tasks(owner)])


def slice_factors(owner: tuple[int, ...], weights: jax.Array, alpha: jax.Array) -> jax.Array:
    """float32 [K]: the weight of each task where its slice is shared, else its α."""
    return jnp.where(shared_slices(owner)[np.asarray(owner)], weights, alpha)


def task_count(shared: SharedParameters) -> int:
    """The number of tasks K."""
    return len(next(iter(shared.owners.values())))


def _task_of(layout: BatchLayout, batch: Batch) -> np.ndarray | jax.Array:
    """[M, K] one-hot: the task of each stream (block, slot). numpy where it does not depend on the batch."""
    tasks, count = Streams(layout).task_numbers(batch), len(layout.tasks)
    if isinstance(tasks, np.ndarray):
        return (tasks[:, None] == np.arange(count)).astype(np.float32)
    return jax.nn.one_hot(tasks, count, dtype=jnp.float32)


def _by_task(value: jax.Array, task_of: np.ndarray | jax.Array, halves: int) -> jax.Array:
    """[M · halves, ...] by stream to [K, ...] or [2, K, ...] by task."""
    value = value.reshape(-1, halves, *value.shape[1:])
    if isinstance(task_of, np.ndarray) and task_of.sum(axis=0).max() == 1 and task_of.sum(axis=0).min() == 1:
        order = task_of.argmax(axis=0)
        value = value if np.array_equal(order, np.arange(len(value))) else value[order]
    else:
        value = jnp.tensordot(jnp.asarray(task_of).T, value, 1, precision=_HIGHEST)
    return jnp.swapaxes(value, 0, 1) if halves == 2 else value[:, 0]


def _by_task_products(entry_products: jax.Array, task_of: np.ndarray | jax.Array, halves: int) -> jax.Array:
    """[M · halves, M · halves] between streams to [K, K] between tasks."""
    task_of = jnp.asarray(task_of)
    if halves == 2:
        entry_products = entry_products[0::2, 1::2]
    product = jnp.matmul(entry_products, task_of, precision=_HIGHEST)
    return jnp.matmul(task_of.T, product, precision=_HIGHEST)


def _within_blocks(layout: BatchLayout, hidden: jax.Array, halves: int) -> jax.Array:
    """Products [M, M] of gradients of representations, 0 between blocks: those have no representation in common."""
    axes = tuple(range(1, hidden.ndim))
    blocks = np.repeat([block for block, _ in stream_entries(layout)], halves)
    together = (blocks[:, None] == blocks[None, :]).astype(np.float32)
    return jnp.tensordot(hidden, hidden, (axes, axes), precision=_HIGHEST) * together


def _tokens(layout: BatchLayout, batch: Batch, values: jax.Array, task_of, halves: int) -> Tokens:
    """The gradients [M · halves, ...] of looked-up vectors, by block where all have as many streams."""
    of_block = [block for block, _ in stream_entries(layout)]
    count = len(of_block) // len(set(of_block))
    if halves > 1 or any(of_block.count(block) != count for block in of_block):
        count = 1
    ids = batch.tokens[np.asarray(of_block[::count])].reshape(len(of_block) // count * halves, -1)
    task_of = jnp.repeat(jnp.asarray(task_of), halves, 0).reshape(len(ids), count, -1)
    return Tokens(ids, values.reshape(len(ids), count, ids.shape[1], -1), task_of)


def _token_products(tokens: Tokens, halves: int) -> jax.Array:
    """Products [K, K] of the gradients of the table by task, computed a block at a time."""
    blocks, streams = tokens.values.shape[:2]
    count = tokens.ids.size
    index = jnp.unique(tokens.ids, return_inverse=True, size=count)[1].reshape(tokens.ids.shape)

    def column(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        block_index, block_values = block
        table = jnp.zeros((count, streams, block_values.shape[-1]))
        table = table.at[block_index].add(jnp.swapaxes(block_values, 0, 1))
        if streams == 1:
            return jnp.sum(tokens.values[:, 0] * table[index, 0], axis=(1, 2))[:, None, None]
        return jnp.einsum("nsrd,nrtd->nst", tokens.values, table[index], precision=_HIGHEST)

    products = jax.lax.map(column, (index, tokens.values))  # [n', n, s, s']
    products = jnp.transpose(products, (1, 2, 0, 3)).reshape(blocks * streams, blocks * streams)
    task_of = tokens.task_of.reshape(blocks * streams, -1)
    if halves == 2:
        products, task_of = products[0::2, 1::2], task_of[0::2]
    return _by_task_products(products, task_of, 1)


def _one_hot(owner: tuple[int, ...]) -> np.ndarray:
    return np.eye(owner_count(owner), dtype=np.float32)[np.asarray(owner)]


def _same_owner(owner: tuple[int, ...]) -> np.ndarray:
    """float32 [K, K]: 1 for tasks that use the same slice, if several do; the diagonal likewise."""
    owner_of = np.asarray(owner)
    shared = shared_slices(owner)[owner_of]
    return ((owner_of[:, None] == owner_of[None, :]) & shared[:, None]).astype(np.float32)


def _broadcast_flags(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (leaf.ndim - 1))
