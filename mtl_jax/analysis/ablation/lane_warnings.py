"""What a reader of the lanes' scores has to know about their training and predictions."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from mtl_jax.analysis.ablation.lane_log import DROPPED, FROZEN
from mtl_jax.analysis.ablation.records import Lane
from mtl_jax.storage import run_warnings
from mtl_jax.storage.summary import RunWarning


def lane_warnings(lanes: Sequence[Lane]) -> list[RunWarning]:
    """Warnings about all lanes of an ablation together."""
    warnings = []
    for status in (FROZEN, DROPPED):
        if count := sum(lane.status == status for lane in lanes):
            text = f"{count} of {len(lanes)} lanes: {status}; they are in no mean"
            warnings.append(run_warnings.warning(run_warnings.STEPS, text, count, len(lanes)))
    if affected := [lane for lane in lanes if lane.steps and lane.left_out and lane.status != FROZEN]:
        worst = max(affected, key=lambda lane: lane.left_out / lane.steps)
        text = (
            f"{len(affected)} of {len(lanes)} lanes skipped steps, because a loss or gradient was not finite; at most "
            f"{worst.left_out} of {worst.steps}"
        )
        warnings.append(run_warnings.warning(run_warnings.STEPS, text, len(affected), len(lanes)))
    uniform = collections.Counter(
        (task, split) for lane in lanes for task, by_split in lane.remarks.items() for split in by_split
    )
    for (task, split), count in uniform.items():
        example = next(lane.remarks[task][split] for lane in lanes if split in lane.remarks.get(task, {}))
        text = f"task {task}, {split}: in {count} of {len(lanes)} lanes all predictions are alike, e.g. {example}"
        warnings.append(run_warnings.warning(run_warnings.PREDICTIONS, text, count, len(lanes)))
    return warnings
