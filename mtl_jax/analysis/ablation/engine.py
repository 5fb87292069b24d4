"""The compiled functions of one program for one shape of lanes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

from mtl_jax.analysis.ablation import lanes as lane_steps
from mtl_jax.analysis.ablation import memory
from mtl_jax.analysis.ablation.device_rows import Draws, ResidentRows, draws, resident_rows
from mtl_jax.analysis.ablation.lane_program import Built
from mtl_jax.analysis.ablation.lanes import Losses, Shape, Steps, no_losses
from mtl_jax.analysis.ablation.scores import LaneScores
from mtl_jax.data.batch import Batch
from mtl_jax.evaluation.scores import require_even
from mtl_jax.runtime import distributed
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.state import TrainState

T = TypeVar("T")
MAX_CALL_STEPS = 64  # steps of one call
MAX_HOST_BYTES = 256 << 20  # of the batches that the host sends with one call
MAX_RESIDENT_FRACTION = 0.25  # of the memory budget: larger data sets stay on the host


class Engine:
    """Steps and scores of S × L lanes.

    source      the packed rows on the devices; None where batches come from the host
    call_steps  most steps of one call
    needed      bytes that the steps take on each device, the best parameters included
    """

    def __init__(self, built: Built, shape: Shape, resident: ResidentRows | None):
        self.built, self.shape = built, shape
        self._lane = lane_steps.lane_placement(shape, built.spec.slices, len(built.experiment.tasks))
        require_even(built.experiment, self._lane)
        self.scores = LaneScores(built.experiment, shape)
        self._accumulate = built.experiment.config.training.grad_accum_steps
        self.source = resident
        self.call_steps = MAX_CALL_STEPS
        if resident is None:
            first = self._inputs(built.experiment.config.seed, 0, 1)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(first)) * shape.seeds
            self.call_steps = max(1, min(MAX_CALL_STEPS, MAX_HOST_BYTES // size))
        self._compiled = self._compile()
        best = jax.tree.leaves(self.abstract_state().params)
        best_bytes = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in best)
        self.needed = memory.required_bytes(self._compiled) + best_bytes
        self.select = jax.jit(_select, donate_argnums=2, out_shardings=self.lane_shardings()[0].params)

    def init(self, seeds: Sequence[int]) -> tuple[TrainState, Losses]:
        """The states [S, L] before the first step. The last seed is repeated to fill the shape."""
        by_seed = {seed: self._init(seed) for seed in dict.fromkeys(seeds)}
        states = [by_seed[seed] for seed in padded(seeds, self.shape.seeds)]
        return lane_steps.stack_states(states, self.shape, self.shardings), self.zero_losses()

    def _init(self, seed: int) -> TrainState:
        """The state of one lane; on a mesh of several devices only its parameters are ever on one of them."""
        experiment = self.built.experiment
        if self.shape.one_device:
            return experiment.init(seed)
        params = experiment.init_params(seed)
        params = distributed.place(params, self.shardings(params, "-"))
        state = functools.partial(experiment.init_from, seed=seed)
        first = jax.jit(state, out_shardings=self.shardings(jax.eval_shape(state, params), "-"))(params)
        return experiment.beginning.with_importance(first) if experiment.beginning else first

    def zero_losses(self) -> Losses:
        """Sums [S, L] before any step."""
        zero = self._no_losses()
        return self.put(jax.tree.map(lambda x: np.zeros((self.shape.seeds, self.shape.lanes, *x.shape), x.dtype), zero))

    def _no_losses(self) -> Losses:
        return no_losses(len(self.built.experiment.tasks), self.built.spec.objective.penalties)

    def hyper(self, settings: Sequence[int]) -> Hyperparameters:
        """Hyperparameters [S, L] of the program's settings."""
        hypers = [self.built.hypers[i] for i in padded(settings, self.shape.lanes)]
        return self.put(lane_steps.stack_hypers(hypers, self.shape.seeds))

    def put(self, tree: T) -> T:
        """Places leaves [S, L, ...]."""
        one_lane = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[2:], leaf.dtype), tree)
        return distributed.place(tree, self.shardings(one_lane, "l"))

    def shardings(self, one_lane: T, leading: str) -> T:
        """Of one lane's leaves after the axes that `Shape.sharding` names: parameters are split as in a single run."""
        return lane_steps.lane_shardings(self.shape, self._lane, one_lane, leading)

    def constrain(self, state: TrainState) -> TrainState:
        """The state of one lane, in a program over lanes, with its shardings."""
        if self.shape.one_device:
            return state
        specs = jax.tree.map(lambda sharding: sharding.spec, self._lane.shardings(state))
        return jax.lax.with_sharding_constraint(state, specs)

    def advance(
        self,
        states: TrainState,
        losses: Losses,
        hyper: Hyperparameters,
        *,
        active: np.ndarray,
        seeds: Sequence[int],
        start: int,
        steps: int,
    ) -> tuple[TrainState, Losses]:
        """Steps start, ..., start + steps - 1 of the lanes that are `active` bool [S, L]. The states are donated.

        Returns:
          the states and losses after them
        """
        inputs = self.inputs(seeds, start, steps)
        return self._compiled((states, losses), hyper, self.put(active), inputs, Steps(self.source, np.int32(steps)))

    def inputs(self, seeds: Sequence[int], start: int, steps: int) -> Draws | Batch:
        """The inputs of some steps, leaves [S, `call_steps`, ...]: `Draws`, or a `Batch` where the host sends rows."""
        by_seed = {seed: self._inputs(seed, start, steps) for seed in dict.fromkeys(seeds)}
        selected = (by_seed[seed] for seed in padded(seeds, self.shape.seeds))
        return distributed.place(jax.tree.map(lambda *x: np.stack(x), *selected), self.shape.sharding("s"))

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the states [S, L]."""
        return self._abstract(jax.eval_shape(lambda: self.built.experiment.init(0)), "l")

    def abstract_losses(self) -> Losses:
        """Shapes and shardings of the sums [S, L]."""
        return self._abstract(jax.eval_shape(self._no_losses), "l")

    def lane_shardings(self) -> tuple[TrainState, Losses]:
        """Of the states and the losses [S, L]."""
        return jax.tree.map(lambda leaf: leaf.sharding, (self.abstract_state(), self.abstract_losses()))

    def _compile(self) -> Compiled:
        spec, experiment = self.built.spec, self.built.experiment
        advance = lane_steps.over_lanes(
            functools.partial(lane_steps.advance, spec, self.constrain), "llls-", self.shape
        )
        arguments = (
            (self.abstract_state(), self.abstract_losses()),
            self._abstract(self.built.hypers[0], "l"),
            self._abstract(np.zeros((), bool), "l"),
            self._abstract(self._inputs(experiment.config.seed, 0, 1), "s"),
            self._abstract(Steps(self.source, np.int32(0)), "-"),
        )
        return jax.jit(advance, donate_argnums=0, out_shardings=self.lane_shardings()).lower(*arguments).compile()

    def _abstract(self, tree: T, leading: str) -> T:
        """Shapes and shardings of leaves with the axes that `Shape.sharding` names."""
        axes = {"l": (self.shape.seeds, self.shape.lanes), "s": (self.shape.seeds,), "-": ()}[leading]
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype, sharding=sharding),
            tree,
            self.shardings(tree, leading),
        )

    def _inputs(self, seed: int, start: int, steps: int) -> Draws | Batch:
        """The inputs of one seed, padded to `call_steps` steps."""
        batches = self.built.experiment.batches(seed)
        if self.source is not None:
            inputs = draws(batches, start, steps, self._accumulate)
        else:
            numbers = range(start * self._accumulate, (start + steps) * self._accumulate)
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(batches.batch(n) for n in numbers))
            inputs = jax.tree.map(lambda leaf: leaf.reshape(steps, self._accumulate, *leaf.shape[1:]), stacked)
        return jax.tree.map(lambda leaf: _zero_padded(leaf, self.call_steps), inputs)


def resident(built: Built, mesh: jax.sharding.Mesh, budget: int) -> ResidentRows | None:
    """The packed rows on every device; None: on the host (`config.ablation.data_placement`)."""
    where = built.experiment.config.ablation.data_placement
    if where == "host":
        return None
    rows = resident_rows(built.experiment.batches(built.experiment.config.seed))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(rows))
    if where == "auto" and size > MAX_RESIDENT_FRACTION * budget:
        return None
    return distributed.place(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _select(condition: jax.Array, new: T, old: T) -> T:
    """Where `condition` bool [S, L] the new leaves [S, L, ...], elsewhere the old ones."""
    return jax.tree.map(
        lambda n, o: jnp.where(condition.reshape(condition.shape + (1,) * (n.ndim - 2)), n, o), new, old
    )


def padded(items: Sequence[T], count: int) -> list[T]:
    """The items, the last one repeated up to `count`: lanes that only fill the devices, and are not active."""
    return [*items, *[items[-1]] * (count - len(items))]


def _zero_padded(leaf: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([leaf, np.zeros((count - len(leaf), *leaf.shape[1:]), leaf.dtype)])
