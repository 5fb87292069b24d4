"""Adaptation as lanes of one program: plain steps on a support from given layers and a zero head, then predictions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation.engine import padded
from mtl_jax.analysis.ablation.lanes import Shape, lane_placement, lane_shardings, over_lanes, shape_of
from mtl_jax.analysis.adaptation.episodes import Episode, as_chunks, single_block
from mtl_jax.data.batch import PackedRows
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import Params
from mtl_jax.training.optimizer import OptimizerSpec
from mtl_jax.training.parameter_paths import flatten, matching, with_leaves
from mtl_jax.training.schedules import ScheduleSpec


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
          UserError: no parameter is adapted; a head without an output layer.
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
        self._experiment, self._episode = experiment, episode
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
    ) -> np.ndarray:
        """int[draws, rates, steps, records of the split]: the classes after adaptation to each support at each rate.

        Args:
          split: to predict.
          layers: {path: leaves [1, ...]}, with `by_draw` [draws, 1, ...]: initial values.
          by_draw: see `sources.Source`.
          supports: int32[draws, examples], rows of train.
          rates: learning rates.
        """
        draws = len(supports)
        experiment, layout = self._experiment, "map" if jax.default_backend() == "cpu" else "vmap"
        shape = shape_of(draws, len(rates), layout, self._mesh)
        order = np.asarray(padded(range(draws), shape.seeds))
        by_lane = np.broadcast_to(np.asarray(padded(rates, shape.lanes), np.float32), (shape.seeds, shape.lanes))
        if by_draw:
            layers = jax.tree.map(lambda leaf: leaf[order], layers)
        rows = self._episode.rows
        arguments = (layers, rows["train"], as_chunks(rows[split]), supports[order], order.astype(np.int32), by_lane)
        one_lane = jax.tree.map(lambda leaf: leaf[0], layers) if by_draw else layers
        placement = lane_placement(shape, experiment.spec.slices, len(experiment.tasks))
        shardings = [shape.sharding(a) for a in _axes(by_draw)]
        shardings[0] = lane_shardings(shape, placement, one_lane, _axes(by_draw)[0])
        placed = [distributed.place(x, sharding) for x, sharding in zip(arguments, shardings, strict=True)]
        predicted = distributed.to_host(self._program(shape, by_draw)(*placed))
        return predicted[:draws, : len(rates), :, : len(self._episode.gold[split])]

    def _compile(self, shape: Shape, by_draw: bool) -> Callable[..., jax.Array]:
        return jax.jit(over_lanes(self._lane, _axes(by_draw), shape))

    def _lane(
        self,
        layers: Params,
        train: PackedRows,
        scored: PackedRows,
        support: jax.Array,
        draw: jax.Array,
        rate: jax.Array,
    ) -> jax.Array:
        """One adaptation: predictions int32[steps, records of `scored`, which are padded]."""
        experiment = self._experiment
        objective = experiment.spec.objective._replace(dropout=False, attention_dropout=False)
        ((name, task),) = objective.tasks.items()
        key = jax.random.fold_in(jax.random.key(experiment.config.seed), draw)
        network = objective.network
        # its output layer is zero: all classes are equally likely at first, as with config.meta.head_init = "zero"
        head = {**task.init(key, network.width[name]), **network.init_head(name, key)}
        head = {**head, "output": jax.tree.map(jnp.zeros_like, head["output"])}
        params = {**layers, "heads": {name: jax.tree.map(lambda leaf: leaf[None], head)}}
        hyper = experiment.hyper._replace(learning_rate=rate, weight_decay=jnp.zeros((), jnp.float32))
        few = single_block(jax.tree.map(lambda leaf: leaf[support], train))
        total, flat = terms.loss_denominators(objective, few, hyper), flatten(params)

        def optimizer(number):
            return self._optimizer.transformation(hyper, number, dict.fromkeys(self._adapts, 1.0))

        def loss(trained):
            adapted = with_leaves(params, {**flat, **trained})
            return terms.loss_contributions(objective, adapted, few, hyper, None, total).sum()

        def step(number, carry):
            trained, state = carry
            updates, state = optimizer(number).update(jax.grad(loss)(trained), state, trained)
            return jax.tree.map(jnp.add, trained, updates), state

        def predict(trained):
            adapted = with_leaves(params, {**flat, **trained})

            def classes(rows):
                ((part, logits),) = terms.logits(objective, adapted, single_block(rows), None, None)
                return task.predict(part.heads(adapted), logits, part.labels)["value"][:, 0]

            return jax.lax.map(classes, scored).reshape(-1)

        trained = {path: flat[path] for path in self._adapts}
        carry, predictions = (trained, optimizer(jnp.zeros((), jnp.int32)).init(trained)), []
        for begin, end in itertools.pairwise((0, *self.steps)):
            carry = jax.lax.fori_loop(jnp.int32(begin), jnp.int32(end), step, carry)
            predictions.append(predict(carry[0]))
        return jnp.stack(predictions)


def _axes(by_draw: bool) -> str:
    """The leading axes of the arguments of `Learner._lane`, see `over_lanes`."""
    return f"{'s' if by_draw else '-'}--ssl"
