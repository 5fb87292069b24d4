"""Sentences about one combination of choices of an ablation: what was found, and what to be careful about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIGNIFICANCE = 0.05  # a difference is called one below this p
LIMIT_NAMES = {"single": "single-task training", "tied": "tied columns", "hard": "hard sharing"}


def describe(values: Mapping[str, float]) -> str:
    """ "strength 0.01, dropout 0.1"; "" for none."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def describe_choices(choices: Mapping[str, str]) -> str:
    """ "penalty trace, sentences 50"; "" for none."""
    return ", ".join(f"{name} {alternative}" for name, alternative in choices.items())


def p_value(p: float) -> str:
    """ "p = 0.012", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def describe_difference(value: Mapping[str, Any]) -> str:
    """ "+0.021 (95 % interval +0.010 to +0.032, corrected p = 0.003)", or why there is less to say."""
    if value["mean"] is None:
        return "not known"
    if value["note"]:
        return f"{value['mean']:+.3f} ({value['note']})"
    p = p_value(value["p"]) if value["corrected_p"] is None else f"corrected {p_value(value['corrected_p'])}"
    return f"{value['mean']:+.3f} (95 % interval {value['low']:+.3f} to {value['high']:+.3f}, {p})"


def conclusion(average: Mapping[str, Mapping[str, Any]]) -> str:
    """What differences by split allow to say. The point was chosen on dev, so test decides where there is one."""
    split = "test" if average.get("test", {}).get("n") else "dev"
    value = average[split]
    if value["note"] == "one seed":
        return "one seed shows nothing"
    if value["note"] == "no pairs":
        return "nothing to compare"
    if value["note"]:
        return "equal" if value["mean"] == 0 else "the same difference with every seed, no test"
    p = value["p"] if value["corrected_p"] is None else value["corrected_p"]
    if p >= SIGNIFICANCE:
        return "no difference shown"
    return "better" if value["mean"] > 0 else "worse"


def verdict(combination: Mapping[str, Any], strengths: Sequence[str]) -> str:
    """One sentence on the point chosen on dev."""
    if combination["chosen"] is None:
        return "Nothing can be chosen: no setting finished with every seed."
    point = combination["points"][combination["chosen"]]
    what = ("soft sharing" if strengths else "the best setting") + (
        f" at {describe(point['values'])}" if point["values"] else ""
    )
    if not combination["comparison"]:
        scores = "; ".join(f"{split} {_mean(value)}" for split, value in point["average"].items())
        return f"{what[0].upper()}{what[1:]}, chosen on dev: {scores}."
    parts = []
    for end, compared in combination["comparison"].items():
        average = compared["average"]
        by_split = [
            f"{describe_difference(average[split])} on {split}" for split in ("dev", "test") if split in average
        ]
        parts.append(f"against {LIMIT_NAMES[end]} {', '.join(by_split)}: {conclusion(average)}")
    return f"{what[0].upper()}{what[1:]} (chosen on dev): {'; '.join(parts)}."


def _mean(value):
    if value["mean"] is None:
        return "not known"
    if value["low"] is None:
        return f"{value['mean']:.3f} (one seed, no interval)"
    return f"{value['mean']:.3f} (95 % interval {value['low']:.3f} to {value['high']:.3f}, {value['n']} seeds)"


def combination_warnings(combination, groups, sweeps, method: str) -> list[str]:
    """What a reader has to know: lanes that are not in the means, choices at the edge of what was tried, one seed.

    Args:
      combination: see `summary.summarise`.
      groups: the lanes of its points, in their order.
      sweeps: as in a `Grid`.
      method: name of the method; learned values have no edge.
    """
    found = []
    frozen = []
    for point, group in zip(combination["points"], groups, strict=True):
        if seeds := [str(lane.seed) for lane in group if lane.status.startswith("frozen")]:
            frozen.append(f"{describe(point['values'])} (seed {', '.join(seeds)})")
    if frozen:
        found.append(f"stopped as their loss was not finite, and not in the means: {'; '.join(frozen)}")
    if dropped := sum(point["statuses"].get("dropped", 0) for point in combination["points"]):
        found.append(f"{dropped} lanes were dropped before the last step; they are not in the means")
    lanes = [lane for group in groups for lane in group]
    if some := [lane for lane in lanes if lane.left_out and not lane.status.startswith("frozen")]:
        most = max(some, key=lambda lane: lane.left_out / lane.steps)
        found.append(
            f"steps were left out, as a loss or gradient was not finite, in {len(some)} of {len(lanes)} lanes; most at "
            f"{_place(most)}: {most.left_out} of {most.steps}"
        )
    for what, outcome in (("hardly", "hardly acted"), ("tied", "tied everything")):
        for name in dict.fromkeys(name for point in combination["points"] for name in point["effects"]):
            points = [point for point in combination["points"] if point["effects"].get(name, {}).get(what)]
            at = [describe(point["values"]) or "the one setting" for point in points]
            if at:
                found.append(f"penalty {name} {outcome} at {'; '.join(at)}")
    if combination["chosen"] is not None:
        for lane in groups[combination["chosen"]]:
            for task, by_split in lane.remarks.items():
                where = f"{_place(lane)}, which was chosen: task {task}"
                found += [f"{where}, {split}: {text}" for split, text in by_split.items()]
    for end, tuned in combination["ends"].items():
        if tuned is None:
            found.append(
                f"{LIMIT_NAMES[end]}: no learning rate finished with every seed, so nothing is compared with it"
            )
        elif edge := _edge(tuned["values"].get("learning_rate"), _rates(tuned["tried"])):
            found.append(f"{LIMIT_NAMES[end]} does best at the {edge} of its learning rates: try ones beyond")
    if combination["chosen"] is not None:
        point = combination["points"][combination["chosen"]]
        for name, value in point["values"].items():
            tried = {p["values"][name] for p in combination["points"]}
            if method != "hypergradient" and name in sweeps and (edge := _edge(value, tried)):
                found.append(f"{name} does best at the {edge} of its values: widen the sweep")
        if point["score"]["n"] < 2:
            found.append("one seed: no intervals and no tests; differences may be chance")
    return found


def _place(lane):
    return f"{describe(lane.values)} (seed {lane.seed})" if lane.values else f"seed {lane.seed}"


def _rates(tried):
    return {setting["values"]["learning_rate"] for setting in tried if "learning_rate" in setting["values"]}


def _edge(value, tried):
    if value is None or len(tried) < 3:
        return ""
    return {min(tried): "lowest", max(tried): "highest"}.get(value, "")
