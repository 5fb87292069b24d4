"""Tables: plain text, and the rows that the terminal and the HTML page have in common."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.analysis.ablation.conclusions import LIMIT_NAMES, conclusion, describe, p_value
from mtl_jax.analysis.ablation.preferences import PREFIX
from mtl_jax.analysis.single_task_changes import single_task_changes
from mtl_jax.evaluation.scores import mean_by_split
from mtl_jax.runs.merge import MergeResult
from mtl_jax.storage.summary import Evaluation, Summary

MAX_TASK_COLUMNS = 4  # with more tasks only their mean is shown
TableRows = tuple[list[str], list[list[Any]]]  # header, rows


def text_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table: strings are aligned to the left, numbers, with four digits, to the right."""

    def show(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    cells = [[show(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    left = [all(isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])


def results_rows(summary: Evaluation) -> TableRows:
    """Scores of a run by task and metric, a column for each split, with the number of scored examples; at the end the
    mean over tasks of each one's first metric, with the names of these.

    Below a metric of generated text that cannot reach 1 is the score of the gold tokens themselves.
    """
    splits = sorted({split for scores in summary["tasks"].values() for split in scores})
    sizes, ceilings = summary.get("examples", {}), summary.get("ceilings", {})
    rows = []
    for task, scores in summary["tasks"].items():
        metrics = dict.fromkeys(metric for split in splits for metric in scores.get(split, {}))
        for metric in metrics:
            row = [task, metric]
            for split in splits:
                size = sizes.get(task, {}).get(split, {})
                row += [scores.get(split, {}).get(metric), _count(size)]
            rows.append(row)
            if any(metric in bounds for bounds in ceilings.get(task, {}).values()):
                bounds = ([ceilings[task].get(split, {}).get(metric), None] for split in splits)
                rows.append([task, f"{metric} of the gold tokens", *itertools.chain.from_iterable(bounds)])
    averages = mean_by_split(summary["tasks"])
    if averages:
        names = dict.fromkeys(metric for average in averages.values() for metric in average["metrics"])
        row = ["(all)", f"mean: {', '.join(names)}"]
        for split in splits:
            average = averages.get(split)
            row += [average["mean"], f"{len(average['tasks'])} tasks"] if average else [None, None]
        rows.append(row)
    header = ["task", "metric"]
    for split in splits:
        header += [split, "examples"]
    return header, rows


def _count(size: Mapping[str, int]) -> str | None:
    """ "1000 of 7528" where a subset was scored."""
    if not size:
        return None
    scored, total = size["scored"], size["total"]
    return str(scored) if scored == total else f"{scored} of {total}"


def distances_rows(distances: Mapping[str, Mapping[str, float]]) -> TableRows:
    """Distances between the tasks' parameters, pairs of tasks in rows."""
    rows = [[pair, d["distance"], d["relative"]] for pair, d in distances.items()]
    return ["tasks", "‖Θi − Θj‖", "relative to ‖Θ‖"], rows


def _mean_label(mean: Mapping[str, Any]) -> str:
    """ "mean of 3: accuracy", with all metrics where they differ."""
    return f"mean of {len(mean['tasks'])}: {', '.join(mean['metrics'])}"


def comparison_means(summaries: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    """{split: {"tasks", "metrics", "values": {run: mean}}} of the tasks whose first metric is the same in all runs."""
    result: dict[str, dict[str, Any]] = {}
    for split in ("dev", "test"):
        scored = [
            {(task, next(iter(by_split[split]))) for task, by_split in summary["tasks"].items() if by_split.get(split)}
            for summary in summaries.values()
        ]
        common = {task for task, _ in set.intersection(*scored)} if scored else set()
        if len(common) < 2:
            continue
        by_run = {}
        for name, summary in summaries.items():
            scores = {task: {split: by_split[split]} for task, by_split in summary["tasks"].items() if task in common}
            by_run[name] = mean_by_split(scores)[split]
        first, values = next(iter(by_run.values())), {name: mean["mean"] for name, mean in by_run.items()}
        result[split] = {"tasks": first["tasks"], "metrics": first["metrics"], "values": values}
    return result


def comparison_rows(summaries: Mapping[str, Summary]) -> tuple[TableRows, dict[str, Any]]:
    """Compares finished runs: rows, and {task: {split: {metric: {run: value}}}}."""
    rows, result = [], {}
    tasks = dict.fromkeys(task for summary in summaries.values() for task in summary["tasks"])
    for task in tasks:
        scores = {name: summary["tasks"].get(task, {}) for name, summary in summaries.items()}
        for split in ("dev", "test"):
            metrics = dict.fromkeys(m for by_split in scores.values() for m in by_split.get(split, {}))
            for metric in metrics:
                values = {name: by_split.get(split, {}).get(metric) for name, by_split in scores.items()}
                rows.append([task, split, metric, *values.values()])
                result.setdefault(task, {}).setdefault(split, {})[metric] = values
    for split, mean in comparison_means(summaries).items():
        rows.append(["(all)", split, _mean_label(mean), *mean["values"].values()])
    for split, changes in single_task_changes(summaries).items():
        values = [None if (change := changes.get(name)) is None else f"{100 * change:+.1f} %" for name in summaries]
        rows.append(["(all)", split, "Δm against single-task runs", *values])
    rows.append(["(all)", "", "largest distance between tasks", *[_largest(s) for s in summaries.values()]])
    rows.append(["(all)", "", "seconds", *[round(s["seconds"]) for s in summaries.values()]])
    return (["task", "split", "metric", *summaries], rows), result


def merging_rows(result: MergeResult) -> TableRows:
    """A row for each way to merge: the mean over tasks of their first metrics on dev and on the main split, then each
    task's on the main split.
    """
    split = "test" if any("test" in scores for r in result["rows"] for scores in r["scores"].values()) else "dev"
    splits = list(dict.fromkeys(("dev", split)))
    rows = []
    for row in result["rows"]:
        values = {
            s: [row["scores"].get(task, {}).get(s, {}).get(metric) for task, metric in result["metrics"].items()]
            for s in splits
        }
        means = [None if None in values[s] else sum(values[s]) / len(values[s]) for s in splits]
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        rows.append([row["name"], options, *means, *values[split]])
    return ["", "options", *(f"mean, {s}" for s in splits), *(f"{task}, {split}" for task in result["metrics"])], rows


def _largest(summary: Summary) -> float | None:
    return max((pair["distance"] for pair in summary.get("distances", {}).values()), default=None)


def format_mean(value: Mapping[str, Any] | None) -> str | None:
    """ "0.776 ± 0.012" of an interval; without ± below two seeds; None where there is no value."""
    if value is None or value["mean"] is None:
        return None
    half = "" if value["low"] is None else f" ± {value['high'] - value['mean']:.3f}"
    return f"{value['mean']:.3f}{half}"


def format_change(value: Mapping[str, Any]) -> str | None:
    """ "+0.021 (p = 0.003)" of a difference, with the corrected p where there is one."""
    if value["mean"] is None:
        return None
    p = value["p"] if value["corrected_p"] is None else value["corrected_p"]
    return f"{value['mean']:+.3f} ({value['note'] if p is None else p_value(p)})"


def format_percent(value: Mapping[str, Any] | None) -> str | None:
    """ "+1.2 % (+0.3 to +2.1)" of an interval over fractions."""
    if not value or value["mean"] is None:
        return None
    around = "" if value["low"] is None else f" ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"
    return f"{100 * value['mean']:+.1f} %{around}"


def overview_rows(summary: Mapping[str, Any], split: str) -> TableRows:
    """A row for each combination of choices: the chosen setting on one split, on average and (for few tasks) by task,
    its cost, and the tuned limits.
    """
    combinations = summary["combinations"]
    choices = list(combinations[0]["choices"]) if combinations else []
    ends = [end for end in LIMIT_NAMES if any(end in c["ends"] for c in combinations)]
    tasks = list(summary["scores"]) if 1 < len(summary["scores"]) <= MAX_TASK_COLUMNS and not ends else []
    costs = len(combinations) > 1 and any(c["cost"] for c in combinations)
    header = [*choices, "chosen on dev", split, *tasks, *(["parameters", "ms per step"] if costs else [])]
    header += [*(LIMIT_NAMES[end] for end in ends), *(f"− {LIMIT_NAMES[end]}" for end in ends)]
    rows = []
    for c in combinations:
        point = None if c["chosen"] is None else c["points"][c["chosen"]]
        row = [*c["choices"].values(), describe(point["values"]) if point else "none", _average(point, split)]
        for task in tasks:
            metrics = point["tasks"].get(task, {}).get(split, {}) if point else {}
            row.append(format_mean(metrics.get(summary["scores"][task])))
        if costs:
            cost = c["cost"] or {"parameters": None, "step_seconds": None}
            step = cost["step_seconds"]
            row += [f"{cost['parameters']:,}" if cost["parameters"] else None, step and f"{1000 * step:.1f}"]
        row += [_average(c["ends"].get(end), split) for end in ends]
        for end in ends:
            difference = c["comparison"].get(end, {}).get("average", {}).get(split)
            row.append(None if difference is None else format_change(difference))
        rows.append(row)
    return header, rows


def baseline_rows(compared: Mapping[str, Any], split: str) -> TableRows:
    """The difference of each alternative of a choice from a baseline, best first, with a conclusion."""
    known = [o for o in compared["others"] if o["average"].get(split, {}).get("mean") is not None]
    rows = []
    for other in sorted(known, key=lambda o: -o["average"][split]["mean"]):
        value = other["average"][split]
        low, high = (None, None) if value["low"] is None else (f"{value['low']:+.3f}", f"{value['high']:+.3f}")
        p = value["note"] if value["p"] is None else p_value(value["corrected_p"])
        change = format_percent(other.get("delta_m", {}).get(split))
        rows.append([other["alternative"], f"{value['mean']:+.3f}", low, high, p, conclusion({"dev": value}), change])
    return [compared["choice"], f"− {compared['baseline']} ({split})", "from", "to", "corrected", "so", "Δm"], rows


def conclusion_rows(summary: Mapping[str, Any]) -> TableRows:
    """A row for each combination of choices: "better", "worse", "no difference shown" against each end."""
    combinations = summary["combinations"]
    choices = list(combinations[0]["choices"]) if combinations else []
    ends = [end for end in LIMIT_NAMES if any(end in c["comparison"] for c in combinations)]
    rows = []
    for c in combinations:
        found = [c["comparison"].get(end) for end in ends]
        rows.append([*c["choices"].values(), *(None if f is None else conclusion(f["average"]) for f in found)])
    return [*choices, *(f"against {LIMIT_NAMES[end]}" for end in ends)], rows


def _average(point: Mapping[str, Any] | None, split: str) -> str | None:
    return None if point is None else format_mean(point["average"].get(split))


def points_rows(combination: Mapping[str, Any], scores: Mapping[str, str], selection: str = "mean") -> TableRows:
    """All settings of the sweeps, then all limits, on dev.

    Args:
      combination: of a summary.
      scores: {task: its first metric}.
      selection: what the score of a setting is.
    """
    points = combination["points"]
    sweeps = list(points[0]["values"]) if points else []
    marks_front = any(name.startswith(PREFIX) for name in sweeps)
    ends = [end for end, tuned in combination["ends"].items() if tuned is not None]
    single = [task for task in scores] if len(scores) > 1 else []
    acts = ["penalty / losses"] if any(point["effects"] for point in points) else []
    header = ["setting", "seeds", f"{selection} score", *single, "distance", "effective rank", *acts]
    header += [f"− {LIMIT_NAMES[e]}" for e in ends]
    rows = []
    for i, point in enumerate(points):
        name = ", ".join(f"{sweep} {_learned(point, sweep)}" for sweep in sweeps) or "as configured"
        statuses = point["statuses"].items()
        lost = ", ".join(f"{n} {s.split(':')[0]}" for s, n in statuses if s.startswith(("frozen", "drop")))
        name += " ★" if i == combination["chosen"] else ""
        name += " ◆" if marks_front and point.get("front") else ""
        row = [name, f"{len(point['seeds'])}{f' ({lost})' if lost else ''}", *_row(point, single, scores)]
        row += [effects_of(point)] if acts else []
        rows.append([*row, *(format_change(point["against"][end]) for end in ends)])
    for end in ends:
        tuned = combination["ends"][end]
        name = f"{LIMIT_NAMES[end]}, {describe(tuned['values'])}"
        rows.append([name, str(len(tuned["seeds"])), *_row(tuned, single, scores), *[None] * len([*acts, *ends])])
    return header, rows


def effects_of(point: Mapping[str, Any]) -> str:
    """ "0.0031 hardly acted": the effect of penalties relative to the losses, see `training.penalty_effect`."""
    parts = []
    for name, effect in point["effects"].items():
        ratio = "–" if effect["ratio"] is None else f"{effect['ratio']:.2g}"
        outcome = " tied everything" if effect["tied"] else " hardly acted" if effect["hardly"] else ""
        parts.append(f"{f'{name} ' if len(point['effects']) > 1 else ''}{ratio}{outcome}")
    return ", ".join(parts)


def _row(point: Mapping[str, Any], tasks: Sequence[str], scores: Mapping[str, str]) -> list[str | None]:
    by_task = [format_mean(point["tasks"].get(task, {}).get("dev", {}).get(scores[task])) for task in tasks]
    return [format_mean(point["score"]), *by_task, format_mean(point["distance"]), format_mean(point["effective_rank"])]


def _learned(point: Mapping[str, Any], sweep: str) -> str:
    value = f"{point['values'][sweep]:.4g}"
    if sweep not in point["ranges"]:
        return value
    low, high = point["ranges"][sweep]
    return f"{value} ({low:.3g} to {high:.3g})"


def tasks_rows(combination: Mapping[str, Any], scores: Mapping[str, str], split: str) -> TableRows:
    """Each task's score at the chosen setting and at the limits, and the differences, on one split."""
    point = combination["points"][combination["chosen"]]
    ends = list(combination["comparison"])
    header = [
        "task",
        "metric",
        "chosen on dev",
        *(LIMIT_NAMES[e] for e in ends),
        *(f"− {LIMIT_NAMES[e]}" for e in ends),
    ]
    rows = []
    for task, metric in scores.items():
        if metric in point["tasks"].get(task, {}).get(split, {}):
            row = [task, metric, format_mean(point["tasks"][task][split][metric])]
            row += [format_mean(combination["ends"][e]["tasks"].get(task, {}).get(split, {}).get(metric)) for e in ends]
            rows.append(row + [format_change(combination["comparison"][e]["tasks"][task][split]) for e in ends])
    if len(rows) > 1 and ends:
        changes = [format_percent(combination["comparison"][e].get("delta_m", {}).get(split)) for e in ends]
        rows.append(["(all)", "mean relative change (Δm)", None, *[None] * len(ends), *changes])
    return header, rows
