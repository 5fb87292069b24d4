"""The compiled functions of one program for one shape of lanes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation import lanes as lane_steps
from mtl_jax.analysis.ablation import memory
from mtl_jax.analysis.ablation.device_rows import draws, resident_rows
from mtl_jax.analysis.ablation.lanes import Losses, Shape, no_losses
from mtl_jax.analysis.ablation.program import Built
from mtl_jax.analysis.ablation.scores import LaneScores
from mtl_jax.training.state import TrainState

CALL_STEPS = 64  # most steps of one call where the host names rows
HOST_BYTES = 256 << 20  # most bytes of batches that the host sends with one call
RESIDENT_SHARE = 0.25  # of what programs may take: larger data sets stay on the host


class Engine:
    """Steps and scores of S × L lanes.

    source      the packed rows on the devices; None where batches come from the host
    call_steps  most steps of one call
    needed      bytes that the steps take on each device, the best parameters included
    """

    def __init__(self, built: Built, shape: Shape, resident: Any):
        self.built, self.shape = built, shape
        self.scores = LaneScores(built.experiment, shape)
        self._accumulate = built.experiment.config.training.accumulate
        self.source = resident
        self.call_steps = CALL_STEPS
        if resident is None:
            one = self._draws(built.experiment.config.seed, 0, 1)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(one)) * shape.seeds
            self.call_steps = max(1, min(CALL_STEPS, HOST_BYTES // size))
        self._compiled = self._compile()
        params = jax.eval_shape(lambda: built.experiment.init_params(0))
        lanes = shape.seeds * shape.lanes / shape.mesh.size
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) * lanes
        self.needed = memory.needed(self._compiled) + int(kept)
        self.keep_better = jax.jit(_keep_better, donate_argnums=2)

    def init(self, seeds: Sequence[int]) -> tuple[TrainState, Losses]:
        """The states [S, L] before the first step. Seeds are repeated to fill the shape."""
        by_seed = {seed: self.built.experiment.init(seed) for seed in dict.fromkeys(seeds)}
        states = [by_seed[seed] for seed in filled(seeds, self.shape.seeds)]
        return lane_steps.stack_states(states, self.shape), self.zero_losses()

    def zero_losses(self) -> Losses:
        """Sums [S, L] before any step."""
        zero = self._no_losses()
        return self.put(jax.tree.map(lambda x: np.zeros((self.shape.seeds, self.shape.lanes, *x.shape), x.dtype), zero))

    def _no_losses(self):
        return no_losses(len(self.built.experiment.tasks), self.built.spec.objective.penalties)

    def hyper(self, settings: Sequence[int]) -> Any:
        """Hyperparameters [S, L] of the program's settings."""
        chosen = [self.built.hypers[i] for i in filled(settings, self.shape.lanes)]
        return self.put(lane_steps.stack_hypers(chosen, self.shape.seeds))

    def put(self, tree: Any) -> Any:
        """Places leaves [S, L, ...]."""
        return jax.device_put(tree, self.shape.sharding("l"))

    def advance(self, states, losses, hyper, active: np.ndarray, seeds: Sequence[int], start: int, steps: int):
        """Steps start, ..., start + steps - 1 of the lanes that are `active` bool [S, L]. The states are given away.

        Returns:
          the states and losses after them
        """
        drawn = self.draw(seeds, start, steps)
        return self._compiled(states, losses, hyper, self.put(active), drawn, self.source, np.int32(steps))

    def draw(self, seeds: Sequence[int], start: int, steps: int) -> Any:
        """What some steps read, leaves [S, `call_steps`, ...]: `Draws`, or a `Batch` where rows come from the host."""
        by_seed = {seed: self._draws(seed, start, steps) for seed in dict.fromkeys(seeds)}
        chosen = (by_seed[seed] for seed in filled(seeds, self.shape.seeds))
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *chosen), self.shape.sharding("s"))

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the states [S, L]."""
        return self._abstract(jax.eval_shape(lambda: self.built.experiment.init(0)), "l")

    def _compile(self):
        spec, experiment = self.built.spec, self.built.experiment
        whole = lane_steps.over_lanes(functools.partial(lane_steps.advance, spec), "lllls--", self.shape)
        arguments = (
            self.abstract_state(),
            self._abstract(jax.eval_shape(self._no_losses), "l"),
            self._abstract(self.built.hypers[0], "l"),
            self._abstract(np.zeros((), bool), "l"),
            self._abstract(self._draws(experiment.config.seed, 0, 1), "s"),
            self._abstract(self.source, "-"),
            self._abstract(np.int32(0), "-"),
        )
        return jax.jit(whole, donate_argnums=(0, 1)).lower(*arguments).compile()

    def _abstract(self, tree, leading):
        axes = {"l": (self.shape.seeds, self.shape.lanes), "s": (self.shape.seeds,), "-": ()}[leading]
        sharding = self.shape.sharding(leading)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype, sharding=sharding), tree
        )

    def _draws(self, seed, start, steps):
        """What a call reads of one seed, filled up to `call_steps` steps."""
        batches = self.built.experiment.batches(seed)
        if self.source is not None:
            found = draws(batches, start, steps, self._accumulate)
        else:
            numbers = range(start * self._accumulate, (start + steps) * self._accumulate)
            parts = jax.tree.map(lambda *leaves: np.stack(leaves), *(batches.batch(n) for n in numbers))
            found = jax.tree.map(lambda leaf: leaf.reshape(steps, self._accumulate, *leaf.shape[1:]), parts)
        return jax.tree.map(lambda leaf: _fill(leaf, self.call_steps), found)


def resident(built: Built, mesh: Any, budget: int) -> Any:
    """The packed rows on every device, or None where they stay on the host, as `config.ablation.resident` says."""
    where = built.experiment.config.ablation.resident
    if where == "host":
        return None
    rows = resident_rows(built.experiment.batches(built.experiment.config.seed))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(rows))
    if where == "auto" and size > RESIDENT_SHARE * budget:
        return None
    return jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _keep_better(better, new, old):
    """Where `better` bool [S, L] the new leaves [S, L, ...], else the old ones."""
    return jax.tree.map(lambda n, o: jnp.where(better.reshape(better.shape + (1,) * (n.ndim - 2)), n, o), new, old)


def filled(items: Sequence[Any], count: int) -> list[Any]:
    """The items, the last one repeated up to `count`: lanes that only fill the devices, and are not active."""
    return [*items, *[items[-1]] * (count - len(items))]


def _fill(leaf, count):
    return np.concatenate([leaf, np.zeros((count - len(leaf), *leaf.shape[1:]), leaf.dtype)])
