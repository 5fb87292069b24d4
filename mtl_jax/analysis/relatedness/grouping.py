"""Which tasks to train together, which auxiliary tasks help a target, and which tasks share which layers."""

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

MAX_EXACT = 8  # number of tasks up to which the search is exact: 255 candidate groups

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
    """Estimates the gains in a group by the mean of the gains in pairs (Standley et al. 2020, section 5.2; Fifty et al.
    2021, section 3.3). A single task gains 0.

    Args:
      gains: [i, j] = gain of task j by training with i, float[K, K]; the diagonal is not read.
    """

    def gains_in(group: tuple[int, ...]) -> np.ndarray:
        members = list(group)
        if len(members) == 1:
            return np.zeros(1)
        block = gains[np.ix_(members, members)]
        return (block.sum(axis=0) - np.diagonal(block)) / (len(members) - 1)

    return gains_in


def best_groups(count: int, budget: int, gains: Gains, exact: int = MAX_EXACT) -> Grouping:
    """At most `budget` groups that cover every task, with the largest sum of gains; each task is served by the group in
    which it gains most.

    Up to `exact` tasks by branch and bound over all groups; for more tasks greedily, over groups grown from each task.

    Args:
      count: K.
      budget: groups, ≥ 1.
      gains: group -> gain of each of its tasks, estimated by `gains_from_pairs` or measured.

    Raises:
      ValueError: no task or no group.
    """
    if count < 1 or budget < 1:
        raise ValueError(f"a grouping needs a task and a group, not {count} and {budget}")
    if count <= exact:
        candidates = [c for n in range(1, count + 1) for c in itertools.combinations(range(count), n)]
    else:
        candidates = _grown(count, gains)
    table = np.full((len(candidates), count), -np.inf)
    for row, group in zip(table, candidates, strict=True):
        row[list(group)] = gains(group)
    chosen = _greedy(table, budget)
    if count <= exact:
        chosen = _branch_and_bound(table, budget, chosen)
    served = np.argmax(table[chosen], axis=0)
    used = sorted(set(served.tolist()))
    total = float(table[chosen].max(axis=0).sum())
    return Grouping(
        tuple(candidates[chosen[i]] for i in used), tuple(used.index(i) for i in served), total, count <= exact
    )


def auxiliary_tasks(gains: np.ndarray, target: int, limit: int) -> tuple[int, ...]:
    """At most `limit` tasks that help the target, best first.

    Args:
      gains: [i, j] = gain of task j by training with i, float[K, K].
    """
    order = np.argsort(-gains[:, target], kind="stable")
    return tuple(int(i) for i in order if i != target and gains[i, target] > 0)[:limit]


def _greedy(table: np.ndarray, budget: int) -> list[int]:
    """Adds groups one by one, the first with all tasks; then exchanges single groups while the sum increases.

    `table` [groups, K]: gain of each task in each group, −∞ where it is not a member.
    """

    def total_with(chosen: list[int]) -> np.ndarray:
        current = table[chosen].max(axis=0) if chosen else np.full(table.shape[1], -np.inf)
        return np.maximum(current[None, :], table).sum(axis=1)

    chosen: list[int] = []
    while len(chosen) < budget:
        chosen.append(int(np.argmax(total_with(chosen))))
    best = table[chosen].max(axis=0).sum()
    improved = True
    while improved:
        improved = False
        for index in range(len(chosen)):
            others = chosen[:index] + chosen[index + 1 :]
            totals = total_with(others)
            if totals.max() > best + 1e-12:
                chosen, best, improved = [*others, int(np.argmax(totals))], totals.max(), True
    return chosen


def _branch_and_bound(table: np.ndarray, budget: int, start: Sequence[int]) -> list[int]:
    order = np.argsort(-np.where(np.isfinite(table), table, 0.0).sum(axis=1), kind="stable")
    ranked = table[order]
    # an upper bound on what a task can gain in the remaining groups
    bound = np.concatenate([np.maximum.accumulate(ranked[::-1])[::-1], np.full((1, table.shape[1]), -np.inf)])
    best = list(start), float(table[list(start)].max(axis=0).sum())

    def search(first: int, current: np.ndarray, taken: tuple[int, ...]) -> None:
        nonlocal best
        total = current.sum()
        if total > best[1] + 1e-12:
            best = [int(order[i]) for i in taken], float(total)
        if len(taken) == budget:
            return
        for i in range(first, len(ranked)):
            if np.maximum(current, bound[i]).sum() <= best[1] + 1e-12:
                return
            search(i + 1, np.maximum(current, ranked[i]), (*taken, i))

    search(0, np.full(table.shape[1], -np.inf), ())
    return best[0]


def _grown(count: int, gains: Gains) -> list[tuple[int, ...]]:
    """Candidates for many tasks: all of them, single tasks, and groups grown from each task by the best next one."""
    groups = {tuple(range(count)), *((k,) for k in range(count))}
    for seed in range(count):
        group = (seed,)
        while len(group) < count:
            options = [tuple(sorted((*group, k))) for k in range(count) if k not in group]
            group = max(options, key=lambda option: float(gains(option).sum()))
            groups.add(group)
    return sorted(groups)


def similarity_tree(
    similarity: np.ndarray, tasks: Sequence[str], groups: Mapping[str, int]
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Which tasks share which layers, so that similar tasks share more of them: for `config.sharing.task_groups`.

    Average linkage joins the tasks; each layer has the groups at the point where their number is the given one.

    Args:
      similarity: float[K, K], larger = closer; its symmetric part is used, the diagonal is not read.
      tasks: the K names.
      groups: layer -> number of groups, up to the next layer that is named; it must not decrease.

    Returns:
      layer -> partition of the tasks.

    Raises:
      UserError: an entry that is not finite, numbers that are not in 1 … K or that decrease from layer to layer.
    """
    count = len(tasks)
    off = ~np.eye(count, dtype=bool)
    symmetric = (similarity + similarity.T) / 2
    if not np.isfinite(symmetric[off]).all():
        raise UserError("a tree of tasks: the similarity of some tasks is not known; take a measure of all pairs")
    numbers = [groups[layer] for layer in sorted(groups)]
    if any(not 1 <= n <= count for n in numbers) or numbers != sorted(numbers):
        raise UserError(
            f"a tree of tasks: groups should be numbers from 1 to {count} that do not decrease with the layers, not "
            f"{groups}"
        )
    distance = np.where(off, symmetric[off].max() - symmetric, 0.0)
    linkage = hierarchy.linkage(squareform(distance, checks=False), "average")
    partitions = {}
    for layer, number in groups.items():
        labels = hierarchy.cut_tree(linkage, n_clusters=number)[:, 0]
        partitions[layer] = tuple(
            tuple(name for name, label in zip(tasks, labels, strict=True) if label == group)
            for group in dict.fromkeys(labels.tolist())
        )
    return partitions


def tree_of_run(
    run: str | pathlib.Path, groups: Mapping[str, int], measure: str = "transfer"
) -> dict[str, tuple[tuple[str, ...], ...]]:
    """`similarity_tree` of a finished --mode=relate.

    Args:
      run: its folder.
      groups: as in `similarity_tree`.
      measure: the name of one of its measures, or "transfer", the measured gains in pairs.

    Raises:
      UserError: no such run or measure; see `similarity_tree`.
    """
    file = pathlib.Path(run).expanduser() / "relatedness.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; --mode=relate writes it at its end")
    result = json.loads(file.read_text(encoding="utf-8"))
    if measure == "transfer":
        matrix = [[entry["mean"] if entry else np.nan for entry in row] for row in result["gain"]]
        return similarity_tree(np.asarray(matrix, float), result["tasks"], groups)
    if measure not in result["measures"]:
        raise UserError(f"{file}: no measure {measure!r}; there are transfer, {', '.join(result['measures'])}")
    entry = result["measures"][measure]
    matrix = np.asarray(entry["matrix"], float)
    return similarity_tree(-matrix if entry["distance"] else matrix, result["tasks"], groups)
