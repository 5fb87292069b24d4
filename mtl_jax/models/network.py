"""The network: layers owned by partitions of the tasks, applied to the blocks of a batch.

What one block looks like on its way up is a stream, see `streams`; what happens to it in a layer stands in `owned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.data.batch import Batch, Layout
from mtl_jax.models.dropout import Noise
from mtl_jax.models.mixers import Mixer
from mtl_jax.models.owned import COLUMNS, apply_owned, layer_function
from mtl_jax.models.ownership import mixer_path, name_key, owner_count, paths
from mtl_jax.models.streams import Streams, entries, salts
from mtl_jax.models.taps import Taps, TapSpec, apply_tapped

Params = Mapping[str, Any]


class Dropout(NamedTuple):
    """Dropout rates, float32 scalars that may be traced; None where there is no dropout at all."""

    rate: jax.Array | None
    attention_rate: jax.Array | None


class Network(NamedTuple):
    """Pure functions.

    init   (key) -> params: {path: leaves [O, ...] float32}
    apply  (params, batch, dropout: Dropout | None, key) -> {task: hidden [P·R, T, D]}; P·R = the rows of the blocks
           in `layout.reads(task)`, in that order. `key` is that of the step; None where there is no dropout. With
           `taps` and their `tap_spec` every (block, slot) is a stream of its own, see `models.taps`
    taps   (params, batch, tap_spec) -> Taps
    width  D of what `apply` returns
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., dict[str, jax.Array]]
    taps: Callable[..., Taps]
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
    kept: tuple[str, ...] = (),
    mixers: Mapping[str, Mixer] | None = None,
    mixture: bool = False,
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
      mixture: heads read Σ_l β_l h_l over the layers above the embeddings (sluice networks: Ruder et al. 2019), with β
        float32[L] = `params["heads"][task]["layers"]`; else the last layer.
      mixers: path of layer -> what mixes the K columns behind it; each task owns such a layer.
      kept: the lowest layers, whose outputs stand in batches that have `hidden`; they are frozen, and the same in all
        columns.
    """
    modules = dict(zip(paths(len(layers)), [embed, *layers], strict=True))
    run_columns, mixers, count_tasks = COLUMNS[columns], mixers or {}, len(layout.tasks)
    examples, widths = _example_inputs(modules)

    def init(key: jax.Array) -> Params:
        params = {}
        for path, module in modules.items():
            layer_key = jax.random.fold_in(key, name_key(path))
            if column_init == "same":
                keys = jnp.stack([layer_key] * owner_count(owners[path]))
            else:
                keys = jnp.stack([jax.random.fold_in(layer_key, salt) for salt in salts(owners[path], layout)])
            # in turns: several batched QR factorisations at once (orthogonal kernels) can wait for each other for ever
            # on CPUs of few cores (jaxlib 0.10)
            params[path] = jax.lax.map(lambda k, m=module, x=examples[path]: m.init(k, *x)["params"], keys)
            if path in mixers:
                name = mixer_path(path)
                made = mixers[path].init(jax.random.fold_in(key, name_key(name)), count_tasks, widths[path])
                params[name] = jax.tree.map(lambda leaf: leaf[None], made)
        return params

    def apply(
        params: Params,
        batch: Batch,
        dropout: Dropout | None = None,
        key: jax.Array | None = None,
        taps: Taps | None = None,
        tap_spec: TapSpec | None = None,
    ):
        streams, to_mix = Streams(layout, everyone=bool(mixers)), len(mixers)
        if taps is not None and not tap_spec.hidden_at:
            streams.part()
        hidden: dict[tuple[int, int], jax.Array] = {}
        passed = []  # (stream of each slot, outputs) of the layers above the embeddings
        row_keys = _row_keys(key, batch, layout) if dropout is not None else None  # [B, R]
        for path, module in modules.items():
            below = dict(streams.parent)  # stream of each slot one layer down
            streams.split(owners[path])
            if path in kept and batch.hidden is not None:
                hidden = {(block, slot): batch.hidden[block] for block, slot in streams.names}
            else:
                inputs, noises = [], []
                for block, slot in streams.names:
                    if path == "embed":
                        x = tuple(a[block] for a in (batch.tokens, batch.position, batch.token_type, batch.segment))
                    else:
                        x = (hidden[below[block, slot]], batch.segment[block])
                    inputs.append(x)
                    if dropout is not None:
                        noises.append(_noise(row_keys[block], dropout, path, streams, block, slot, owners, batch))
                ids, count = streams.owner_ids(owners[path], batch), owner_count(owners[path])
                if taps is not None and path in tap_spec.layers:
                    outputs = apply_tapped(
                        module, remat, path, params[path], taps, tap_spec, ids, inputs, noises or None
                    )  # fmt: skip
                else:
                    function = layer_function(module, remat)
                    outputs = apply_owned(function, params[path], ids, count, inputs, noises or None, run_columns)
                hidden = dict(zip(streams.names, outputs, strict=True))
            if path in mixers:
                mixed = jax.tree.map(lambda leaf: leaf[0], params[mixer_path(path)])
                hidden = _mixed(mixers[path], mixed, hidden, batch, len(layout.candidates), count_tasks)
                to_mix -= 1
                if not to_mix:
                    streams.leave_to_readers()
            if taps is not None and path == tap_spec.hidden_at:
                below = dict(streams.parent)
                streams.part()
                hidden = {
                    name: hidden[below[name]] + tap.astype(hidden[below[name]].dtype)
                    for name, tap in zip(streams.names, taps.hidden, strict=True)
                }
            if path != "embed":
                passed.append((dict(streams.parent), hidden))

        def read(k, task, parent, outputs):
            return jnp.concatenate([outputs[parent[b, streams.slot(b, k)]] for b in layout.reads(task)])

        def features(k, task):
            if not mixture:
                return read(k, task, streams.parent, hidden)
            by_layer = jnp.stack([read(k, task, *of_layer) for of_layer in passed])
            beta = params["heads"][task]["layers"].astype(by_layer.dtype)
            return jnp.tensordot(beta, by_layer, 1, precision=jax.lax.Precision.HIGHEST)

        return {task: features(k, task) for k, task in enumerate(layout.tasks) if layout.reads(task)}

    def zeros(params: Params, batch: Batch, tap_spec: TapSpec) -> Taps:
        count = len(entries(layout)) * tap_spec.halves

        def of_layer(path, leaves):
            if tap_spec.products:
                return jnp.zeros((count, count), jnp.float32)
            flat = flatten_dict(params[path], sep="/")
            return {leaf: jnp.zeros((count, *flat[leaf].shape[1:]), jnp.float32) for leaf in leaves}

        def of_rows(width):
            return jnp.zeros((count, batch.tokens.shape[1] // tap_spec.halves, batch.tokens.shape[2], width))

        return Taps(
            {path: of_layer(path, leaves) for path, leaves in tap_spec.layers.items()},
            of_rows(params["embed"]["word"]["embedding"].shape[-1]) if tap_spec.tokens else None,
            of_rows(widths[tap_spec.hidden_at]) if tap_spec.hidden_at else None,
        )

    return Network(init, apply, zeros, widths[next(reversed(modules))])


def _mixed(mixer: Mixer, params, hidden, batch: Batch, blocks: int, count: int):
    """What a mixer makes of the streams of all blocks; slot k of a block is column k."""
    result = {}
    for block in range(blocks):
        mixed = mixer.apply(params, jnp.stack([hidden[block, k] for k in range(count)]), batch.segment[block])
        result |= {(block, k): mixed[k] for k in range(count)}
    return result


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


def _example_inputs(modules: Mapping[str, nn.Module]) -> tuple[dict[str, tuple[jax.Array, ...]], dict[str, int]]:
    """The smallest inputs of each layer, from which parameters get their shapes, and the widths of what they return."""
    ids = jnp.zeros((1, 2), jnp.int32)
    inputs, examples, widths = (ids, ids, ids, ids), {}, {}
    for path, module in modules.items():
        examples[path] = inputs
        output, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)
        widths[path] = output.shape[-1]
        inputs = (jnp.zeros(output.shape, output.dtype), ids)
    return examples, widths
