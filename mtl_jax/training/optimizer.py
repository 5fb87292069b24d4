"""The optimizer, built inside the step from traced hyperparameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError
from mtl_jax.training.paths import matching


class Hyper(NamedTuple):
    """Hyperparameters as arguments of the step: float32 scalars that may be traced, so that one program serves all.

    learning_rate, weight_decay, dropout, attention_dropout   scalars
    alpha         {task: α_k}
    strength      {penalty: λ}
    by_layer      {penalty: {layer: factor on λ}}
    proximal      {penalty: bool, whether its proximal operator acts}, of penalties with `way` = "either"
    auxiliary     {name: factor on what mixers and heads add to the losses of the tasks}
    loss_weights  {option of the method: value}, in place of those that it was built with
    aggregation   {option of the method: value}, likewise
    teaching      {task: weight of its teachers in [0, 1]}; inside the step their share, see `objective.at_progress`
    inner_rate    of the inner loop of meta-learning
    tied          bool: columns are replaced by their mean after each update. None: the step has no such code
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    dropout: jax.Array
    attention_dropout: jax.Array
    alpha: Mapping[str, jax.Array]
    strength: Mapping[str, jax.Array]
    by_layer: Mapping[str, Mapping[str, jax.Array]]
    proximal: Mapping[str, jax.Array]
    auxiliary: Mapping[str, jax.Array]
    loss_weights: Mapping[str, jax.Array]
    aggregation: Mapping[str, jax.Array]
    teaching: Mapping[str, jax.Array]
    inner_rate: jax.Array
    tied: jax.Array | None


def hyper_from(config, tasks: tuple[str, ...], auxiliary: Mapping[str, float]) -> Hyper:
    """The values in a config, as float32 scalars. `auxiliary`: factors that hold where the config has none."""

    def scalar(value):
        return jnp.asarray(value, jnp.float32)

    return Hyper(
        learning_rate=scalar(config.optimizer.learning_rate),
        weight_decay=scalar(config.optimizer.weight_decay),
        dropout=scalar(config.model.dropout),
        attention_dropout=scalar(config.model.attention_dropout),
        alpha={name: scalar(config.tasks[name].weight) for name in tasks},
        strength={name: scalar(penalty.strength) for name, penalty in config.penalties.items()},
        by_layer={
            name: {layer: scalar(factor) for layer, factor in penalty.by_layer.items()}
            for name, penalty in config.penalties.items()
        },
        proximal={},
        auxiliary={name: scalar(config.auxiliary.get(name, factor)) for name, factor in auxiliary.items()},
        loss_weights={},
        aggregation={},
        teaching={name: scalar(entry.weight) for name, entry in config.distillation.items() if name in tasks},
        inner_rate=scalar(config.meta.inner_rate),
        tied=jnp.asarray(True) if config.sharing.tied else None,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """What is static about the optimizer; see `configs/default.py` for the fields."""

    name: str
    b1: float
    b2: float
    eps: float
    momentum: float
    warmup_steps: int
    schedule: str
    steps: int

    @property
    def gain(self) -> float:
        """What momentum makes of the learning rate in the long run: proximal operators take t = rate · gain · λ."""
        return 1.0 / (1.0 - self.momentum) if self.name == "sgd" else 1.0

    def rate(self, step: jax.Array) -> jax.Array:
        """Factor on the learning rate at a step, float32 in [0, 1]; the first step of a warm-up is above 0."""
        step = step.astype(jnp.float32)
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        left = jnp.clip((self.steps - step) / max(self.steps - self.warmup_steps, 1), 0.0, 1.0)
        fall = {"linear": left, "cosine": 0.5 * (1.0 - jnp.cos(jnp.pi * left)), "constant": jnp.ones_like(left)}
        return jnp.where(step < self.warmup_steps, jnp.minimum(rise, 1.0), fall[self.schedule])

    def transformation(
        self, hyper: Hyper, step: jax.Array, multipliers: Mapping[str, float], ok: jax.Array | bool = True
    ):
        """The optax transformation of this step. Its state has the same structure at every step.

        Where `ok` is False the state stays as it is, and the updates are of no use.
        """
        if self.name == "adamw":
            direction = _adam(self.b1, self.b2, self.eps, ok)
        else:
            direction = _momentum(self.momentum, ok) if self.momentum else optax.identity()
        rate = hyper.learning_rate * self.rate(step)

        def scale(updates, params):
            return {
                path: -rate * multipliers[path] * (u + hyper.weight_decay * params[path] if decays(path) else u)
                for path, u in updates.items()
            }

        return optax.chain(direction, optax.stateless(scale))


def _adam(b1: float, b2: float, eps: float, ok) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, whose state stays as it is where `ok` is False.

    To choose between the states behind optax would keep the old moments until the parameters are written: three
    copies of all parameters in each step, four times the time of the update. Here they are overwritten in place.
    """
    eps_root = 1e-30  # far below eps, it changes no value; but √v has a derivative where v = 0, for hypergradients

    def update(gradient, state, params=None):
        del params

        def moved(decay, order):
            def of(moment, g):
                return jnp.where(ok, decay * moment + (1.0 - decay) * g**order, moment)

            return of

        count = jnp.where(ok, optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(moved(b1, 1), state.mu, gradient)
        nu = jax.tree.map(moved(b2, 2), state.nu, gradient)
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        times = jnp.maximum(count, 1).astype(jnp.float32)
        first, second = (1.0 - jnp.float32(b) ** times for b in (b1, b2))
        updates = jax.tree.map(lambda m, v: m / first / (jnp.sqrt(v / second + eps_root) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


def _momentum(decay: float, ok) -> optax.GradientTransformation:
    """`optax.trace`, as `_adam`."""

    def update(gradient, state, params=None):
        del params
        trace = jax.tree.map(lambda t, g: jnp.where(ok, g + decay * t, t), state.trace, gradient)
        return trace, optax.TraceState(trace)

    return optax.GradientTransformation(optax.trace(decay).init, update)


def decays(path: str) -> bool:
    """Whether weight decay acts on a leaf: not on biases, layer norms, what a CRF adds, and how a mixer and a
    mixture of layers weigh.
    """
    *parents, last = path.split("/")
    if last.endswith("bias") or last in ("scale", "alpha", "layers"):
        return False
    return not any("norm" in parent for parent in parents)


def multipliers(paths, groups: Mapping) -> dict[str, float]:
    """Factor on the learning rate of each path, from `config.optimizer.groups`; 1 where none matches.

    Raises:
      UserError: a group that matches no path, a path in two groups.
    """
    factors: dict[str, tuple[str, float]] = {}
    for name, group in groups.items():
        matched = matching(paths, [group["leaves"]])
        if not matched:
            raise UserError(
                f"config.optimizer.groups.{name}.leaves: {group['leaves']!r} matches no parameter; "
                f"paths look like {', '.join(sorted(paths)[:3])}"
            )
        for path in matched:
            if path in factors:
                raise UserError(f"config.optimizer.groups: {path} is in {factors[path][0]!r} and in {name!r}")
            factors[path] = (name, float(group["rate"]))
    return {path: factors[path][1] if path in factors else 1.0 for path in paths}
