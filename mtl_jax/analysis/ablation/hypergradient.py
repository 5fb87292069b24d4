"""λ by hypergradient: descent on the dev loss through the last steps of training, separately for each lane.

Every so many steps the last of them are differentiated: the gradient of the dev loss after them with respect to the
swept hyperparameters (Luketina et al. 2016 with one step; truncated back-propagation of Shaban et al. 2019 with more).
Adam moves the logarithms of the hyperparameters. The points of the sweeps are their initial values.

config.ablation.method = "hypergradient", with the options

    every   steps between two moves (10); divides config.training.steps and eval_every
    unroll  the last steps that are differentiated (5)
    rate    of Adam on log λ: about the largest move (0.2)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.analysis.ablation import lanes as lane_steps
from mtl_jax.analysis.ablation.device_rows import Draws, ResidentRows, draws, gather, resident_rows
from mtl_jax.analysis.ablation.engine import Engine, padded
from mtl_jax.analysis.ablation.lane_program import Built
from mtl_jax.analysis.ablation.lanes import Losses
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import Batch
from mtl_jax.data.sampler import BatchSampler
from mtl_jax.errors import UserError
from mtl_jax.experiment.inputs import make_mixing
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.state import StepSpec, TrainState
from mtl_jax.training.step import train_step
from mtl_jax.training.token_corruption import corrupt_for_evaluation

DEFAULTS = {"every": 10, "unroll": 5, "rate": 0.2}
BOUNDS = (-18.0, 18.0)  # of log λ


def options(config: Config) -> dict[str, Any]:
    """The options of a config, with defaults.

    Raises:
      UserError: one that is unknown or out of range.
    """
    given = config.ablation.options.to_dict()
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise UserError(
            f"config.ablation.options: 'hypergradient' has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}"
        )
    result = DEFAULTS | given
    if not 1 <= result["unroll"] <= result["every"] or not result["rate"] > 0:
        raise UserError("config.ablation.options: unroll should be from 1 to every, and rate above 0")
    for field in ("steps", "eval_every"):
        if config.training[field] % result["every"]:
            raise UserError(
                f"config.training.{field}: {config.training[field]} should be a multiple of "
                f"config.ablation.options.every = {result['every']}, so that no move of λ crosses it"
            )
    return result


class TunedLane(NamedTuple):
    """What a move changes in a lane: its state, summed losses, log λ {sweep: scalar}, and the optimizer's moments."""

    state: TrainState
    losses: Losses
    logs: dict[str, jax.Array]
    moments: optax.OptState


class Move(NamedTuple):
    """What is static about a move.

    fields     {sweep: fields that it sets}
    optimizer  of log λ
    unroll     differentiated steps
    constrain  see `lanes.advance`
    """

    spec: StepSpec
    fields: Mapping[str, Sequence[str]]
    optimizer: optax.GradientTransformation
    unroll: int
    constrain: Callable[[TrainState], TrainState] = lambda state: state


class Inputs(NamedTuple):
    """Inputs of the differentiated steps and of the dev loss, see `Engine.inputs`."""

    train: Draws | Batch
    dev: Draws


class Sources(NamedTuple):
    """Rows on the devices; `train` is None where the host sends batches."""

    train: ResidentRows | None
    dev: ResidentRows


class Tuner:
    """Moves the swept hyperparameters of the lanes of one engine.

    every, unroll  see above
    """

    def __init__(self, engine: Engine, fields: Mapping[str, Sequence[str]]):
        """
        Args:
          engine: of the lanes.
          fields: {sweep: fields of the config that it moves}.

        Raises:
          UserError: a data set has no dev split.
        """
        built, shape = engine.built, engine.shape
        config = built.experiment.config
        settings = options(config)
        self.every, self.unroll = settings["every"], settings["unroll"]
        self._engine, self._fields = engine, dict(fields)
        self._adam = optax.adam(settings["rate"])
        self._dev_rows = dev_batches(built, config.seed)
        dev_source = distributed.place(resident_rows(self._dev_rows), shape.sharding("-"))
        self._sources = Sources(engine.source, dev_source)
        static = Move(built.spec, self._fields, self._adam, self.unroll, engine.constrain)
        function = lane_steps.over_lanes(functools.partial(move, static), "llls-", shape)
        lanes = shape.sharding("l")
        shardings = TunedLane(*engine.lane_shardings(), logs=lanes, moments=lanes)
        self._compiled = jax.jit(function, donate_argnums=0, out_shardings=shardings)

    def init(self, settings: Sequence[int]) -> tuple[dict[str, jax.Array], optax.OptState]:
        """log λ {sweep: [S, L]} and Adam's state, before the first move."""
        engine = self._engine
        initial = [engine.built.settings[i].values for i in padded(settings, engine.shape.lanes)]
        for values in initial:
            if low := [name for name in self._fields if not values[name] > 0]:
                raise UserError(
                    f"config.ablation.sweeps.{low[0]}: the hypergradient moves its logarithm and cannot start from "
                    f"{values[low[0]]:g}"
                )
        logs = {name: np.log(np.asarray([v[name] for v in initial], np.float32)) for name in self._fields}
        logs = jax.tree.map(lambda x: np.broadcast_to(x, (engine.shape.seeds, *x.shape)), logs)
        adam = jax.vmap(jax.vmap(self._adam.init))(jax.tree.map(jnp.asarray, logs))
        return engine.put(logs), engine.put(adam)

    def hyper(self, hyper: Hyperparameters, logs: Mapping[str, jax.Array]) -> Hyperparameters:
        """The hyperparameters [S, L] with the learned values."""
        return _with(hyper, self._fields, jax.tree.map(jnp.exp, logs), tuple(self._engine.built.experiment.tasks))

    def move(
        self, lanes: TunedLane, hyper: Hyperparameters, active: np.ndarray, seeds: Sequence[int], start: int
    ) -> TunedLane:
        """`unroll` steps from `start` on, and a move of log λ after them; leaves [S, L, ...]. `lanes` is donated."""
        engine = self._engine
        by_seed = {seed: draws(self._dev_rows.with_seed(seed), start // self.every, 1, 1) for seed in set(seeds)}
        dev = jax.tree.map(lambda *x: np.stack(x), *(by_seed[s] for s in padded(seeds, engine.shape.seeds)))
        inputs = Inputs(engine.inputs(seeds, start, self.unroll), distributed.place(dev, engine.shape.sharding("s")))
        return self._compiled(lanes, hyper, engine.put(active), inputs, self._sources)


def dev_batches(built: Built, seed: int) -> BatchSampler:
    """Batches over the dev rows, drawn in the same way as those of training.

    Raises:
      UserError: a data set has no dev split.
    """
    experiment = built.experiment
    rows = experiment.corpus.rows
    if missing := [name for name in experiment.corpus.layout.datasets if "dev" not in rows[name]]:
        raise UserError(f"config.ablation.method: the hypergradient reads dev, but data set {missing[0]!r} has none")
    dev = {name: splits["dev"] for name, splits in rows.items()}
    config = experiment.config
    return BatchSampler(dev, experiment.corpus.layout, seed, config.data.rows_per_block, make_mixing(config))


def move(
    static: Move, lane: TunedLane, hyper: Hyperparameters, active: jax.Array, inputs: Inputs, sources: Sources
) -> TunedLane:
    """One lane's last steps, and a move of its log λ by the gradient of the dev loss after them.

    A lane that is not `active` stays as it is; log λ also where the gradient is not finite.
    """
    spec, fields = static.spec, static.fields
    dev_rows = jax.tree.map(lambda leaf: leaf[0, 0], inputs.dev)
    batch = lane_steps.split_rows(gather(sources.dev, spec.objective.layout, *dev_rows), 1)

    def dev_loss(logs):
        moved = _with(hyper, fields, jax.tree.map(jnp.exp, logs), tuple(spec.objective.tasks))

        def step(carry, number):
            batch = lane_steps.batch_at(spec, sources.train, inputs.train, number)
            state, metrics = train_step(spec, carry, batch, moved)
            return static.constrain(state), (metrics["losses"], metrics["present"])

        after, (losses, present) = jax.lax.scan(step, lane.state, jnp.arange(static.unroll, dtype=jnp.int32))
        return _mean_loss(spec, after, batch, moved), (after, losses, present)

    gradient, (after, losses, present) = jax.grad(dev_loss, has_aux=True)(lane.logs)
    finite = jnp.stack([jnp.isfinite(g) for g in jax.tree.leaves(gradient)]).all()
    updates, moments = static.optimizer.update(gradient, lane.moments)
    logs = jax.tree.map(lambda x, u: jnp.clip(x + u, *BOUNDS), lane.logs, updates)
    counted = present & jnp.isfinite(losses)
    summed = lane.losses._replace(
        total=lane.losses.total + jnp.where(counted, losses, 0.0).sum(axis=0),
        count=lane.losses.count + counted.astype(jnp.float32).sum(axis=0),
    )

    def where(condition, new, old):
        return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)

    moves = active & finite
    return TunedLane(
        state=where(active, after, lane.state),
        losses=where(active, summed, lane.losses),
        logs=where(moves, logs, lane.logs),
        moments=where(moves, moments, lane.moments),
    )


def _mean_loss(spec: StepSpec, state: TrainState, batch: Batch, hyper: Hyperparameters) -> jax.Array:
    """The mean over tasks of the dev loss, without dropout."""
    objective = spec.objective._replace(dropout=False, attention_dropout=False, adapter_dropout=False)
    batch = corrupt_for_evaluation(objective, batch)
    total = terms.loss_denominators(objective, batch, hyper)
    losses = terms.loss_contributions(objective, state.params, batch, hyper, None, total)
    present = total > 0
    return jnp.where(present, losses, 0.0).sum() / jnp.maximum(present.sum().astype(jnp.float32), 1.0)


def _with(
    hyper: Hyperparameters,
    fields: Mapping[str, Sequence[str]],
    values: Mapping[str, jax.Array],
    tasks: tuple[str, ...],
) -> Hyperparameters:
    """Hyperparameters with the fields of each sweep set to its value. `tasks`: names on the K axis."""
    for name, value in values.items():
        for field in fields[name]:
            hyper = _set(hyper, field.split("."), value, tasks)
    return hyper


def _set(hyper: Hyperparameters, parts: Sequence[str], value: jax.Array, tasks: tuple[str, ...]) -> Hyperparameters:
    match parts:
        case ["penalties", penalty, "strength"]:
            return hyper._replace(strength={**hyper.strength, penalty: value})
        case ["penalties", penalty, "by_layer", layer]:
            factors = {**hyper.by_layer[penalty], layer: value}
            return hyper._replace(by_layer={**hyper.by_layer, penalty: factors})
        case ["tasks", task, "weight"]:
            return hyper._replace(alpha=hyper.alpha.at[..., tasks.index(task)].set(value))
        case ["loss_weights", "options", option]:
            return hyper._replace(loss_weights={**hyper.loss_weights, option: value})
        case ["distillation", task, "weight"]:
            return hyper._replace(teaching={**hyper.teaching, task: value})
        case ["aggregation", "options", option]:
            return hyper._replace(aggregation={**hyper.aggregation, option: value})
        case ["sharing", "adapter_options", "dropout"]:
            return hyper._replace(adapter_dropout=value)
        case [_, last]:
            return hyper._replace(**{last: value})
