"""Which of several parameters are the better ones: by score, ties by loss; what is not finite never wins."""

from __future__ import annotations

import math


def rank(score: float | None, loss: float | None) -> tuple[float, float]:
    """A key that is larger for what is better: (score, −loss); None and what is not finite lies below every number.

    Of equal keys the later one is taken where there is an order in time.
    """
    worst = -math.inf
    return (
        worst if score is None or not math.isfinite(score) else float(score),
        worst if loss is None or not math.isfinite(loss) else -float(loss),
    )


def is_defined(score: float | None) -> bool:
    """Whether a score can win at all."""
    return rank(score, None)[0] > -math.inf
