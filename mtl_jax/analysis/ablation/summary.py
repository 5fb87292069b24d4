"""The statistics of an ablation: means over seeds, tuned limits, the point chosen on dev and its differences."""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from mtl_jax.analysis.ablation.conclusions import combination_warnings, verdict
from mtl_jax.analysis.ablation.preferences import PREFIX, pareto_front
from mtl_jax.analysis.ablation.records import COUNTED_STATUSES, ENDS, Grid, Lane
from mtl_jax.analysis.intervals import finite_or_none, holm, interval, paired_difference, with_corrected_p
from mtl_jax.evaluation.ranking import rank
from mtl_jax.evaluation.selection import relative_change
from mtl_jax.training.penalty_effect import Effect, is_negligible, mean_ratio, ties_columns


class _Scope(NamedTuple):
    """Inputs of all statistics: the ablation, {task: its first metric}, {id of a lane: its index}."""

    grid: Grid
    firsts: dict[str, str]
    indices: dict[int, int]


def summarise(grid: Grid) -> dict[str, Any]:
    """Statistics over seeds, as plain JSON without NaN. An "interval" and a "difference" are those of
    `mtl_jax.analysis.intervals` as dicts; they include only lanes that finished (or stopped early).

    Returns:
      selection     what the score of a setting is, see `config.evaluation.selection`
      scores        {task: its first metric}
      splits        those scored, dev first
      seeds         all of them
      strengths     names of the sweeps over λ
      statuses      {status: lanes}
      combinations  one for each combination of choices:
        choices     {choice: alternative}
        points      settings of the sweeps. Of each:
                      values         {sweep: value}; learned ones (hypergradient): the mean over seeds, on the scale
                      ranges         {sweep: [lowest, highest]} over seeds if they were learned, else {}
                      lanes          their numbers in ablation.csv, and indices in the list of lanes
                      seeds          those included
                      statuses       {status: lanes}
                      eligible       every seed finished with a finite score: it can be chosen
                      score          interval of the score on dev, by which settings are chosen
                      loss           interval of the mean over tasks of their losses on dev, which decides ties
                      average        {split: interval of the mean over tasks of their first metrics}
                      tasks          {task: {split: {metric: interval}}}
                      distance, effective_rank   intervals
                      effects        {penalty: {"ratio": mean penalty_ratio of the lanes, "hardly", "tied": numbers of
                                     lanes in which it hardly acted, or tied everything, see
                                     `training.penalty_effect`}}
                      against        {end: difference of the score on dev; corrected_p by Holm over the points}
                      front          no other eligible point is as good for every task on dev and better for one
        ends        {"single" | "tied" | "hard": as a point, at the best of its learning rates (and sweeps other than
                    λ) by mean dev score; "tried": [{"values", "score", "eligible"}]}; None where none is eligible
        chosen      index of the eligible point with the highest mean score on dev, of equal ones that with the lowest
                    mean loss; None for none
        comparison  {end: {"average": {split: difference}, "tasks": {task: {split: difference}}, "delta_m": {split:
                    interval of the mean relative change over tasks}}} of the chosen point minus the end. On dev
                    "average" has the corrected p; the others are of one point and are not corrected
        cost        {"parameters": of one model, "step_seconds": of one lane}, None if unknown
        verdict     a sentence
        warnings    sentences: frozen and dropped lanes, predictions that are all alike, optima at the edge of a sweep
      baselines     for each baseline of each choice, and each combination of the other choices:
        choice, baseline, rest   names, and {other choice: alternative}
        others                   [{"alternative", "average", "tasks", "delta_m"}] as in "comparison", of the setting
                                 chosen on dev minus the baseline's; "average" has p corrected by Holm
                                 over the alternatives, without those for which none can be chosen
    """
    firsts = {task: metrics[0] for task, metrics in grid.tasks.items()}
    splits = dict.fromkeys(split for lane in grid.lanes for by_split in lane.scores.values() for split in by_split)
    strengths = [name for name, sweep in grid.sweeps.items() if is_strength(sweep["field"])]
    result: dict[str, Any] = {
        "selection": grid.selection,
        "scores": firsts,
        "splits": sorted(splits, key=lambda split: (split != "dev", split)),
        "seeds": sorted({lane.seed for lane in grid.lanes}),
        "strengths": strengths,
        "statuses": dict(collections.Counter(lane.status for lane in grid.lanes)),
    }
    scope = _Scope(grid, firsts, {id(lane): i for i, lane in enumerate(grid.lanes)})
    combinations = [_combination(scope, choices, strengths) for choices in _combinations(grid)]
    result["combinations"] = combinations
    result["baselines"] = [
        compared
        for choice, names in grid.baselines.items()
        for rest in _distinct({n: v for n, v in c["choices"].items() if n != choice} for c in combinations)
        for name in names
        if (compared := _against_baseline(scope, combinations, choice, name, rest, names))
    ]
    return result


def profile(points: Sequence[dict[str, Any]], *sweeps: str) -> tuple[list[dict[str, Any]], bool]:
    """For each value of one or two sweeps, the point that is best on dev over the other sweeps.

    Returns:
      the points, ascending, and whether they are a profile of a full grid. Random or learned values are not, so that
      neighbours may differ in other values too.
    """
    groups: dict[tuple, list] = collections.defaultdict(list)
    for point in points:
        groups[tuple(point["values"][name] for name in sweeps)].append(point)
    names = list(points[0]["values"]) if points else []
    full = math.prod(len({point["values"][name] for point in points}) for name in names) == len(points)
    full = full and not any(point["ranges"] for point in points)
    return [group[_best(group) or 0] for _, group in sorted(groups.items())], full


def main_split(summary: dict[str, Any]) -> str:
    """The split that decides: test if it was scored, because settings were chosen on dev."""
    return "test" if "test" in summary["splits"] else "dev"


def is_strength(field: str) -> bool:
    """Whether a config field is a λ."""
    return re.fullmatch(r"penalties\.[^.]+\.strength", field) is not None


def _combinations(grid: Grid) -> list[dict[str, str]]:
    """The combinations of choices that were trained, in the order of the choices."""
    lanes = [lane for lane in grid.lanes if lane.line == "sharing"] or grid.lanes
    trained = {tuple(lane.choices.get(name) for name in grid.choices) for lane in lanes}
    in_order = itertools.product(*grid.choices.values())
    return [dict(zip(grid.choices, names, strict=True)) for names in in_order if names in trained]


def _combination(scope: _Scope, choices: Mapping[str, str], strengths: Sequence[str]) -> dict[str, Any]:
    grid, firsts, _ = scope

    def lanes_of(line: str) -> list[Lane]:
        # a limit lacks the choices that do not affect it; the most specific one belongs to this combination
        matching = [lane for lane in grid.lanes if lane.line == line and lane.choices.items() <= choices.items()]
        specific = max((len(lane.choices) for lane in matching), default=0)
        return [lane for lane in matching if len(lane.choices) == specific]

    groups = (
        _learned(lanes_of("sharing")) if grid.method["name"] == "hypergradient" else _by_values(lanes_of("sharing"))
    )
    seeds = {lane.seed for group in groups for lane in group}
    points = [_point(scope, group, seeds) for group in groups]
    chosen = _best(points)
    eligible = [point for point in points if point["eligible"]]
    for point, front in zip(eligible, pareto_front([_on_dev(point, firsts) for point in eligible]), strict=True):
        point["front"] = front
    tuned = {}  # limit -> (summary, lanes)
    for end in ENDS:
        if tried := _by_values(lanes_of(end)):
            tuned[end] = _tuned(scope, tried)
    known = {end: lanes for end, (summary, lanes) in tuned.items() if summary is not None}
    for end, lanes in known.items():
        differences = with_corrected_p([paired_difference(_scores(group), _scores(lanes)) for group in groups])
        for point, difference in zip(points, differences, strict=True):
            point["against"][end] = difference._asdict()
    comparison = {}
    if chosen is not None:
        for end, lanes in known.items():
            comparison[end] = _compare(groups[chosen], lanes, scope, points[chosen]["against"][end])
    result = {
        "choices": choices,
        "points": points,
        "ends": {end: summary for end, (summary, _) in tuned.items()},
        "chosen": chosen,
        "comparison": comparison,
        "cost": next((cost for cost in grid.costs if cost["choices"] == choices), None),
    }
    result["verdict"] = verdict(result, strengths)
    result["warnings"] = combination_warnings(
        result, groups, [name for name in grid.sweeps if not name.startswith(PREFIX)], grid.method["name"]
    )
    return result


def _distinct(items: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The distinct items, in order."""
    return [dict(pairs) for pairs in dict.fromkeys(tuple(item.items()) for item in items)]


def _against_baseline(
    scope: _Scope,
    combinations: Sequence[Mapping[str, Any]],
    choice: str,
    baseline: str,
    rest: Mapping[str, str],
    baselines: Sequence[str],
) -> dict[str, Any] | None:
    """Each alternative of a choice against a baseline, other baselines too. None if the baseline has no lanes."""

    def chosen_lanes(alternative: str) -> list[Lane]:
        for c in combinations:
            if c["choices"] == {**rest, choice: alternative} and c["chosen"] is not None:
                return [scope.grid.lanes[i] for i in c["points"][c["chosen"]]["lanes"]]
        return []

    baseline_lanes = chosen_lanes(baseline)
    if not baseline_lanes:
        return None
    compared_before = baselines[: baselines.index(baseline)]
    compared = {}
    for name in scope.grid.choices[choice]:
        if name == baseline or name in compared_before or not (lanes := chosen_lanes(name)):
            continue
        on_dev = paired_difference(_scores(lanes), _scores(baseline_lanes))._asdict()
        compared[name] = _compare(lanes, baseline_lanes, scope, on_dev)
    for split in {split for c in compared.values() for split in c["average"]}:
        averages = [c["average"] for c in compared.values() if split in c["average"]]
        for average, p in zip(averages, holm([a[split]["p"] for a in averages]), strict=True):
            average[split]["corrected_p"] = p
    return {
        "choice": choice,
        "baseline": baseline,
        "rest": rest,
        "others": [{"alternative": name, **c} for name, c in compared.items()],
    }


def _by_values(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Groups of lanes that differ only in the seed, in the order of the values."""
    groups: dict[tuple, list[Lane]] = collections.defaultdict(list)
    for lane in lanes:
        groups[tuple(sorted(lane.values.items()))].append(lane)
    return sorted(groups.values(), key=lambda group: tuple(group[0].values.values()))


def _learned(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Groups of lanes whose values were learned: the n-th lanes of all seeds, which began from the same values."""
    groups: dict[int, list[Lane]] = collections.defaultdict(list)
    count: dict[int, int] = collections.Counter()
    for lane in lanes:
        groups[count[lane.seed]].append(lane)
        count[lane.seed] += 1
    return list(groups.values())


def _point(scope: _Scope, lanes: Sequence[Lane], seeds: Set[int]) -> dict[str, Any]:
    """The statistics of one setting, see `summarise`."""
    grid, firsts, _ = scope
    counted = [lane for lane in lanes if lane.status in COUNTED_STATUSES]
    values, ranges = dict(lanes[0].values), {}
    if any(lane.values != values for lane in lanes):
        for name in values:
            learned = [lane.values[name] for lane in lanes]
            values[name] = _center(learned, grid.sweeps.get(name, {}).get("scale"))
            ranges[name] = [min(learned), max(learned)]
    splits = dict.fromkeys(split for lane in counted for by_split in lane.scores.values() for split in by_split)
    tasks: dict[str, Any] = {}
    for task in firsts:
        for split in splits:
            metrics = [lane.scores.get(task, {}).get(split, {}) for lane in counted]
            by_metric = {
                name: interval([m.get(name) for m in metrics])._asdict()
                for name in dict.fromkeys(name for m in metrics for name in m)
            }
            if by_metric:
                tasks.setdefault(task, {})[split] = by_metric
    return {
        "values": values,
        "ranges": ranges,
        "lanes": [scope.indices[id(lane)] for lane in lanes],
        "seeds": sorted(lane.seed for lane in counted),
        "statuses": dict(collections.Counter(lane.status for lane in lanes)),
        "eligible": {seed for seed, score in _scores(lanes).items() if score is not None} == seeds
        and len(counted) == len(lanes),
        "score": interval([lane.score for lane in counted])._asdict(),
        "loss": interval([_dev_loss(lane) for lane in counted])._asdict(),
        "average": {split: interval([_average(lane, split, scope) for lane in counted])._asdict() for split in splits},
        "tasks": tasks,
        "distance": interval([lane.distance for lane in counted])._asdict(),
        "effective_rank": interval([lane.effective_rank for lane in counted])._asdict(),
        "effects": _effects(counted),
        "against": {},
        "front": False,
    }


def _on_dev(point: Mapping[str, Any], firsts: Mapping[str, str]) -> list[float]:
    """The mean first metric of each task on dev; NaN where it is not known."""
    means = [point["tasks"].get(task, {}).get("dev", {}).get(metric, {}).get("mean") for task, metric in firsts.items()]
    return [math.nan if mean is None else mean for mean in means]


def _effects(lanes: Sequence[Lane]) -> dict[str, dict[str, Any]]:
    names = lanes[0].effects if lanes else ()
    by_penalty = {name: [Effect(**lane.effects[name]) for lane in lanes] for name in names}
    return {
        name: {
            "ratio": mean_ratio(effect.ratio for effect in effects),
            "hardly": sum(map(is_negligible, effects)),
            "tied": sum(map(ties_columns, effects)),
        }
        for name, effects in by_penalty.items()
    }


def _dev_loss(lane: Lane) -> float | None:
    """The mean over tasks of their losses on dev; None if one is unknown."""
    losses = [finite_or_none(splits["dev"].get("loss")) for splits in lane.scores.values() if "dev" in splits]
    return None if not losses or None in losses else math.fsum(losses) / len(losses)


def _center(values: Sequence[float], scale: str | None) -> float:
    """The geometric mean on a log scale, else the arithmetic mean."""
    if scale == "log" and min(values) > 0:
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def _scores(lanes: Sequence[Lane]) -> dict[int, float | None]:
    """{seed: score on dev} of the lanes that means include."""
    return {lane.seed: finite_or_none(lane.score) for lane in lanes if lane.status in COUNTED_STATUSES}


def _average(lane: Lane, split: str, scope: _Scope) -> float | None:
    """The mean over the tasks that have the split; None if one has no value. On dev it is the lane's score, where that
    is the mean."""
    firsts = scope.firsts
    if split == "dev" and scope.grid.selection == "mean":
        return finite_or_none(lane.score)
    values = [
        finite_or_none(lane.scores[t][split].get(m)) for t, m in firsts.items() if split in lane.scores.get(t, {})
    ]
    return None if not values or None in values else math.fsum(values) / len(values)


def _best(points: Sequence[Mapping[str, Any]]) -> int | None:
    eligible = [i for i, point in enumerate(points) if point["eligible"]]
    return max(eligible, key=lambda i: rank(points[i]["score"]["mean"], points[i]["loss"]["mean"]), default=None)


def _tuned(scope: _Scope, groups: Sequence[Sequence[Lane]]) -> tuple[dict[str, Any] | None, Sequence[Lane]]:
    """A limit at its best setting, and the lanes of that setting."""
    seeds = {lane.seed for group in groups for lane in group}
    points = [_point(scope, group, seeds) for group in groups]
    best = _best(points)
    if best is None:
        return None, []
    tried = [{key: point[key] for key in ("values", "score", "eligible")} for point in points]
    return points[best] | {"tried": tried}, groups[best]


def _compare(first: Sequence[Lane], second: Sequence[Lane], scope: _Scope, on_dev: dict[str, Any]) -> dict[str, Any]:
    """Differences between two settings by split, on average and by task, and the mean relative change over tasks."""
    firsts = scope.firsts
    first, second = ([lane for lane in lanes if lane.status in COUNTED_STATUSES] for lanes in (first, second))
    splits = dict.fromkeys(split for lane in first for by_split in lane.scores.values() for split in by_split)

    def difference(value: Callable[[Lane], float | None]) -> dict[str, Any]:
        return paired_difference({a.seed: value(a) for a in first}, {b.seed: value(b) for b in second})._asdict()

    average = {"dev": on_dev}
    tasks: dict[str, Any] = {}
    for split in splits:
        if split != "dev":
            average[split] = difference(lambda lane, split=split: _average(lane, split, scope))
        for task, metric in firsts.items():
            if any(split in lane.scores.get(task, {}) for lane in first):
                tasks.setdefault(task, {})[split] = difference(
                    lambda lane, task=task, split=split, metric=metric: (
                        lane.scores.get(task, {}).get(split, {}).get(metric)
                    )
                )
    return {"average": average, "tasks": tasks, "delta_m": _relative_changes(first, second, scope, splits)}


def _relative_changes(
    first: Sequence[Lane], second: Sequence[Lane], scope: _Scope, splits: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """{split: interval over seeds of Δm of the first lanes, with the second as baselines}."""

    def scores(lane: Lane, split: str) -> dict[str, float | None]:
        by_task = {task: lane.scores.get(task, {}).get(split, {}) for task in scope.firsts}
        return {task: values.get(scope.firsts[task]) for task, values in by_task.items() if values}

    baselines = {lane.seed: lane for lane in second}
    return {
        split: interval(
            [relative_change(scores(a, split), scores(baselines[a.seed], split)) for a in first if a.seed in baselines]
        )._asdict()
        for split in splits
    }
