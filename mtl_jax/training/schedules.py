"""Schedules: of the learning rate (those of optax by name, and whatever else is registered here), and of λ.

SCHEDULES["mine"] = mine            # mine(**options) -> (step: int32 scalar) -> factor on the learning rate
PENALTY_SCHEDULES["mine"] = mine    # (progress = step / steps, float32 scalar) -> factor on λ
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.training.optax_functions import option_problem, public_functions, standard_promotion

_KNOWN = ("value", "peak_value", "init_value", "decay_steps", "transition_steps", "warmup_steps")  # of schedules


def _linear(decay_steps: int) -> optax.Schedule:
    """From 1 to 0 over the steps."""
    return lambda step: jnp.clip((decay_steps - jnp.asarray(step, jnp.float32)) / max(decay_steps, 1), 0.0, 1.0)


def _cosine(decay_steps: int) -> optax.Schedule:
    """From 1 to 0 over the steps, by half a cosine."""
    linear = _linear(decay_steps)
    return lambda step: 0.5 * (1.0 - jnp.cos(jnp.pi * linear(step)))


def _constant() -> optax.Schedule:
    return lambda step: jnp.ones((), jnp.float32)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    name: make
    for name, make in public_functions(optax.schedules).items()
    if not name.startswith(("inject_", "join_"))  # of functions, which no config holds
} | {"linear": _linear, "cosine": _cosine, "constant": _constant}

PENALTY_SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": jnp.ones_like,
    "rise": lambda progress: progress,
    "fall": lambda progress: 1.0 - progress,
}


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
    """The fields `schedule` and `schedule_options` of `config.optimizer`, and the steps that they are about.

    warmup_steps  of a linear rise of the learning rate, or of a schedule that has `warmup_steps` itself
    steps         of the run
    """

    name: str
    options: Mapping[str, Any]
    warmup_steps: int
    steps: int

    @standard_promotion
    def rate(self, step: jax.Array) -> jax.Array:
        """Factor on the learning rate at a step, float32 scalar; the first step of a linear warm-up is above 0."""
        make = SCHEDULES[self.name]
        parameters = inspect.signature(make).parameters
        if "warmup_steps" in parameters:
            return jnp.asarray(make(**self._arguments(parameters, self.steps))(step), jnp.float32)
        schedule = make(**self._arguments(parameters, max(self.steps - self.warmup_steps, 1)))
        rise = (jnp.asarray(step, jnp.float32) + 1.0) / max(self.warmup_steps, 1)
        after = jnp.asarray(schedule(jnp.maximum(step - self.warmup_steps, 0)), jnp.float32)
        return jnp.where(step < self.warmup_steps, jnp.minimum(rise, 1.0), after)

    def _arguments(self, parameters: Iterable[str], steps: int) -> dict[str, Any]:
        """What the run knows, and what the config has in its place. Values are factors on the learning rate."""
        known = {
            "value": 1.0,
            "peak_value": 1.0,
            "init_value": 0.0 if "peak_value" in parameters else 1.0,
            "decay_steps": steps,
            "transition_steps": steps,
            "warmup_steps": self.warmup_steps,
        }
        options = {  # keys of a config are strings, those of optax are steps
            name: {int(step): scale for step, scale in value.items()} if isinstance(value, Mapping) else value
            for name, value in self.options.items()
        }
        return {name: value for name, value in known.items() if name in parameters} | options


def schedule_problem(name: str, options: Mapping[str, Any]) -> str:
    """What is wrong with `config.optimizer.schedule` and `schedule_options`; "" where nothing is."""
    return option_problem("config.optimizer.schedule_options", name, SCHEDULES[name], options, {}, _KNOWN)
