"""Sentences about one combination of choices of an ablation: its result, and warnings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.analysis.ablation.records import Lane

SIGNIFICANCE = 0.05  # a smaller p is called a difference
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
    """ "+0.021 (95 % interval +0.010 to +0.032, corrected p = 0.003)", or why there is no test."""
    if value["mean"] is None:
        return "not known"
    if value["note"]:
        return f"{value['mean']:+.3f} ({value['note']})"
    p = p_value(value["p"]) if value["corrected_p"] is None else f"corrected {p_value(value['corrected_p'])}"
    return f"{value['mean']:+.3f} (95 % interval {value['low']:+.3f} to {value['high']:+.3f}, {p})"


def conclusion(average: Mapping[str, Mapping[str, Any]]) -> str:
    """The conclusion from differences by split. The point was chosen on dev, so test decides if there is one."""
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
    subject = ("soft sharing" if strengths else "the best setting") + (
        f" at {describe(point['values'])}" if point["values"] else ""
    )
    if not combination["comparison"]:
        scores = "; ".join(f"{split} {_mean(value)}" for split, value in point["average"].items())
        return f"{subject[0].upper()}{subject[1:]}, chosen on dev: {scores}."
    parts = []
    for end, compared in combination["comparison"].items():
        average = compared["average"]
        by_split = [
            f"{describe_difference(average[split])} on {split}" for split in ("dev", "test") if split in average
        ]
        parts.append(f"against {LIMIT_NAMES[end]} {', '.join(by_split)}: {conclusion(average)}")
    return f"{subject[0].upper()}{subject[1:]} (chosen on dev): {'; '.join(parts)}."


def _mean(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "not known"
    if value["low"] is None:
        return f"{value['mean']:.3f} (one seed, no interval)"
    return f"{value['mean']:.3f} (95 % interval {value['low']:.3f} to {value['high']:.3f}, {value['n']} seeds)"


def combination_warnings(
    combination: Mapping[str, Any], groups: Sequence[Sequence[Lane]], sweeps: Collection[str], method: str
) -> list[str]:
    """What a reader has to know: lanes that are in no mean, optima at the edge of the sweep, a single seed.

    Args:
      combination: see `summary.summarise`.
      groups: the lanes of its points, in their order.
      sweeps: names.
      method: name of the method; learned values have no edge.
    """
    chosen = combination["chosen"]
    sentences = [*_lost_lanes(combination, groups), *_penalty_effects(combination["points"])]
    for lane in groups[chosen] if chosen is not None else ():
        for task, by_split in lane.remarks.items():
            where = f"{_place(lane)}, which was chosen: task {task}"
            sentences += [f"{where}, {split}: {text}" for split, text in by_split.items()]
    for end, tuned in combination["ends"].items():
        if tuned is None:
            sentences.append(
                f"{LIMIT_NAMES[end]}: no learning rate finished with every seed, so nothing is compared with it"
            )
        elif edge := _edge(tuned["values"].get("learning_rate"), _rates(tuned["tried"])):
            sentences.append(f"{LIMIT_NAMES[end]} is best at the {edge} of its learning rates: try ones beyond")
    if chosen is not None:
        point = combination["points"][chosen]
        for name, value in point["values"].items():
            values = {p["values"][name] for p in combination["points"]}
            if method != "hypergradient" and name in sweeps and (edge := _edge(value, values)):
                sentences.append(f"{name} is best at the {edge} of its values: widen the sweep")
        if point["score"]["n"] < 2:
            sentences.append("one seed: no intervals and no tests; differences may be chance")
    return sentences


def _lost_lanes(combination: Mapping[str, Any], groups: Sequence[Sequence[Lane]]) -> Iterator[str]:
    """Lanes that froze, were dropped, or skipped steps."""
    frozen = []
    for point, group in zip(combination["points"], groups, strict=True):
        if seeds := [str(lane.seed) for lane in group if lane.status.startswith("frozen")]:
            frozen.append(f"{describe(point['values'])} (seed {', '.join(seeds)})")
    if frozen:
        yield f"stopped because their loss was not finite, and in no mean: {'; '.join(frozen)}"
    if dropped := sum(point["statuses"].get("dropped", 0) for point in combination["points"]):
        yield f"{dropped} lanes were dropped before the last step; they are in no mean"
    lanes = [lane for group in groups for lane in group]
    if affected := [lane for lane in lanes if lane.left_out and not lane.status.startswith("frozen")]:
        worst = max(affected, key=lambda lane: lane.left_out / lane.steps)
        yield (
            f"steps were skipped, because a loss or gradient was not finite, in {len(affected)} of {len(lanes)} lanes; "
            f"most at {_place(worst)}: {worst.left_out} of {worst.steps}"
        )


def _penalty_effects(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Penalties that had hardly any effect, or tied everything."""
    names = dict.fromkeys(name for point in points for name in point["effects"])
    for key, outcome in (("hardly", "hardly acted"), ("tied", "tied everything")):
        for name in names:
            affected = [point for point in points if point["effects"].get(name, {}).get(key)]
            if affected:
                settings = "; ".join(describe(point["values"]) or "the only setting" for point in affected)
                yield f"penalty {name} {outcome} at {settings}"


def _place(lane: Lane) -> str:
    return f"{describe(lane.values)} (seed {lane.seed})" if lane.values else f"seed {lane.seed}"


def _rates(tried: Sequence[Mapping[str, Any]]) -> set[float]:
    return {setting["values"]["learning_rate"] for setting in tried if "learning_rate" in setting["values"]}


def _edge(value: float | None, tried: Collection[float]) -> str:
    if value is None or len(tried) < 3:
        return ""
    return {min(tried): "lowest", max(tried): "highest"}.get(value, "")
