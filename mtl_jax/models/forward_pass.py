"""One batch on its way up through the layers. `network` says what is static about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models.adapters import Adapter
from mtl_jax.models.apply_owned import COLUMN_EXECUTIONS, OwnedParams, apply_owned, layer_function
from mtl_jax.models.columns_by_task import columns_to_compute, columns_to_mix
from mtl_jax.models.dropout import Noise
from mtl_jax.models.mixers import mix, mix_by_task
from mtl_jax.models.mixers.columns import Mixer
from mtl_jax.models.ownership import ExpertColumns, Owner, adapter_path, mixer_path, name_key, owner_count
from mtl_jax.models.readouts import Readout
from mtl_jax.models.streams import Streams, owner_salts
from mtl_jax.models.taps import apply_tapped_layer

Params = Mapping[str, Any]


class DropoutRates(NamedTuple):
    """Dropout rates, float32 scalars that may be traced; None where there is no dropout at all."""

    rate: jax.Array | None
    attention_rate: jax.Array | None


class SharingSpec(NamedTuple):
    """What stands between the layers and the tasks besides owners; static. By default heads read the top layer.

    mixers      path of layer -> what mixes the columns behind it
    adapters    path of layer -> adapter on it, of each task's own
    readout     how a head reads the layers
    head_layers      task -> path of the topmost layer that its head reads; others read the top
    cascades       task -> tasks whose label distributions it is fed, behind the layer at which these are read
    feeding_order  all tasks, each behind those whose labels it is fed
    label_distribution  (task, params of its head, hidden [R, T, D], segment, start, length) -> float32[R, T, C], the
                distribution of its label at each token; needed where there are cascades
    classes     task -> C, of those whose labels are fed
    """

    mixers: Mapping[str, Mixer]
    adapters: Mapping[str, Adapter]
    readout: Readout
    head_layers: Mapping[str, str]
    cascades: Mapping[str, Sequence[str]]
    feeding_order: Sequence[str]
    label_distribution: Callable[..., jax.Array] | None
    classes: Mapping[str, int]

    @property
    def mixes_by_task(self) -> bool:
        """Whether columns are mixed, but those of a task for that task alone."""
        return len(self.mixers) == 1 and all(mixer.apply_to_task for mixer in self.mixers.values())

    @property
    def passes_all_columns(self) -> bool:
        """Whether every block passes all columns."""
        return bool(self.mixers) and not self.mixes_by_task


class NetworkSpec(NamedTuple):
    """All that is static: `network`'s arguments; `modules` by path, bottom first."""

    modules: Mapping[str, nn.Module]
    owners: Mapping[str, Owner]
    layout: BatchLayout
    sharing: SharingSpec
    columns: str
    remat: bool
    cached_layers: tuple[str, ...]


class ForwardPass:
    """The state of one pass: the streams of all blocks and what they hold.

    hidden    (block, slot) -> [R, T, D], one entry a stream; in a span of experts (block, column), or as
              `mixes_by_task` names them
    passed    path of layer -> (stream of each slot, `hidden`), for heads that read it
    features  task -> what its head is given, block by block
    auxiliary  name -> float32, sums over texts of the losses that mixers add
    """

    def __init__(self, static, params, batch, dropout, key, taps, tap_spec, progress):
        self.static, self.params, self.batch = static, params, batch
        self.dropout, self.taps, self.tap_spec, self.progress = dropout, taps, tap_spec, progress
        layout, sharing = static.layout, static.sharing
        number = {task: k for k, task in enumerate(layout.tasks)}
        self.streams = Streams(
            layout,
            everyone=sharing.passes_all_columns
            or (bool(sharing.cascades) and any(len(c) > 1 for c in layout.candidates)),
            also={number[task]: tuple(number[s] for s in sources) for task, sources in sharing.cascades.items()},
        )
        self.row_keys = dropout_row_keys(key, batch, layout) if dropout is not None else None  # [B, R]
        self.hidden: dict[tuple[int, int], jax.Array] = {}
        self.entry: dict[tuple[int, int], jax.Array] = {}  # (block, stream) -> what went into the experts
        self.passed: dict[str, tuple[dict, dict]] = {}
        self.features: dict[str, dict[int, jax.Array]] = {task: {} for task in layout.tasks}
        self.auxiliary: dict[str, jax.Array] = {}
        self.experts: ExpertColumns | None = None  # while in a span of experts
        self.unread, self.to_mix = set(layout.tasks), list(sharing.mixers)
        self.needed = {task: self._needed_pairs(task) for task in layout.tasks}
        self.joint = None
        if taps is not None and not tap_spec.hidden_at:  # each slot a stream; equal where those of `joint` are one
            self.joint = Streams(layout)
            self.streams.separate_all()

    def run(self):
        """({task: [P·R, T, D]}, {name: sum}); see `network.Network.apply`."""
        for path in self.static.modules:
            self._layer(path)
            if path in self.to_mix:
                self._mix(path)
            if self.taps is not None and path == self.tap_spec.hidden_at:
                self._add_hidden_tap()
            self.passed[path] = (dict(self.streams.parent), self.hidden)
            self._read_layer(path)
            if not self._pairs_read_above():
                break  # no task of this batch reads what lies above
        layout = self.static.layout
        read = {task: [self.features[task][b] for b in layout.reads(task)] for task in layout.tasks}
        return {task: jnp.concatenate(blocks) for task, blocks in read.items() if blocks}, self.auxiliary

    # ---- layers

    def _layer(self, path):
        owner = self.static.owners[path]
        below = dict(self.streams.parent)  # stream of each slot one layer down
        if isinstance(owner, ExpertColumns) and self.static.sharing.mixes_by_task:
            (names, ids, salt_of), held = self._task_columns(owner, below)
        elif isinstance(owner, ExpertColumns):
            names, held = self._enter_experts(path, owner, below)
            ids = [column for _, column in names]
            table = owner_salts(owner, self.static.layout)
            salt_of = {name: jnp.uint32(table[name[1]]) for name in names}
        else:
            self.streams.enter_layer(owner)
            if self.joint is not None:
                self.joint.enter_layer(owner)
            if path in self.static.sharing.adapters and self.static.sharing.adapters[path].bind:
                self.streams.separate_all()
            names = self.streams.names
            held = {} if path == "embed" else {name: self.hidden[below[name]] for name in names}
            ids = self.streams.owner_ids(owner, self.batch)
            salt_of = {name: self.streams.salt(owner, *name, self.batch) for name in names}
        if path in self.static.cached_layers and self.batch.hidden is not None:
            self.hidden = {(block, slot): self.batch.hidden[block] for block, slot in names}
            return
        batch, noises = self.batch, None
        if path == "embed":
            tokens = (batch.tokens, batch.position, batch.token_type, batch.segment)
            inputs = [(*(a[block] for a in tokens), *self._pictures(block)) for block, _ in names]
        else:
            inputs = [(held[name], batch.segment[name[0]]) for name in names]  # a name begins with its block
        if self.dropout is not None:
            noises = [self._noise(path, name[0], salt_of[name]) for name in names]
        outputs = self._apply(path, ids, inputs, noises)
        self.hidden = dict(zip(names, outputs, strict=True))
        self._adapt_output(path)

    def _pictures(self, block):
        """(patch, pixels) of a block that may hold pictures; () of others."""
        blocks = self.static.layout.picture_blocks()
        if block not in blocks:
            return ()
        at = blocks.index(block)
        return self.batch.patch[at], self.batch.pixels[at]

    def _apply(self, path, ids, inputs, noises):
        static, params = self.static, self.params
        module, adapter = static.modules[path], static.sharing.adapters.get(path)
        if self.joint is not None:
            same = [self.joint.parent[name] for name in self.streams.names]
            if path in self.tap_spec.layers or len(set(same)) < len(same):
                return apply_tapped_layer(
                    module, static.remat, path, params[path], self.taps, self.tap_spec, ids, inputs, noises, same
                )
        plain = layer_function(module, static.remat)
        parts, function = [OwnedParams(params[path], ids)], lambda parts, *inputs: plain(parts[0], *inputs)
        if adapter and adapter.bind:
            parts.append(OwnedParams(params[adapter_path(path)], self._adapter_ids(path)))
            function = lambda parts, *inputs: plain(adapter.bind(parts[1], parts[0]), *inputs)  # noqa: E731
        return apply_owned(function, parts, inputs, noises, COLUMN_EXECUTIONS[static.columns])

    def _adapter_ids(self, path):
        return self.streams.owner_ids(self.static.owners[adapter_path(path)], self.batch)

    def _adapt_output(self, path):
        """Adapters behind a layer: from here up every task has a stream of its own."""
        adapter = self.static.sharing.adapters.get(path)
        if not (adapter and adapter.after):
            return
        self._regroup(self.streams.separate_all)
        if self.joint is not None:
            self.joint.separate_all()
        params, held = self.params[adapter_path(path)], [(self.hidden[name],) for name in self.streams.names]
        outputs = apply_owned(
            lambda parts, inputs, noise: adapter.after(parts[0], inputs[0]),
            [OwnedParams(params, self._adapter_ids(path))],
            held,
            None,
            COLUMN_EXECUTIONS[self.static.columns],
        )
        self.hidden = dict(zip(self.streams.names, outputs, strict=True))

    def _noise(self, path, block, salt) -> Noise:
        fold = jax.vmap(jax.random.fold_in, (0, None))
        keys = fold(fold(self.row_keys[block], name_key(path)), salt)
        return Noise(keys, self.dropout.rate, self.dropout.attention_rate)

    # ---- columns that are mixed

    def _enter_experts(self, path, owner, below):
        """The names of the columns and what each of them reads: its own column, or the stream of its task."""
        blocks = self._blocks()
        names = [(block, column) for block in blocks for column in range(owner_count(owner))]
        if self.experts is not None:
            return names, self.hidden
        mixer = next(iter(self.static.sharing.mixers.values()))
        if not self.entry:  # the trunk below
            self.entry = {pair: self.hidden[below[pair]] for pair in self.streams.parent}
            shared = len(self.static.layout.tasks)
            self.entry |= {
                (block, shared): self._shared_input(block, below) for block in blocks if mixer.streams > shared
            }
        self.experts = owner
        source = [mixer.streams - 1 if task is None else task for task in owner.tasks]
        return names, {(block, column): self.entry[block, source[column]] for block, column in names}

    def _blocks(self):
        return sorted({block for block, _ in self.streams.parent})

    def _task_columns(self, owner, below):
        """The columns that tasks need, see `mixes_by_task`, and what each of them reads."""
        found = columns_to_compute(owner, self.streams, self.static.layout, self.batch)
        if self.experts is not None:
            return found, self.hidden
        self.experts, self.entry = owner, {pair: self.hidden[name] for pair, name in below.items()}
        return found, {name: self.entry[name[0], name[2]] for name in found.names}

    def _mixed_by_task(self, mixer, params):
        blocks = {
            block: columns_to_mix(
                self.experts, self.streams, self.static.layout, self.batch, block, self.hidden, self.entry
            )
            for block in self._blocks()
        }
        mixed, added = mix_by_task(mixer, params, blocks, self.batch, self.progress)
        streams = [stream for of_block in mixed.values() for stream in of_block]
        return dict(zip(sorted(self.streams.parent), streams, strict=True)), added

    def _shared_input(self, block, below):
        """What shared experts read: the trunk; where adapters or fed labels have parted the tasks, their mean."""
        of_tasks = [below[pair] for pair in sorted(self.streams.parent) if pair[0] == block]
        if len(set(of_tasks)) == 1:
            return self.hidden[of_tasks[0]]
        return sum(self.hidden[name] for name in of_tasks) / len(of_tasks)

    def _mix(self, path):
        mixer = self.static.sharing.mixers[path]
        params = jax.tree.map(lambda leaf: leaf[0], self.params[mixer_path(path)])
        if self.static.sharing.mixes_by_task:
            self.hidden, added = self._mixed_by_task(mixer, params)
        else:
            inputs = self.hidden if self.experts is None else self.entry
            self.hidden, added = mix(mixer, params, self.hidden, inputs, self.batch, self.progress)
            self.entry = self.hidden
        self.experts = None
        for name, value in added.items():
            self.auxiliary[name] = self.auxiliary.get(name, jnp.float32(0.0)) + value
        self.streams.separate_all()
        self.to_mix.remove(path)
        self._keep_pairs(self._pairs_read_above())

    def _add_hidden_tap(self):
        self._regroup(self.streams.separate_all)
        named = zip(self.streams.names, self.taps.hidden, strict=True)
        self.hidden = {name: self.hidden[name] + tap.astype(self.hidden[name].dtype) for name, tap in named}

    def _keep_pairs(self, pairs):
        self._regroup(lambda: self.streams.keep(pairs))

    def _regroup(self, change):
        """Changes which slots are one stream, and names what the streams hold anew."""
        below, joint = dict(self.streams.parent), self.hidden
        change()
        self.hidden = {name: joint[below[name]] for name in self.streams.names}

    # ---- heads, and labels that are fed upwards

    def _read_layer(self, path):
        """What heads at this layer are given; the labels that they tell go up into the tasks that are fed them."""
        sharing, tasks = self.static.sharing, self.static.layout.tasks
        top = list(self.static.modules)[-1]
        here = [task for task in sharing.feeding_order if sharing.head_layers.get(task, top) == path]
        for task in here:
            for block, slot in self.streams.slots(tasks.index(task)):
                self.features[task][block] = self._features(task, path, (block, slot))
            for fed, sources in sharing.cascades.items():
                if task in sources:
                    self._feed_labels(task, fed, path)
        self.unread -= set(here)
        if here and self.taps is None:  # who has been read needs no layer above
            self._keep_pairs(self._pairs_read_above())

    def _needed_pairs(self, task):
        """The (block, slot) pairs of a task in blocks that it reads, and in those of tasks that are fed its labels."""
        layout, sharing = self.static.layout, self.static.sharing
        blocks, above = set(), {task}
        while above:
            blocks |= {block for name in above for block in layout.reads(name)}
            above = {fed for fed, sources in sharing.cascades.items() if above & set(sources)}
        return {pair for pair in self.streams.slots(layout.tasks.index(task)) if pair[0] in blocks}

    def _pairs_read_above(self):
        """The pairs that heads above read. Where columns are mixed yet, all pairs of such blocks; of all blocks where a
        mixer adds to the objective."""
        pairs = {pair for task in self.unread for pair in self.needed[task]}
        if not self.to_mix:
            return pairs
        mixers = self.static.sharing.mixers
        everywhere = self.progress is not None and any(mixers[path].auxiliary for path in self.to_mix)
        blocks = {block for block, _ in pairs}
        return {pair for pair in self.streams.parent if everywhere or pair[0] in blocks}

    def _features(self, task, path, pair):
        reader, head = self.static.sharing.readout, self.params.get("heads", {}).get(task, {})
        order = list(self.static.modules)
        layers = order[: order.index(path) + 1] if reader.reads_all else [path]
        return reader.apply(head, [hidden[parent[pair]] for parent, hidden in map(self.passed.get, layers)])

    def _feed_labels(self, source, fed, path):
        """Adds the embedded label distribution of `source` to the streams of `fed` (Hashimoto et al. 2017, eq. 3)."""
        batch, static = self.batch, self.static
        table = self.params["heads"][fed]["feeds"][source]["embedding"]  # [C, D]
        pairs = self.streams.slots(static.layout.tasks.index(fed))
        self._regroup(lambda: self.streams.separate(pairs))
        for block, slot in pairs:
            distribution = static.sharing.label_distribution(
                source,
                self.params["heads"][source],
                self.features[source][block],
                batch.segment[block],
                batch.start[block],
                batch.length[block],
            )
            x = self.hidden[block, slot]
            label = jnp.matmul(distribution, table, precision=jax.lax.Precision.HIGHEST)
            self.hidden[block, slot] = x + label.astype(x.dtype)
        if self.entry:  # experts above read what was fed, too
            self.entry = self.entry | {pair: self.hidden[pair] for pair in pairs}
        self.passed[path] = (dict(self.streams.parent), self.hidden)


def dropout_row_keys(key: jax.Array, batch: Batch, layout: BatchLayout) -> jax.Array:
    """Keys [B, R] from the data set's name and the row's index: the bits do not depend on where a row is placed."""
    names = jnp.asarray(np.asarray([name_key(name) for name in layout.datasets], np.uint32))
    blocks = jax.vmap(jax.random.fold_in, (None, 0))(key, names[batch.dataset])
    fold_rows = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_rows)(blocks, batch.row.astype(jnp.uint32))
