"""Options of methods: checked where their values are known, left alone where they are traced hyperparameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Number = float | jax.Array  # a Python or numpy number, or a traced scalar: then it can be swept in one compiled program


def is_concrete(value: Any) -> bool:
    """Whether a value can be looked at: a Python or numpy number, not a jax array."""
    return isinstance(value, (int, float, np.number))


def check_interval(name: str, value: Number, low: float, high: float = np.inf, ends: str = "[]") -> None:
    """Raises ValueError unless `value` lies between low and high; `ends`: "[" or "(", "]" or ")", as intervals are
    written. A traced value passes.
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


def as_scalar(value: Number, dtype) -> jax.Array:
    """The option as a scalar of the dtype that is calculated in."""
    return jnp.asarray(value, dtype)


def task_values(name: str, values: Any) -> np.ndarray:
    """One finite number ≥ 0 for each task, float64 [K]. ValueError otherwise."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(f"{name} must be one finite number ≥ 0 for each task, not {values.tolist()}")
    return values


def preference_vector(values: Any) -> np.ndarray | None:
    """How much each task is preferred, float64 [K], not all 0; None stays. ValueError otherwise."""
    if values is None:
        return None
    values = task_values("preference", values)
    if not np.any(values > 0):
        raise ValueError("preference must not be 0 for all tasks")
    return values


def task_array(name: str, values: np.ndarray, count: int, dtype) -> jax.Array:
    """The values as an array [K]. Raises ValueError where they are not one for each of the `count` tasks."""
    if values.shape != (count,):
        raise ValueError(f"{name} has {values.size} numbers for {count} tasks")
    return jnp.asarray(values, dtype)
