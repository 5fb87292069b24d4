"""Records with equal keys in two splits: counted, and dropped from one of them. Pure functions."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
PAIRS = (("dev", "test"), ("train", "test"), ("train", "dev"))
# (split, other): `drop_duplicates` removes from `split` what is in `other`
_DROPPED = {"train": PAIRS, "test": (("dev", "train"), ("test", "train"), ("test", "dev"))}


def text_digest(parts: Sequence[str]) -> bytes:
    """A key of 16 bytes for strings, so that a million keys need little memory."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(b"%d:" % len(encoded) + encoded)
    return hashed.digest()


def drop_duplicates(
    splits: Mapping[str, list[T]], key: Callable[[T], Hashable], drop_from: str
) -> tuple[dict[str, list[T]], list[tuple[str, str, int]]]:
    """The splits without duplicates, and (split, other, number of records dropped from split as they are in other).

    `drop_from` = "train": test keeps all its records; dev loses those in test, train those in dev or test.
    "test": train keeps all its records; dev loses those in train, test those in train or dev.
    """
    keys = {split: [key(item) for item in items] for split, items in splits.items()}
    result, dropped = dict(splits), []
    for split, other in _DROPPED[drop_from]:
        if split in result and other in result:
            other_keys = set(keys[other])
            stays = [item_key not in other_keys for item_key in keys[split]]
            dropped.append((split, other, len(stays) - sum(stays)))
            result[split] = [item for item, is_kept in zip(result[split], stays, strict=True) if is_kept]
            keys[split] = [item_key for item_key, is_kept in zip(keys[split], stays, strict=True) if is_kept]
    return result, dropped


def count_duplicates(
    splits: Mapping[str, Sequence[T]], key: Callable[[T], Hashable]
) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """({(split, other): records of split that are also in other}, {split: records that repeat an earlier one}).

    The pairs are dev and test in train, and test in dev. Counts of 0 are left out.
    """
    counts = {split: collections.Counter(map(key, items)) for split, items in splits.items()}
    between = {
        (later, earlier): sum(n for item_key, n in counts[later].items() if item_key in counts[earlier])
        for earlier, later in (("train", "dev"), ("train", "test"), ("dev", "test"))
        if earlier in counts and later in counts
    }
    inside = {split: keys.total() - len(keys) for split, keys in counts.items()}
    return {pair: n for pair, n in between.items() if n}, {split: n for split, n in inside.items() if n}
