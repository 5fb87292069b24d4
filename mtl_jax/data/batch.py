"""What the data hand to the step: packed rows, batches of them, and the static layout of a batch.

NamedTuples of numpy arrays and dicts, so that they are pytrees to JAX without importing it here.

Labels. Of one task they are a dict of arrays; leading axes are `[N]` in `PackedRows` and `[entry, R]` in `Batch`:

    level "text"       value  int32[..., E] class id | float32[..., E] real | float32[..., E, C] distribution, 0/1 set
                       mask   bool[..., E], True where the label is known
    level "word"       value  int32[..., Q] class id | float32[..., Q, C] distribution
                       mask   bool[..., Q], True where the label is known
                       token  int32[..., Q], index on the T axis of the word's first sub-word
                       segment int32[..., Q], 1, 2, ... a number for each sequence of the row, 0 = padding
                       slot   int32[..., Q], the example slot (E axis) that the word belongs to
                       word   int32[..., Q], index of the word in the example's words
    level "predicate"  as "word", one sequence for each (example, predicate): Q runs over all words of the
                       first predicate, then of the second, ...; also:
                       predicate int32[..., Q], index on the T axis of the predicate's first sub-word
                       predicate_number int32[..., Q], 0, 1, ... the number of the predicate in its record
    level "sequence"   the target of each example including its end; value, mask, segment and slot as for "word", and
                       position int32[..., Q], 0, 1, ... position in the target
                       Where the row has the targets after their texts also:
                       token int32[..., Q], index on the T axis of the token before the target's
                       prompt int32[..., E], tokens of each example without its target
                       An id at or above C is a token copied from the input, see `mtl_jax.data.labels.target_sequences`
    level "pair"       as "text"; also:
                       mark   int32[..., E, 4], indices on the T axis of the markers before and after both spans
    level "choice"     an example is a text with one of its choices; the choices of a record are in one row
                       value  int32[..., E], 1 for the right choice
                       mask   bool[..., E], True where the right choice of the record is known
                       group  int32[..., E], a number that the choices of a record share, 0 = empty slot
                       choice int32[..., E], number of the choice, from 0
    level "span"       Q runs over the first token of each example, which represents "no answer", then over the tokens
                       of its last text (or its words); as "word", but
                       value  int32[..., Q] 1 = the answer begins here, 2 = it ends here, 3 = both
                       word   int32[..., Q] index of the token in that text, -1 for "no answer"
    level "token"      in the data: maskable bool[..., T], the tokens that may be hidden. The step draws and hides some
                       of them (`mtl_jax.training.token_corruption`); then Q runs over these, and
                       value  int32[..., Q] id of the hidden token
                       mask, token, segment, slot  as for "word"

A task that learns from teachers also has, in train, `teacher`, float32 with the shape of a soft value (reals and
choices: [..., E]; spans [..., Q, 2], where the answer begins and ends), and `teacher_mask`, bool, True where a teacher
made a prediction; see `mtl_jax.tasks.distillation`.

Class ids at or above the number of training classes are labels that only dev or test has: no model can predict
them. The loss must leave them out (`mask` is False there); metrics count them as wrong.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax inside the step
GRID_SIDE = 1 << 8  # a position in the grid of a picture's patches is row · SIDE + column


class PackedRows(NamedTuple):
    """All packed rows of one split of one data set. The leading axis is N, the number of rows.

    tokens      int32[N, T]  token ids, 0 in the padding
    segment     int32[N, T]  1 + example slot, 0 in the padding
    position    int32[N, T]  position in the example, from 0, patches not counted; at a patch: its position in the
                             grid of its picture, row · GRID_SIDE + column
    token_type  int32[N, T]  0 first text, 1 second text of a pair; at a patch: number of the picture in the example
    start       int32[N, E]  index on T of the example's first token
    length      int32[N, E]  tokens of the example, 0 for an empty slot
    example     int32[N, E]  index of the example in the encoded split, -1 for an empty slot
    labels      {task: {name: array [N, ...]}}, see above
    hidden      float[N, T, D]  outputs of frozen layers, see `experiment.frozen_layers`; None where they are not stored
    patch       int32[N, T]  row of `pixels` of the patch at this token, 0 = no patch; None without pictures
    pixels      uint8[n, F]  the patches of all pictures of the data set; row 0 is no patch
    """

    tokens: Array
    segment: Array
    position: Array
    token_type: Array
    start: Array
    length: Array
    example: Array
    labels: Mapping[str, Mapping[str, Array]]
    hidden: Array | None = None
    patch: Array | None = None
    pixels: Array | None = None


class Batch(NamedTuple):
    """One step's rows, in B blocks of R rows; every block holds rows of one data set.

    dataset     int32[B]        index of the block's data set in `BatchLayout.datasets`
    row         int32[B, R]     index of the row in its split, -1 for an empty row
    tokens ...  int32[B, R, T] or int32[B, R, E], as in `PackedRows`
    labels      {group of tasks: {name: array [E, R, ...]}}: of the entries `BatchLayout.entries[group]`, E, Q and C as
                large as those of any task of the group, zeros beyond those of the task. Where a block holds a data
                set without such a task in this step, mask is False, segment 0.
    hidden      float[B, R, T, D], as in `PackedRows`; None where they are not stored
    patch       bool[P, R, T], True at a patch, of the P blocks in `BatchLayout.picture_blocks`; None without pictures
    pixels      uint8[P, R, T, F] of the patches, 0 elsewhere; None without pictures
    """

    dataset: Array
    row: Array
    tokens: Array
    segment: Array
    position: Array
    token_type: Array
    start: Array
    length: Array
    example: Array
    labels: Mapping[str, Mapping[str, Array]]
    hidden: Array | None = None
    patch: Array | None = None
    pixels: Array | None = None


class GroupEntries(NamedTuple):
    """Where the tasks of a group stand in a batch. An entry is a block, and a place among those tasks of the group that
    read the data set of the block.

    tasks    names of the tasks of the group
    blocks   int32[E]
    places   int32[E]
    task_at  int32[data sets, places]: index in the group of the task at a place, -1 where there is none
    fixed    int32[E]: index in the group of the task of each entry, -1 for none; None where it depends on the draw
    """

    tasks: tuple[str, ...]
    blocks: np.ndarray
    places: np.ndarray
    task_at: np.ndarray
    fixed: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The static properties of every batch of a run. Hashable.

    datasets    names of the data sets, in order
    tasks       names of the tasks, in order: task k of every `[K]` axis
    dataset_of  for each task, the index of its data set
    candidates  for each of the B blocks, the indices of the data sets it may hold: one where every data set has
                a block of its own in every batch, all where a block's data set is drawn
    pictured    indices of the data sets that have pictures
    groups      the names of the tasks that are computed together, see `mtl_jax.tasks.groups`; () = each by itself
    """

    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    dataset_of: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    pictured: tuple[int, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    @functools.cached_property
    def entries(self) -> dict[str, GroupEntries]:
        """The entries of each group of tasks; of a group that reads no block E = 0."""
        groups = self.groups or tuple((task,) for task in self.tasks)
        return {group_name(tasks): self._entries_of(tasks) for tasks in groups}

    @functools.cached_property
    def member(self) -> dict[str, tuple[str, int]]:
        """For each task the name of its group, and its index there."""
        return {
            task: (name, index) for name, entries in self.entries.items() for index, task in enumerate(entries.tasks)
        }

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {task: k for k, task in enumerate(self.tasks)}

    def _entries_of(self, tasks: tuple[str, ...]) -> GroupEntries:
        on: list[list[int]] = [[] for _ in self.datasets]
        for index, task in enumerate(tasks):
            on[self.dataset_of[self._number[task]]].append(index)
        task_at = np.full((len(on), max(map(len, on))), -1, np.int32)
        for dataset, indices in enumerate(on):
            task_at[dataset, : len(indices)] = indices
        places = [max((len(on[d]) for d in candidates), default=0) for candidates in self.candidates]
        pairs = [(block, place) for block, count in enumerate(places) for place in range(count)]
        fixed = None
        if all(len(self.candidates[block]) == 1 for block, _ in pairs):
            # in the order of the tasks, so that the parameters of a whole group are taken as they are
            pairs.sort(key=lambda pair: task_at[self.candidates[pair[0]][0], pair[1]])
            fixed = np.asarray([task_at[self.candidates[block][0], place] for block, place in pairs], np.int32)
        blocks, place_of = (np.asarray([pair[i] for pair in pairs], np.int32) for i in (0, 1))
        return GroupEntries(tasks, blocks, place_of, task_at, fixed)

    def labels_of(self, batch: Batch, task: str) -> dict[str, Array]:
        """The labels [P, R, ...] of a task in the blocks that it `reads`, as large as those of its group.

        Raises:
          ValueError: its blocks are drawn, so that they hold it in some steps only.
        """
        group, index = self.member[task]
        entries, labels = self.entries[group], batch.labels[group]
        if len(entries.tasks) == 1:
            return dict(labels)
        if entries.fixed is None:
            raise ValueError(f"the data set of task {task!r} is drawn")
        return {name: array[np.flatnonzero(entries.fixed == index)] for name, array in labels.items()}

    def reads(self, task: str) -> tuple[int, ...]:
        """The blocks in which `task` may find rows of its data set: the P axis of its labels."""
        dataset = self.dataset_of[self._number[task]]
        return tuple(b for b, names in enumerate(self.candidates) if dataset in names)

    def picture_blocks(self) -> tuple[int, ...]:
        """The blocks that may hold rows with pictures."""
        return tuple(b for b, names in enumerate(self.candidates) if set(names) & set(self.pictured))

    def tasks_on(self, dataset: int) -> tuple[int, ...]:
        """Indices of the tasks that read labels from data set number `dataset`."""
        return tuple(k for k, d in enumerate(self.dataset_of) if d == dataset)


def group_name(tasks: tuple[str, ...]) -> str:
    """The name of a group of tasks: that of its task, "first + n" of more."""
    return tasks[0] if len(tasks) == 1 else f"{tasks[0]} + {len(tasks) - 1}"
