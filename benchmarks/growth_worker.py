"""The side of mtl_jax in `growth.py`: the train step of one way of sharing at one K; see `workers.serve`."""

from __future__ import annotations

import pathlib
import resource
import statistics
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from growth_config import get_config
from workers import peak_memory, serve

from mtl_jax import checks
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step


def cpu_seconds() -> float:
    """Of this process so far, all threads together."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Side:
    """One experiment and its compiled step; `trunk` compiles the gradient of the forward pass without heads instead."""

    def load(self, way: str, tasks: int, trunk: bool) -> dict:
        config = get_config(f"{way},{tasks}")
        checks.check(config)
        experiment = build(config)
        self.batches = [
            jax.tree.map(lambda leaf: jax.numpy.asarray(leaf)[None], experiment.batches(0).batch(step))
            for step in range(4)
        ]
        self.hyper, self.number = experiment.hyper, 0
        if trunk:
            self.state = jax.jit(lambda key: experiment.spec.objective.network.init(key))(jax.random.key(0))
            step = _trunk_step(experiment)
        else:
            self.state = experiment.init(0)
            step = lambda state, batch, hyper: train_step(experiment.spec, state, batch, hyper)  # noqa: E731
        began = cpu_seconds()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.batches[0], self.hyper)
        traced = cpu_seconds()
        self.step = lowered.compile()
        plan = self.step.memory_analysis()
        return {
            "lower": traced - began,
            "compile": cpu_seconds() - traced,
            "lines": self.step.as_text().count("\n"),
            "tokens": int(self.batches[0].tokens.size),
            "plan": plan.argument_size_in_bytes + plan.temp_size_in_bytes,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(getattr(self.state, "params", self.state))),
        }

    def run(self, steps: int) -> float:
        """Median seconds of a step."""
        seconds = []
        for _ in range(steps):
            batch = self.batches[self.number % len(self.batches)]
            self.number += 1
            began = time.perf_counter()
            self.state, value = self.step(self.state, batch, self.hyper)
            jax.block_until_ready((self.state, value))
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def peak(self) -> int:
        return peak_memory()


def _trunk_step(experiment):
    """One step of gradient descent on the sum of all features."""
    objective = experiment.spec.objective

    def step(params, batch, hyper):
        del hyper
        micro = jax.tree.map(lambda leaf: leaf[0], batch)

        def loss(params):
            return sum((array**2).mean() for array in objective.network.apply(params, micro).features.arrays)

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    return step


if __name__ == "__main__":
    side = Side()
    serve({"load": side.load, "run": side.run, "peak": side.peak})
