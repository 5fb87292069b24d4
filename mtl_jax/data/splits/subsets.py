"""Random subsets of records and splits carved out of train, by seed. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mtl_jax.errors import UserError

T = TypeVar("T")


def random_generator(name: str, seed: int) -> np.random.Generator:
    """A generator that depends on a name and a seed only, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def subset(items: Sequence[T], size: int, name: str, seed: int) -> list[T]:
    """At most `size` items in their order; a smaller subset with the same name and seed is part of a larger one."""
    if len(items) <= size:
        return list(items)
    chosen = random_generator(f"{name}/limit", seed).permutation(len(items))[:size]
    return [items[i] for i in np.sort(chosen)]


def carved_fractions(dev: float | None, test: float | None, given: Sequence[str]) -> dict[str, float]:
    """The fractions of train that become dev and test: 0 for a split that is given. Raises UserError outside [0, 1)."""
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


def carve_random(
    splits: Mapping[str, list[T]],
    shares: Mapping[str, float],
    name: str,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, list[T]]:
    """Moves a random fraction of train into dev and test, at least one record each; every split keeps its order.

    Test is drawn first, so that it does not depend on the fraction of dev.

    Args:
      splits: the records by split.
      shares: fractions of train, by split, see `carved_fractions`.
      name, seed: key the random draw.
      groups: [M] keys of the records of train: records with equal keys stay together, None is a group of its own;
        None: every record is. The size of a split is then approximate.

    Raises UserError where there are too few records or groups.
    """
    if not any(shares.values()):
        return dict(splits)
    train = splits["train"]
    sizes = {split: max(1, round(share * len(train))) for split, share in shares.items() if share}
    members: dict[Hashable, list[int]] = {}
    for i in range(len(train)):
        key = None if groups is None else groups[i]
        members.setdefault((i,) if key is None else (key, "group"), []).append(i)
    indices_of_groups = list(members.values())
    count = len(indices_of_groups)
    if sum(sizes.values()) >= len(train) or len(sizes) >= count:
        in_groups = "" if count == len(train) else f" in {count} groups"
        raise UserError(f"{len(train)} records of train{in_groups} are too few to carve out {sizes}")
    remaining = random_generator(f"{name}/carve", seed).permutation(count).tolist()
    parts = {}
    for split in ("test", "dev"):
        if split in sizes:
            parts[split], remaining = _take_groups(remaining, list(map(len, indices_of_groups)), sizes[split])
    if not remaining:
        raise UserError(f"{count} groups of train are too large to carve out {sizes} and to leave any")
    parts["train"] = remaining
    indices = {
        split: sorted(i for group in chosen for i in indices_of_groups[group]) for split, chosen in parts.items()
    }
    return {**splits, **{split: [train[i] for i in chosen] for split, chosen in indices.items()}}


def _take_groups(order: Sequence[int], lengths: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """(groups with about `size` records, at least one group; the remaining groups), in the given order.

    A group is skipped where taking it would exceed `size` by more than `size` is missed without it.
    """
    chosen, remaining, count = [], [], 0
    for group in order:
        if count < size and count + lengths[group] - size <= size - count:
            chosen.append(group)
            count += lengths[group]
        else:
            remaining.append(group)
    if not chosen:
        smallest = min(remaining, key=lambda group: lengths[group])
        chosen = [smallest]
        remaining.remove(smallest)
    return chosen, remaining
