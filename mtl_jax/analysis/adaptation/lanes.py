"""Adaptation as lanes of one program: plain steps on a support from given layers and a zero head, then predictions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.analysis.ablation.engine import padded
from mtl_jax.analysis.ablation.lanes import Shape, lane_placement, lane_shardings, over_lanes, shape_of
from mtl_jax.analysis.adaptation.episodes import Episode, as_chunks, single_block
from mtl_jax.data.batch import PackedRows
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.evaluation.evaluator import evaluation_program, without_probabilities
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import FlatParams, Params
from mtl_jax.training.optimizer import OptimizerSpec
from mtl_jax.training.parameter_paths import PyTree, flatten, matching, with_leaves
from mtl_jax.training.schedules import ScheduleSpec
from mtl_jax.training.token_corruption import corrupt_batch


class Outputs(NamedTuple):
    """Predictions, and the sums that metrics need, see `evaluator.evaluation_program`.

    values  [..., rows, ...]
    sums    float32 [..., S]
    """

    values: jax.Array
    sums: jax.Array


_Carry = tuple[FlatParams, PyTree]  # the adapted leaves, and the state of the optimizer


class _Descent(NamedTuple):
    """Plain steps: where they begin, (number, carry) -> carry, and the parameters of a carry."""

    start: _Carry
    step: Callable[[jax.Array, _Carry], _Carry]
    params: Callable[[_Carry], Params]


class Learner:
    """Adapts one architecture to one task, many draws and rates at a time.

    steps   numbers of steps after which it predicts, ascending
    metric  the task's first metric
    """

    def __init__(self, experiment: Experiment, episode: Episode):
        """
        Args:
          experiment: of this task alone, every layer with one owner.
          episode: the task.

        Raises:
          UserError: no parameter is adapted.
        """
        settings = experiment.config.adaptation
        shapes = flatten(jax.eval_shape(experiment.init_params, 0))
        self.steps = tuple(sorted(set(settings.steps)))
        ((_, task),) = experiment.tasks.items()
        self.metric = task.metrics[0]
        self._adapts = tuple(sorted(matching(shapes, (settings.params,))))
        if not self._adapts:
            raise UserError(
                f"config.adaptation.params: {settings.params!r} matches no parameter; paths look like "
                f"{next(iter(shapes))}"
            )
        self.experiment, self.episode = experiment, episode
        # where the mesh of the run does not divide these devices, each has all parameters; few records are not split
        self._mesh = {**(inference.mesh_over(experiment.config, jax.device_count()) or {}), "data": 1}
        self._optimizer = OptimizerSpec(
            name=settings.optimizer,
            options={},
            schedule=ScheduleSpec("constant", {}, warmup_steps=0, steps=max(self.steps[-1], 1)),
        )
        self._program = functools.cache(self._compile)

    def predictions(
        self, split: str, layers: Params, by_draw: bool, supports: np.ndarray, rates: Sequence[float]
    ) -> Outputs:
        """[draws, rates, steps, ...]: predictions for the rows of the split after adaptation to each support at each
        rate.

        Args:
          split: to predict.
          layers: {path: leaves [1, ...]}, with `by_draw` [draws, 1, ...]: initial values.
          by_draw: see `sources.Source`.
          supports: int32[draws, examples], rows of train.
          rates: learning rates.
        """
        draws = len(supports)
        experiment, layout = self.experiment, "map" if jax.default_backend() == "cpu" else "vmap"
        shape = shape_of(draws, len(rates), layout, self._mesh)
        order = np.asarray(padded(range(draws), shape.seeds))
        by_lane = np.broadcast_to(np.asarray(padded(rates, shape.lanes), np.float32), (shape.seeds, shape.lanes))
        if by_draw:
            layers = jax.tree.map(lambda leaf: leaf[order], layers)
        rows, scored = self.episode.rows, as_chunks(self.episode.rows[split], self.episode.numbers[split])
        arguments = (layers, rows["train"], scored, supports[order], order.astype(np.int32), by_lane)
        one_lane = jax.tree.map(lambda leaf: leaf[0], layers) if by_draw else layers
        placement = lane_placement(shape, experiment.spec.slices, len(experiment.tasks))
        shardings = [shape.sharding(a) for a in _axes(by_draw)]
        shardings[0] = lane_shardings(shape, placement, one_lane, _axes(by_draw)[0])
        placed = [distributed.place(x, sharding) for x, sharding in zip(arguments, shardings, strict=True)]
        predicted = distributed.to_host(self._program(shape, by_draw)(*placed))
        return jax.tree.map(lambda leaf: leaf[:draws, : len(rates)], predicted)

    def adapted(self, layers: Params, support: np.ndarray, draw: int, rate: float, steps: int) -> Params:
        """The parameters after adaptation to one support; `layers` have leaves [1, ...]."""
        return self._single(layers, self.episode.rows["train"], support, np.int32(draw), np.float32(rate), steps)

    @functools.cached_property
    def _single(self) -> Callable[..., Params]:
        def run(layers, train, support, draw, rate, steps):
            descent = self._descent(layers, train, support, draw, rate)
            return descent.params(jax.lax.fori_loop(jnp.int32(0), steps, descent.step, descent.start))

        return jax.jit(run)

    def _compile(self, shape: Shape, by_draw: bool) -> Callable[..., jax.Array]:
        return jax.jit(over_lanes(self._lane, _axes(by_draw), shape))

    def _lane(
        self,
        layers: Params,
        train: PackedRows,
        scored: tuple[PackedRows, jax.Array],
        support: jax.Array,
        draw: jax.Array,
        rate: jax.Array,
    ) -> Outputs:
        """One adaptation: leaves [steps, ...]; the rows of `scored` are padded."""
        descent = self._descent(layers, train, support, draw, rate)
        carry, outputs = descent.start, []
        for begin, end in itertools.pairwise((0, *self.steps)):
            carry = jax.lax.fori_loop(jnp.int32(begin), jnp.int32(end), descent.step, carry)
            outputs.append(self._predict(descent.params(carry), scored))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    def _predict(self, params: Params, scored: tuple[PackedRows, jax.Array]) -> Outputs:
        program = without_probabilities(evaluation_program(self._objective))

        def chunk(rows: tuple[PackedRows, jax.Array]) -> Outputs:
            outputs, sums = program(params, single_block(*rows))
            ((name, output),) = outputs.items()
            return Outputs(output["value"][0], sums[name][0])

        values, sums = jax.lax.map(chunk, scored)
        return Outputs(values.reshape(-1, *values.shape[2:]), sums.sum(axis=0))

    @property
    def _objective(self) -> terms.Objective:
        return self.experiment.spec.objective._replace(dropout=False, attention_dropout=False)

    def _initial(self, layers: Params, key: jax.Array) -> Params:
        """The layers under a new head; an output layer is zero, as with config.meta.head_init = "zero"."""
        ((name, task),) = self._objective.tasks.items()
        network = self._objective.network
        head = {**task.init(key, network.width[name]), **network.init_head(name, key)}
        if "output" in head:
            head = {**head, "output": jax.tree.map(jnp.zeros_like, head["output"])}
        return {**layers, "heads": {name: jax.tree.map(lambda leaf: leaf[None], head)}}

    def _descent(
        self, layers: Params, train: PackedRows, support: jax.Array, draw: jax.Array, rate: jax.Array
    ) -> _Descent:
        """Steps on the mean loss of a support."""
        experiment, objective = self.experiment, self._objective
        key = jax.random.fold_in(jax.random.key(experiment.config.seed), draw)
        params = self._initial(layers, key)
        hyper = experiment.hyper._replace(learning_rate=rate, weight_decay=jnp.zeros((), jnp.float32))
        given = single_block(jax.tree.map(lambda leaf: leaf[support], train), support)
        flat = flatten(params)

        def with_trained(trained: FlatParams) -> Params:
            return with_leaves(params, {**flat, **trained})

        def optimizer(number: jax.Array) -> optax.GradientTransformation:
            return self._optimizer.transformation(hyper, number, dict.fromkeys(self._adapts, 1.0))

        def step(number: jax.Array, carry: _Carry) -> _Carry:
            trained, state = carry
            few = corrupt_batch(objective, given, jax.random.fold_in(key, number))
            total = terms.loss_denominators(objective, few, hyper)

            def loss(trained: FlatParams) -> jax.Array:
                return terms.loss_contributions(objective, with_trained(trained), few, hyper, None, total).sum()

            updates, state = optimizer(number).update(jax.grad(loss)(trained), state, trained)
            return jax.tree.map(jnp.add, trained, updates), state

        trained = {path: flat[path] for path in self._adapts}
        start = (trained, optimizer(jnp.zeros((), jnp.int32)).init(trained))
        return _Descent(start, step, lambda carry: with_trained(carry[0]))


def _axes(by_draw: bool) -> str:
    """The leading axes of the arguments of `Learner._lane`, see `over_lanes`."""
    return f"{'s' if by_draw else '-'}--ssl"
