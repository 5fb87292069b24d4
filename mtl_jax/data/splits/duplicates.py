"""Records of equal text in two splits: counted, and left out of one of them. Pure functions."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
PAIRS = (("dev", "test"), ("train", "test"), ("train", "dev"))
# what `drop` leaves records out of: (split, other)
_DROPPED = {"train": PAIRS, "test": (("dev", "train"), ("test", "train"), ("test", "dev"))}


def digest(parts: Sequence[str]) -> bytes:
    """16 bytes that stand for texts, so that a million keys need little memory."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(b"%d:" % len(encoded) + encoded)
    return hashed.digest()


def drop(
    splits: Mapping[str, list[T]], key: Callable[[T], Hashable], where: str
) -> tuple[dict[str, list[T]], list[tuple[str, str, int]]]:
    """The splits without what stands in two of them, and (split, other, how many records of split stand in other).

    `where` = "train": test stays whole; left out of dev is what stands in test, of train what stands in dev or test.
    "test": train stays whole; left out of dev is what stands in train, of test what stands in train or dev.
    """
    keys = {split: [key(item) for item in items] for split, items in splits.items()}
    kept, removed = dict(splits), []
    for split, other in _DROPPED[where]:
        if split in kept and other in kept:
            there = set(keys[other])
            stays = [own not in there for own in keys[split]]
            removed.append((split, other, len(stays) - sum(stays)))
            kept[split] = [item for item, good in zip(kept[split], stays, strict=True) if good]
            keys[split] = [own for own, good in zip(keys[split], stays, strict=True) if good]
    return kept, removed


def count(splits: Mapping[str, Sequence[T]], key: Callable[[T], Hashable]) -> tuple[dict[tuple[str, str], int], dict]:
    """({(split, other): records of split that stand in other too}, {split: records that repeat an earlier one}).

    The pairs are dev and test in train, and test in dev. A number of 0 is left out.
    """
    counts = {split: collections.Counter(map(key, items)) for split, items in splits.items()}
    between = {
        (later, earlier): sum(n for own, n in counts[later].items() if own in counts[earlier])
        for earlier, later in (("train", "dev"), ("train", "test"), ("dev", "test"))
        if earlier in counts and later in counts
    }
    inside = {split: found.total() - len(found) for split, found in counts.items()}
    return {pair: n for pair, n in between.items() if n}, {split: n for split, n in inside.items() if n}
