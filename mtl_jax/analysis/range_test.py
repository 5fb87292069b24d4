"""--mode=range_test: a few steps of the run, for what it takes in time and memory, and for its learning rate.

The learning rate grows exponentially from step to step until the loss rises (Smith 2017, "Cyclical learning rates for
training neural networks", section 3.3). The suggestion is the rate at which the smoothed loss falls most steeply.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation.memory import required_bytes
from mtl_jax.analysis.tables import text_table
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.build import build
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.training.placement import require_platform
from mtl_jax.training.step import train_step

STEPS = 100
LOWEST, HIGHEST = 1e-3, 1e3  # of the rates, relative to config.optimizer.learning_rate
SMOOTHING = 0.9  # of the moving average of losses
TOO_HIGH = 2.0  # the test ends where the smoothed loss is so many times the lowest
ROWS = 12  # of the table


class RangeTest(NamedTuple):
    """What the steps have shown.

    rates          learning rate of each step
    losses         Σ_k α_k·L_k of each step before its update, smoothed
    suggestion     rate at which the losses fall most steeply; None where they never fall
    step_seconds   median time of a step
    memory         bytes that the compiled step takes on each device; None where the compiler does not say
    steps          of the run
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float | None
    step_seconds: float
    memory: int | None
    steps: int


def range_test(config: Config) -> RangeTest:
    """Trains up to `STEPS` steps at growing learning rates; nothing is saved.

    Raises:
      UserError: what is wrong with the config or the data; a learning rate of 0.
    """
    require_platform(config.training.platform)
    if not config.optimizer.learning_rate:
        raise UserError("config.optimizer.learning_rate: the range test varies it around its value, which is 0")
    constant = ConfigDict(config)
    constant.optimizer.schedule, constant.optimizer.schedule_options = "constant", {}
    constant.optimizer.warmup_ratio = 0.0
    experiment = build(constant)
    rates = config.optimizer.learning_rate * np.geomspace(LOWEST, HIGHEST, STEPS)
    totals, seconds, memory = _train(experiment, rates)
    losses = smoothed(totals)
    rates = rates[: len(losses)]
    return RangeTest(rates, losses, steepest(rates, losses), seconds, memory, experiment.config.training.steps)


def _train(experiment: Experiment, rates: np.ndarray) -> tuple[list[float], float, int | None]:
    """The losses until they rise, the median seconds of a step, and the bytes of the compiled step."""
    placement, batches, count = placement_from_config(experiment), experiment.batches, len(rates)
    assert batches is not None
    step = placement.train(lambda state, batch, hyper, axis: train_step(experiment.spec, state, batch, hyper, axis))
    state = placement.put_state(experiment.init(experiment.config.seed))
    sampler, parts = batches(experiment.config.seed), experiment.config.training.grad_accum_steps
    totals: list[float] = []
    seconds: list[float] = []
    memory = None
    with progress_bar("range test", "step", count) as bar:
        for number, rate in enumerate(rates):
            micro = [sampler.batch(number * parts + i) for i in range(parts)]
            batch = placement.put_batch(jax.tree.map(lambda *leaves: np.stack(leaves), *micro))
            hyper = experiment.hyper._replace(learning_rate=np.float32(rate))
            if not number and isinstance(step, jax.stages.Wrapped):
                step = step.lower(state, batch, hyper).compile()
                memory = required_bytes(step)
            began = time.monotonic()
            state, metrics = step(state, batch, hyper)
            weighted = np.asarray(metrics["alpha"]) * np.asarray(metrics["losses"])
            totals.append(float(weighted[np.asarray(metrics["present"])].sum()))
            seconds.append(time.monotonic() - began)
            bar.update()
            average = smoothed(totals)
            if not math.isfinite(totals[-1]) or average[-1] > TOO_HIGH * average.min():
                break
    finite = [total for total in totals if math.isfinite(total)]
    return finite, float(np.median(seconds[1:] or seconds)), memory


def smoothed(values: list[float]) -> np.ndarray:
    """The exponential moving average, without the pull of its start towards 0."""
    average, result = 0.0, []
    for number, value in enumerate(values, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        result.append(average / (1 - SMOOTHING**number))
    return np.asarray(result)


def steepest(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate at which the losses fall most per factor of the rate, before their minimum; None where none falls."""
    end = int(np.argmin(losses)) + 1 if len(losses) else 0
    if end < 3:
        return None
    slope = np.gradient(losses[:end], np.log(rates[:end]))
    return float(rates[np.argmin(slope)]) if slope.min() < 0 else None


def describe(result: RangeTest) -> str:
    """The text for the terminal."""
    chosen = np.unique(np.linspace(0, len(result.losses) - 1, min(ROWS, len(result.losses))).astype(int))
    rows = [[f"{result.rates[i]:.2e}", f"{result.losses[i]:.4f}"] for i in chosen]
    minutes = result.steps * result.step_seconds / 60
    memory = "" if result.memory is None else f"; a step takes {result.memory / 2**20:,.0f} MiB on each device"
    advice = "no rate lets the loss fall; look at the data and the model"
    if result.suggestion is not None:
        advice = f"config.optimizer.learning_rate = {result.suggestion:.2g} (where the loss falls most steeply)"
    return "\n".join(
        [
            text_table(["learning rate", "loss, smoothed"], rows),
            "",
            f"suggestion  {advice}",
            f"the run     {result.steps:,} steps of {result.step_seconds:.3g} s: {minutes:,.1f} minutes, and "
            f"compilation and evaluations{memory}",
        ]
    )
