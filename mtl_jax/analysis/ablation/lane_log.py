"""What the host remembers about one lane while it is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtl_jax.evaluation.ranking import is_defined, rank

LaneResult = dict[str, Any]  # the fields of `records.Lane` that training yields
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped early"
FROZEN, DROPPED = "frozen: not finite", "dropped"


@dataclasses.dataclass
class LaneLog:
    """The state of one lane apart from its parameters; plain JSON as a dict.

    status      "running" | "finished" | "stopped early" | "frozen: not finite" | "dropped"
    steps       steps trained
    left_out    steps that changed nothing
    best_score  highest mean dev score, see `ranking.rank`; None before the first
    best_loss   mean dev loss there
    best_step   step of it
    stale       evaluations since the last higher score, or lower loss at the same score
    curve       see `records.Lane`
    result      None before the lane has ended
    """

    status: str = RUNNING
    steps: int = 0
    left_out: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    best_step: int | None = None
    stale: int = 0
    curve: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    result: LaneResult | None = None

    def evaluated(self, score: float, loss: float | None, step: int, patience: int) -> bool:
        """Records an evaluation on dev, and whether the parameters are the best so far; of equals the later are.

        Without a better one in `patience` evaluations (0: any number) the lane stops early.
        """
        current, best = rank(score, loss), rank(self.best_score, self.best_loss)
        is_best = current >= best and is_defined(score)
        self.stale = 0 if current > best else self.stale + 1
        if is_best:
            self.best_score, self.best_loss, self.best_step = score, loss, step
        if patience and self.stale >= patience:
            self.status = STOPPED
        return is_best

    def end(self) -> None:
        """The last step is done."""
        if self.status == RUNNING:
            self.status = FROZEN if 0 < self.steps == self.left_out else FINISHED

    def learned_values(self) -> dict[str, float]:
        """The hyperparameters that the lane had learned at the step that was scored; {} where nothing is learned."""
        lines = [
            line["values"] for line in self.curve if "values" in line and line["step"] <= (self.best_step or self.steps)
        ]
        return lines[-1] if lines else {}
