"""λ by hypergradient: descent on the dev loss through the last steps of training, for each lane by itself.

Every so many steps the last of them are differentiated: the gradient of the dev loss after them with respect to the
swept hyperparameters (Luketina et al. 2016 with one step; truncated back-propagation of Shaban et al. 2019 with more).
The logarithms of the hyperparameters are moved by Adam. The points of the sweeps are where lanes start.

config.ablation.method = "hypergradient", with the options

    every   steps between two moves (10); divides config.training.steps and eval_every
    unroll  the last steps that are differentiated (5)
    rate    of Adam on log λ: about the largest move (0.2)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.analysis.ablation import lanes as lane_steps
from mtl_jax.analysis.ablation.device_rows import draws, gather, resident_rows
from mtl_jax.analysis.ablation.engine import Engine, filled
from mtl_jax.analysis.ablation.program import Built
from mtl_jax.data.sampler import BatchSampler
from mtl_jax.errors import UserError
from mtl_jax.experiment.inputs import mixing
from mtl_jax.training import objective as terms
from mtl_jax.training.corruption import for_evaluation
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.state import TrainState
from mtl_jax.training.step import train_step

DEFAULTS = {"every": 10, "unroll": 5, "rate": 0.2}
BOUNDS = (-18.0, 18.0)  # of log λ


def options(config: Any) -> dict[str, Any]:
    """The options of a config, with defaults.

    Raises:
      UserError: one that is unknown or out of range.
    """
    given = config.ablation.options.to_dict()
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise UserError(
            f"config.ablation.options: 'hypergradient' has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}"
        )
    found = DEFAULTS | given
    if not 1 <= found["unroll"] <= found["every"] or not found["rate"] > 0:
        raise UserError("config.ablation.options: unroll should be from 1 to every, and rate above 0")
    for field in ("steps", "eval_every"):
        if config.training[field] % found["every"]:
            raise UserError(
                f"config.training.{field}: {config.training[field]} should be a multiple of "
                f"config.ablation.options.every = {found['every']}, so that no move of λ lies across it"
            )
    return found


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
        chosen = options(config)
        self.every, self.unroll = chosen["every"], chosen["unroll"]
        self._engine, self._fields = engine, dict(fields)
        self._adam = optax.adam(chosen["rate"])
        self._dev_rows = dev_batches(built, config.seed)
        self._source = jax.device_put(resident_rows(self._dev_rows), shape.sharding("-"))
        function = functools.partial(move, built.spec, self._fields, self._adam)
        self._compiled = jax.jit(lane_steps.over_lanes(function, "llllllss--", shape), donate_argnums=(0, 1, 2, 3))

    def init(self, settings: Sequence[int]) -> tuple[Any, Any]:
        """log λ {sweep: [S, L]} and Adam's state, before the first move."""
        engine = self._engine
        chosen = [engine.built.settings[i].values for i in filled(settings, engine.shape.lanes)]
        for values in chosen:
            if low := [name for name in self._fields if not values[name] > 0]:
                raise UserError(
                    f"config.ablation.sweeps.{low[0]}: the hypergradient moves its logarithm and cannot start from "
                    f"{values[low[0]]:g}"
                )
        logs = {name: np.log(np.asarray([v[name] for v in chosen], np.float32)) for name in self._fields}
        logs = jax.tree.map(lambda x: np.broadcast_to(x, (engine.shape.seeds, *x.shape)), logs)
        adam = jax.vmap(jax.vmap(self._adam.init))(jax.tree.map(jnp.asarray, logs))
        return engine.put(logs), engine.put(adam)

    def hyper(self, hyper: Hyperparameters, logs: Any) -> Hyperparameters:
        """The hyperparameters [S, L] with the learned values in their places."""
        return _with(hyper, self._fields, jax.tree.map(jnp.exp, logs))

    def move(self, states, losses, logs, adam, hyper, active: np.ndarray, seeds: Sequence[int], start: int):
        """`unroll` steps from `start` on, and a move of log λ after them. All but `hyper` is given away.

        Returns:
          states, losses, logs and adam after them.
        """
        engine = self._engine
        own = engine.draw(seeds, start, self.unroll)
        by_seed = {seed: draws(self._dev_rows.with_seed(seed), start // self.every, 1, 1) for seed in set(seeds)}
        dev = jax.tree.map(lambda *x: np.stack(x), *(by_seed[s] for s in filled(seeds, engine.shape.seeds)))
        dev = jax.device_put(dev, engine.shape.sharding("s"))
        numbers = np.arange(self.unroll, dtype=np.int32)
        sources = (engine.source, self._source)
        return self._compiled(states, losses, logs, adam, hyper, engine.put(active), own, dev, sources, numbers)


def dev_batches(built: Built, seed: int) -> BatchSampler:
    """Batches over the dev rows, drawn as those of training are.

    Raises:
      UserError: a data set has no dev split.
    """
    experiment = built.experiment
    rows = experiment.corpus.rows
    if lacking := [name for name in experiment.corpus.layout.datasets if "dev" not in rows[name]]:
        raise UserError(f"config.ablation.method: the hypergradient reads dev, but data set {lacking[0]!r} has none")
    dev = {name: splits["dev"] for name, splits in rows.items()}
    config = experiment.config
    return BatchSampler(dev, experiment.corpus.layout, seed, config.data.rows_per_block, mixing(config))


def move(spec, fields, optimizer, state, losses, logs, moments, hyper, active, own, dev, sources, numbers):
    """One lane's last steps, and a move of its log λ by the gradient of the dev loss after them.

    Args:
      spec, fields, optimizer: static; of log λ the last two.
      state, losses, logs, moments, hyper, active: of the lane; moments are the state of `optimizer`.
      own, dev: what the steps and the dev loss read, see `Engine.draw`.
      sources: resident rows of train (or None) and of dev.
      numbers: int32 [unroll], 0, 1, ...

    Returns:
      state, losses, logs and moments after them.
    """
    source, dev_source = sources
    held_out = jax.tree.map(lambda leaf: leaf[0, 0], dev)
    batch = gather(dev_source, spec.objective.layout, *held_out)

    def dev_loss(logs):
        moved = _with(hyper, fields, jax.tree.map(jnp.exp, logs))

        def step(carry, number):
            state, metrics = train_step(spec, carry, lane_steps.batch_at(spec, source, own, number), moved)
            return state, (metrics["losses"], metrics["present"])

        after, (found, present) = jax.lax.scan(step, state, numbers)
        return _mean_loss(spec, after, batch, moved), (after, found, present)

    gradient, (after, found, present) = jax.grad(dev_loss, has_aux=True)(logs)
    finite = jnp.stack([jnp.isfinite(g) for g in jax.tree.leaves(gradient)]).all()
    updates, moved_moments = optimizer.update(gradient, moments)
    moved_logs = jax.tree.map(lambda x, u: jnp.clip(x + u, *BOUNDS), logs, updates)
    counted = present & jnp.isfinite(found)
    moved_losses = losses._replace(
        total=losses.total + jnp.where(counted, found, 0.0).sum(axis=0),
        count=losses.count + counted.astype(jnp.float32).sum(axis=0),
    )

    def where(condition, new, old):
        return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)

    moves = active & finite
    return (
        where(active, after, state),
        where(active, moved_losses, losses),
        where(moves, moved_logs, logs),
        where(moves, moved_moments, moments),
    )


def _mean_loss(spec, state: TrainState, batch, hyper):
    """The mean over tasks of the dev loss, without dropout."""
    objective = spec.objective._replace(dropout=False, attention_dropout=False)
    batch = for_evaluation(objective, batch)
    total = terms.counts(objective, batch, hyper)
    losses = terms.loss_contributions(objective, state.params, batch, hyper, None, total)
    present = total > 0
    return jnp.where(present, losses, 0.0).sum() / jnp.maximum(present.sum().astype(jnp.float32), 1.0)


def _with(
    hyper: Hyperparameters, fields: Mapping[str, Sequence[str]], values: Mapping[str, jax.Array]
) -> Hyperparameters:
    """Hyperparameters with the fields of each sweep set to its value."""
    for name, value in values.items():
        for field in fields[name]:
            hyper = _set(hyper, field.split("."), value)
    return hyper


def _set(hyper, parts, value):
    match parts:
        case ["penalties", penalty, "strength"]:
            return hyper._replace(strength={**hyper.strength, penalty: value})
        case ["penalties", penalty, "by_layer", layer]:
            factors = {**hyper.by_layer[penalty], layer: value}
            return hyper._replace(by_layer={**hyper.by_layer, penalty: factors})
        case ["tasks", task, "weight"]:
            return hyper._replace(alpha={**hyper.alpha, task: value})
        case ["loss_weights", "options", option]:
            return hyper._replace(loss_weights={**hyper.loss_weights, option: value})
        case ["distillation", task, "weight"]:
            return hyper._replace(teaching={**hyper.teaching, task: value})
        case ["aggregation", "options", option]:
            return hyper._replace(aggregation={**hyper.aggregation, option: value})
        case [_, last]:
            return hyper._replace(**{last: value})
