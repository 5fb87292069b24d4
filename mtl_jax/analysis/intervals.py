"""Means over seeds with their uncertainty, and paired differences. What is not defined is None, with the reason."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import special

LEVEL = 0.95  # of all intervals


class Interval(NamedTuple):
    """A mean and its 95 % interval.

    mean       of the values; None for no value
    low, high  mean ∓ t·sd/√n with Student's t of n − 1 degrees of freedom; None for fewer than two values
    sd         standard deviation of the values (n − 1 in the denominator); None for fewer than two
    n          number of values
    """

    mean: float | None
    low: float | None
    high: float | None
    sd: float | None
    n: int


class Difference(NamedTuple):
    """Mean difference of pairs, with its 95 % interval and a paired t-test.

    mean, low, high, n  as in `Interval`, of first − second
    p                   two-sided; None where there is no test
    corrected_p         p by `holm`; None before the correction
    note                why there is no test: "" | "no pairs" | "one seed" | "all differences are equal"
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    corrected_p: float | None = None
    note: str = ""


def finite_or_none(value: Any) -> float | None:
    """A finite float; None for None and numbers that are not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def interval(values: Sequence[float | None]) -> Interval:
    """Mean and 95 % interval (Student 1908); values that are None or not finite are ignored, also in n."""
    finite = [x for x in map(finite_or_none, values) if x is not None]
    n = len(finite)
    if n == 0:
        return Interval(None, None, None, None, 0)
    mean = math.fsum(finite) / n
    if n == 1:
        return Interval(mean, None, None, None, 1)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in finite) / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired_difference(first: Mapping[Hashable, float | None], second: Mapping[Hashable, float | None]) -> Difference:
    """first − second by their common keys (seeds); pairs without two finite values are ignored.

    Lanes of one seed have the same batches and initial values, so their difference varies less than each of them.
    """
    pairs = [(finite_or_none(first[key]), finite_or_none(second[key])) for key in first if key in second]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    mean, low, high, sd, n = interval([a - b for a, b in pairs])
    if n < 2:
        return Difference(mean, low, high, n, None, note="one seed" if n else "no pairs")
    # equal up to the rounding of the subtraction: t would be rounding error over rounding error
    if sd <= 1e-12 * max(1.0, *(abs(x) for pair in pairs for x in pair)):
        return Difference(mean, low, high, n, None, note="all differences are equal")
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n))))
    return Difference(mean, low, high, n, p)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction: adjusted p-values, in the given order.

    Values that are None stay None, and count as hypotheses: they could have been tested.
    """
    order = sorted((i for i, value in enumerate(p) if value is not None), key=lambda i: p[i])
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def with_corrected_p(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with `corrected_p` over all of them."""
    adjusted = holm([d.p for d in differences])
    return [d._replace(corrected_p=p) for d, p in zip(differences, adjusted, strict=True)]
