"""Which tasks to train together, which auxiliary tasks help a target, and who shares which layers."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from mtl_jax.errors import UserError

EXACT = 8  # tasks up to which the search is exact: 255 candidate groups

Gains = Callable[[tuple[int, ...]], np.ndarray]


class Grouping(NamedTuple):
    """Groups to train, one model each.

    groups  tuples of tasks; a task may be trained in several
    served  for each task the index of the group whose model serves it
    gain    sum of the tasks' gains
    exact   whether no better grouping exists
    """

    groups: tuple[tuple[int, ...], ...]
    served: tuple[int, ...]
    gain: float
    exact: bool


def gains_from_pairs(gains: np.ndarray) -> Gains:
    """What a group would bring its tasks, from what pairs bring: the mean over the others (Standley et al. 2020,
    section 5.2; Fifty et al. 2021, section 3.3). A task alone gains 0.

    Args:
      gains: [i, j] = what training with i brings task j, float[K, K]; the diagonal is not read.
    """

    def of(group: tuple[int, ...]) -> np.ndarray:
        members = list(group)
        if len(members) == 1:
            return np.zeros(1)
        block = gains[np.ix_(members, members)]
        return (block.sum(axis=0) - np.diagonal(block)) / (len(members) - 1)

    return of


def best_groups(count: int, budget: int, gains: Gains, exact: int = EXACT) -> Grouping:
    """At most `budget` groups, every task in one at least, so that the sum of gains is largest; each task is served by
    the group that brings it most.

    Up to `exact` tasks by branch and bound over all groups; beyond greedily, groups grown from each task and taken by
    what they add.

    Args:
      count: K.
      budget: groups, ≥ 1.
      gains: group -> gain of each of its tasks, as from `gains_from_pairs`, or measured.

    Raises:
      ValueError: no task or no group.
    """
    if count < 1 or budget < 1:
        raise ValueError(f"a grouping needs a task and a group, not {count} and {budget}")
    if count <= exact:
        candidates = [c for n in range(1, count + 1) for c in itertools.combinations(range(count), n)]
    else:
        candidates = _grown(count, gains)
    worth = np.full((len(candidates), count), -np.inf)
    for row, group in zip(worth, candidates, strict=True):
        row[list(group)] = gains(group)
    chosen = _greedy(worth, budget)
    if count <= exact:
        chosen = _branch_and_bound(worth, budget, chosen)
    served = np.argmax(worth[chosen], axis=0)
    used = sorted(set(served.tolist()))
    total = float(worth[chosen].max(axis=0).sum())
    return Grouping(
        tuple(candidates[chosen[i]] for i in used), tuple(used.index(i) for i in served), total, count <= exact
    )


def auxiliary_tasks(gains: np.ndarray, target: int, most: int) -> tuple[int, ...]:
    """At most so many tasks that help the target, best first; none that harm it.

    Args:
      gains: [i, j] = what training with i brings task j, float[K, K].
    """
    order = np.argsort(-gains[:, target], kind="stable")
    return tuple(int(i) for i in order if i != target and gains[i, target] > 0)[:most]


def _greedy(worth: np.ndarray, budget: int) -> list[int]:
    """Groups taken one after another, the first one with all tasks; then exchanged one by one while that helps."""

    def total_with(chosen: list[int]) -> np.ndarray:
        held = worth[chosen].max(axis=0) if chosen else np.full(worth.shape[1], -np.inf)
        return np.maximum(held[None, :], worth).sum(axis=1)

    chosen: list[int] = []
    while len(chosen) < budget:
        chosen.append(int(np.argmax(total_with(chosen))))
    best = worth[chosen].max(axis=0).sum()
    improved = True
    while improved:
        improved = False
        for place in range(len(chosen)):
            others = chosen[:place] + chosen[place + 1 :]
            totals = total_with(others)
            if totals.max() > best + 1e-12:
                chosen, best, improved = [*others, int(np.argmax(totals))], totals.max(), True
    return chosen


def _branch_and_bound(worth: np.ndarray, budget: int, start: Sequence[int]) -> list[int]:
    order = np.argsort(-np.where(np.isfinite(worth), worth, 0.0).sum(axis=1), kind="stable")
    ranked = worth[order]
    # the most that a task can get from the groups that are still to come
    ahead = np.concatenate([np.maximum.accumulate(ranked[::-1])[::-1], np.full((1, worth.shape[1]), -np.inf)])
    best = list(start), float(worth[list(start)].max(axis=0).sum())

    def search(first: int, held: np.ndarray, taken: tuple[int, ...]):
        nonlocal best
        total = held.sum()
        if total > best[1] + 1e-12:
            best = [int(order[i]) for i in taken], float(total)
        if len(taken) == budget:
            return
        for i in range(first, len(ranked)):
            if np.maximum(held, ahead[i]).sum() <= best[1] + 1e-12:
                return
            search(i + 1, np.maximum(held, ranked[i]), (*taken, i))

    search(0, np.full(worth.shape[1], -np.inf), ())
    return best[0]


def _grown(count: int, gains: Gains) -> list[tuple[int, ...]]:
    """Candidates for many tasks: all, each alone, and from each task on the group as it grows by the best next."""
    found = {tuple(range(count)), *((k,) for k in range(count))}
    for seed in range(count):
        group = (seed,)
        while len(group) < count:
            options = [tuple(sorted((*group, k))) for k in range(count) if k not in group]
            group = max(options, key=lambda option: float(gains(option).sum()))
            found.add(group)
    return sorted(found)


def similarity_tree(
    similarity: np.ndarray, tasks: Sequence[str], groups: Mapping[str, int]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Which tasks share which layers, so that similar tasks share more of them: for `config.sharing.task_groups`.

    Average linkage joins the tasks one by one; each layer has the groups that are left where there are so many.

    Args:
      similarity: float[K, K], more is closer; its symmetric part is taken, the diagonal is not read.
      tasks: the K names.
      groups: layer -> number of groups, from there up to the next one named; not fewer than below it.

    Returns:
      layer -> partition of the tasks.

    Raises:
      UserError: an entry that is not finite, numbers out of 1 … K or that fall from layer to layer.
    """
    count = len(tasks)
    off = ~np.eye(count, dtype=bool)
    symmetric = (similarity + similarity.T) / 2
    if not np.isfinite(symmetric[off]).all():
        raise UserError("a tree of tasks: the similarity of some tasks is not known; take a measure that has all pairs")
    numbers = [groups[layer] for layer in sorted(groups)]
    if any(not 1 <= n <= count for n in numbers) or numbers != sorted(numbers):
        raise UserError(
            f"a tree of tasks: groups should be numbers from 1 to {count} that do not fall from layer to layer, not "
            f"{groups}"
        )
    distance = np.where(off, symmetric[off].max() - symmetric, 0.0)
    joined = hierarchy.linkage(squareform(distance, checks=False), "average")
    found = {}
    for layer, number in groups.items():
        labels = hierarchy.cut_tree(joined, n_clusters=number)[:, 0]
        found[layer] = tuple(
            tuple(name for name, label in zip(tasks, labels, strict=True) if label == wanted)
            for wanted in dict.fromkeys(labels.tolist())
        )
    return found


def tree_of_run(run: str | pathlib.Path, groups: Mapping[str, int], measure: str = "transfer"):
    """`similarity_tree` of a finished --mode=relate.

    Args:
      run: its folder.
      groups: as in `similarity_tree`.
      measure: a name of its measures, or "transfer": what pairs gain by each other, as measured.

    Raises:
      UserError: no such run or measure; see `similarity_tree`.
    """
    file = pathlib.Path(run).expanduser() / "relatedness.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; it is what --mode=relate writes at its end")
    found = json.loads(file.read_text(encoding="utf-8"))
    if measure == "transfer":
        matrix = [[entry["mean"] if entry else np.nan for entry in row] for row in found["gain"]]
        return similarity_tree(np.asarray(matrix, float), found["tasks"], groups)
    if measure not in found["measures"]:
        raise UserError(f"{file}: no measure {measure!r}; there are transfer, {', '.join(found['measures'])}")
    told = found["measures"][measure]
    matrix = np.asarray(told["matrix"], float)
    return similarity_tree(-matrix if told["distance"] else matrix, found["tasks"], groups)
