"""metrics.jsonl: the numbers of a run while it trains, and the same numbers for its trackers."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax.runtime import distributed
from mtl_jax.storage.tracking import Trackers, flat_numbers
from mtl_jax.storage.workdir import finite_json, write_atomically


class MetricsLog:
    """metrics.jsonl, and the same numbers for trackers as scalars `kind/field/...`. One object a line, with the fields

    step   steps taken; the line is about the last of them
    kind   "train", every config.training.log_every steps and at the end; values of that one step:
             loss             {task: L_k}, null for a task without labels in the batch
             alpha            {task: α_k}
             penalty          {penalty: Ω}, without λ
             strength         {penalty: λ}
             total            Σ_k α_k·L_k + λ·Ω
             penalty_ratio    {penalty: its pull relative to that of the losses}, see `mtl_jax.training.penalty_effect`
             column_distance  {penalty: distance of the columns from their mean, relative to its norm}, likewise
             gradient_norm    {task or "shared": norm before clipping, of the parameters that only this task has}
             auxiliary        {name: loss that a mixer or head adds}, where there are any
             teaching         {task: weight of its teachers in the target}, where there are any
             learning_rate    of the step, without the factors of config.optimizer.param_groups
             weights, task_norms, lowest_cosine
                              of the gradients by task, where an aggregation combines them
             support          {task: L_k before the inner loop of meta-learning, whose `loss` is that after it}
             skipped          {task or "shared": steps skipped so far, because its loss or gradient was not finite}
           "dev", at every evaluation:
             tasks            {task: {metric: value}}, see `mtl_jax.storage.summary`
             score            mean over tasks of each one's first metric

    Numbers that are not finite are null. Use as a context manager. Of several processes only the first writes.
    """

    def __init__(self, workdir: pathlib.Path, step: int, unscored: bool = False, trackers: Trackers | None = None):
        """Opens the log to resume at `step`: lines that an interrupted run wrote after it are dropped.

        `unscored`: the evaluation of `step` is repeated, so that its line is dropped too.
        """
        self._lines, self._trackers = None, trackers or Trackers()
        if not distributed.is_first():
            return
        self.file = workdir / "metrics.jsonl"
        valid = [line for line in read_metrics(workdir) if line["step"] <= step]
        if unscored:
            valid = [line for line in valid if (line["step"], line["kind"]) != (step, "dev")]
        write_atomically(self.file, "".join(json.dumps(line) + "\n" for line in valid))
        self._lines = self.file.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One line; `values` may hold dicts, whose numbers become scalars `kind/key/key`."""
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, "kind": kind, **finite_json(values)}) + "\n")
        self._trackers.scalars(step, dict(flat_numbers(values, kind)))

    def sync(self) -> None:
        """Returns when all lines are on the disk: a checkpoint must never be ahead of them."""
        if self._lines is not None:
            os.fsync(self._lines.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; a last line that a crash truncated is left out."""
    file = workdir / "metrics.jsonl"
    lines = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines
