"""Splits carved out of train with groups of records kept together, and notices about groups in two splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.data.notices import INFORMATION, SPLITS, Notice
from mtl_jax.data.record_sequences import Records, selected
from mtl_jax.data.records import Record, field
from mtl_jax.data.splits import subsets
from mtl_jax.data.splits.groups import Groups, count_shared
from mtl_jax.errors import UserError

_FACTOR = 4  # a split that is larger than wanted by more is drawn by single records
_ORDER = (("dev", "train"), ("test", "train"), ("test", "dev"))


def carve_splits(
    splits: Mapping[str, Records],
    shares: Mapping[str, float],
    name: str,
    seed: int,
    groups: Groups | None,
    texts: Sequence[str],
) -> tuple[dict[str, Records], list[str]]:
    """The splits after `subsets.carve_random` moved records out of train, and notices about groups.

    Guessed groups are ignored where they would make a split more than `_FACTOR` times as large as wanted, or where
    there are too few of them. Raises UserError as `subsets.carve_random`.
    """
    carved = [split for split, share in shares.items() if share]
    if not carved:
        return dict(splits), _shared_groups(groups.keys, groups.name) if groups is not None and groups.sure else []
    train = splits["train"]
    if groups is None:
        parts = _taken(splits, subsets.carve_random(len(train), shares, name, seed))
        return parts, _shared_texts(parts, carved, texts) if len(texts) == 2 else []
    train_keys = groups.keys["train"]
    try:
        indices = subsets.carve_random(len(train), shares, name, seed, train_keys)
        if not groups.sure and any(len(indices[s]) > _FACTOR * shares[s] * len(train) for s in carved):
            raise UserError("too large")
    except UserError as error:
        if groups.sure:
            raise UserError(f'{error} (a group: one {groups.name}; group="" draws single records)') from error
        parts = _taken(splits, subsets.carve_random(len(train), shares, name, seed))
        text = f"records are carved out one by one, since groups by {groups.name} are too few or too large"
        return parts, [Notice(text, SPLITS)]
    keys = {**groups.keys, **{split: [train_keys[i] for i in chosen.tolist()] for split, chosen in indices.items()}}
    parts = _taken(splits, indices)
    counts = ", ".join(f"{split}: {len(parts[split])} records" for split in carved)
    note = f"carved out with all records of a {groups.name} in one split ({counts}; see `group_by`)"
    return parts, [Notice(note, INFORMATION), *_shared_groups(keys, groups.name)]


def _taken(splits: Mapping[str, Records], indices: Mapping[str, np.ndarray]) -> dict[str, Records]:
    """The splits with those that take the records of train with these indices."""
    return {**splits, **{split: selected(splits["train"], index) for split, index in indices.items()}}


def _shared_groups(keys: Mapping[str, Sequence], name: str) -> list[str]:
    """Notices about records of a split whose group has records in another."""
    pairs = [(split, other) for split, other in _ORDER if split in keys and other in keys]
    notices = []
    for split, other in pairs:
        if count := count_shared(keys[split], keys[other]):
            total = len(keys[split])
            text = f"{split}: {count} of {total} records share a {name} with records of {other}"
            notices.append(Notice(text, SPLITS, count, total))
    return notices


def _shared_texts(parts: Mapping[str, Sequence[Record]], carved: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Notices about pairs of texts that were carved out one by one and share one of the texts with train."""
    notices = []
    for name in texts if carved else ():
        in_train = {field(record, name) for record in parts["train"]}
        for split in carved:
            count = sum(field(record, name) in in_train for record in parts[split])
            if count:
                text = f"{split}: {count} of {len(parts[split])} records have a {name!r} that is also in train "
                text += f"(group_by={name!r} keeps such records in one split)"
                notices.append(Notice(text, SPLITS, count, len(parts[split])))
    return notices
