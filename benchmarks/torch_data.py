"""Batches of mtl_jax as what PyTorch reads fastest: the same texts and labels, rows as they are or a text a row.

layout "rows"   packed rows [R, T] with an attention mask that keeps texts apart
       "texts"  a text a row, the longest first, padded to the longest
       "packed" as "texts" without padding: PyTorch's packed sequence, token t of all texts that have one after t − 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch_models import Examples, Spec

UNKNOWN = -100  # PyTorch's index of targets that do not count
FIELDS = ("tokens", "position", "token_type")


def examples(spec: Spec, batch: Any, task: str, block: int, layout: str) -> Examples:
    """What `task` reads of a batch (leaves [B, R, ...]); its rows are those of block number `block`."""
    labels = {name: array[0] for name, array in batch.labels[task].items()}
    rows = {name: np.asarray(getattr(batch, name)[block], np.int64) for name in (*FIELDS, "segment", "start", "length")}
    targets, none = _targets(rows, labels, spec.level), np.zeros(0, np.int64)
    if layout == "rows":
        same = rows["segment"][:, None, :, None] == rows["segment"][:, None, None, :]
        return _examples(rows, same, none, none, targets.keys(), targets.values())
    row, slot = np.nonzero(rows["length"])
    order = np.argsort(-rows["length"][row, slot], kind="stable")
    row, slot = row[order], slot[order]
    lengths, start = rows["length"][row, slot], row * rows["tokens"].shape[1] + rows["start"][row, slot]
    grid = np.arange(lengths[0])
    inside = grid < lengths[:, None]  # [N, T]
    source = start[:, None] + np.where(inside, grid, 0)  # where a token stands on the axis R·T
    texts = {name: np.where(inside, rows[name].reshape(-1)[source], 0) for name in FIELDS}
    reverse = np.where(inside, lengths[:, None] - 1 - grid, grid)[..., None]
    places, sizes = np.where(inside, source, -1).reshape(-1), none
    if layout == "packed":
        texts = {name: array.T[inside.T] for name, array in texts.items()}
        places, sizes = source.T[inside.T], inside.sum(0)
    mask = inside[:, None, None, :] if spec.layer == "transformer" else inside[..., None].astype(np.float32)
    if spec.level == "text":
        return _examples(texts, mask, reverse, sizes, none, [targets.get(place, UNKNOWN) for place in start.tolist()])
    where = {place: number for number, place in enumerate(places.tolist())}
    return _examples(texts, mask, reverse, sizes, [where[place] for place in targets], targets.values())


def _targets(rows, labels, level) -> dict[int, int]:
    """{place on the axis R·T: class}: of each labelled word, or at the first token of each labelled text."""
    at = labels["token"] if level == "word" else rows["start"]
    row, item = np.nonzero(labels["mask"])
    places = row * rows["tokens"].shape[1] + at[row, item]
    return dict(zip(places.tolist(), labels["value"][row, item].tolist(), strict=True))


def _examples(rows, mask, reverse, sizes, index, target) -> Examples:
    arrays = (*(rows[name] for name in FIELDS), mask, reverse, sizes)
    lists = (torch.tensor(list(part), dtype=torch.int64) for part in (index, target))
    return Examples(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays), *lists)


def stack(parts: Sequence[Examples]) -> Examples:
    """K examples as one with leaves [K, ...], padded to the largest."""

    def joined(name, arrays):
        shape = [max(sizes) for sizes in zip(*(a.shape for a in arrays), strict=True)]
        whole = torch.full((len(arrays), *shape), UNKNOWN if name == "target" else 0, dtype=arrays[0].dtype)
        for one, array in zip(whole, arrays, strict=True):
            one[tuple(slice(size) for size in array.shape)] = array
        return whole

    columns = zip(Examples._fields, zip(*parts, strict=True), strict=True)
    return Examples(*(joined(name, arrays) for name, arrays in columns))


def batches(
    spec: Spec, data: Sequence[Any], tasks: Sequence[str], layout: str, stacked: bool, device: str
) -> list[Any]:
    """All batches of one seed as the model reads them, on the device (the sizes of packed sequences on the CPU)."""

    def put(part):
        return Examples(**{name: a if name == "sizes" else a.to(device) for name, a in part._asdict().items()})

    results = []
    for batch in data:
        parts = [examples(spec, batch, task, block, layout) for block, task in enumerate(tasks)]
        results.append(put(stack(parts)) if stacked else [put(part) for part in parts])
    return results
