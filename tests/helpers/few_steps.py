"""A few steps of a config, in one piece or spread over devices."""

import jax
import numpy as np

from mtl_jax.training.step import train_step


def steps(experiment, count=3, placement=None):
    state = experiment.init(0)
    step = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))
    if placement:
        state = placement.put_state(state)
        step = placement.train(lambda s, b, h, axis: train_step(experiment.spec, s, b, h, axis))
    for number in range(count):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(number))
        state, metrics = step(state, placement.put_batch(batch) if placement else batch, experiment.hyper)
    return placement.replicated(state) if placement else state, metrics
