"""The optimizer, built inside the step from traced hyperparameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.parameter_paths import matching


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """What is static about the optimizer; see `config.sections.Optimizer` for the fields."""

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
        self, hyper: Hyperparameters, step: jax.Array, multipliers: Mapping[str, float], ok: jax.Array | bool = True
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
