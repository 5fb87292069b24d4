"""What runs of several tasks gain over compared runs of each task alone."""

from __future__ import annotations

from collections.abc import Mapping

from mtl_jax.evaluation.ranking import rank
from mtl_jax.evaluation.selection import relative_change
from mtl_jax.storage.summary import Summary


def single_task_changes(summaries: Mapping[str, Summary]) -> dict[str, dict[str, float]]:
    """{split: {run: Δm}} of the runs of several tasks, against the compared runs of one task alone (of several of one
    task, the best on dev); of runs and splits for which every task has one."""
    single: dict[str, Summary] = {}

    def first(summary: Summary, task: str, split: str) -> float | None:
        return next(iter(summary["tasks"].get(task, {}).get(split, {}).values()), None)

    for summary in summaries.values():
        if len(summary["tasks"]) == 1:
            (task,) = summary["tasks"]
            better = rank(first(summary, task, "dev"), None) > rank(first(single.get(task, summary), task, "dev"), None)
            single[task] = summary if better else single.get(task, summary)
    result: dict[str, dict[str, float]] = {}
    for name, summary in summaries.items():
        for split in ("dev", "test") if len(summary["tasks"]) > 1 else ():
            scores = {task: first(summary, task, split) for task in summary["tasks"] if split in summary["tasks"][task]}
            if scores.keys() <= single.keys():
                change = relative_change(scores, {task: first(single[task], task, split) for task in scores})
                if change is not None:
                    result.setdefault(split, {})[name] = change
    return result
