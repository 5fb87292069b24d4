"""Splits carved out of train, groups of records kept together, and what is to be said of groups in two splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtl_jax.data.notices import INFORMATION, SPLITS, Notice
from mtl_jax.data.records import Record, field
from mtl_jax.data.splits import subsets
from mtl_jax.data.splits.groups import Groups, shared
from mtl_jax.errors import UserError

_FACTOR = 4
_ORDER = (("dev", "train"), ("test", "train"), ("test", "dev"))


def carve(
    splits: Mapping[str, list[Record]],
    shares: Mapping[str, float],
    name: str,
    seed: int,
    groups: Groups | None,
    texts: Sequence[str],
) -> tuple[dict[str, list[Record]], list[str]]:
    """The splits with what `subsets.carve` moves out of train, and sentences about groups.

    Groups that are only guessed give way to single records where they would make a split more than `_FACTOR` times as
    large as wanted, or where there are too few. Raises UserError as `subsets.carve`.
    """
    carved = [split for split, share in shares.items() if share]
    if groups is None or not carved:
        parts = subsets.carve(splits, shares, name, seed)
        notes = _shared_groups(groups.keys, groups.name) if groups is not None and groups.sure else []
        return parts, notes + (_shared_texts(parts, carved, texts) if len(texts) == 2 else [])
    train = list(zip(splits["train"], groups.keys["train"], strict=True))
    try:
        parts = subsets.carve({**splits, "train": train}, shares, name, seed, groups.keys["train"])
        if not groups.sure and any(len(parts[s]) > _FACTOR * shares[s] * len(train) for s in carved):
            raise UserError("too large")
    except UserError as error:
        if groups.sure:
            raise UserError(f'{error} (a group: one {groups.name}; group="" draws single records)') from error
        parts = subsets.carve(splits, shares, name, seed)
        text = f"records are carved out one by one: groups by {groups.name} are too few or too large"
        return parts, [Notice(text, SPLITS)]
    keys = {**groups.keys, **{split: [key for _, key in parts[split]] for split in ("train", *carved)}}
    parts |= {split: [record for record, _ in parts[split]] for split in ("train", *carved)}
    counts = ", ".join(f"{split}: {len(parts[split])} records" for split in carved)
    note = f"carved out so that records of one {groups.name} stay in one split ({counts}; see `group`)"
    return parts, [Notice(note, INFORMATION), *_shared_groups(keys, groups.name)]


def _shared_groups(keys: Mapping[str, Sequence], name: str) -> list[str]:
    counts = {
        (split, other): shared(keys[split], keys[other]) for split, other in _ORDER if split in keys and other in keys
    }
    return [
        Notice(
            f"{split}: {count} of {len(keys[split])} records are of one {name} with records of {other}",
            SPLITS,
            count,
            len(keys[split]),
        )
        for (split, other), count in counts.items()
        if count
    ]


def _shared_texts(parts: Mapping[str, Sequence[Record]], carved: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Of pairs of texts that were carved out one by one: how many have one of the texts in common with train."""
    notes = []
    for name in texts if carved else ():
        there = {field(record, name) for record in parts["train"]}
        for split in carved:
            count = sum(field(record, name) in there for record in parts[split])
            if count:
                text = f"{split}: {count} of {len(parts[split])} records have a {name!r} that stands in train too "
                text += f"(group={name!r} keeps such records in one split)"
                notes.append(Notice(text, SPLITS, count, len(parts[split])))
    return notes
