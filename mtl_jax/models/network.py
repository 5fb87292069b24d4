"""The network: layers owned by partitions of the tasks, applied to the blocks of a batch.

A *stream* is what one block looks like on its way up through the layers of one task. Streams of tasks that have
used the same owners so far are one stream: a trunk is computed once a block, whoever reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, Layout
from mtl_jax.models.dropout import Noise
from mtl_jax.models.ownership import name_key, owner_count, paths, sole_tasks

Params = Mapping[str, Any]


class Dropout(NamedTuple):
    """Dropout rates, float32 scalars that may be traced; None where there is no dropout at all."""

    rate: jax.Array | None
    attention_rate: jax.Array | None


class Network(NamedTuple):
    """A pure pair of functions.

    init   (key) -> params: {path: leaves [O, ...] float32}
    apply  (params, batch, dropout: Dropout | None, key) -> {task: hidden [P·R, T, D]}; P·R = the rows of the blocks
           in `layout.reads(task)`, in that order. `key` is that of the step; None where there is no dropout.
    width  D of what `apply` returns
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., dict[str, jax.Array]]
    width: int


def network(
    embed: nn.Module,
    layers: list[nn.Module],
    owners: Mapping[str, tuple[int, ...]],
    layout: Layout,
    *,
    column_init: str = "same",
    columns: str = "vmap",
    remat: bool = False,
) -> Network:
    """A network of `embed` and `layers`, each with one set of parameters for each owner.

    Args:
      embed: module of (tokens, position, token_type, segment, noise) -> [R, T, D].
      layers: modules of (x [R, T, D], segment, noise) -> [R, T, D'].
      owners: path -> owner of each of the K tasks, from `ownership.assign`.
      layout: what is static about the batches.
      column_init: "same" starts all owners of a layer from the same values, "independent" each from its own, keyed
        by the name of the task where a single one owns the slice.
      columns: how several owners are computed: "vmap", "map" (in turns, by scan) or "unroll" (in turns, written out).
      remat: recompute each layer in the backward pass.
    """
    modules = dict(zip(paths(len(layers)), [embed, *layers], strict=True))
    run_columns = {"vmap": _vmap, "map": _map, "unroll": _unroll}[columns]
    examples, width = _example_inputs(modules)

    def init(key: jax.Array) -> Params:
        params = {}
        for path, module in modules.items():
            layer_key = jax.random.fold_in(key, name_key(path))
            if column_init == "same":
                keys = jnp.stack([layer_key] * owner_count(owners[path]))
            else:
                keys = jnp.stack([jax.random.fold_in(layer_key, salt) for salt in _salts(owners[path], layout)])
            params[path] = jax.vmap(lambda k, m=module, x=examples[path]: m.init(k, *x)["params"])(keys)
        return params

    def apply(params: Params, batch: Batch, dropout: Dropout | None = None, key: jax.Array | None = None):
        streams = _Streams(layout)
        hidden: dict[tuple[int, int], jax.Array] = {}
        row_keys = _row_keys(key, batch, layout) if dropout is not None else None  # [B, R]
        for path, module in modules.items():
            below = dict(streams.parent)  # stream of each slot one layer down
            streams.split(owners[path])
            inputs, noises = [], []
            for block, slot in streams.names:
                if path == "embed":
                    x = tuple(a[block] for a in (batch.tokens, batch.position, batch.token_type, batch.segment))
                else:
                    x = (hidden[below[block, slot]], batch.segment[block])
                inputs.append(x)
                if dropout is not None:
                    noises.append(_noise(row_keys[block], dropout, path, streams, block, slot, owners, batch))
            function = _layer_function(module, remat)
            outputs = _apply_owned(
                function, params[path], streams.owner_ids(owners[path], batch), owner_count(owners[path]),
                inputs, noises or None, run_columns,
            )  # fmt: skip
            hidden = dict(zip(streams.names, outputs, strict=True))
        return {
            task: jnp.concatenate([hidden[streams.parent[b, streams.slot(b, k)]] for b in layout.reads(task)])
            for k, task in enumerate(layout.tasks)
            if layout.reads(task)
        }

    return Network(init, apply, width)


class _Streams:
    """Which (block, slot) pairs are still one stream. Slot m of a block = the m-th task on its data set."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.tasks = {d: layout.tasks_on(d) for d in range(len(layout.datasets))}
        self.parent: dict[tuple[int, int], tuple[int, int]] = {}  # slot -> the stream it belongs to
        for block, candidates in enumerate(layout.candidates):
            for slot in range(max((len(self.tasks[d]) for d in candidates), default=0)):
                self.parent[block, slot] = (block, 0)
        self._prefix = {pair: () for pair in self.parent}  # owners so far, by candidate

    def split(self, owner: tuple[int, ...]) -> None:
        """Goes up one layer: slots stay one stream only where every candidate data set uses one owner for both."""
        for (block, slot), prefix in list(self._prefix.items()):
            used = tuple(
                owner[self.tasks[d][slot]] if slot < len(self.tasks[d]) else None for d in self.layout.candidates[block]
            )
            self._prefix[block, slot] = (*prefix, used)
        first: dict[Any, tuple[int, int]] = {}
        for pair, prefix in self._prefix.items():
            self.parent[pair] = first.setdefault((pair[0], prefix), pair)
        self.names = sorted(set(self.parent.values()))

    def slot(self, block: int, task: int) -> int:
        """The slot of task k in a block that it reads."""
        return self.tasks[self.layout.dataset_of[task]].index(task)

    def _table(self, owner, slot, candidates):
        """Per data set (all of them) the owner that a slot uses; 0 where the data set has no such slot."""
        return [owner[ts[slot]] if d in candidates and slot < len(ts) else 0 for d, ts in self.tasks.items()]

    def owner_ids(self, owner: tuple[int, ...], batch: Batch) -> list[int | jax.Array]:
        """The owner of each stream: an int where it is static, else an int32 scalar that depends on the draw."""
        ids: list[int | jax.Array] = []
        for block, slot in self.names:
            candidates = self.layout.candidates[block]
            table = self._table(owner, slot, candidates)
            if len({table[d] for d in candidates}) == 1:
                ids.append(table[candidates[0]])
            else:
                ids.append(jnp.asarray(np.asarray(table, np.int32))[batch.dataset[block]])
        return ids

    def salt(self, owner: tuple[int, ...], block: int, slot: int, batch: Batch) -> jax.Array:
        """uint32 by which a stream's dropout differs from those of its block's other streams."""
        salts = _salts(owner, self.layout)
        table = [salts[o] for o in self._table(owner, slot, self.layout.candidates[block])]
        return jnp.asarray(np.asarray(table, np.uint32))[batch.dataset[block]]


def _salts(owner: tuple[int, ...], layout: Layout) -> list[int]:
    """For each owner the key of its task's name, 0 where tasks share it: joint or alone, a column draws the same."""
    return [0 if task is None else name_key(layout.tasks[task]) for task in sole_tasks(owner)]


def _row_keys(key: jax.Array, batch: Batch, layout: Layout) -> jax.Array:
    """Keys [B, R] from the data set's name and the row's index: the bits do not depend on where a row is placed."""
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    blocks = jax.vmap(jax.random.fold_in, (None, 0))(key, names[batch.dataset])
    fold_rows = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_rows)(blocks, batch.row.astype(jnp.uint32))


def _noise(row_keys, dropout, path, streams, block, slot, owners, batch) -> Noise:
    salt = streams.salt(owners[path], block, slot, batch)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return Noise(fold(fold(row_keys, name_key(path)), salt), dropout.rate, dropout.attention_rate)


def _layer_function(module: nn.Module, remat: bool):
    def function(params, inputs, noise):
        return module.apply({"params": params}, *inputs, noise)

    return jax.checkpoint(function) if remat else function


def _apply_owned(function, params, owner_ids, count, inputs, noises, run_columns) -> list[jax.Array]:
    """Applies a layer to S streams, each with the parameters of its owner. Returns S arrays [R, T, D]."""
    rows = inputs[0][-1].shape[0]
    noises = noises or [None] * len(inputs)
    # streams of one static owner are one larger matrix product
    groups: dict[Any, list[int]] = {}
    for number, owner in enumerate(owner_ids):
        groups.setdefault(owner if isinstance(owner, int) else ("drawn", number), []).append(number)
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


def _concatenate(parts):
    """Joins (inputs, noise) of several streams on the row axis; the rates are scalars and the same in all."""
    if len(parts) == 1:
        return parts[0]
    inputs = tuple(jnp.concatenate(arrays) for arrays in zip(*(p[0] for p in parts), strict=True))
    noise = parts[0][1]
    if noise is not None:
        noise = noise._replace(keys=jnp.concatenate([p[1].keys for p in parts]))
    return inputs, noise


def _stack(merged):
    """[S] trees to one tree with leading axis S; the rates of the noise stay scalars, with axis None."""
    inputs = tuple(jnp.stack(arrays) for arrays in zip(*(m[0] for m in merged), strict=True))
    noise = merged[0][1]
    if noise is None:
        return inputs, None, None
    axes = Noise(0, None, None)
    return inputs, noise._replace(keys=jnp.stack([m[1].keys for m in merged])), axes


def _vmap(function, params, merged):
    inputs, noise, axes = _stack(merged)
    return list(jax.vmap(function, in_axes=(0, 0, axes))(params, inputs, noise))


def _map(function, params, merged):
    inputs, noise, _ = _stack(merged)
    if noise is None:
        return list(jax.lax.map(lambda args: function(args[0], args[1], None), (params, inputs)))
    rebuild = functools.partial(Noise, rate=noise.rate, attention_rate=noise.attention_rate)
    return list(jax.lax.map(lambda args: function(args[0], args[1], rebuild(args[2])), (params, inputs, noise.keys)))


def _unroll(function, params, merged):
    return [function(jax.tree.map(lambda leaf, i=i: leaf[i], params), *m) for i, m in enumerate(merged)]


def _example_inputs(modules: Mapping[str, nn.Module]) -> tuple[dict[str, tuple[jax.Array, ...]], int]:
    """The smallest inputs of each layer, from which parameters get their shapes, and the width D of the last one."""
    ids = jnp.zeros((1, 2), jnp.int32)
    inputs, examples = (ids, ids, ids, ids), {}
    for path, module in modules.items():
        examples[path] = inputs
        output, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
        inputs = (jnp.zeros(output.shape, output.dtype), ids)
    return examples, output.shape[-1]
