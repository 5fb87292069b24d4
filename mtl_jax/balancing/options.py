"""Options of methods: checked if their values are known, passed on if they are traced hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

# a Python or NumPy number, or a traced scalar, which can be swept in one compiled program
Number: TypeAlias = float | jax.Array
PerTask: TypeAlias = Sequence[float] | np.ndarray  # one number for each task


def is_concrete(value: Number) -> TypeGuard[float]:
    """Whether a value is known now: a Python or NumPy number, not a jax array."""
    return isinstance(value, (int, float, np.number))


def check_interval(name: str, value: Number, low: float, high: float = np.inf, ends: str = "[]") -> None:
    """Raises ValueError unless `value` lies between low and high; `ends`: "[" or "(", "]" or ")", as in the
    notation of intervals. A traced value passes.
    """
    if not is_concrete(value):
        return
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below and np.isfinite(value)):
        interval = f"be ≥ {low}" if ends[0] == "[" else f"be > {low}"
        if np.isfinite(high):
            interval = f"lie in {ends[0]}{low}, {high}{ends[1]}"
        raise ValueError(f"{name} must {interval}, not {value}")


def check_integer(name: str, value: int, low: int) -> None:
    """Raises ValueError unless `value` is a whole number ≥ low: a shape or a count, which cannot be traced."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be a whole number ≥ {low}, not {value!r}")


def as_scalar(value: Number, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The option as a scalar of a dtype."""
    return jnp.asarray(value, dtype)


def task_values(name: str, values: PerTask) -> np.ndarray:
    """One finite number ≥ 0 for each task, float64 [K]. ValueError otherwise."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ValueError(f"{name} must be one finite number ≥ 0 for each task, not {array.tolist()}")
    return array


def preference_vector(values: PerTask | None) -> np.ndarray | None:
    """How much each task is preferred, float64 [K], not all 0; None stays None. ValueError otherwise."""
    if values is None:
        return None
    preference = task_values("preference", values)
    if not np.any(preference > 0):
        raise ValueError("preference must not be 0 for all tasks")
    return preference


def task_array(name: str, values: np.ndarray, count: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The values as an array [K]. Raises ValueError unless there is one for each of the `count` tasks."""
    if values.shape != (count,):
        raise ValueError(f"{name} has {values.size} numbers for {count} tasks")
    return jnp.asarray(values, dtype)
