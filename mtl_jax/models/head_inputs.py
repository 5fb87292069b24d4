"""The inputs of the heads: features of blocks, stored once however many tasks read them."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import BatchLayout
from mtl_jax.models.static_gather import take


@flax.struct.dataclass
class HeadInputs:
    """The features that the heads of the tasks read.

    arrays   [n, R, T, D] each
    dataset  int32[B], of the batch
    places   static, [K][B]: where task k finds its features in block b, an index into the joined arrays; −1 where it
             has none
    layout   static, of the batch
    """

    arrays: tuple[jax.Array, ...]
    dataset: jax.Array
    places: tuple[tuple[int, ...], ...] = flax.struct.field(pytree_node=False)
    layout: BatchLayout = flax.struct.field(pytree_node=False)

    def take(self, blocks: np.ndarray, tasks: np.ndarray) -> jax.Array:
        """The inputs of E heads as one array [E, R, T, D]: one gather at most, the stored array where it is that.

        Args:
          blocks: int[E], the block of each; static.
          tasks: int[E, N], N = data sets: the task whose input is wanted if the block holds that data set; static.
            −1: none, and if the block holds it in this step the features are arbitrary, but finite. Data sets that the
            block never holds are not looked at.

        Raises:
          ValueError: a task has no features in one of the blocks, or the widths D of the tasks differ.
        """
        index = self._index(np.asarray(blocks), np.asarray(tasks))  # [E, N], −1 = arbitrary
        bounds = np.cumsum([0, *(len(array) for array in self.arrays)])
        used = [n for n, low in enumerate(bounds[:-1]) if ((index >= low) & (index < bounds[n + 1])).any()] or [0]
        if len({self.arrays[n].shape[-1] for n in used}) > 1:
            raise ValueError("the heads read features of different widths")
        array = self.arrays[used[0]] if len(used) == 1 else jnp.concatenate([self.arrays[n] for n in used])
        moved = np.concatenate([np.arange(bounds[n], bounds[n + 1]) for n in used])  # where they lie now
        index = np.searchsorted(moved, np.where(index >= 0, index, index.max(axis=1, keepdims=True)))
        if (index == index[:, :1]).all():
            return take(array, index[:, 0])
        return array[jnp.asarray(index)[np.arange(len(index)), self.dataset[np.asarray(blocks)]]]

    def _index(self, blocks: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """int[E, N]: places of the features by data set of the block, −1 where there are none."""
        candidates_of = np.zeros((len(self.layout.candidates), len(self.layout.datasets)), bool)
        for block, candidates in enumerate(self.layout.candidates):
            candidates_of[block, list(candidates)] = True
        wanted = candidates_of[blocks] & (tasks >= 0)
        index = np.where(wanted, np.asarray(self.places)[tasks, blocks[:, None]], -1)
        if (wanted & (index < 0)).any():
            entry, dataset = np.argwhere(wanted & (index < 0))[0]
            task = self.layout.tasks[tasks[entry, dataset]]
            raise ValueError(f"task {task!r} has no features in block {blocks[entry]}")
        return index

    def by_task(self) -> dict[str, jax.Array]:
        """{task: [P·R, T, D]}; P·R = the rows of the blocks in `layout.reads(task)`, in that order."""
        result = {}
        for k, task in enumerate(self.layout.tasks):
            if blocks := self.layout.reads(task):
                hidden = self.take(np.asarray(blocks), np.full((len(blocks), len(self.layout.datasets)), k))
                result[task] = hidden.reshape(-1, *hidden.shape[2:])
        return result
