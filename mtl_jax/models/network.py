"""The network: layers owned by partitions of the tasks, applied to the blocks of a batch.

What one block looks like on its way up is a stream, see `streams`; what happens to it in a layer stands in `forward`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.forward_pass import DropoutRates, ForwardPass, NetworkSpec, SharingSpec
from mtl_jax.models.mixers.columns import MixerPlace
from mtl_jax.models.ownership import ExpertColumns, Owner, adapter_path, layer_paths, mixer_path, name_key, owner_count
from mtl_jax.models.readouts import top as read_top
from mtl_jax.models.streams import owner_salts, stream_entries
from mtl_jax.models.taps import Taps, TapSpec

Params = Mapping[str, Any]
NO_SHARING = SharingSpec({}, {}, read_top(), {}, {}, (), None, {})


class NetworkOutputs(NamedTuple):
    """hidden  {task: [P·R, T, D]}; P·R = the rows of the blocks in `layout.reads(task)`, in that order
    auxiliary  {name: float32 scalar}, sums over the texts of the batch of the losses that mixers add; {} without
               progress
    """

    hidden: dict[str, jax.Array]
    auxiliary: dict[str, jax.Array]


class Network(NamedTuple):
    """Pure functions.

    init     (key, known=()) -> params: {path: leaves [O, ...] float32}; zeros in the layers `known`
    init_head  (task, key) -> what a head has besides the task's own, float32: by what it reads layers, and embeddings
             of the labels that it is fed, feeds/<task>/embedding [C, D]
    apply    (params, batch, dropout: Dropout | None, key) -> Outputs. `key` is that of the step; None where there is no
             dropout. With `taps` and their `tap_spec` every (block, slot) is a stream of its own, see `models.taps`.
             `progress` = step / steps, float32, in training
    taps     (params, batch, tap_spec) -> Taps
    width    {task: D of what its head is given}
    auxiliary  {name of a loss that mixers add: the factor it has unless a config says}
    """

    init: Callable[..., Params]
    init_head: Callable[[str, jax.Array], Params]
    apply: Callable[..., NetworkOutputs]
    taps: Callable[..., Taps]
    width: Mapping[str, int]
    auxiliary: Mapping[str, float]


def network(
    embed: nn.Module,
    layers: list[nn.Module],
    owners: Mapping[str, Owner],
    layout: BatchLayout,
    *,
    column_init: str = "same",
    columns: str = "vmap",
    remat: bool = False,
    kept: tuple[str, ...] = (),
    sharing: SharingSpec = NO_SHARING,
) -> Network:
    """A network of `embed` and `layers`, each with one set of parameters for each owner.

    Args:
      embed: module of (tokens, position, token_type, segment, noise) -> [R, T, D], with patch and pixels behind the
        noise where it has `patches`.
      layers: modules of (x [R, T, D], segment, noise) -> [R, T, D'].
      owners: path -> owner of each of the K tasks, from `ownership.assign_owners`; of layers of experts their columns.
      layout: what is static about the batches.
      column_init: "same" starts all owners of a layer from the same values, "independent" each from its own, keyed
        by the name of the task where a single one owns the slice. Experts are always independent.
      columns: how several owners are computed: "vmap", "map" (in turns, by scan) or "unroll" (in turns, written out).
      remat: recompute each layer in the backward pass.
      kept: the lowest layers, whose outputs stand in batches that have `hidden`; they are frozen, and the same in all
        columns.
      sharing: what stands between the layers and the tasks besides owners.
    """
    modules = dict(zip(layer_paths(len(layers)), [embed, *layers], strict=True))
    sharing = sharing._replace(feeding_order=sharing.feeding_order or layout.tasks)
    static = NetworkSpec(modules, owners, layout, sharing, columns, remat, kept)
    examples, widths = _example_inputs(modules)
    last = next(reversed(modules))

    def init(key: jax.Array, known: Collection[str] = ()) -> Params:
        keys = {
            path: _column_keys(jax.random.fold_in(key, name_key(path)), owners[path], layout, column_init)
            for path in modules
        }
        params = _initial(modules, examples, keys, known)
        below, entry = None, None  # widths under a layer, and under the first layer since the last mixer
        for path in modules:
            if isinstance(owners[path], ExpertColumns) and entry is None:
                entry = below
            if path in sharing.mixers:
                name, top = mixer_path(path), path == list(sharing.mixers)[-1]
                place = MixerPlace(entry or widths[path], widths[path], top, len(layout.datasets))
                made = sharing.mixers[path].init(jax.random.fold_in(key, name_key(name)), place)
                params[name] = jax.tree.map(lambda leaf: leaf[None], made)
                entry = None
            if path in sharing.adapters:
                name, layer = adapter_path(path), jax.tree.map(lambda leaf: leaf[0], params[path])
                adapter_key = jax.random.fold_in(key, name_key(name))
                own = [
                    sharing.adapters[path].init(jax.random.fold_in(adapter_key, name_key(task)), layer, widths[path])
                    for task in layout.tasks
                ]
                params[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
            below = widths[path]
        return params

    def read_widths(task):
        order = list(modules)
        return [widths[path] for path in order[: order.index(sharing.head_layers.get(task, last)) + 1]]

    def init_head(task: str, key: jax.Array) -> Params:
        params, sources = sharing.readout.init(key, read_widths(task)), sharing.cascades.get(task, ())
        if not sources:
            return params

        def table(source):
            own = jax.random.fold_in(key, name_key(source))
            shape = sharing.classes[source], widths[sharing.head_layers.get(source, last)]
            return {"embedding": 0.02 * jax.random.normal(own, shape, jnp.float32)}

        return {**params, "feeds": {source: table(source) for source in sources}}

    def apply(
        params: Params,
        batch: Batch,
        dropout: DropoutRates | None = None,
        key: jax.Array | None = None,
        taps: Taps | None = None,
        tap_spec: TapSpec | None = None,
        progress: jax.Array | None = None,
    ) -> NetworkOutputs:
        chex.assert_rank(batch.tokens, 3)
        chex.assert_equal_shape([batch.tokens, batch.segment, batch.position, batch.token_type])
        chex.assert_equal_shape([batch.start, batch.length, batch.example])
        chex.assert_equal_shape_prefix([batch.tokens, batch.start], 2)
        return NetworkOutputs(*ForwardPass(static, params, batch, dropout, key, taps, tap_spec, progress).run())

    def zeros(params: Params, batch: Batch, tap_spec: TapSpec) -> Taps:
        count = len(stream_entries(layout)) * tap_spec.halves

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

    def width(task):
        found = read_widths(task)[-1]
        mixer = sharing.mixers.get(last)
        return mixer.widen(found) if mixer and sharing.head_layers.get(task, last) == last else found

    added = {name: factor for mixer in sharing.mixers.values() for name, factor in mixer.auxiliary.items()}
    return Network(init, init_head, apply, zeros, {task: width(task) for task in layout.tasks}, added)


def _column_keys(key, owner: Owner, layout: BatchLayout, column_init: str) -> list[jax.Array]:
    """The keys that a layer's columns start from. The first expert starts as a trunk does: one expert is a trunk."""
    by_name = owner_salts(owner, layout)
    if isinstance(owner, ExpertColumns):
        return [jax.random.fold_in(key, salt) if number else key for number, salt in enumerate(by_name)]
    if column_init == "same":
        return [key] * owner_count(owner)
    return [jax.random.fold_in(key, salt) for salt in by_name]


def _initial(
    modules: Mapping[str, nn.Module],
    examples: Mapping[str, Any],
    keys: Mapping[str, list[jax.Array]],
    known: Collection[str],
) -> dict[str, Any]:
    """Random parameters of each layer, leaves [O, ...]: layers of one form in one loop, so that the program is short.
    Zeros for `known` ones.

    In turns: several batched QR factorisations at once (orthogonal kernels) can wait for each other for ever on CPUs of
    few cores (jaxlib 0.10).
    """
    forms: dict[Any, list[str]] = {}
    params = {}
    for path, module in modules.items():
        if path in known:
            shapes = jax.eval_shape(module.init, keys[path][0], *examples[path])["params"]
            count = len(keys[path])
            params[path] = jax.tree.map(lambda leaf, n=count: jnp.zeros((n, *leaf.shape), leaf.dtype), shapes)
            continue
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), examples[path])
        forms.setdefault((module, shapes), []).append(path)
    for (module, _), alike in forms.items():
        of_all = jnp.stack([key for path in alike for key in keys[path]])
        drawn = jax.lax.map(lambda key, m=module, x=examples[alike[0]]: m.init(key, *x)["params"], of_all)
        start = 0
        for path in alike:
            end = start + len(keys[path])
            params[path] = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b], drawn)
            start = end
    return params


def _example_inputs(modules: Mapping[str, nn.Module]) -> tuple[dict[str, tuple[Any, ...]], dict[str, int]]:
    """The smallest inputs of each layer, from which parameters get their shapes, and the widths of what they return."""
    ids = np.zeros((1, 2), np.int32)
    inputs, examples, widths = (ids, ids, ids, ids), {}, {}
    if (patches := getattr(modules["embed"], "patches", None)) is not None:
        inputs = (*inputs, None, ids > 0, np.zeros((1, 2, patches.features), np.uint8))
    for path, module in modules.items():
        examples[path] = inputs
        output = _output(module, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs))
        widths[path] = output.shape[-1]
        inputs = (np.zeros(output.shape, output.dtype), ids)  # of the layers above
    return examples, widths


@functools.lru_cache(maxsize=256)  # every network asks, and a config makes several
def _output(module: nn.Module, inputs: tuple[jax.ShapeDtypeStruct | None, ...]) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda *inputs: module.init_with_output(jax.random.key(0), *inputs)[0], *inputs)
