"""What the data hand to the step: packed rows, batches of them, and the static layout of a batch.

NamedTuples of numpy arrays and dicts, so that they are pytrees to JAX without importing it here.

Labels. `labels[task]` is a dict of arrays; leading axes are `[N]` in `PackedRows` and `[P, R]` in `Batch`:

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

A task that learns from teachers also has, in train, `teacher`, float32 with the shape of a soft value (reals:
[..., E]), and `teacher_mask`, bool, True where a teacher made a prediction; see `mtl_jax.tasks.distillation`.

Class ids at or above the number of training classes are labels that only dev or test has: no model can predict
them. The loss must leave them out (`mask` is False there); metrics count them as wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

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
    labels      {task: {name: array [P, R, ...]}}: the P blocks in `BatchLayout.reads(task)`, in that order. Where a
                block holds another data set in this step, mask is False, segment 0.
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


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The static properties of every batch of a run. Hashable.

    datasets    names of the data sets, in order
    tasks       names of the tasks, in order: task k of every `[K]` axis
    dataset_of  for each task, the index of its data set
    candidates  for each of the B blocks, the indices of the data sets it may hold: one where every data set has
                a block of its own in every batch, all where a block's data set is drawn
    pictured    indices of the data sets that have pictures
    """

    datasets: tuple[str, ...]
    tasks: tuple[str, ...]
    dataset_of: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    pictured: tuple[int, ...] = ()

    def reads(self, task: str) -> tuple[int, ...]:
        """The blocks in which `task` may find rows of its data set: the P axis of its labels."""
        dataset = self.dataset_of[self.tasks.index(task)]
        return tuple(b for b, names in enumerate(self.candidates) if dataset in names)

    def picture_blocks(self) -> tuple[int, ...]:
        """The blocks that may hold rows with pictures."""
        return tuple(b for b, names in enumerate(self.candidates) if set(names) & set(self.pictured))

    def tasks_on(self, dataset: int) -> tuple[int, ...]:
        """Indices of the tasks that read labels from data set number `dataset`."""
        return tuple(k for k, d in enumerate(self.dataset_of) if d == dataset)
