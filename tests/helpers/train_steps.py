"""Train steps of a small experiment, on one device or placed on several, and the gradient that one of them descends."""

import collections
import functools

import jax
import numpy as np

from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import make_placement
from mtl_jax.training.step import train_step

RATE = 1e4  # so large that the parameters before a step do not drown its gradient
# plain gradient descent: what a step takes off is RATE times the gradient
DESCENT = {
    "optimizer__name": "sgd",
    "optimizer__learning_rate": RATE,
    "optimizer__warmup_ratio": 0.0,
    "optimizer__schedule": "constant",
    "optimizer__weight_decay": 0.0,
    "optimizer__clip_norm": 0.0,
    "data__rows_per_block": 4,
}
_recent = collections.deque(maxlen=4)  # (spec, its step): a second run of an experiment traces nothing


def batch_of(experiment, step=0):
    """The batch [A, ...] of a step: its micro-batches, stacked."""
    count = experiment.config.training.grad_accum_steps
    micro = [experiment.batches(0).batch(step * count + i) for i in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *micro)


def placed(experiment, kind="jit", mesh=None):
    """A placement on the 8 devices, by default with the rows split over all of them."""
    mesh = mesh or {"data": jax.device_count(), "task": 1, "model": 1}
    return make_placement(kind, mesh, experiment.spec.slices, len(experiment.tasks))


def step_of(experiment):
    """The compiled step (state, batch, hyper) -> (state, metrics) on one device."""
    for spec, step in _recent:
        if spec is experiment.spec:
            return step
    _recent.append((experiment.spec, jax.jit(functools.partial(train_step, experiment.spec))))
    return _recent[-1][1]


def steps(experiment, count=3, placement=None, hyper=None, state=None, batch=None):
    """The state after so many steps and the metrics of the last; `batch` replaces the drawn ones."""
    state, metrics = experiment.init(0) if state is None else state, None
    step, put = step_of(experiment), lambda batch: batch
    if placement is not None:
        step = placement.train(functools.partial(train_step, experiment.spec))
        state, put = placement.put_state(state), placement.put_batch
    for number in range(count):
        drawn = batch_of(experiment, number) if batch is None else batch
        state, metrics = step(state, put(drawn), hyper or experiment.hyper)
    return jax.device_get(placement.replicated(state) if placement else state), jax.device_get(metrics)


def gradient_of_step(experiment, placement=None, batch=None):
    """The gradient {path: leaf} that the first step of a config with `DESCENT` descends, and its metrics."""
    before = jax.device_get(flatten(experiment.init(0).params))
    state, metrics = steps(experiment, 1, placement, batch=batch)
    after = flatten(state.params)
    return {path: (before[path] - after[path]) / RATE for path in before}, metrics


def largest_difference(a, b):
    """The largest |a − b| over two trees of parameters with the same paths."""
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[path] - b[path]).max()) for path in a)
