"""Which of several parameters are the best: by score, ties by loss; a score that is not finite never wins."""

from __future__ import annotations

import math


def rank(score: float | None, loss: float | None) -> tuple[float, float]:
    """A key that is larger for better parameters: (score, −loss), where None and numbers that are not finite are −∞.

    Of equal keys the later step is preferred.
    """
    worst = -math.inf
    return (
        worst if score is None or not math.isfinite(score) else float(score),
        worst if loss is None or not math.isfinite(loss) else -float(loss),
    )


def is_defined(score: float | None) -> bool:
    """Whether a score can win at all."""
    return rank(score, None)[0] > -math.inf
