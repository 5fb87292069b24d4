"""The optimizer and the schedule of its learning rate: those of optax by name, and whatever else is registered here.

    OPTIMIZERS["mine"] = mine   # mine(learning_rate, **options) -> optax.GradientTransformation
    SCHEDULES["mine"] = mine    # mine(**options) -> (step: int32 scalar) -> factor on the learning rate

An optimizer is built inside the step, from traced hyperparameters. It sees layers [O, ...] as O trees without the owner
axis, as if each task was trained alone: what it computes from a whole tensor (the trust ratio of LAMB, the factors of
Adafactor, the orthogonalisation of Muon) never mixes the columns of two tasks. Leaves that differ in the number of
owners, the learning rate or weight decay are separate trees: what an optimizer estimates over a whole tree (the
distance of Prodigy) it estimates for each of them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.parameter_paths import matching

# why some optimizers of optax cannot train several tasks by a gradient
UNSUPPORTED = {
    "lbfgs": "its line search evaluates the loss at further parameters, and a step has one batch of gradients",
    "momo": "its step size comes from the value of the loss whose gradient it follows, and a combination of the "
    "gradients of several tasks is the gradient of no such loss",
    "dpsgd": "it clips the gradient of each example, and a step has the gradient of a batch",
    "noisy_sgd": "it draws from one key, so that the columns of all tasks would get the same noise",
    "sophia": "it estimates the Hessian from further evaluations of the loss",
    "schedule_free": "its scores are those of an average that it alone knows, and here the parameters that are trained "
    "are scored",
}
UNSUPPORTED |= {
    alias: UNSUPPORTED[name]
    for alias, name in (
        ("momo_adam", "momo"),
        ("schedule_free_adamw", "schedule_free"),
        ("schedule_free_sgd", "schedule_free"),
    )
}
# arguments of optimizers that have fields of their own, for which the config is asked first
_FIELDS = {
    "learning_rate": "config.optimizer.learning_rate",
    "adam_learning_rate": "config.optimizer.learning_rate and config.optimizer.param_groups",
    **dict.fromkeys(("weight_decay", "weight_decay_rate", "adam_weight_decay"), "config.optimizer.weight_decay"),
    **dict.fromkeys(("mask", "weight_decay_mask"), "the path of a parameter (see `decays`)"),
    "muon_weight_dimension_numbers": "the path of a parameter",
}
_DECAYS = ("weight_decay", "adam_weight_decay")
_KNOWN = ("value", "peak_value", "init_value", "decay_steps", "transition_steps", "warmup_steps")  # of schedules
_EPS_ROOT = 1e-30  # changes no value; but √v has a derivative where v = 0, for hypergradients


def _functions(module: ModuleType, argument: str = "") -> dict[str, Callable[..., Any]]:
    """The public functions of a module that have an argument of this name."""
    public = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and not name.startswith("_")}
    return {name: f for name, f in public.items() if not argument or argument in inspect.signature(f).parameters}


@functools.wraps(optax.contrib.muon)
def _muon(learning_rate: jax.Array, **options: Any) -> optax.GradientTransformation:
    """`optax.contrib.muon` on the matrices of layers; all else by its Adam (Jordan et al. 2024)."""

    def dimensions(params: FlatParams) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
        return {
            path: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
            if path.startswith("layer_") and getattr(leaf, "ndim", 0) > 1  # optax masks leaves that are Adam's
            else None
            for path, leaf in params.items()
        }

    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=dimensions, **options)


def _linear(decay_steps: int) -> optax.Schedule:
    """From 1 to 0 over the steps."""
    return lambda step: jnp.clip((decay_steps - step.astype(jnp.float32)) / max(decay_steps, 1), 0.0, 1.0)


def _cosine(decay_steps: int) -> optax.Schedule:
    """From 1 to 0 over the steps, by half a cosine."""
    linear = _linear(decay_steps)
    return lambda step: 0.5 * (1.0 - jnp.cos(jnp.pi * linear(step)))


def _constant() -> optax.Schedule:
    return lambda step: jnp.ones((), jnp.float32)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: make
    for name, make in (_functions(optax.contrib, "learning_rate") | _functions(optax, "learning_rate")).items()
    if not name.startswith(("scale_by_", "schedule_free_eval")) and name not in UNSUPPORTED
} | {"muon": _muon}

SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    name: make
    for name, make in _functions(optax.schedules).items()
    if not name.startswith(("inject_", "join_"))  # of functions, which no config holds
} | {"linear": _linear, "cosine": _cosine, "constant": _constant}


def _standard_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """For the code of optax, which multiplies floats by integer counts, whatever the promotion of the caller."""

    @functools.wraps(function)
    def promoted(*arguments):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return promoted


class _Group(NamedTuple):
    """Leaves that one instance of the optimizer moves: owners O of the leading axis, 0 of heads, which have none."""

    owners: int
    multiplier: float
    decays: bool

    @property
    def key(self) -> str:
        """In the state of the optimizer."""
        return f"owners {self.owners}, rate {self.multiplier}{', decay' * self.decays}"


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """What is static about the optimizer; see the fields of `config.optimizer`.

    warmup_steps  of a linear rise of the learning rate, or of a schedule that has `warmup_steps` itself
    steps         of the run
    """

    name: str
    options: Mapping[str, Any]
    warmup_steps: int
    schedule: str
    schedule_options: Mapping[str, Any]
    steps: int

    def __post_init__(self):
        """Raises UserError for options that do not fit."""
        if problem := optimizer_problem(self.name, self.options) or schedule_problem(
            self.schedule, self.schedule_options
        ):
            raise UserError(problem)
        if self.name == "rprop" and (self.warmup_steps or self.schedule != "constant"):
            raise UserError(
                "config.optimizer.schedule: the learning rate of 'rprop' is the size of its first step, which no "
                "schedule reaches; set config.optimizer.warmup_ratio = 0 and schedule = 'constant'"
            )
        try:
            jax.eval_shape(self._tried)
        except Exception as error:  # whatever an option of the wrong type does inside
            raise UserError(f"config.optimizer.options, schedule_options: {type(error).__name__}: {error}") from None

    def _tried(self):
        """One step of everything, on shapes."""
        shapes = {"layer_00/kernel": (1, 3, 2), "layer_00/bias": (1, 2), "heads/task/bias": (2,)}
        leaves = {path: jnp.ones(shape) for path, shape in shapes.items()}
        one, multipliers = jnp.ones((), jnp.float32), dict.fromkeys(leaves, 1.0)
        optimizer = self._transformation(one * self.rate(jnp.int32(0)), one, multipliers, jnp.asarray(True))
        updates, _ = optimizer.update(leaves, optimizer.init(leaves), leaves)
        if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, leaves):
            raise ValueError(f"updates of {self.name!r} have other shapes than the parameters")
        return updates

    def option(self, name: str) -> Any:
        """The value of an option of the optimizer, given or its default."""
        return self.options.get(name, inspect.signature(OPTIMIZERS[self.name]).parameters[name].default)

    @property
    def gain(self) -> float:
        """What momentum makes of the learning rate in the long run: proximal operators take t = rate · gain · λ."""
        return 1.0 / (1.0 - (self.option("momentum") or 0.0)) if self.name == "sgd" else 1.0

    @_standard_promotion
    def rate(self, step: jax.Array) -> jax.Array:
        """Factor on the learning rate at a step, float32 scalar; the first step of a linear warm-up is above 0."""
        make = SCHEDULES[self.schedule]
        parameters = inspect.signature(make).parameters
        if "warmup_steps" in parameters:
            return jnp.asarray(make(**self._schedule_arguments(parameters, self.steps))(step), jnp.float32)
        schedule = make(**self._schedule_arguments(parameters, max(self.steps - self.warmup_steps, 1)))
        rise = (step.astype(jnp.float32) + 1.0) / max(self.warmup_steps, 1)
        after = jnp.asarray(schedule(jnp.maximum(step - self.warmup_steps, 0)), jnp.float32)
        return jnp.where(step < self.warmup_steps, jnp.minimum(rise, 1.0), after)

    def _schedule_arguments(self, parameters: Iterable[str], steps: int) -> dict[str, Any]:
        """What the run knows, and what the config has in its place. Values are factors on the learning rate."""
        known = {
            "value": 1.0,
            "peak_value": 1.0,
            "init_value": 0.0 if "peak_value" in parameters else 1.0,
            "decay_steps": steps,
            "transition_steps": steps,
            "warmup_steps": self.warmup_steps,
        }
        options = {  # keys of a config are strings, those of optax are steps
            name: {int(step): scale for step, scale in value.items()} if isinstance(value, Mapping) else value
            for name, value in self.schedule_options.items()
        }
        return {name: value for name, value in known.items() if name in parameters} | options

    def transformation(
        self, hyper: Hyperparameters, step: jax.Array, multipliers: Mapping[str, float], ok: jax.Array | bool = True
    ) -> optax.GradientTransformation:
        """The optax transformation of this step, over a flat dict. Its state has the same structure at every step.

        Args:
          hyper: has the learning rate and the weight decay.
          step: int32 scalar.
          multipliers: {path: factor on the learning rate}.
          ok: where it is False the state stays as it is, and the updates are 0.
        """
        return self._transformation(hyper.learning_rate * self.rate(step), hyper.weight_decay, multipliers, ok)

    def _transformation(self, rate, weight_decay, multipliers, ok) -> optax.GradientTransformation:
        def optimizer(group: _Group) -> optax.GradientTransformation:
            """Over the trees [O, ...] of a group."""
            decay = weight_decay if group.decays else None
            single = make_optimizer(self.name, self.options, rate * group.multiplier, decay)
            if not group.owners:
                return single
            return optax.GradientTransformation(jax.vmap(single.init), jax.vmap(single.update))

        @_standard_promotion
        def init(params: FlatParams) -> dict[str, Any]:
            groups = _grouped(params, multipliers)
            return {group.key: optimizer(group).init(_of(params, paths)) for group, paths in groups.items()}

        @_standard_promotion
        def move(
            gradient: FlatParams, state: dict[str, Any], params: FlatParams
        ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
            updates, after = {}, {}
            for group, paths in _grouped(params, multipliers).items():
                trees = _of(gradient, paths), state[group.key], _of(params, paths)
                moved, after[group.key] = optimizer(group).update(*trees)
                updates |= moved
            return _of(updates, params), after

        def stay(
            gradient: FlatParams, state: dict[str, Any], params: FlatParams
        ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
            return jax.tree.map(jnp.zeros_like, dict(params)), state

        def update(
            gradient: FlatParams, state: dict[str, Any], params: FlatParams
        ) -> tuple[FlatParams, dict[str, Any]]:
            if ok is True:
                return move(gradient, state, params)
            # `where` over two states would hold both until the parameters are written
            return jax.lax.cond(ok, move, stay, gradient, state, params)

        return optax.GradientTransformation(init, update)


def make_optimizer(
    name: str, options: Mapping[str, Any], learning_rate: jax.Array, weight_decay: jax.Array | None
) -> optax.GradientTransformation:
    """An optimizer of the registry; `weight_decay` None: without.

    One that has no weight decay itself gets the decoupled one, w ← w − learning_rate · weight_decay · w.
    """
    make = OPTIMIZERS[name]
    parameters = inspect.signature(make).parameters
    arguments = {decay: 0.0 if weight_decay is None else weight_decay for decay in _DECAYS if decay in parameters}
    decayed = bool(arguments) or weight_decay is None
    if "eps_root" in parameters and parameters["eps_root"].default == 0.0:
        arguments["eps_root"] = _EPS_ROOT
    optimizer = make(learning_rate=learning_rate, **{**arguments, **options})
    if decayed:
        return optimizer

    def decay(updates: FlatParams, params: FlatParams) -> FlatParams:
        return jax.tree.map(lambda u, p: u - learning_rate * weight_decay * p, updates, params)

    return optax.chain(optimizer, optax.stateless(decay))


def optimizer_problem(name: str, options: Mapping[str, Any]) -> str:
    """What is wrong with `config.optimizer.name` and `options`, as a sentence; "" where nothing is."""
    if name in UNSUPPORTED:
        return f"config.optimizer.name: {name!r} of optax cannot train several tasks here: {UNSUPPORTED[name]}"
    return _option_problem("config.optimizer.options", name, OPTIMIZERS[name], options, _FIELDS)


def schedule_problem(name: str, options: Mapping[str, Any]) -> str:
    """What is wrong with `config.optimizer.schedule` and `schedule_options`; "" where nothing is."""
    return _option_problem("config.optimizer.schedule_options", name, SCHEDULES[name], options, {}, _KNOWN)


def _option_problem(
    field: str,
    name: str,
    make: Callable[..., Any],
    options: Mapping[str, Any],
    fields: Mapping[str, str],
    known: Iterable[str] = (),
) -> str:
    """Options against a signature. `fields`: arguments set elsewhere; `known`: those that need not be given."""
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name not in fields
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(make).parameters.values())
    for option in options:
        if option in fields:
            return f"{field}.{option}: it follows {fields[option]}; set that instead"
        if option not in parameters and not takes_any:
            return f"{field}.{option}: {name!r} has no such option; it has {', '.join(parameters) or 'none'}"
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in known]
    if missing := [option for option in required if option not in options]:
        return f"{field}: {name!r} needs {' and '.join(map(repr, missing))}"
    return ""


def _grouped(params: FlatParams, multipliers: Mapping[str, float]) -> dict[_Group, list[str]]:
    groups: dict[_Group, list[str]] = {}
    for path, leaf in params.items():
        owners = 0 if path.startswith("heads/") else leaf.shape[0]
        groups.setdefault(_Group(owners, multipliers[path], decays(path)), []).append(path)
    return groups


def _of(flat: FlatParams, paths: Iterable[str]) -> dict[str, jax.Array]:
    return {path: flat[path] for path in paths}


def decays(path: str) -> bool:
    """Whether weight decay acts on a leaf: not on biases, layer norms, transitions of a CRF, and the weights of mixers
    and of mixtures of layers.
    """
    *parents, last = path.split("/")
    if last.endswith("bias") or last in ("scale", "alpha", "layers"):
        return False
    return not any("norm" in parent for parent in parents)


def multipliers(paths, groups: Mapping) -> dict[str, float]:
    """Factor on the learning rate of each path, from `config.optimizer.param_groups`; 1 where none matches.

    Raises:
      UserError: a group that matches no path, a path in two groups.
    """
    factors: dict[str, tuple[str, float]] = {}
    for name, group in groups.items():
        matched = matching(paths, [group["params"]])
        if not matched:
            raise UserError(
                f"config.optimizer.param_groups.{name}.params: {group['params']!r} matches no parameter; paths look "
                f"like {', '.join(sorted(paths)[:3])}"
            )
        for path in matched:
            if path in factors:
                raise UserError(f"config.optimizer.param_groups: {path} is in {factors[path][0]!r} and in {name!r}")
            factors[path] = (name, float(group["lr_multiplier"]))
    return {path: factors[path][1] if path in factors else 1.0 for path in paths}
