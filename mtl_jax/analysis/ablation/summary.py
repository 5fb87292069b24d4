"""What an ablation says: means over seeds, tuned ends, the point chosen on dev, and how it differs from the ends."""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.analysis.ablation.records import COUNTED_STATUSES, ENDS, Grid, Lane
from mtl_jax.analysis.ablation.verdicts import combination_warnings, verdict
from mtl_jax.analysis.intervals import finite_or_none, holm, interval, paired_difference, with_corrected_p
from mtl_jax.evaluation.ranking import rank
from mtl_jax.training.penalty_effect import Effect, is_negligible, mean_ratio, ties_columns


class _Scope(NamedTuple):
    """What every statistic needs: the ablation, {task: its first metric}, {id of a lane: its place}."""

    grid: Grid
    firsts: dict[str, str]
    places: dict[int, int]


def summarise(grid: Grid) -> dict[str, Any]:
    """Statistics over seeds, as plain JSON without NaN. An "interval" and a "difference" are those of
    `mtl_jax.analysis.intervals` as dicts; only lanes that finished (or stopped early) are in them.

    Returns:
      scores        {task: its first metric}
      splits        those scored, dev first
      seeds         all of them
      strengths     names of the sweeps over λ
      statuses      {status: lanes}
      combinations  one for each combination of choices:
        choices     {choice: alternative}
        points      settings of the sweeps. Of each:
                      values         {sweep: value}; learned ones (hypergradient): the mean over seeds, on the scale
                      ranges         {sweep: [lowest, highest]} over seeds where they were learned, else {}
                      lanes          their numbers in ablation.csv, and places in the list of lanes
                      seeds          those counted
                      statuses       {status: lanes}
                      eligible       every seed finished with a finite score: it can be chosen
                      score          interval of the score on dev, by which settings are chosen
                      loss           interval of the mean over tasks of their losses on dev, which decides ties
                      average        {split: interval of the mean over tasks of their first metrics}
                      tasks          {task: {split: {metric: interval}}}
                      distance, effective_rank   intervals
                      effects        {penalty: {"ratio": mean penalty_ratio of the lanes counted, "hardly", "tied": in
                                     how many it hardly acted, or tied everything, see `training.penalty_effect`}}
                      against        {end: difference of the score on dev; corrected_p by Holm over the points}
        ends        {"single" | "tied" | "hard": as a point, at the best of its learning rates (and sweeps other than
                    λ) by mean dev score; "tried": [{"values", "score", "eligible"}]}; None where none is eligible
        chosen      index of the eligible point with the highest mean score on dev, of equal ones that with the lowest
                    mean loss; None where there is none
        comparison  {end: {"average": {split: difference}, "tasks": {task: {split: difference}}}} of the chosen point
                    minus the end. On dev "average" has the corrected p; the others are of one point and are not
                    corrected
        cost        {"parameters": of one model, "step_seconds": of one lane}, None where it is not known
        verdict     a sentence
        warnings    sentences: what froze or was dropped, predictions that are all alike, what lies at the edge of what
                    was tried
      baselines     for each baseline of each choice, and each combination of the other choices:
        choice, baseline, rest   names, and {other choice: alternative}
        others                   [{"alternative", "average": {split: difference}, "tasks": {task: {split: difference}}}]
                                 of what was chosen on dev minus the baseline's; "average" has p corrected by Holm over
                                 the alternatives, and leaves out where nothing can be chosen
    """
    firsts = {task: metrics[0] for task, metrics in grid.tasks.items()}
    splits = dict.fromkeys(split for lane in grid.lanes for by_split in lane.scores.values() for split in by_split)
    strengths = [name for name, sweep in grid.sweeps.items() if is_strength(sweep["field"])]
    result: dict[str, Any] = {
        "scores": firsts,
        "splits": sorted(splits, key=lambda split: (split != "dev", split)),
        "seeds": sorted({lane.seed for lane in grid.lanes}),
        "strengths": strengths,
        "statuses": dict(collections.Counter(lane.status for lane in grid.lanes)),
    }
    scope = _Scope(grid, firsts, {id(lane): i for i, lane in enumerate(grid.lanes)})
    found = [_combination(scope, choices, strengths) for choices in _combinations(grid)]
    result["combinations"] = found
    result["baselines"] = [
        compared
        for choice, names in grid.baselines.items()
        for rest in _distinct({n: v for n, v in c["choices"].items() if n != choice} for c in found)
        for name in names
        if (compared := _against_baseline(scope, found, choice, name, rest, names))
    ]
    return result


def profile(points: Sequence[dict[str, Any]], *sweeps: str) -> tuple[list[dict[str, Any]], bool]:
    """For each value of one or two sweeps the point that is best on dev over the other sweeps.

    Returns:
      the points, ascending, and whether they are a profile of a full grid: random or learned values are not, so
      that neighbours may differ in much besides.
    """
    groups: dict[tuple, list] = collections.defaultdict(list)
    for point in points:
        groups[tuple(point["values"][name] for name in sweeps)].append(point)
    names = list(points[0]["values"]) if points else []
    full = math.prod(len({point["values"][name] for point in points}) for name in names) == len(points)
    full = full and not any(point["ranges"] for point in points)
    return [group[_best(group) or 0] for _, group in sorted(groups.items())], full


def main_split(summary: dict[str, Any]) -> str:
    """The split that decides: test where it was scored, as settings were chosen on dev."""
    return "test" if "test" in summary["splits"] else "dev"


def is_strength(field: str) -> bool:
    """Whether a config field is a λ."""
    return re.fullmatch(r"penalties\.[^.]+\.strength", field) is not None


def _combinations(grid: Grid) -> list[dict[str, str]]:
    """Those that lanes were trained for, in the order of the choices."""
    lanes = [lane for lane in grid.lanes if lane.line == "sharing"] or grid.lanes
    found = {tuple(lane.choices.get(name) for name in grid.choices) for lane in lanes}
    in_order = itertools.product(*grid.choices.values())
    return [dict(zip(grid.choices, names, strict=True)) for names in in_order if names in found]


def _combination(scope, choices, strengths):
    grid, firsts, _ = scope

    def of(line):  # an end that does not depend on a choice leaves it out; the one that names most is this one's own
        found = [lane for lane in grid.lanes if lane.line == line and lane.choices.items() <= choices.items()]
        most = max((len(lane.choices) for lane in found), default=0)
        return [lane for lane in found if len(lane.choices) == most]

    groups = _learned(of("sharing")) if grid.method["name"] == "hypergradient" else _by_values(of("sharing"))
    seeds = {lane.seed for group in groups for lane in group}
    points = [_point(scope, group, seeds) for group in groups]
    chosen = _best(points)
    tuned = {}  # end -> (summary, lanes)
    for end in ENDS:
        if tried := _by_values(of(end)):
            tuned[end] = _tuned(scope, tried)
    known = {end: lanes for end, (summary, lanes) in tuned.items() if summary is not None}
    for end, lanes in known.items():
        differences = with_corrected_p([paired_difference(_scores(group), _scores(lanes)) for group in groups])
        for point, difference in zip(points, differences, strict=True):
            point["against"][end] = difference._asdict()
    comparison = {}
    if chosen is not None:
        for end, lanes in known.items():
            comparison[end] = _compare(groups[chosen], lanes, firsts, points[chosen]["against"][end])
    result = {
        "choices": choices,
        "points": points,
        "ends": {end: summary for end, (summary, _) in tuned.items()},
        "chosen": chosen,
        "comparison": comparison,
        "cost": next((cost for cost in grid.costs if cost["choices"] == choices), None),
    }
    result["verdict"] = verdict(result, strengths)
    result["warnings"] = combination_warnings(result, groups, grid.sweeps, grid.method["name"])
    return result


def _distinct(items):
    found: list = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _against_baseline(scope, combinations, choice, baseline, rest, baselines) -> dict[str, Any] | None:
    """Every alternative of a choice against one of them; baselines among themselves too. None where it has no lanes."""

    def lanes(alternative):
        of = [c for c in combinations if c["choices"] == {**rest, choice: alternative} and c["chosen"] is not None]
        return [scope.grid.lanes[i] for i in of[0]["points"][of[0]["chosen"]]["lanes"]] if of else []

    own = lanes(baseline)
    if not own:
        return None
    passed = baselines[: baselines.index(baseline)]  # their difference from this one is told already
    others = {
        name: found
        for name in scope.grid.choices[choice]
        if name != baseline and name not in passed and (found := lanes(name))
    }
    compared = {}
    for name, found in others.items():
        on_dev = paired_difference(_scores(found), _scores(own))._asdict()
        compared[name] = _compare(found, own, scope.firsts, on_dev)
    for split in {split for c in compared.values() for split in c["average"]}:
        having = [c["average"] for c in compared.values() if split in c["average"]]
        for average, p in zip(having, holm([a[split]["p"] for a in having]), strict=True):
            average[split]["corrected_p"] = p
    return {
        "choice": choice,
        "baseline": baseline,
        "rest": rest,
        "others": [{"alternative": name, **c} for name, c in compared.items()],
    }


def _by_values(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Lanes that differ only in the seed; in the order of the values."""
    groups: dict[tuple, list[Lane]] = collections.defaultdict(list)
    for lane in lanes:
        groups[tuple(sorted(lane.values.items()))].append(lane)
    return sorted(groups.values(), key=lambda group: tuple(group[0].values.values()))


def _learned(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """Lanes whose values were learned: the n-th of every seed belong together, as they began alike."""
    groups: dict[int, list[Lane]] = collections.defaultdict(list)
    count: dict[int, int] = collections.Counter()
    for lane in lanes:
        groups[count[lane.seed]].append(lane)
        count[lane.seed] += 1
    return list(groups.values())


def _point(scope, lanes, seeds) -> dict[str, Any]:
    grid, firsts, _ = scope
    counted = [lane for lane in lanes if lane.status in COUNTED_STATUSES]
    values, ranges = dict(lanes[0].values), {}
    if any(lane.values != values for lane in lanes):
        for name in values:
            learned = [lane.values[name] for lane in lanes]
            values[name] = _centre(learned, grid.sweeps.get(name, {}).get("scale"))
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
        "lanes": [scope.places[id(lane)] for lane in lanes],
        "seeds": sorted(lane.seed for lane in counted),
        "statuses": dict(collections.Counter(lane.status for lane in lanes)),
        "eligible": {seed for seed, score in _scores(lanes).items() if score is not None} == seeds
        and len(counted) == len(lanes),
        "score": interval([lane.score for lane in counted])._asdict(),
        "loss": interval([_dev_loss(lane) for lane in counted])._asdict(),
        "average": {split: interval([_average(lane, split, firsts) for lane in counted])._asdict() for split in splits},
        "tasks": tasks,
        "distance": interval([lane.distance for lane in counted])._asdict(),
        "effective_rank": interval([lane.effective_rank for lane in counted])._asdict(),
        "effects": _effects(counted),
        "against": {},
    }


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
    """Mean over tasks of their losses on dev; None where one is not known."""
    losses = [finite_or_none(splits["dev"].get("loss")) for splits in lane.scores.values() if "dev" in splits]
    return None if not losses or None in losses else math.fsum(losses) / len(losses)


def _centre(values, scale):
    """The geometric mean on a log scale, else the arithmetic one."""
    if scale == "log" and min(values) > 0:
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def _scores(lanes: Sequence[Lane]) -> dict[int, float | None]:
    """{seed: score on dev} of those that count."""
    return {lane.seed: finite_or_none(lane.score) for lane in lanes if lane.status in COUNTED_STATUSES}


def _average(lane: Lane, split: str, firsts: Mapping[str, str]) -> float | None:
    """Mean over the tasks that have the split; None where one of them has no value. On dev the lane's own score."""
    if split == "dev":
        return finite_or_none(lane.score)
    values = [
        finite_or_none(lane.scores[t][split].get(m)) for t, m in firsts.items() if split in lane.scores.get(t, {})
    ]
    return None if not values or None in values else math.fsum(values) / len(values)


def _best(points: Sequence[Mapping[str, Any]]) -> int | None:
    eligible = [i for i, point in enumerate(points) if point["eligible"]]
    return max(eligible, key=lambda i: rank(points[i]["score"]["mean"], points[i]["loss"]["mean"]), default=None)


def _tuned(scope, groups):
    """An end at its best setting, and the lanes of that."""
    seeds = {lane.seed for group in groups for lane in group}
    points = [_point(scope, group, seeds) for group in groups]
    best = _best(points)
    if best is None:
        return None, []
    tried = [{key: point[key] for key in ("values", "score", "eligible")} for point in points]
    return points[best] | {"tried": tried}, groups[best]


def _compare(first, second, firsts, on_dev):
    """Differences between two settings by split, on average and by task."""
    first, second = ([lane for lane in lanes if lane.status in COUNTED_STATUSES] for lanes in (first, second))
    splits = dict.fromkeys(split for lane in first for by_split in lane.scores.values() for split in by_split)

    def difference(value):
        return paired_difference({a.seed: value(a) for a in first}, {b.seed: value(b) for b in second})._asdict()

    average = {"dev": on_dev}
    tasks: dict[str, Any] = {}
    for split in splits:
        if split != "dev":
            average[split] = difference(lambda lane, split=split: _average(lane, split, firsts))
        for task, metric in firsts.items():
            if any(split in lane.scores.get(task, {}) for lane in first):
                tasks.setdefault(task, {})[split] = difference(
                    lambda lane, task=task, split=split, metric=metric: (
                        lane.scores.get(task, {}).get(split, {}).get(metric)
                    )
                )
    return {"average": average, "tasks": tasks}
