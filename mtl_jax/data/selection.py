"""Which records of a data set are used: splits carved by seed, subsets, duplicates. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mtl_jax.errors import UserError

T = TypeVar("T")


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on a name and a seed alone, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def subset(items: Sequence[T], size: int, name: str, seed: int) -> list[T]:
    """At most `size` items in their order; a smaller subset of the same name and seed lies inside a larger one."""
    if len(items) <= size:
        return list(items)
    chosen = generator(f"{name}/limit", seed).permutation(len(items))[:size]
    return [items[i] for i in np.sort(chosen)]


def fractions(dev: float | None, test: float | None, given: Sequence[str]) -> dict[str, float]:
    """The share of train that becomes dev and test: 0 where such a split is given. Raises UserError outside [0, 1)."""
    shares = {"dev": dev or 0.0, "test": test or 0.0}
    for split, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise UserError(f"{split}_fraction has to be a number from 0 to below 1, found {share!r}")
    shares = {split: 0.0 if split in given else float(share) for split, share in shares.items()}
    if sum(shares.values()) >= 1:
        raise UserError(f"dev_fraction and test_fraction leave nothing for train: {shares}")
    if any(shares.values()) and "train" not in given:
        raise UserError("dev_fraction and test_fraction are carved out of train; splits names no train")
    return shares


def carve(splits: Mapping[str, list[T]], shares: Mapping[str, float], name: str, seed: int) -> dict[str, list[T]]:
    """Moves a random share of train into dev and test, at least one record each; every split keeps its order.

    Test is chosen first and by itself, so that it stays the same whatever the share of dev. Raises UserError where
    too few records are there.
    """
    if not any(shares.values()):
        return dict(splits)
    train = splits["train"]
    sizes = {split: max(1, round(share * len(train))) for split, share in shares.items() if share}
    if sum(sizes.values()) >= len(train):
        raise UserError(f"{len(train)} records of train are too few to carve out {sizes}")
    order = generator(f"{name}/carve", seed).permutation(len(train))
    parts, taken = {}, 0
    for split in ("test", "dev"):
        if size := sizes.get(split, 0):
            parts[split] = order[taken : taken + size]
            taken += size
    parts["train"] = order[taken:]
    return {**splits, **{split: [train[i] for i in np.sort(chosen)] for split, chosen in parts.items()}}


def drop_duplicates(
    splits: Mapping[str, list[T]], key: Callable[[T], Hashable]
) -> tuple[dict[str, list[T]], list[tuple[str, str, int]]]:
    """Leaves out of train what stands in dev or test, of dev what stands in test; and (split, other, how many)."""
    kept, removed = dict(splits), []
    for split, other in (("dev", "test"), ("train", "test"), ("train", "dev")):
        if split in kept and other in kept:
            there = {key(item) for item in kept[other]}
            rest = [item for item in kept[split] if key(item) not in there]
            removed.append((split, other, len(kept[split]) - len(rest)))
            kept[split] = rest
    return kept, removed
