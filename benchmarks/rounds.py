"""Compiled train steps that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from mtl_jax.experiment.assemble import Experiment
from mtl_jax.training.state import StepSpec
from mtl_jax.training.step import train_step

BATCHES = 4


class Step:
    """One compiled train step, with its state and a few batches.

    experiment   that it is of
    temporaries  bytes that XLA plans for them
    """

    def __init__(self, experiment: Experiment, spec: StepSpec | None = None):
        """`spec` stands in the place of the experiment's own."""
        spec = spec or experiment.spec
        made = experiment.batches(0)
        self._batches = [jax.device_put(jax.tree.map(lambda a: a[None], made.batch(i))) for i in range(BATCHES)]
        self._state, self._hyper = experiment.init(0), experiment.hyper
        function = jax.jit(lambda state, batch, hyper: train_step(spec, state, batch, hyper), donate_argnums=0)
        self._compiled = function.lower(self._state, self._batches[0], self._hyper).compile()
        self.experiment, self.temporaries = experiment, self._compiled.memory_analysis().temp_size_in_bytes

    def take(self) -> dict[str, Any]:
        """One step on the first batch. Returns its metrics."""
        self._state, metrics = self._compiled(self._state, self._batches[0], self._hyper)
        return metrics

    def run(self, steps: int) -> float:
        """Seconds of a step, over `steps` of them."""
        began = time.perf_counter()
        for number in range(steps):
            self._state, _ = self._compiled(self._state, self._batches[number % BATCHES], self._hyper)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / steps


class Timed(NamedTuple):
    """seconds, ratios: of a step in each round, and over that of the first side in the same round."""

    seconds: list[float]
    ratios: list[float]

    def numbers(self) -> dict[str, Any]:
        """Medians "ms" and "ratio", and all "ratios"."""
        ms = 1e3 * statistics.median(self.seconds)
        return {"ms": ms, "ratio": statistics.median(self.ratios), "ratios": self.ratios}

    @property
    def spread(self) -> str:
        return f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"


def timed(
    steps: Mapping[str, Step], rounds: int, count: int, rare: Mapping[str, int] | None = None
) -> dict[str, Timed]:
    """Rounds in which each side takes `count` steps; one more before them warms up.

    rare  {side: n}: slow sides, which take a single step, in every n-th round from the first
    """
    results = {name: Timed([], []) for name in steps}
    rare = rare or {}
    for number in range(rounds + 1):
        first = None
        for name, step in steps.items():
            if number and name in rare and (number - 1) % rare[name]:
                continue
            seconds = step.run(1 if name in rare else count)
            first = first or seconds
            if number:
                results[name].seconds.append(seconds)
                results[name].ratios.append(seconds / first)
    return results
