"""Gathering packed rows into a batch, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout, GroupEntries, PackedRows

_TOKEN_ARRAYS = ("tokens", "segment", "position", "token_type")
_EXAMPLE_ARRAYS = ("start", "length", "example")


LabelArrays = Mapping[str, Mapping[str, np.ndarray]]


def gather_batch(
    rows: Sequence[PackedRows | None], blank: LabelArrays, layout: BatchLayout, dataset: np.ndarray, row: np.ndarray
) -> Batch:
    """The rows `row` int32[B, R] of the data sets `dataset` int32[B] as a batch.

    Args:
      rows: by data set of the layout; None for one without rows.
      blank: see `blank_labels`.
      layout: of the batch.
      dataset, row: of each block; -1 for an empty row.
    """
    blocks = [(rows[d], r) for d, r in zip(dataset, row, strict=True)]
    names = [*_TOKEN_ARRAYS, *_EXAMPLE_ARRAYS, *(["hidden"] if blocks[0][0].hidden is not None else [])]
    fields = {
        name: np.stack([_take_rows(getattr(source, name), r, -1 if name == "example" else 0) for source, r in blocks])
        for name in names
    }
    labels = {group: _labels(rows, arrays, layout.entries[group], dataset, row) for group, arrays in blank.items()}
    if layout.picture_blocks():
        fields |= _pictures(rows, layout, dataset, row)
    return Batch(dataset, row, **fields, labels=labels)


def _labels(
    rows: Sequence[PackedRows | None],
    blank: Mapping[str, np.ndarray],
    entries: GroupEntries,
    dataset: np.ndarray,
    row: np.ndarray,
) -> dict[str, np.ndarray]:
    """The labels [E, R, ...] of a group of tasks."""
    of_block = dataset[entries.blocks]
    labels = {name: np.zeros((len(of_block), row.shape[1], *a.shape), a.dtype) for name, a in blank.items()}
    for entry, task in enumerate(entries.task_at[of_block, entries.places].tolist()):
        if task < 0:
            continue
        for name, array in rows[of_block[entry]].labels[entries.tasks[task]].items():
            taken = _take_rows(array, row[entries.blocks[entry]], 0)
            labels[name][(entry, slice(None), *map(slice, taken.shape[1:]))] = taken
    return labels


def _pictures(
    rows: Sequence[PackedRows | None], layout: BatchLayout, dataset: np.ndarray, row: np.ndarray
) -> dict[str, np.ndarray]:
    """`patch` and `pixels` of the blocks that may hold pictures; zeros in those that hold none in this step."""
    width = next(rows[d].pixels.shape[1] for d in layout.pictured if rows[d] is not None)
    patches, pixels = [], []
    for block in layout.picture_blocks():
        source = rows[dataset[block]]
        if source.patch is None:
            shape = (row.shape[1], source.tokens.shape[1])
            patches.append(np.zeros(shape, np.int32))
            pixels.append(np.zeros((*shape, width), np.uint8))
        else:
            patches.append(_take_rows(source.patch, row[block], 0))
            pixels.append(source.pixels[patches[-1]])
    return {"patch": np.stack(patches) > 0, "pixels": np.stack(pixels)}


def _take_rows(array: np.ndarray, row: np.ndarray, fill: int) -> np.ndarray:
    """array[row], rows of `fill` where row is -1."""
    if row[-1] >= 0:  # empty rows are at the end
        return array[row]
    taken = array[np.maximum(row, 0)]
    taken[row < 0] = fill
    return taken


def blank_labels(rows: Sequence[PackedRows | None], layout: BatchLayout) -> dict[str, dict[str, np.ndarray]]:
    """{group: {name: array of one empty row, as large as that of any of its tasks}} of the groups that read a block."""
    blank = {}
    for group, entries in layout.entries.items():
        read = {d for block in entries.blocks for d in layout.candidates[block]}
        arrays = [
            rows[d].labels[entries.tasks[task]]
            for d in sorted(read)
            for task in entries.task_at[d].tolist()
            if task >= 0
        ]
        if arrays:
            blank[group] = {name: _largest([of_task[name] for of_task in arrays]) for name in arrays[0]}
    return blank


def _largest(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One empty row in which a row of any of these arrays finds place."""
    return np.zeros(np.max([array.shape[1:] for array in arrays], axis=0), arrays[0].dtype)


def with_equal_slots(rows: Sequence[PackedRows]) -> list[PackedRows]:
    """The same rows with equally many example slots."""
    slots = max(r.start.shape[1] for r in rows)

    def pad(array: np.ndarray, fill: int = 0) -> np.ndarray:
        if array.shape[1] == slots:
            return array  # perhaps mapped from disk
        width = [(0, 0), (0, slots - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, width, constant_values=fill)

    return [
        r._replace(
            start=pad(r.start),
            length=pad(r.length),
            example=pad(r.example, -1),
            labels={
                task: {name: pad(a) for name, a in arrays.items()} if _by_example(arrays) else arrays
                for task, arrays in r.labels.items()
            },
        )
        for r in rows
    ]


def _by_example(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a task's arrays have a position for each example slot, see `batch`."""
    return not arrays.keys() & {"segment", "maskable"}
