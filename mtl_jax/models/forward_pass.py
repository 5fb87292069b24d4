"""The forward pass of one batch through the layers of a network; what is static about it is in `network_spec`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.apply_owned import COLUMN_EXECUTIONS, OwnedParams, apply_owned, layer_function
from mtl_jax.models.columns_by_task import columns_to_compute, columns_to_mix
from mtl_jax.models.dropout import Noise
from mtl_jax.models.encoder_parts import encoder_parts, tapped_parts
from mtl_jax.models.gradient_taps import TappedLayer, TappedStreams, Taps, TapSpec, apply_tapped_layer
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.mixers import mix, mix_by_task
from mtl_jax.models.mixers.base import Mixer
from mtl_jax.models.network_spec import DropoutRates, NetworkSpec
from mtl_jax.models.ownership import ExpertColumns, adapter_path, mixer_path, name_key, owner_count
from mtl_jax.models.task_streams import Streams, owner_salts

Params = Mapping[str, Any]


Pair = tuple[int, int]  # (block, slot)


class PassOptions(NamedTuple):
    """What one pass needs in addition to parameters and batch, see `network.Network.apply`."""

    dropout: DropoutRates | None = None
    key: jax.Array | None = None
    taps: Taps | None = None
    tap_spec: TapSpec | None = None
    progress: jax.Array | None = None


class LayerStreams(NamedTuple):
    """The streams that pass through one layer.

    names      of the streams; each begins with its block
    owner_ids  of each: an int, or an int32 scalar where the block's data set is drawn
    salts      {name: uint32}, by which the dropout of streams differs
    inputs     {name: features [R, T, D]}; {} for the embeddings
    """

    names: list[Any]
    owner_ids: list[int | jax.Array]
    salts: Mapping[Any, jax.Array]
    inputs: Mapping[Any, jax.Array]


class _TaskHead(Mapping):
    """The parameters of the head of one task, from leaves [K_g, ...] of its group. What is not read is not traced."""

    def __init__(self, stacked: Params, index: int):
        self._stacked, self._index = stacked, index

    def __getitem__(self, name: str) -> Any:
        return jax.tree.map(lambda leaf: leaf[self._index], self._stacked[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stacked)

    def __len__(self) -> int:
        return len(self._stacked)


class ForwardPass:
    """The state of one pass: the streams of all blocks and their features.

    hidden     (block, slot) -> [R, T, D], one entry per stream; within layers of experts (block, column), or a name of
               `columns_by_task`
    passed     path of a layer -> (stream of each slot, `hidden`), for heads that read it
    features   task -> {block: the input of its head}
    auxiliary  name -> float32, sums over texts of the losses that mixers add
    """

    def __init__(self, static: NetworkSpec, params: Params, batch: Batch, options: PassOptions):
        self.static, self.params, self.batch = static, params, batch
        self.dropout, self.taps, self.tap_spec = options.dropout, options.taps, options.tap_spec
        self.progress = options.progress
        layout, sharing = static.layout, static.sharing
        number = {task: k for k, task in enumerate(layout.tasks)}
        self.streams = Streams(
            layout,
            everyone=sharing.passes_all_columns
            or (bool(sharing.cascades) and any(len(c) > 1 for c in layout.candidates)),
            also={number[task]: tuple(number[s] for s in sources) for task, sources in sharing.cascades.items()},
        )
        self.row_keys = None if options.dropout is None else dropout_row_keys(options.key, batch, layout)  # [B, R]
        self.hidden: dict[Any, jax.Array] = {}
        self.expert_inputs: dict[Pair, jax.Array] = {}  # (block, stream)
        self.passed: dict[str, tuple[dict, dict]] = {}
        self.features: dict[str, dict[int, jax.Array]] = {task: {} for task in layout.tasks}
        self.auxiliary: dict[str, jax.Array] = {}
        self.experts: ExpertColumns | None = None  # of the layers since the last mixer
        self.unread, self.to_mix = set(layout.tasks), list(sharing.mixers)
        self.needed = {task: self._needed_pairs(task) for task in layout.tasks}
        self.joint = None
        if self.taps is not None and not self.tap_spec.hidden_at:
            # every slot is a stream; streams that `joint` has in common have equal features
            self.joint = Streams(layout)
            self.streams.separate_all()

    def run(self) -> tuple[HeadInputs, dict[str, jax.Array]]:
        """(the inputs of the heads, {name: sum}); see `network.Network.apply`."""
        for path in self.static.modules:
            self._layer(path)
            if path in self.to_mix:
                self._mix(path)
            if self.taps is not None and path == self.tap_spec.hidden_at:
                self._add_hidden_tap()
            self.passed[path] = (dict(self.streams.parent), self.hidden)
            self._read_layer(path)
            if not self._pairs_read_above():
                break  # no task of this batch reads a higher layer
        return self._head_inputs(), self.auxiliary

    def _head_inputs(self) -> HeadInputs:
        layout = self.static.layout
        unique = {id(array): array for blocks in self.features.values() for array in blocks.values()}
        by_width = sorted(unique.items(), key=lambda item: item[1].shape[-1])
        number = {key: index for index, (key, _) in enumerate(by_width)}
        places = np.full((len(layout.tasks), len(layout.candidates)), -1)
        for k, task in enumerate(layout.tasks):
            for block, array in self.features[task].items():
                places[k, block] = number[id(array)]
        groups = [list(arrays) for _, arrays in itertools.groupby(by_width, key=lambda item: item[1].shape[-1])]
        stacked = tuple(jnp.stack([array for _, array in arrays]) for arrays in groups)
        return HeadInputs(stacked, self.batch.dataset, tuple(map(tuple, places.tolist())), layout)

    # ---- layers

    def _layer(self, path: str) -> None:
        """Applies the layer `path` to all streams."""
        names, owner_ids, salts, layer_inputs = self._layer_streams(path)
        if path in self.static.cached_layers and self.batch.hidden is not None:
            self.hidden = {(block, slot): self.batch.hidden[block] for block, slot in names}
            return
        batch, noises = self.batch, None
        if path == "embed":
            tokens = (batch.tokens, batch.position, batch.token_type, batch.segment)
            inputs = [(*(a[block] for a in tokens), *self._pictures(block)) for block, _ in names]
        else:
            inputs = [(layer_inputs[name], batch.segment[name[0]]) for name in names]  # a name begins with its block
        if self.dropout is not None:
            noises = [self._noise(path, name[0], salts[name]) for name in names]
        outputs = self._apply(path, owner_ids, inputs, noises)
        self.hidden = dict(zip(names, outputs, strict=True))
        self._adapt_output(path)

    def _layer_streams(self, path: str) -> LayerStreams:
        """The streams that pass through a layer; streams with different owners become separate first."""
        owner = self.static.owners[path]
        below = dict(self.streams.parent)  # the stream of each slot one layer below
        if isinstance(owner, ExpertColumns) and self.static.sharing.mixes_by_task:
            columns, inputs = self._task_columns(owner, below)
            return LayerStreams(columns.names, columns.ids, columns.salts, inputs)
        if isinstance(owner, ExpertColumns):
            names, inputs = self._enter_experts(owner, below)
            column_salts = owner_salts(owner, self.static.layout)
            salts = {name: jnp.uint32(column_salts[name[1]]) for name in names}
            return LayerStreams(names, [column for _, column in names], salts, inputs)
        self.streams.enter_layer(owner)
        if self.joint is not None:
            self.joint.enter_layer(owner)
        if path in self.static.sharing.adapters and self.static.sharing.adapters[path].bind:
            self.streams.separate_all()
        names = self.streams.names
        inputs = {} if path == "embed" else {name: self.hidden[below[name]] for name in names}
        owner_ids = self.streams.owner_ids(owner, self.batch)
        salts = {name: self.streams.salt(owner, *name, self.batch) for name in names}
        return LayerStreams(names, owner_ids, salts, inputs)

    def _pictures(self, block: int) -> tuple[jax.Array, ...]:
        """(patch, pixels) of a block that may hold pictures; () for other blocks."""
        blocks = self.static.layout.picture_blocks()
        if block not in blocks:
            return ()
        index = blocks.index(block)
        return self.batch.patch[index], self.batch.pixels[index]

    def _apply(self, path: str, owner_ids, inputs, noises) -> list[jax.Array]:
        static, params = self.static, self.params
        module, adapter = static.modules[path], static.sharing.adapters.get(path)
        if self.joint is not None:
            contents = [self.joint.parent[name] for name in self.streams.names]
            sources = {"": static.weight_paths[path], **{name: name for name in encoder_parts(module)}}
            if self.tap_spec.layers.keys() & set(sources.values()) or len(set(contents)) < len(contents):
                ids = [owner_ids, *(self._part_ids(name, path, owner_ids) for name in encoder_parts(module))]
                tapped = tapped_parts(path, sources, params, ids, self.taps, self.tap_spec)
                layer = TappedLayer(module, path, static.remat_policy)
                streams = TappedStreams(tapped.owner_ids, inputs, noises, contents)
                return apply_tapped_layer(layer, tapped.params, tapped.taps, tapped.spec, streams)
        plain, names = layer_function(module, static.remat_policy), encoder_parts(module)
        parts = [OwnedParams(params[static.weight_paths[path]], owner_ids)]
        parts += [OwnedParams(params[name], self._part_ids(name, path, owner_ids)) for name in names]
        if adapter and adapter.bind:
            parts.append(OwnedParams(params[adapter_path(path)], self._adapter_ids(path)))

        def function(parts, *inputs):
            layer = adapter.bind(parts[-1], parts[0], module) if adapter and adapter.bind else parts[0]
            return plain({**layer, **dict(zip(names, parts[1 : 1 + len(names)], strict=True))}, *inputs)

        return apply_owned(function, parts, inputs, noises, COLUMN_EXECUTIONS[static.column_execution])

    def _part_ids(self, name: str, path: str, owner_ids: Sequence[int | jax.Array]) -> Sequence[int | jax.Array]:
        """The owner of each stream of the layer `path` in a part of the encoder as a whole."""
        owner = self.static.owners[name]
        if owner == self.static.owners[path]:
            return owner_ids
        if owner_count(owner) == 1:
            return [0] * len(owner_ids)
        return self.streams.owner_ids(owner, self.batch)

    def _adapter_ids(self, path):
        return self.streams.owner_ids(self.static.owners[adapter_path(path)], self.batch)

    def _adapt_output(self, path):
        """Applies adapters after a layer: from there on every task has a separate stream."""
        adapter = self.static.sharing.adapters.get(path)
        if not (adapter and adapter.after):
            return
        self._regroup(self.streams.separate_all)
        if self.joint is not None:
            self.joint.separate_all()
        params, inputs = self.params[adapter_path(path)], [(self.hidden[name],) for name in self.streams.names]
        outputs = apply_owned(
            lambda parts, inputs, noise: adapter.after(parts[0], inputs[0]),
            [OwnedParams(params, self._adapter_ids(path))],
            inputs,
            None,
            COLUMN_EXECUTIONS[self.static.column_execution],
        )
        self.hidden = dict(zip(self.streams.names, outputs, strict=True))

    def _noise(self, path: str, block: int, salt: jax.Array) -> Noise:
        fold = jax.vmap(jax.random.fold_in, (0, None))
        keys = fold(fold(self.row_keys[block], name_key(path)), salt)
        return Noise(keys, self.dropout.rate, self.dropout.attention_rate)

    # ---- columns and mixers

    def _enter_experts(self, owner: ExpertColumns, below: Mapping[Pair, Pair]):
        """The names of the columns, and the input of each: its own column, or the stream of its task."""
        blocks = self._blocks()
        names = [(block, column) for block in blocks for column in range(owner_count(owner))]
        if self.experts is not None:
            return names, self.hidden
        mixer = next(iter(self.static.sharing.mixers.values()))
        if not self.expert_inputs:  # the layer below is the trunk
            self.expert_inputs = {pair: self.hidden[below[pair]] for pair in self.streams.parent}
            shared = len(self.static.layout.tasks)
            if mixer.streams > shared:
                self.expert_inputs |= {(block, shared): self._shared_input(block, below) for block in blocks}
        self.experts = owner
        source = [mixer.streams - 1 if task is None else task for task in owner.tasks]
        return names, {(block, column): self.expert_inputs[block, source[column]] for block, column in names}

    def _blocks(self) -> list[int]:
        return sorted({block for block, _ in self.streams.parent})

    def _task_columns(self, owner: ExpertColumns, below: Mapping[Pair, Pair]):
        """The columns that the tasks need, and the input of each."""
        columns = columns_to_compute(owner, self.streams, self.static.layout, self.batch)
        if self.experts is not None:
            return columns, self.hidden
        self.experts, self.expert_inputs = owner, {pair: self.hidden[name] for pair, name in below.items()}
        return columns, {name: self.expert_inputs[name[0], name[2]] for name in columns.names}

    def _mixed_by_task(self, mixer: Mixer, params: Params):
        blocks = {
            block: columns_to_mix(
                self.experts,
                self.streams,
                self.static.layout,
                self.batch,
                block,
                outputs=self.hidden,
                inputs=self.expert_inputs,
            )
            for block in self._blocks()
        }
        mixed, added = mix_by_task(mixer, params, blocks, self.batch, self.progress)
        streams = [stream for of_block in mixed.values() for stream in of_block]
        return dict(zip(sorted(self.streams.parent), streams, strict=True)), added

    def _shared_input(self, block: int, below: Mapping[Pair, Pair]) -> jax.Array:
        """The input of shared experts: the trunk; where adapters or cascades separate the tasks, their mean."""
        streams = [below[pair] for pair in sorted(self.streams.parent) if pair[0] == block]
        if len(set(streams)) == 1:
            return self.hidden[streams[0]]
        return sum(self.hidden[name] for name in streams) / len(streams)

    def _mix(self, path: str) -> None:
        mixer = self.static.sharing.mixers[path]
        params = jax.tree.map(lambda leaf: leaf[0], self.params[mixer_path(path)])
        if self.static.sharing.mixes_by_task:
            self.hidden, added = self._mixed_by_task(mixer, params)
        else:
            inputs = self.hidden if self.experts is None else self.expert_inputs
            self.hidden, added = mix(mixer, params, self.hidden, inputs, self.batch, self.progress)
            self.expert_inputs = self.hidden
        self.experts = None
        for name, value in added.items():
            self.auxiliary[name] = self.auxiliary.get(name, jnp.float32(0.0)) + value
        self.streams.separate_all()
        self.to_mix.remove(path)
        self._keep_pairs(self._pairs_read_above())

    def _add_hidden_tap(self) -> None:
        self._regroup(self.streams.separate_all)
        named = zip(self.streams.names, self.taps.hidden, strict=True)
        self.hidden = {name: self.hidden[name] + tap.astype(self.hidden[name].dtype) for name, tap in named}

    def _keep_pairs(self, pairs: Collection[Pair]) -> None:
        self._regroup(lambda: self.streams.keep(pairs))

    def _regroup(self, change: Callable[[], None]) -> None:
        """Changes which slots are one stream, and assigns the features to the new streams."""
        below, features = dict(self.streams.parent), self.hidden
        change()
        self.hidden = {name: features[below[name]] for name in self.streams.names}

    # ---- heads and cascades

    def _read_layer(self, path: str) -> None:
        """The inputs of the heads at this layer; their label distributions are passed on along the cascades."""
        sharing, tasks = self.static.sharing, self.static.layout.tasks
        top = list(self.static.modules)[-1]
        here = [task for task in sharing.cascade_order if sharing.head_layers.get(task, top) == path]
        for task in here:
            for block, slot in self.streams.slots(tasks.index(task)):
                self.features[task][block] = self._features(task, path, (block, slot))
            for receiver, sources in sharing.cascades.items():
                if task in sources:
                    self._cascade_labels(task, receiver, path)
        self.unread -= set(here)
        if here and self.taps is None:  # tasks that were read need no layer above
            self._keep_pairs(self._pairs_read_above())

    def _needed_pairs(self, task: str) -> set[Pair]:
        """The pairs of a task in blocks that it reads, and in blocks of tasks that receive its labels."""
        layout, sharing = self.static.layout, self.static.sharing
        blocks, receivers = set(), {task}
        while receivers:
            blocks |= {block for name in receivers for block in layout.reads(name)}
            receivers = {name for name, sources in sharing.cascades.items() if receivers & set(sources)}
        return {pair for pair in self.streams.slots(layout.tasks.index(task)) if pair[0] in blocks}

    def _pairs_read_above(self) -> set[Pair]:
        """The pairs that heads at higher layers read. Where a mixer follows, all pairs of their blocks; if it adds to
        the objective, all pairs.
        """
        pairs = {pair for task in self.unread for pair in self.needed[task]}
        if not self.to_mix:
            return pairs
        mixers = self.static.sharing.mixers
        everywhere = self.progress is not None and any(mixers[path].auxiliary for path in self.to_mix)
        blocks = {block for block, _ in pairs}
        return {pair for pair in self.streams.parent if everywhere or pair[0] in blocks}

    def _features(self, task: str, path: str, pair: Pair) -> jax.Array:
        reader, head = self.static.sharing.readout, self._head(task)
        order = list(self.static.modules)
        layers = order[: order.index(path) + 1] if reader.reads_all else [path]
        return reader.apply(head, [hidden[parent[pair]] for parent, hidden in map(self.passed.get, layers)])

    def _head(self, task: str) -> Params:
        """The parameters of the head of a task, with as many classes as its group has."""
        group, index = self.static.layout.member[task]
        return _TaskHead(self.params.get("heads", {}).get(group, {}), index)

    def _cascade_labels(self, source: str, receiver: str, path: str) -> None:
        """Adds the embedded label distribution of `source` to streams of `receiver` (Hashimoto et al. 2017, eq. 3)."""
        batch, static = self.batch, self.static
        table = self._head(receiver)["feeds"][source]["embedding"]  # [C, D]
        pairs = self.streams.slots(static.layout.tasks.index(receiver))
        self._regroup(lambda: self.streams.separate(pairs))
        for block, slot in pairs:
            distribution = static.sharing.label_distribution(
                source,
                self._head(source),
                self.features[source][block],
                batch.segment[block],
                batch.start[block],
                batch.length[block],
            )
            x = self.hidden[block, slot]
            label = jnp.matmul(distribution, table, precision=jax.lax.Precision.HIGHEST)
            self.hidden[block, slot] = x + label.astype(x.dtype)
        if self.expert_inputs:  # experts above read the added labels, too
            self.expert_inputs = self.expert_inputs | {pair: self.hidden[pair] for pair in pairs}
        self.passed[path] = (dict(self.streams.parent), self.hidden)


def dropout_row_keys(key: jax.Array, batch: Batch, layout: BatchLayout) -> jax.Array:
    """Keys [B, R] from the data set's name and the row's index: the bits do not depend on where a row is placed."""
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    blocks = jax.vmap(jax.random.fold_in, (None, 0))(key, names[batch.dataset])
    fold_rows = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_rows)(blocks, batch.row.astype(jnp.uint32))
