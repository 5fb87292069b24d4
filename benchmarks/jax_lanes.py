"""The side of mtl_jax: all lanes in one program. `ablation.py` starts it and asks; see `workers.serve`."""

from __future__ import annotations

import math
import pathlib
import pickle
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import workloads
from workers import peak_memory, serve

from mtl_jax import checks
from mtl_jax.analysis.ablation import lane_program, lanes, memory, plan
from mtl_jax.analysis.ablation.engine import Engine, resident
from mtl_jax.runtime import cpu_devices
from mtl_jax.training.step import train_step


class Side:
    """One program of an ablation, compiled."""

    def load(self, model: str, data: str, steps: int) -> dict:
        """Builds and compiles it; writes the batches that the peer reads to the file `data`."""
        self.config = workloads.get_config(model)
        planned = plan.make_plan(self.config, lambda config: checks.check(config, "ablate"))
        (one,) = planned.programs
        began = time.perf_counter()
        self.built, self.seeds = lane_program.build(one, lane_program.Sources()), planned.seeds
        layout = "map" if jax.default_backend() == "cpu" else "vmap"
        shape = lanes.shape_of(len(self.seeds), len(one.settings), layout)
        rows = resident(self.built, shape.mesh, memory.available_bytes(self.config.ablation.memory_fraction))
        self.engine = Engine(self.built, shape, rows)
        experiment, steps = self.built.experiment, min(steps, self.engine.call_steps)
        tasks = list(experiment.tasks.values())
        batches = {seed: [experiment.batches(seed).batch(step) for step in range(steps)] for seed in self.seeds}
        with open(data, "wb") as file:
            pickle.dump(
                {
                    "vocabulary": experiment.corpus.tokenizer.size,
                    "tasks": list(experiment.tasks),
                    "classes": [len(task.names) for task in tasks],
                    "level": tasks[0].level,
                    "batches": {seed: [self._by_task(batch) for batch in results] for seed, results in batches.items()},
                },
                file,
            )
        return {
            "lanes": [[seed, setting.values["strength"]] for seed in self.seeds for setting in one.settings],
            "steps": steps,
            "build_seconds": time.perf_counter() - began,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(experiment.init_params, 0))),
            "tokens": float(np.mean([(b.segment > 0).sum() for results in batches.values() for b in results])),
            "positions": batches[self.seeds[0]][0].tokens.size,
            "flops": self._flops(batches[self.seeds[0]][0]),
            "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}, lanes by {layout}",
            "version": jax.__version__,
        }

    def _by_task(self, batch):
        """A batch with its labels by task."""
        experiment = self.built.experiment
        layout = experiment.corpus.layout
        return batch._replace(labels={task: layout.labels_of(batch, task) for task in experiment.tasks})

    def _flops(self, batch):
        state = jax.eval_shape(lambda: self.built.experiment.init(0))
        micro = jax.tree.map(lambda leaf: leaf[None], batch)
        step = jax.make_jaxpr(lambda *arguments: train_step(self.built.spec, *arguments))
        return product_flops(step(state, micro, self.built.hypers[0]).jaxpr)

    def lanes(self, steps: int) -> float:
        """Seconds of `steps` steps of all lanes."""
        states, losses = self.engine.init(self.seeds)
        hyper = self.engine.hyper(range(len(self.built.hypers)))
        active = np.ones((self.engine.shape.seeds, self.engine.shape.lanes), bool)
        jax.block_until_ready((states, losses, hyper))
        began = time.perf_counter()
        lanes = self.engine.advance(states, losses, hyper, active=active, seeds=self.seeds, start=0, steps=steps)
        states, losses = jax.block_until_ready(lanes)
        seconds = time.perf_counter() - began
        if not np.isfinite(np.asarray(losses.total)).all():
            raise RuntimeError("a loss is not finite")
        return seconds


def product_flops(jaxpr) -> int:
    """Floating-point operations of the matrix products in a jaxpr; loop bodies count as often as they run.

    `cost_analysis` of the compiled program counts the body of a loop once, whatever the length of the loop.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(product_flops(part) for part in _parts(equation.params))
    return total


def _parts(params):
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)  # closed or not
            if hasattr(one, "eqns"):
                yield one


def ceiling(dtype: str = "float32") -> dict:
    """The best flops/s of a large product: on one device, and on all at once."""
    size = 1536 if jax.default_backend() == "cpu" else 8192
    product = jax.jit(lambda a, b: a @ b)
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        pairs = [tuple(jax.device_put(jnp.ones((2, size, size), dtype), device)) for device in devices]
        times = []
        for _ in range(8):
            began = time.perf_counter()
            jax.block_until_ready([product(a, b) for a, b in pairs])
            times.append(time.perf_counter() - began)
        results.append(2 * size**3 * len(devices) / min(times))
    return {"flops": max(results)}


def peak() -> int:
    """Peak bytes: on the GPU where there is one."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or peak_memory()


if __name__ == "__main__":
    cpu_devices.use_all_cores()
    side = Side()
    serve({"load": side.load, "lanes": side.lanes, "ceiling": ceiling, "memory": peak})
