"""Records with equal keys in two splits: counted, and dropped from one of them. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.data.distinct_values import distinct, is_among

PAIRS = (("dev", "test"), ("train", "test"), ("train", "dev"))
# (split, other): what is in `other` is dropped from `split`
_DROPPED = {"train": PAIRS, "test": (("dev", "train"), ("test", "train"), ("test", "dev"))}


def text_digest(parts: Sequence[str]) -> bytes:
    """A key of 8 bytes for strings: of ten million different ones two agree with a probability of 3e-6."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(b"%d:" % len(encoded) + encoded)
    return hashed.digest()


def find_duplicates(
    keys: Mapping[str, np.ndarray], drop_from: str
) -> tuple[dict[str, np.ndarray], list[tuple[str, str, int]]]:
    """({split: indices of the records that stay}, [(split, other, number of records of split that are in other)]).

    `keys` [M] by split. `drop_from` = "train": test keeps all its records; dev loses those in test, train those in dev
    or test. "test": train keeps all its records; dev loses those in train, test those in train or dev.
    """
    stays = {split: np.arange(len(split_keys)) for split, split_keys in keys.items()}
    dropped = []
    for split, other in _DROPPED[drop_from]:
        if split in keys and other in keys:
            is_kept = ~is_among(keys[split][stays[split]], np.sort(keys[other][stays[other]]))
            dropped.append((split, other, int((~is_kept).sum())))
            stays[split] = stays[split][is_kept]
    return stays, dropped


def count_duplicates(keys: Mapping[str, np.ndarray]) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """({(split, other): records of split that are also in other}, {split: records that repeat an earlier one}).

    `keys` [M] by split. The pairs are dev and test in train, and test in dev. Counts of 0 are left out.
    """
    different = {split: distinct(split_keys) for split, split_keys in keys.items()}
    between = {
        (later, earlier): int(is_among(keys[later], different[earlier]).sum())
        for earlier, later in (("train", "dev"), ("train", "test"), ("dev", "test"))
        if earlier in keys and later in keys
    }
    inside = {split: len(split_keys) - len(different[split]) for split, split_keys in keys.items()}
    return {pair: n for pair, n in between.items() if n}, {split: n for split, n in inside.items() if n}
