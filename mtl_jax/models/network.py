"""The network: layers owned by partitions of the tasks, applied to the blocks of a batch.

The forward pass is in `forward_pass`; which tasks have one computation in common, in `task_streams`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.errors import UserError
from mtl_jax.models.adapters.base import LayerPlace
from mtl_jax.models.encoder_parts import encoder_parts, weight_paths
from mtl_jax.models.forward_pass import ForwardPass, PassOptions
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.key_values import KeyMemory
from mtl_jax.models.mixers.base import MixerPlace
from mtl_jax.models.network_spec import DropoutRates, NetworkSpec, SharingSpec
from mtl_jax.models.ownership import (
    ExpertColumns,
    Owner,
    adapter_path,
    layer_paths,
    mixer_path,
    name_key,
    owner_count,
    owner_names,
    shared_adapter_path,
)
from mtl_jax.models.reach import Readers, reach
from mtl_jax.models.task_streams import owner_salts, stream_entries

Params = Mapping[str, Any]


class NetworkOutputs(NamedTuple):
    """features   the inputs of the heads: `features.take(blocks, tasks)` gives those of any (block, task) entries as
               one array [E, R, T, D]. `tasks` int[E, N] has a column for each data set, since a drawn block may hold
               any of them: the task whose features are wanted then, such as the m-th task on that data set
    auxiliary  {name: float32 scalar}, sums over the texts of the batch of the losses that mixers add; {} without
               progress
    keys, key_blocks  see `ForwardPass`; with `collect_keys` or a `memory`
    """

    features: HeadInputs
    auxiliary: dict[str, jax.Array]
    keys: Mapping[str, Any] = MappingProxyType({})
    key_blocks: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def hidden(self) -> dict[str, jax.Array]:
        """{task: [P·R, T, D]}, see `HeadInputs.by_task`."""
        return self.features.by_task()


class Network(NamedTuple):
    """Pure functions.

    init       (key, known=()) -> params: {path: leaves [O, ...] float32}; zeros in the layers `known`
    init_head  (task, key) -> parameters of a head in addition to those of its task, float32: of the readout, and
               embeddings of the labels that it receives, feeds/<task>/embedding [C, D]
    apply      (params, batch, dropout: DropoutRates | None, key) -> NetworkOutputs. `key` is that of the step; None
               without dropout. With `taps` and their `tap_spec` every (block, slot) is a stream of its own, see
               `models.gradient_taps`. `progress` = step / steps, float32, in training. `collect_keys` and `memory`
               are for decoding, see `models.key_values`
    taps       (params, batch, tap_spec) -> Taps, zeros
    width      {task: D of the input of its head}
    auxiliary  {name of a loss that mixers add: its default factor}
    reach      {path: for each slice the tasks whose losses depend on it}, see `models.reach`
    """

    init: Callable[..., Params]
    init_head: Callable[[str, jax.Array], Params]
    apply: Callable[..., NetworkOutputs]
    taps: Callable[..., Taps]
    width: Mapping[str, int]
    auxiliary: Mapping[str, float]
    reach: Mapping[str, Readers]


def network(
    embed: nn.Module,
    layers: list[nn.Module],
    owners: Mapping[str, Owner],
    layout: BatchLayout,
    *,
    column_init: str = "same",
    column_execution: str = "vmap",
    remat_policy: str = "everything_saveable",
    cached_layers: tuple[str, ...] = (),
    sharing: SharingSpec = SharingSpec(),  # noqa: B008 (immutable)
    tied_layers: bool = False,
) -> Network:
    """A network of `embed` and `layers`, each with one set of parameters per owner.

    Args:
      embed: module of (tokens, position, token_type, segment, noise) -> [R, T, D]; with `patches` also of patch and
        pixels, after the noise.
      layers: modules of (x [R, T, D], segment, noise) -> [R, T, D'].
      owners: path -> owner of each of the K tasks, from `ownership.assign_owners`; for layers of experts their columns.
        Those of parts of the encoder as a whole, too, see `encoder_parts.part_owners`.
      layout: what is static about the batches.
      column_init: "same": all owners of a layer start from the same values; "independent": each from its own, keyed
        by the name of the task if only one owns the slice. Experts are always independent.
      column_execution: how the columns of several owners are computed: "vmap", "map" (sequentially, by scan) or
        "unroll" (sequentially, unrolled).
      remat_policy: what of each layer is kept for the backward pass, a name in `remat.REMAT_POLICIES`.
      cached_layers: the lowest layers, whose outputs are in batches that have `hidden`; they are frozen, and the same
        in all columns.
      sharing: mixers, adapters, readout and cascades.
      tied_layers: whether the layers of one owner have one set of weights.
    """
    modules = dict(zip(layer_paths(len(layers)), [embed, *layers], strict=True))
    sharing = sharing._replace(cascade_order=sharing.cascade_order or layout.tasks)
    weights = weight_paths(owners, len(layers), tied_layers)
    spec = NetworkSpec(modules, owners, layout, sharing, column_execution, remat_policy, cached_layers, weights)
    functions = _Functions(spec, column_init)
    auxiliary = {name: factor for mixer in sharing.mixers.values() for name, factor in mixer.auxiliary.items()}
    width = {task: functions.head_width(task) for task in layout.tasks}
    readers = reach(owners, tuple(modules), weights, sharing, layout.tasks)
    return Network(functions.init, functions.init_head, functions.apply, functions.taps, width, auxiliary, readers)


class _Functions:
    """The functions of a `Network`.

    examples  path -> the smallest inputs of the layer
    widths    path -> features of its output
    """

    def __init__(self, spec: NetworkSpec, column_init: str):
        self.spec, self.column_init = spec, column_init
        self.examples, self.widths = _example_inputs(spec.modules)
        self.top = next(reversed(spec.modules))

    def init(self, key: jax.Array, known: Collection[str] = ()) -> Params:
        modules, owners, layout, sharing = self.spec.modules, self.spec.owners, self.spec.layout, self.spec.sharing
        keys = {
            path: _column_keys(jax.random.fold_in(key, name_key(path)), owners[path], layout, self.column_init)
            for path in modules
        }
        counts = {path: owner_count(owners[path]) for path in modules}
        params = _initial_layers(modules, self.examples, keys, counts, known)
        weights = self.spec.weight_paths
        for path, module in modules.items():
            for name in encoder_parts(module):
                part = params[path].pop(name)
                params.setdefault(name, part)
            if weights[path] != path:
                del params[path]
        below, expert_inputs = None, None  # widths below a layer, and below the first expert since the last mixer
        for path in modules:
            if isinstance(owners[path], ExpertColumns) and expert_inputs is None:
                expert_inputs = below
            if path in sharing.mixers:
                params[mixer_path(path)] = self._init_mixer(key, path, expert_inputs or self.widths[path])
                expert_inputs = None
            if path in sharing.adapters:
                params |= self._init_adapter(key, path, params[weights[path]])
            below = self.widths[path]
        return params

    def _init_mixer(self, key: jax.Array, path: str, inputs: int) -> Params:
        """Parameters of the mixer after a layer, leaves [1, ...]; `inputs` is the width below its columns."""
        mixers = self.spec.sharing.mixers
        place = MixerPlace(inputs, self.widths[path], path == list(mixers)[-1], len(self.spec.layout.datasets))
        params = mixers[path].init(jax.random.fold_in(key, name_key(mixer_path(path))), place)
        return jax.tree.map(lambda leaf: leaf[None], params)

    def _init_adapter(self, key: jax.Array, path: str, layer: Params) -> dict[str, Params]:
        """Parameters of the adapters on a layer by path, leaves [O, ...]; `layer` has leaves [O', ...]."""
        own, shared = adapter_path(path), shared_adapter_path(path)
        adapter, layer = self.spec.sharing.adapters[path], jax.tree.map(lambda leaf: leaf[0], layer)
        place = LayerPlace(layer, self.widths[path], self.spec.modules[path])
        names = owner_names(self.spec.owners[own], self.spec.layout.tasks)
        salts = np.asarray([name_key(name) for name in names], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, name_key(own)), salts)
        params = {own: jax.lax.map(lambda key: adapter.init(key, place), keys)}
        if adapter.init_shared:
            drawn = adapter.init_shared(jax.random.fold_in(key, name_key(shared)), place)
            params[shared] = jax.tree.map(lambda leaf: leaf[None], drawn)
        return params

    def init_head(self, task: str, key: jax.Array) -> Params:
        sharing = self.spec.sharing
        params, sources = sharing.readout.init(key, self._read_widths(task)), sharing.cascades.get(task, ())
        if not sources:
            return params

        def label_embedding(source: str) -> Params:
            shape = sharing.class_counts[source], self.widths[sharing.head_layers.get(source, self.top)]
            source_key = jax.random.fold_in(key, name_key(source))
            return {"embedding": 0.02 * jax.random.normal(source_key, shape, jnp.float32)}

        return {**params, "feeds": {source: label_embedding(source) for source in sources}}

    def apply(
        self,
        params: Params,
        batch: Batch,
        dropout: DropoutRates | None = None,
        key: jax.Array | None = None,
        taps: Taps | None = None,
        tap_spec: TapSpec | None = None,
        *,
        progress: jax.Array | None = None,
        collect_keys: bool = False,
        memory: KeyMemory | None = None,
    ) -> NetworkOutputs:
        chex.assert_rank(batch.tokens, 3)
        chex.assert_equal_shape([batch.tokens, batch.segment, batch.position, batch.token_type])
        chex.assert_equal_shape([batch.start, batch.length, batch.example])
        chex.assert_equal_shape_prefix([batch.tokens, batch.start], 2)
        options = PassOptions(dropout, key, taps, tap_spec, progress, collect_keys, memory)
        forward = ForwardPass(self.spec, params, batch, options)
        return NetworkOutputs(*forward.run(), forward.keys, forward.key_blocks)

    def taps(self, params: Params, batch: Batch, tap_spec: TapSpec) -> Taps:
        count = len(stream_entries(self.spec.layout)) * tap_spec.halves
        across = [path for path, source in self.spec.weight_paths.items() if path != source]
        across += [name for module in self.spec.modules.values() for name in encoder_parts(module)]
        if tap_spec.products and across:
            raise UserError(
                "config.aggregation.gradient_storage: 'layers' needs the products of one layer after another, but this "
                f"encoder has weights that several layers read ({across[0]}); take 'copies'"
            )

        def layer_taps(path: str, leaves: tuple[str, ...]):
            if tap_spec.products:
                return jnp.zeros((count, count), jnp.float32)
            flat = flatten_dict(params[path], sep="/")
            return {leaf: jnp.zeros((count, *flat[leaf].shape[1:]), jnp.float32) for leaf in leaves}

        def row_taps(width: int) -> jax.Array:
            rows = len(batch.tokens) if tap_spec.by_block else count
            return jnp.zeros((rows, batch.tokens.shape[1] // tap_spec.halves, batch.tokens.shape[2], width))

        return Taps(
            {path: layer_taps(path, leaves) for path, leaves in tap_spec.layers.items()},
            row_taps(params["embed"]["word"]["embedding"].shape[-1]) if tap_spec.tokens else None,
            row_taps(self.widths[tap_spec.hidden_at]) if tap_spec.hidden_at else None,
        )

    def head_width(self, task: str) -> int:
        """D of the input of a task's head."""
        sharing = self.spec.sharing
        width, mixer = self._read_widths(task)[-1], sharing.mixers.get(self.top)
        return mixer.widen(width) if mixer and sharing.head_layers.get(task, self.top) == self.top else width

    def _read_widths(self, task: str) -> list[int]:
        """Widths of the layers that a head may read, bottom first."""
        paths = list(self.spec.modules)
        top = paths.index(self.spec.sharing.head_layers.get(task, self.top))
        return [self.widths[path] for path in paths[: top + 1]]


def _column_keys(key: jax.Array, owner: Owner, layout: BatchLayout, column_init: str) -> jax.Array:
    """The keys of a layer's columns, [O]; [1] where all start alike. The first expert starts like a trunk, so that one
    expert equals a trunk.
    """
    if not isinstance(owner, ExpertColumns) and column_init == "same":
        return key[None]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, owner_salts(owner, layout))
    return jnp.concatenate([key[None], keys[1:]]) if isinstance(owner, ExpertColumns) else keys


def _initial_layers(
    modules: Mapping[str, nn.Module],
    examples: Mapping[str, Any],
    keys: Mapping[str, jax.Array],
    counts: Mapping[str, int],
    known: Collection[str],
) -> dict[str, Any]:
    """Random parameters of each layer, leaves [O, ...]; zeros for `known` ones. Equal layers are drawn in one loop, so
    that the program is short.

    Sequentially: several batched QR factorisations at once (orthogonal kernels) can wait for each other forever on CPUs
    with few cores (jaxlib 0.10).
    """
    equal_layers: dict[Any, list[str]] = {}
    params = {}
    for path, module in modules.items():
        if path in known:
            shapes = jax.eval_shape(module.init, keys[path][0], *examples[path])["params"]
            params[path] = jax.tree.map(lambda leaf, n=counts[path]: jnp.zeros((n, *leaf.shape), leaf.dtype), shapes)
            continue
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), examples[path])
        equal_layers.setdefault((module, shapes), []).append(path)
    for (module, _), paths in equal_layers.items():
        all_keys = jnp.concatenate([keys[path] for path in paths])
        drawn = jax.lax.map(lambda key, m=module, x=examples[paths[0]]: m.init(key, *x)["params"], all_keys)
        start = 0
        for path in paths:
            end = start + len(keys[path])
            values = jax.tree.map(lambda leaf, a=start, b=end: leaf[a:b], drawn)
            params[path] = jax.tree.map(lambda leaf, n=counts[path]: _of_all(leaf, n), values)
            start = end
    return params


def _of_all(leaf: jax.Array, count: int) -> jax.Array:
    """[O, ...] from [O, ...], or from the values [1, ...] of all owners."""
    return leaf if leaf.shape[0] == count else jnp.broadcast_to(leaf, (count, *leaf.shape[1:]))


def _example_inputs(modules: Mapping[str, nn.Module]) -> tuple[dict[str, tuple[Any, ...]], dict[str, int]]:
    """The smallest inputs of each layer, which determine the shapes of its parameters, and the width of its outputs."""
    ids = np.zeros((1, 2), np.int32)
    inputs, examples, widths = (ids, ids, ids, ids), {}, {}
    if (patches := getattr(modules["embed"], "patches", None)) is not None:
        inputs = (*inputs, None, ids > 0, np.zeros((1, 2, patches.features), np.uint8))
    for path, module in modules.items():
        examples[path] = inputs
        output = _output(module, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), inputs))
        widths[path] = output.shape[-1]
        inputs = (np.zeros(output.shape, output.dtype), ids)  # of the next layer
    return examples, widths


@functools.lru_cache(maxsize=256)  # a config builds several networks of the same modules
def _output(module: nn.Module, inputs: tuple[jax.ShapeDtypeStruct | None, ...]) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda *inputs: module.init_with_output(jax.random.key(0), *inputs)[0], *inputs)
