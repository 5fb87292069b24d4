"""The forward pass of one batch through the layers of a network; what is static about it is in `network_spec`.

The features of all streams are one array, and so are their keys and owners: the size of the program does not depend on
the number of blocks and tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.adapters.base import joined
from mtl_jax.models.apply_owned import (
    COLUMN_EXECUTIONS,
    OwnedParams,
    apply_owned,
    keeping_function,
    layer_function,
)
from mtl_jax.models.dropout import Noise
from mtl_jax.models.encoder_parts import encoder_parts, tapped_parts
from mtl_jax.models.expert_streams import ExpertStreams
from mtl_jax.models.gradient_taps import TappedLayer, TappedStreams, Taps, TapSpec, apply_tapped_layer
from mtl_jax.models.head_inputs import HeadInputs
from mtl_jax.models.key_values import KeyMemory, LayerMemory
from mtl_jax.models.network_spec import DropoutRates, NetworkSpec
from mtl_jax.models.ownership import (
    ExpertColumns,
    adapter_path,
    mixer_path,
    name_key,
    owner_count,
    shared_adapter_path,
)
from mtl_jax.models.readouts import Readout
from mtl_jax.models.static_gather import inverse, take
from mtl_jax.models.task_streams import Owners, Streams, owner_salts

Params = Mapping[str, Any]
_HIGHEST = jax.lax.Precision.HIGHEST


class PassOptions(NamedTuple):
    """What one pass needs in addition to parameters and batch, see `network.Network.apply`."""

    dropout: DropoutRates | None = None
    key: jax.Array | None = None
    taps: Taps | None = None
    tap_spec: TapSpec | None = None
    progress: jax.Array | None = None
    collect_keys: bool = False
    memory: KeyMemory | None = None


class LayerStreams(NamedTuple):
    """The S streams, or columns, that pass through one layer.

    blocks  int[S]
    owners  of each
    salts   uint32[S], by which the dropout of streams differs
    inputs  features [S, R, T, D]; None for the embeddings
    """

    blocks: np.ndarray
    owners: Owners
    salts: np.ndarray | jax.Array
    inputs: jax.Array | None


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

    hidden     [S, R, T, D]; within layers of experts those of `experts`
    passed     path of a layer -> (stream of each pair, `hidden`), for heads that read it
    inputs     of heads: arrays [n, R, T, D], and [K, B] the place of each (task, block) in them joined, −1 where none
    auxiliary  name -> float32, sums over texts of the losses that mixers add
    keys       path of a layer -> its `KEYS`, leaves [S, R, ...], where they are asked for
    key_blocks  path of a layer -> int[S], the block of each of those
    """

    def __init__(self, static: NetworkSpec, params: Params, batch: Batch, options: PassOptions):
        self.static, self.params, self.batch = static, params, batch
        self.dropout, self.taps, self.tap_spec = options.dropout, options.taps, options.tap_spec
        self.progress, self.memory = options.progress, options.memory
        self.keeps_keys = options.collect_keys or options.memory is not None
        self.keys: dict[str, Any] = {}
        self.key_blocks: dict[str, np.ndarray] = {}
        layout, sharing = static.layout, static.sharing
        number = {task: k for k, task in enumerate(layout.tasks)}
        self.streams = Streams(
            layout,
            everyone=sharing.passes_all_columns
            or (bool(sharing.cascades) and any(len(c) > 1 for c in layout.candidates)),
            also={number[task]: tuple(number[s] for s in sources) for task, sources in sharing.cascades.items()},
        )
        self.row_keys = None if options.dropout is None else dropout_row_keys(options.key, batch, layout)  # [B, R]
        self.hidden: jax.Array | None = None
        self.passed: dict[str, tuple[np.ndarray, jax.Array]] = {}
        self.inputs: list[jax.Array] = []
        self.places = np.full((len(layout.tasks), len(layout.candidates)), -1)
        self.auxiliary: dict[str, jax.Array] = {}
        self.experts = ExpertStreams(static, self.streams, batch)
        self.unread, self.to_mix = set(layout.tasks), list(sharing.mixers)
        self.needed = self._needed_blocks()
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
                if not self.tap_spec.by_block:
                    self._regroup(self.streams.separate_all)
                tap = take(self.taps.hidden, self.streams.blocks) if self.tap_spec.by_block else self.taps.hidden
                self.hidden = self.hidden + tap.astype(self.hidden.dtype)
            self.passed[path] = (self.streams.stream, self.hidden)
            self._read_layer(path)
            if not len(self._pairs_read_above()):
                break  # no task of this batch reads a higher layer
        return self._head_inputs(), self.auxiliary

    def _head_inputs(self) -> HeadInputs:
        places = tuple(map(tuple, self.places.tolist()))
        return HeadInputs(tuple(self.inputs), self.batch.dataset, places, self.static.layout)

    # ---- layers

    def _layer(self, path: str) -> None:
        """Applies the layer `path` to all streams."""
        streams = self._layer_streams(path)
        if path in self.static.cached_layers and self.batch.hidden is not None:
            self.hidden = take(self.batch.hidden, streams.blocks)
            return
        batch, noise = self.batch, None
        if self.dropout is not None:
            noise = self._noise(path, streams)
        if path == "embed":
            self.hidden = self._embed(streams, noise)
        else:
            inputs = (streams.inputs, take(batch.segment, streams.blocks), *self._layer_memory(path, streams.blocks))
            result = self._apply(path, streams.owners, inputs, noise, np.arange(len(streams.blocks)))
            self.hidden = result[0] if self.keeps_keys else result
            if self.keeps_keys:
                self.keys[path], self.key_blocks[path] = result[1], streams.blocks
        self._adapt_output(path, streams.owners)

    def _layer_memory(self, path: str, blocks: np.ndarray) -> list[LayerMemory]:
        """What the streams of a layer read in a decoding pass, leaves [S, ...]; empty in others."""
        memory = self.memory
        if memory is None:
            return []
        segment, position = (take(array, blocks) for array in (memory.segment, self.batch.position))
        number = jnp.broadcast_to(memory.number, segment.shape[:2])
        return [LayerMemory(memory.prompt[path], memory.written[path], segment, position, number)]

    def _layer_streams(self, path: str) -> LayerStreams:
        """The streams that pass through a layer; streams with different owners become separate first."""
        owner = self.static.owners[path]
        if isinstance(owner, ExpertColumns):
            return LayerStreams(*self.experts.enter_layer(owner, self.hidden))
        below = self.streams.stream
        self.streams.enter_layer(owner)
        if self.joint is not None:
            self.joint.enter_layer(owner)
        if path in self.static.sharing.adapters and self.static.sharing.adapters[path].bind:
            self._enter_adapter(path)
        first = self.streams.first
        salts = self.streams.values(owner_salts(owner, self.static.layout)[list(owner)], self.batch, first)
        inputs = None if path == "embed" else take(self.hidden, below[first])
        return LayerStreams(self.streams.blocks, self.streams.owners(owner, self.batch), salts, inputs)

    def _embed(self, streams: LayerStreams, noise: Noise | None) -> jax.Array:
        """The embeddings, of blocks with pictures and of those with text only each at once."""
        batch, blocks, picture_blocks = self.batch, streams.blocks, self.static.layout.picture_blocks()
        pictured = np.isin(blocks, picture_blocks)
        kinds = [kind for kind in (np.flatnonzero(~pictured), np.flatnonzero(pictured)) if len(kind)]
        outputs = []
        for kind in kinds:
            inputs = [take(a, blocks[kind]) for a in (batch.tokens, batch.position, batch.token_type, batch.segment)]
            if pictured[kind[0]]:
                number = np.searchsorted(picture_blocks, blocks[kind])
                inputs += [take(batch.patch, number), take(batch.pixels, number)]
            kind_noise = None if noise is None else noise._replace(keys=take(noise.keys, kind))
            outputs.append(self._apply("embed", streams.owners.take(kind), tuple(inputs), kind_noise, kind))
        if len(kinds) == 1:
            return outputs[0]
        return take(jnp.concatenate(outputs), inverse(np.concatenate(kinds)))

    def _apply(self, path: str, owners: Owners, inputs, noise: Noise | None, members: np.ndarray) -> jax.Array:
        """The outputs of the streams `members`, whose owners, inputs and noise these are."""
        static, params = self.static, self.params
        module, adapter = static.modules[path], static.sharing.adapters.get(path)
        if self.joint is not None:
            entries = self.streams.first[members]
            contents = self.joint.stream[entries]
            sources = {"": static.weight_paths[path], **{name: name for name in encoder_parts(module)}}
            if self.tap_spec.layers.keys() & set(sources.values()) or len(set(contents.tolist())) < len(contents):
                of_parts = [owners, *(self._part_owners(name, path, owners) for name in encoder_parts(module))]
                tapped = tapped_parts(path, sources, params, of_parts, self.taps, self.tap_spec)
                layer = TappedLayer(module, path, static.remat_policy)
                streams = TappedStreams(tapped.owners, inputs, noise, contents, entries)
                return apply_tapped_layer(layer, tapped.params, tapped.taps, tapped.spec, streams)
        plain, names = layer_function(module, static.remat_policy), encoder_parts(module)
        if self.keeps_keys and path != "embed":
            plain = keeping_function(module)
        parts = [OwnedParams(params[static.weight_paths[path]], owners)]
        parts += [OwnedParams(params[name], self._part_owners(name, path, owners)) for name in names]
        adapted = self._adapter_parts(path, owners, members) if adapter and adapter.bind else []

        def function(parts, inputs, noise):
            layer, own = parts[0], parts[1 + len(names) :]
            if own:
                layer = adapter.bind(joined(*own), layer, module, noise)
            return plain({**layer, **dict(zip(names, parts[1 : 1 + len(names)], strict=True))}, inputs, noise)

        return apply_owned(function, [*parts, *adapted], inputs, noise, COLUMN_EXECUTIONS[static.column_execution])

    def _part_owners(self, name: str, path: str, owners: Owners) -> Owners:
        """The owner of each stream of the layer `path` in a part of the encoder as a whole."""
        owner = self.static.owners[name]
        if owner == self.static.owners[path]:
            return owners
        if owner_count(owner) == 1:
            return Owners(*[np.zeros(len(owners.known), np.int32)] * 2)
        return self.streams.owners(owner, self.batch)

    def _adapter_parts(self, path: str, layer: Owners, members: np.ndarray) -> list[OwnedParams]:
        """The parameters of the adapters on a layer, own and shared, for the streams `members`, whose owners of the
        layer are `layer`.
        """
        owner, none = self.static.owners[adapter_path(path)], Owners(*[np.zeros(len(members), np.int32)] * 2)
        if owner == self.static.owners[path]:
            owners = layer
        elif owner_count(owner) == 1:
            owners = none
        else:
            owners = self.streams.owners(owner, self.batch).take(members)
        own = OwnedParams(self.params[adapter_path(path)], owners)
        return [own, OwnedParams(self.params.get(shared_adapter_path(path), {}), none)]

    def _enter_adapter(self, path: str) -> None:
        """Streams whose adapters have different owners become separate."""
        owner = self.static.owners[adapter_path(path)]
        self.streams.enter_layer(owner)
        if self.joint is not None:
            self.joint.enter_layer(owner)

    def _adapt_output(self, path: str, layer: Owners) -> None:
        """Applies adapters after a layer, whose streams have the owners `layer`."""
        adapter = self.static.sharing.adapters.get(path)
        if not (adapter and adapter.after):
            return
        if not isinstance(self.static.owners[path], ExpertColumns):
            self._regroup(lambda: self._enter_adapter(path))
            layer = self.streams.owners(self.static.owners[path], self.batch)
        self.hidden = apply_owned(
            lambda parts, inputs, noise: adapter.after(joined(*parts), inputs),
            self._adapter_parts(path, layer, np.arange(len(self.hidden))),
            self.hidden,
            None,
            COLUMN_EXECUTIONS[self.static.column_execution],
        )

    def _noise(self, path: str, streams: LayerStreams) -> Noise:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
        keys = fold(take(self.row_keys, streams.blocks), name_key(path))
        fold_salts = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))
        return Noise(fold_salts(keys, jnp.asarray(streams.salts)), *self.dropout)

    def _regroup(self, change: Callable[[], None]) -> None:
        """Changes which slots are one stream, and assigns the features to the new streams."""
        below = self.streams.stream
        change()
        self.hidden = take(self.hidden, below[self.streams.first])

    def _mix(self, path: str) -> None:
        mixer = self.static.sharing.mixers[path]
        params = jax.tree.map(lambda leaf: leaf[0], self.params[mixer_path(path)])
        self.hidden, added = self.experts.mix(mixer, params, self.hidden, self.progress)
        for name, value in added.items():
            self.auxiliary[name] = self.auxiliary.get(name, jnp.float32(0.0)) + value
        self.streams.separate_all()
        self.to_mix.remove(path)
        self._regroup(lambda: self.streams.keep(self._pairs_read_above()))

    # ---- heads and cascades

    def _read_layer(self, path: str) -> None:
        """The inputs of the heads at this layer; their label distributions are passed on along the cascades."""
        sharing, tasks = self.static.sharing, self.static.layout.tasks
        top = list(self.static.modules)[-1]
        here = [task for task in sharing.cascade_order if sharing.head_layers.get(task, top) == path]
        if not here:
            return
        fed = {task: [r for r, sources in sharing.cascades.items() if task in sources] for task in here}
        # what is fed at this layer changes the features of heads that come later in the order
        together: list[list[str]] = [[]]
        for task in here:
            together[-1].append(task)
            if fed[task]:
                together.append([])
        for readers in together:
            if readers:
                self._read([tasks.index(task) for task in readers], path)
                for receiver in fed[readers[-1]]:
                    self._cascade_labels(readers[-1], receiver, path)
        self.unread -= set(here)
        if self.taps is None:  # tasks that were read need no layer above
            self._regroup(lambda: self.streams.keep(self._pairs_read_above()))

    def _read(self, numbers: list[int], path: str) -> None:
        """The inputs of the heads of some tasks, which read up to the layer `path`."""
        reader, order, streams = self.static.sharing.readout, list(self.static.modules), self.streams
        pairs = streams.pairs_of(numbers)
        if not len(pairs):
            return
        if reader.reads_all:
            paths = order[: order.index(path) + 1]
            layers = [take(hidden, stream[pairs]) for stream, hidden in map(self.passed.get, paths)]
            params = self._reader_params(reader, numbers, pairs, [layer.shape[-1] for layer in layers])
            features, place = jax.vmap(reader.apply)(params, layers), np.full(len(streams.block), -1)
            place[pairs] = np.arange(len(pairs))
        else:
            place, features = self.passed[path]
        first = sum(len(array) for array in self.inputs)
        self.inputs.append(features)
        places = np.where(streams.place[numbers] >= 0, place[streams.place[numbers]], -1)
        self.places[numbers] = np.where(places >= 0, first + places, -1)

    def _reader_params(self, reader: Readout, numbers: list[int], pairs: np.ndarray, widths: list[int]) -> Params:
        """Leaves [n, ...], the parameters of the readout of the task of each pair, which are part of its head."""
        layout = self.static.layout
        members = [layout.member[layout.tasks[k]] for k in numbers]
        heads = {group: self.params["heads"][group] for group, _ in members}
        names = jax.eval_shape(lambda: reader.init(jax.random.key(0), widths))
        if not names:
            return {}
        parts = {group: {name: head[name] for name in names} for group, head in heads.items()}
        sizes = [jax.tree.leaves(part)[0].shape[0] for part in parts.values()]
        first = dict(zip(parts, np.cumsum([0, *sizes]).tolist(), strict=False))
        place = np.zeros(len(layout.tasks), np.int32)
        place[numbers] = [first[group] + index for group, index in members]
        index = self.streams.values(place, self.batch, pairs)
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts.values())
        return jax.tree.map(lambda leaf: leaf[index], joined)

    def _head(self, task: str) -> Params:
        """The parameters of the head of a task, with as many classes as its group has."""
        group, index = self.static.layout.member[task]
        return _TaskHead(self.params.get("heads", {}).get(group, {}), index)

    def _needed_blocks(self) -> np.ndarray:
        """bool[K, B]: the blocks that a task reads, and those of tasks that receive its labels."""
        layout, sharing = self.static.layout, self.static.sharing
        needed = np.zeros((len(layout.tasks), len(layout.candidates)), bool)
        for k, task in enumerate(layout.tasks):
            needed[k, list(layout.reads(task))] = True
        number = {task: k for k, task in enumerate(layout.tasks)}
        for task in reversed(sharing.cascade_order):  # receivers come later in the order
            for source in sharing.cascades.get(task, ()):
                needed[number[source]] |= needed[number[task]]
        return needed

    def _pairs_read_above(self) -> np.ndarray:
        """The pairs that heads at higher layers read. Where a mixer follows, all pairs of their blocks; if it adds to
        the objective, all pairs.
        """
        streams, tasks = self.streams, self.static.layout.tasks
        unread = np.asarray([task in self.unread for task in tasks])
        pairs = streams.place[self.needed & unread[:, None]]
        pairs = np.intersect1d(pairs, streams.pairs)
        if not self.to_mix:
            return pairs
        mixers = self.static.sharing.mixers
        if self.progress is not None and any(mixers[path].auxiliary for path in self.to_mix):
            return streams.pairs
        return streams.pairs[np.isin(streams.block[streams.pairs], streams.block[pairs])]

    def _cascade_labels(self, source: str, receiver: str, path: str) -> None:
        """Adds the embedded label distribution of `source` to streams of `receiver` (Hashimoto et al. 2017, eq. 3)."""
        batch, static = self.batch, self.static
        table = self._head(receiver)["feeds"][source]["embedding"]  # [C, D]
        giver, taker = static.layout.tasks.index(source), static.layout.tasks.index(receiver)
        pairs = self.streams.pairs_of([taker])
        if not len(pairs):
            return
        blocks = self.streams.block[pairs]
        self._regroup(lambda: self.streams.separate(pairs))
        features = self._head_inputs().take(blocks, np.full((len(blocks), len(static.layout.datasets)), giver))
        rows = [a[blocks].reshape(-1, a.shape[-1]) for a in (batch.segment, batch.start, batch.length)]
        distribution = static.sharing.label_distribution(
            source, self._head(source), features.reshape(-1, *features.shape[2:]), *rows
        )
        label = jnp.matmul(distribution, table, precision=_HIGHEST).astype(self.hidden.dtype)
        label = label.reshape(*features.shape[:3], -1)
        self.hidden = self.hidden.at[self.streams.stream[pairs]].add(label, unique_indices=True)
        self.experts.add_to_inputs(pairs, self.hidden)
        self.passed[path] = (self.streams.stream, self.hidden)


def dropout_row_keys(key: jax.Array, batch: Batch, layout: BatchLayout) -> jax.Array:
    """Keys [B, R] from the data set's name and the row's index: the bits do not depend on where a row is placed."""
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    blocks = jax.vmap(jax.random.fold_in, (None, 0))(key, names[batch.dataset])
    fold_rows = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_rows)(blocks, batch.row.astype(jnp.uint32))
