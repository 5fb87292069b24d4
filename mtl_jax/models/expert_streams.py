"""The columns of experts and the mixers after them, over all blocks at once.

Either every block passes through all C columns; or, if tasks read only the shared ones and their own, through the S
shared columns, once per input stream, and through the P columns of the task at each of its slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.models.mixers import TaskColumns, mix, mix_by_task
from mtl_jax.models.mixers.base import Mixer, Params
from mtl_jax.models.network_spec import NetworkSpec
from mtl_jax.models.ownership import ExpertColumns, owner_count
from mtl_jax.models.static_gather import inverse, take
from mtl_jax.models.task_streams import Owners, Streams, owner_salts


class ExpertStreams:
    """The state of the columns in one pass.

    owner   the columns of the layers since the last mixer, None outside of experts
    inputs  of those columns, or of the next ones above a mixer: [B', G, R, T, D] where all columns are passed, else
            those of the trunk's streams [S, R, T, D]; None below all experts
    blocks  int[B'], the blocks of `inputs`
    """

    def __init__(self, static: NetworkSpec, streams: Streams, batch: Batch):
        self.static, self.streams, self.batch = static, streams, batch
        self.owner: ExpertColumns | None = None
        self.inputs: jax.Array | None = None
        self.blocks = np.zeros((0,), int)

    def enter_layer(
        self, owner: ExpertColumns, hidden: jax.Array
    ) -> tuple[np.ndarray, Owners, np.ndarray | jax.Array, jax.Array]:
        """Block, owner, salt and input of each column that is computed, see `forward_pass.LayerStreams`."""
        if self.static.sharing.mixes_by_task:
            return self._enter_by_task(owner, hidden)
        blocks = np.unique(self.streams.block[self.streams.pairs])
        column = np.repeat(np.arange(owner_count(owner)), len(blocks))
        if self.owner is None:
            self.inputs, self.blocks = self._block_inputs(blocks, hidden), blocks
            self.owner = owner
            shared = self.inputs.shape[1] - 1
            source = np.asarray([shared if task is None else task for task in owner.tasks])
            hidden = take(jnp.swapaxes(self.inputs, 0, 1), source)
            hidden = hidden.reshape(-1, *hidden.shape[2:])
        return np.tile(blocks, owner_count(owner)), Owners(column, column), self._salts(owner)[column], hidden

    def _salts(self, owner: ExpertColumns) -> np.ndarray:
        return owner_salts(owner, self.static.layout)

    def _block_inputs(self, blocks: np.ndarray, hidden: jax.Array) -> jax.Array:
        """[B', G, R, T, D]: the streams of the K tasks, and where experts are shared their input. That is the trunk, or
        where adapters or cascades separate the tasks, their mean.
        """
        if self.inputs is not None:
            return take(self.inputs, np.searchsorted(self.blocks, blocks))
        streams = self.streams.stream[self.streams.pairs].reshape(len(blocks), -1)
        inputs = take(hidden, streams)
        if next(iter(self.static.sharing.mixers.values())).streams == streams.shape[1]:
            return inputs
        joint = (streams == streams[:, :1]).all()
        shared = take(hidden, streams[:, 0]) if joint else inputs.sum(axis=1) / streams.shape[1]
        return jnp.concatenate([inputs, shared[:, None]], axis=1)

    def _enter_by_task(self, owner: ExpertColumns, hidden: jax.Array):
        streams, pairs = self.streams, self.streams.pairs
        shared, private = _columns(owner, len(self.static.layout.tasks))
        salts = self._salts(owner)
        blocks = np.concatenate(
            [np.repeat(streams.blocks, len(shared)), np.repeat(streams.block[pairs], private.shape[1])]
        )
        of_streams = np.tile(shared, len(streams.first))  # the shared columns of each stream
        parts = [streams.owners(columns, self.batch, pairs) for columns in private.T]
        known = np.stack([part.known for part in parts], 1).ravel() if parts else np.zeros((0,), int)
        known = np.concatenate([of_streams, known])
        index = _joined(of_streams.astype(np.int32), [part.index for part in parts])
        part_salts = [streams.values(salts[columns], self.batch, pairs) for columns in private.T]
        if self.owner is None:
            self.owner, self.inputs = owner, hidden
            of_pairs = np.repeat(streams.stream[pairs], private.shape[1])
            source = np.concatenate([np.repeat(np.arange(len(streams.first)), len(shared)), of_pairs])
            hidden = take(hidden, source)
        return blocks, Owners(known, index), _joined(salts[of_streams], part_salts), hidden

    def mix(
        self, mixer: Mixer, params: Params, hidden: jax.Array, progress: jax.Array | None
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """The streams of all pairs after a mixer [M', R, T, D], and the sums of its losses."""
        owner, self.owner = self.owner, None
        if self.static.sharing.mixes_by_task:
            return self._mix_by_task(owner, mixer, params, hidden, progress)
        blocks = np.unique(self.streams.block[self.streams.pairs])
        count = len(mixer.columns)
        if owner is None:  # columns of the tasks
            outputs = hidden.reshape(len(blocks), count, *hidden.shape[1:])
            inputs = outputs
        else:
            outputs = jnp.swapaxes(hidden.reshape(count, len(blocks), *hidden.shape[1:]), 0, 1)
            inputs = self.inputs
        mixed, added = mix(mixer, params, outputs, inputs, blocks, self.batch, progress)
        if owner is not None:
            self.inputs, self.blocks = mixed, blocks
        mixed = mixed[:, : len(self.static.layout.tasks)]
        return mixed.reshape(-1, *mixed.shape[2:]), added

    def _mix_by_task(self, owner: ExpertColumns, mixer: Mixer, params: Params, hidden: jax.Array, progress):
        """Blocks with equally many slots, and streams alike, are mixed at once."""
        streams, batch = self.streams, self.batch
        shared, private = _columns(owner, len(self.static.layout.tasks))
        count = len(streams.first) * len(shared)
        by_stream = hidden[:count].reshape(len(streams.first), len(shared), *hidden.shape[1:])
        by_pair = hidden[count:].reshape(len(streams.pairs), private.shape[1], *hidden.shape[1:])
        position = np.full(len(streams.block), -1)
        position[streams.pairs] = np.arange(len(streams.pairs))
        tasks = streams.values(np.arange(len(self.static.layout.tasks), dtype=np.int32), batch, streams.pairs)
        reads = streams.reads_labels(batch, streams.pairs)
        classes: dict[tuple[int, bool], list[np.ndarray]] = {}
        for pairs in np.split(streams.pairs, np.flatnonzero(np.diff(streams.block[streams.pairs])) + 1):
            several = len(set(streams.stream[pairs].tolist())) > 1  # input streams
            classes.setdefault((len(pairs), several), []).append(pairs)
        outputs, order, sums = [], [], {}
        for (_, several), of_blocks in classes.items():
            pairs = np.stack(of_blocks)  # [n, slots]
            at, stream = position[pairs], streams.stream[pairs if several else pairs[:, 0]]
            columns = TaskColumns(
                jnp.asarray(tasks)[at],
                jnp.asarray(reads)[at],
                take(by_stream, stream),
                take(by_pair, at),
                take(self.inputs, stream),
            )
            mixed, added = mix_by_task(mixer, params, columns, streams.block[pairs[:, 0]], batch, progress)
            outputs.append(mixed.reshape(-1, *mixed.shape[2:]))
            order.append(at.ravel())
            sums = {name: sums.get(name, jnp.float32(0.0)) + value for name, value in added.items()}
        return take(jnp.concatenate(outputs), inverse(np.concatenate(order))), sums

    def add_to_inputs(self, pairs: np.ndarray, hidden: jax.Array) -> None:
        """Experts above read labels that were added to some pairs; `hidden` are all streams."""
        if self.inputs is not None and self.inputs.ndim == 5:
            block, slot = np.searchsorted(self.blocks, self.streams.block[pairs]), self.streams.slot[pairs]
            self.inputs = self.inputs.at[block, slot].set(hidden[self.streams.stream[pairs]])


def _columns(owner: ExpertColumns, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """int[S], the shared columns, and int[K, P], those of each task."""
    of_task = np.asarray([-1 if task is None else task for task in owner.tasks])
    private = np.argsort(of_task, kind="stable")[np.sum(of_task < 0) :]
    return np.flatnonzero(of_task < 0), private.reshape(tasks, -1)


def _joined(of_streams: np.ndarray, of_pairs: list[np.ndarray | jax.Array]) -> np.ndarray | jax.Array:
    """Values of the shared columns, then those of the private ones, [P] arrays by pair, pair by pair."""
    if not of_pairs:
        return of_streams
    traced = any(isinstance(part, jax.Array) for part in of_pairs)
    stack, join = (jnp.stack, jnp.concatenate) if traced else (np.stack, np.concatenate)
    return join([of_streams, stack(of_pairs, axis=1).ravel()])
