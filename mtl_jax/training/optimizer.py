"""The optimizer: those of optax by name, and whatever else is registered here.

    OPTIMIZERS["mine"] = mine   # mine(learning_rate, **options) -> optax.GradientTransformation

An optimizer is built inside the step, from traced hyperparameters. It sees layers [O, ...] as O trees without the owner
axis, and the heads [K_g, ...] of a group of tasks as K_g trees, as if each task was trained alone: what it computes
from a whole tensor (the trust ratio of LAMB, the factors of Adafactor, the orthogonalisation of Muon) never mixes two
tasks.
Layers and heads, and leaves that differ in the number of owners, the learning rate or weight decay, are separate trees:
what an optimizer estimates over a whole tree (the distance of Prodigy) it estimates for each of them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.objective import FlatParams
from mtl_jax.training.optax_functions import option_problem, public_functions, standard_promotion
from mtl_jax.training.parameter_paths import PyTree, matching
from mtl_jax.training.schedules import ScheduleSpec, schedule_problem

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
# arguments of optimizers that are no options: what sets them
_FIELDS = {
    "learning_rate": "config.optimizer.learning_rate",
    "adam_learning_rate": "config.optimizer.learning_rate and config.optimizer.param_groups",
    **dict.fromkeys(("weight_decay", "weight_decay_rate", "adam_weight_decay"), "config.optimizer.weight_decay"),
    **dict.fromkeys(("mask", "weight_decay_mask"), "the path of a parameter (see `decays`)"),
    "muon_weight_dimension_numbers": "the path of a parameter",
}
_DECAYS = ("weight_decay", "adam_weight_decay")
_EPS_ROOT = 1e-30  # changes no value; but √v has a derivative where v = 0, for hypergradients


@functools.wraps(optax.contrib.muon)
def _muon(learning_rate: jax.Array, **options: Any) -> optax.GradientTransformation:
    """`optax.contrib.muon` on the matrices of layers; all else by its Adam (Jordan et al. 2024)."""

    def dimensions(params: PyTree) -> PyTree:
        return {
            path: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
            if path.startswith("layer_") and getattr(leaf, "ndim", 0) > 1  # optax masks leaves that are Adam's
            else None
            for path, leaf in params.items()
        }

    return optax.contrib.muon(learning_rate, muon_weight_dimension_numbers=dimensions, **options)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: make
    for name, make in (
        public_functions(optax.contrib, "learning_rate") | public_functions(optax, "learning_rate")
    ).items()
    if not name.startswith(("scale_by_", "schedule_free_eval")) and name not in UNSUPPORTED
} | {"muon": _muon}

# optimizers whose update of a value depends on zeros elsewhere in its array, or that move a zero without a gradient
_READS_ZEROS = ("adafactor", "galore", "yogi")


def ignores_zeros(name: str) -> bool:
    """Whether zeros that are added to an array change no update of its other values, and stay zeros."""
    return name not in _READS_ZEROS


class _Group(NamedTuple):
    """Leaves of one instance of the optimizer: their owners O, the group of tasks whose heads they are ("" for layers),
    whether they are columns of which only those of present tasks are updated, the factor on the learning rate, whether
    weight decay acts.
    """

    owners: int
    heads: str
    columns: bool
    multiplier: float
    decays: bool

    @property
    def key(self) -> str:
        """Its name in the state of the optimizer."""
        kind = f"heads {self.heads}, " if self.heads else "columns, " * self.columns
        return f"{kind}owners {self.owners}, rate {self.multiplier}{', decay' * self.decays}"


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The static settings of the optimizer: its name and options, the schedule of its learning rate.

    columns  paths of the layers of which each task owns a column, if only what belongs to tasks that are present is
             updated; None: everything is
    """

    name: str
    options: Mapping[str, Any]
    schedule: ScheduleSpec
    columns: frozenset[str] | None = None

    def __post_init__(self):
        """Raises UserError for options that do not fit."""
        schedule = self.schedule
        problem = optimizer_problem(self.name, self.options) or schedule_problem(schedule.name, schedule.options)
        if problem:
            raise UserError(problem)
        if self.name == "rprop" and (schedule.warmup_steps or schedule.name != "constant"):
            raise UserError(
                "config.optimizer.schedule: the learning rate of 'rprop' is the size of its first step, which no "
                "schedule reaches; set config.optimizer.warmup_ratio = 0 and schedule = 'constant'"
            )
        try:
            jax.eval_shape(self._tried)
        except Exception as error:  # whatever an option of the wrong type does inside
            raise UserError(f"config.optimizer.options, schedule_options: {type(error).__name__}: {error}") from None

    def _tried(self) -> optax.Updates:
        """One step with a matrix, a vector and a head."""
        shapes = {"layer_00/kernel": (1, 3, 2), "layer_00/bias": (1, 2), "heads/task/bias": (1, 2)}
        leaves = {path: jnp.ones(shape) for path, shape in shapes.items()}
        one, multipliers = jnp.ones((), jnp.float32), dict.fromkeys(leaves, 1.0)
        optimizer = self._transformation(
            one * self.schedule.rate(jnp.int32(0)), one, multipliers, jnp.asarray(True), {}
        )
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

    def transformation(
        self,
        hyper: Hyperparameters,
        step: jax.Array,
        multipliers: Mapping[str, float],
        ok: jax.Array | bool = True,
        present: Mapping[str, jax.Array] | None = None,
    ) -> optax.GradientTransformation:
        """The optax transformation of this step, over a flat dict. Its state has the same structure at every step.

        Args:
          hyper: has the learning rate and the weight decay.
          step: int32 scalar.
          multipliers: {path: factor on the learning rate}.
          ok: where it is False the state stays as it is, and the updates are 0.
          present: {group of tasks: int32[n] indices of those that are present, K_g for none}, and "" for columns; the
            others keep their state. None: all are.
        """
        rate = hyper.learning_rate * self.schedule.rate(step)
        return self._transformation(rate, hyper.weight_decay, multipliers, ok, present or {})

    def _transformation(
        self,
        rate: jax.Array,
        weight_decay: jax.Array,
        multipliers: Mapping[str, float],
        ok: jax.Array | bool,
        present: Mapping[str, jax.Array],
    ) -> optax.GradientTransformation:
        def optimizer(group: _Group) -> optax.GradientTransformation:
            """Over the trees [O, ...] of a group."""
            decay = weight_decay if group.decays else None
            single = make_optimizer(self.name, self.options, rate * group.multiplier, decay)
            return optax.GradientTransformation(jax.vmap(single.init), jax.vmap(single.update))

        @standard_promotion
        def init(params: FlatParams) -> dict[str, PyTree]:
            groups = _grouped(params, multipliers, self.columns or ())
            return {group.key: optimizer(group).init(_select_paths(params, paths)) for group, paths in groups.items()}

        @standard_promotion
        def move(
            gradient: FlatParams, state: dict[str, PyTree], params: FlatParams
        ) -> tuple[dict[str, jax.Array], dict[str, PyTree]]:
            updates, after = {}, {}
            for group, paths in _grouped(params, multipliers, self.columns or ()).items():
                trees = _select_paths(gradient, paths), state[group.key], _select_paths(params, paths)
                slices = present.get(group.heads) if group.heads or group.columns else None
                moved, after[group.key] = _update_slices(optimizer(group), trees, slices)
                updates |= cast(dict[str, jax.Array], moved)
            return _select_paths(updates, params), after

        def stay(
            gradient: FlatParams, state: dict[str, PyTree], params: FlatParams
        ) -> tuple[dict[str, jax.Array], dict[str, PyTree]]:
            return jax.tree.map(jnp.zeros_like, dict(params)), state

        def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            if ok is True:
                return move(updates, state, params)
            # `where` over two states would hold both until the parameters are written
            return jax.lax.cond(ok, move, stay, updates, state, params)

        return optax.GradientTransformation(init, update)


def _update_slices(
    optimizer: optax.GradientTransformation, trees: tuple[PyTree, PyTree, PyTree], slices: jax.Array | None
) -> tuple[PyTree, PyTree]:
    """(updates, state) of trees [O, ...]: gradient, state and parameters; only of the `slices` int32[n], O for none."""
    if slices is None:
        return optimizer.update(*trees)
    taken = jax.tree.map(lambda leaf: jnp.take(leaf, slices, axis=0, mode="clip"), trees)
    updates, after = optimizer.update(*taken)

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return leaf.at[slices].set(new, mode="drop")  # a task that is there twice has the same values twice

    gradient, state, _ = trees
    return jax.tree.map(lambda leaf, new: put(jnp.zeros_like(leaf), new), gradient, updates), jax.tree.map(
        put, state, after
    )


def make_optimizer(
    name: str, options: Mapping[str, Any], learning_rate: jax.Array, weight_decay: jax.Array | None
) -> optax.GradientTransformation:
    """An optimizer of the registry; `weight_decay` None: without.

    One that has no weight decay itself gets the decoupled one, w ← w − learning_rate · weight_decay · w.
    """
    make = OPTIMIZERS[name]
    parameters = inspect.signature(make).parameters
    arguments = {decay: 0.0 if weight_decay is None else weight_decay for decay in _DECAYS if decay in parameters}
    has_decay = bool(arguments)
    if "eps_root" in parameters and parameters["eps_root"].default == 0.0:
        arguments["eps_root"] = _EPS_ROOT
    optimizer = make(learning_rate=learning_rate, **{**arguments, **options})
    if has_decay or weight_decay is None:
        return optimizer

    def decay(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree.map(lambda u, p: u - learning_rate * weight_decay * p, updates, params)

    return optax.chain(optimizer, optax.stateless(decay))


def optimizer_problem(name: str, options: Mapping[str, Any]) -> str:
    """What is wrong with `config.optimizer.name` and `options`, as a sentence; "" where nothing is."""
    if name in UNSUPPORTED:
        return f"config.optimizer.name: {name!r} of optax cannot train several tasks here: {UNSUPPORTED[name]}"
    return option_problem("config.optimizer.options", name, OPTIMIZERS[name], options, _FIELDS)


def _grouped(params: FlatParams, multipliers: Mapping[str, float], columns: Collection[str]) -> dict[_Group, list[str]]:
    groups: dict[_Group, list[str]] = {}
    for path, leaf in params.items():
        layer, name, *_ = path.split("/")
        heads = name if layer == "heads" else ""
        groups.setdefault(_Group(leaf.shape[0], heads, layer in columns, multipliers[path], decays(path)), []).append(
            path
        )
    return groups


def _select_paths(flat: FlatParams, paths: Iterable[str]) -> dict[str, jax.Array]:
    return {path: flat[path] for path in paths}


def decays(path: str) -> bool:
    """Whether weight decay acts on a leaf: not on biases, layer norms, transitions of a CRF, and the weights of mixers
    and of mixtures of layers.
    """
    *parents, last = path.split("/")
    if last.endswith(("bias", "scale")) or last in ("alpha", "layers"):
        return False
    return not any("norm" in parent for parent in parents)


def multipliers(paths: Iterable[str], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Factor on the learning rate of each path, from `config.optimizer.param_groups`; 1 where none matches.

    Raises:
      UserError: a group that matches no path, a path in two groups.
    """
    factors: dict[str, tuple[str, float]] = {}
    for name, group in groups.items():
        matched = matching(paths, [group["params"]])
        if not matched:
            raise UserError(
                f"config.optimizer.param_groups.{name}.params: {group['params']!r} matches no parameter; "
                f"paths look like {', '.join(sorted(paths)[:3])}"
            )
        for path in matched:
            if path in factors:
                raise UserError(f"config.optimizer.param_groups: {path} is in {factors[path][0]!r} and in {name!r}")
            factors[path] = (name, float(group["lr_multiplier"]))
    return {path: factors[path][1] if path in factors else 1.0 for path in paths}
