"""Checks of a task's options. Every message names the field: `config.tasks.<name>.options.<field>`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from mtl_jax.errors import UserError

TASK_FIELDS = ("kind", "label", "metrics")  # of a task itself, all others are options of its kind


def option_error(task: str, field: str, problem: str) -> UserError:
    """The error to raise for one field of one task."""
    path = field if field in TASK_FIELDS else f"options.{field}"
    return UserError(f"config.tasks.{task}.{path}: {problem}")


def require_choice(task: str, field: str, value: Any, choices: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `choices`; suggests the nearest one."""
    choices = sorted(choices)
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise option_error(task, field, f"{value!r} is not one of {', '.join(map(repr, choices))}.{hint}")


def require_flag(task: str, field: str, value: Any) -> None:
    """Raises UserError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise option_error(task, field, f"{value!r} should be True or False")


def require_integer(task: str, field: str, value: Any, low: int = 0) -> None:
    """Raises UserError unless `value` is an int >= `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise option_error(task, field, f"{value!r} should be a whole number >= {low}")


def require_number(task: str, field: str, value: Any, low: float = -math.inf, below: float = math.inf) -> None:
    """Raises UserError unless `value` is a finite number with low <= value < below."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not low <= value < below:
        bounds = [f">= {low:g}"] * math.isfinite(low) + [f"< {below:g}"] * math.isfinite(below)
        raise option_error(
            task, field, " ".join([f"{value!r} should be a finite number", " and ".join(bounds)]).strip()
        )
