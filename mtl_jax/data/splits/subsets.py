"""Which records of a data set are used: splits carved by seed, subsets. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
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


def carve(
    splits: Mapping[str, list[T]],
    shares: Mapping[str, float],
    name: str,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, list[T]]:
    """Moves a random share of train into dev and test, at least one record each; every split keeps its order.

    Test is chosen first and by itself, so that it stays the same whatever the share of dev.

    Args:
      splits: the records by split.
      shares: of train, by split, see `fractions`.
      name, seed: decide what is drawn.
      groups: [M] of train: records of one value stay together, None for a record by itself; None: all by themselves.
        A split is then as large as whole groups allow.

    Raises UserError where too few records, or groups, are there.
    """
    if not any(shares.values()):
        return dict(splits)
    train = splits["train"]
    sizes = {split: max(1, round(share * len(train))) for split, share in shares.items() if share}
    members: dict[Hashable, list[int]] = {}
    for i in range(len(train)):
        key = None if groups is None else groups[i]
        members.setdefault((i,) if key is None else (key, "group"), []).append(i)
    units = list(members.values())
    if sum(sizes.values()) >= len(train) or len(sizes) >= len(units):
        of = "" if len(units) == len(train) else f" in {len(units)} groups"
        raise UserError(f"{len(train)} records of train{of} are too few to carve out {sizes}")
    rest = generator(f"{name}/carve", seed).permutation(len(units)).tolist()
    parts = {}
    for split in ("test", "dev"):
        if split in sizes:
            parts[split], rest = _walk(rest, [len(unit) for unit in units], sizes[split])
    if not rest:
        raise UserError(f"{len(units)} groups of train are too large to carve out {sizes} and to leave any")
    parts["train"] = rest
    indices = {split: sorted(i for unit in chosen for i in units[unit]) for split, chosen in parts.items()}
    return {**splits, **{split: [train[i] for i in chosen] for split, chosen in indices.items()}}


def _walk(order: Sequence[int], lengths: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """(units of about `size` records, at least one; the others), in the order given; a unit that would make the part
    larger by more than it is short of is left to the others.
    """
    chosen, others, count = [], [], 0
    for unit in order:
        if count < size and count + lengths[unit] - size <= size - count:
            chosen.append(unit)
            count += lengths[unit]
        else:
            others.append(unit)
    if not chosen:
        smallest = min(others, key=lambda unit: lengths[unit])
        chosen = [smallest]
        others.remove(smallest)
    return chosen, others
