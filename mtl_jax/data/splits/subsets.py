"""Random subsets of records and splits carved out of train, by seed. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from mtl_jax.errors import UserError


def random_generator(name: str, seed: int) -> np.random.Generator:
    """A generator that depends on a name and a seed only, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def subset(count: int, size: int, name: str, seed: int) -> np.ndarray:
    """int64: at most `size` of `count` indices, ascending; a smaller subset with the same name and seed is part of a
    larger one.
    """
    if count <= size:
        return np.arange(count)
    return np.sort(random_generator(f"{name}/limit", seed).permutation(count)[:size])


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
    count: int,
    shares: Mapping[str, float],
    name: str,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, np.ndarray]:
    """The indices of the records of train that make up each split: a random fraction for dev and test, at least one
    record each, in ascending order.

    Test is drawn first, so that it does not depend on the fraction of dev.

    Args:
      count: M records of train.
      shares: fractions of train, by split, see `carved_fractions`.
      name, seed: key the random draw.
      groups: [M] keys of the records of train: records with equal keys stay together, None is a group of its own;
        None: every record is. The size of a split is then approximate.

    Raises UserError where there are too few records or groups.
    """
    if not any(shares.values()):
        return {"train": np.arange(count)}
    sizes = {split: max(1, round(share * count)) for split, share in shares.items() if share}
    group = np.arange(count) if groups is None else _group_numbers(groups)
    lengths = np.bincount(group, minlength=0)
    if sum(sizes.values()) >= count or len(sizes) >= len(lengths):
        in_groups = "" if len(lengths) == count else f" in {len(lengths)} groups"
        raise UserError(f"{count} records of train{in_groups} are too few to carve out {sizes}")
    remaining = random_generator(f"{name}/carve", seed).permutation(len(lengths))
    split_of = np.zeros(len(lengths), np.int8)
    for number, split in enumerate(("test", "dev"), start=1):
        if split in sizes:
            chosen, remaining = _take_groups(remaining, lengths, sizes[split])
            split_of[chosen] = number
    if not len(remaining):
        raise UserError(f"{len(lengths)} groups of train are too large to carve out {sizes} and to leave any")
    names = [(number, split) for number, split in enumerate(("train", "test", "dev")) if split in {"train", *sizes}]
    return {split: np.flatnonzero(split_of[group] == number) for number, split in names}


def _group_numbers(groups: Sequence[Hashable]) -> np.ndarray:
    """int64[M], the number of each record's group, in the order of their first records."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter(
        (numbers.setdefault((i,) if key is None else (key, "group"), len(numbers)) for i, key in enumerate(groups)),
        np.int64,
        len(groups),
    )


def _take_groups(order: np.ndarray, lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(groups with about `size` records, at least one group; the remaining groups), in the given order.

    A group is skipped where taking it would exceed `size` by more than `size` is missed without it.
    """
    is_chosen, count = np.zeros(len(order), bool), 0
    for at, length in enumerate(lengths[order].tolist()):
        if count >= size:
            break
        if count + length - size <= size - count:
            is_chosen[at] = True
            count += length
    if not is_chosen.any():
        is_chosen[int(lengths[order].argmin())] = True
    return order[is_chosen], order[~is_chosen]
