"""The train step: pure, and the same under jit on a mesh, pmap, vmap over lanes and scan over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mtl_jax.balancing.combination import Aggregation
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.data.batch import Batch
from mtl_jax.training import clipping, penalty_effect
from mtl_jax.training import objective as terms
from mtl_jax.training.collectives import psum
from mtl_jax.training.corruption import corrupted
from mtl_jax.training.gradients import aggregated, meta_learning
from mtl_jax.training.gradients.meta_learning import MetaSpec
from mtl_jax.training.gradients.per_task import Shared
from mtl_jax.training.hyperparameters import Hyper
from mtl_jax.training.loss_weighting import mean_losses, told
from mtl_jax.training.objective import Objective
from mtl_jax.training.optimizer import OptimizerSpec
from mtl_jax.training.parameter_paths import flatten, with_leaves


class Balance(NamedTuple):
    """What balancing carries from step to step.

    loss_weights, aggregation   states of the methods; () without an aggregation
    losses_after  float32[K], losses of the last batch after its update, where the loss weights need them, else None
    scores        float32[K], last scores on dev, NaN before the first, where the loss weights need them, else None
    """

    loss_weights: Any
    aggregation: Any
    losses_after: jax.Array | None
    scores: jax.Array | None


class TrainState(NamedTuple):
    """All that a run carries from step to step; all of it is in the checkpoint.

    step       int32 scalar, the number of the next step
    params     {path of layer: leaves [O, ...], "heads": {task: leaves}}, float32
    opt_state  of optax, over the flat dict of trained leaves
    balance    states of the loss weights and of the aggregation
    anchor     flat dict of the initial values, for penalties that draw towards them; empty where there are none
    key        raw key data uint32 [2] of the run
    skipped    int32 [K + 1], steps left out because of a task's loss or gradient; the last: of shared parameters
    left_out   int32 scalar, steps left out for whatever reason
    bad_steps  int32 scalar, steps left out in a row
    """

    step: jax.Array
    params: Any
    opt_state: Any
    balance: Balance
    anchor: Mapping[str, jax.Array]
    key: jax.Array
    skipped: jax.Array
    left_out: jax.Array
    bad_steps: jax.Array


class StepSpec(NamedTuple):
    """What is static about the step.

    loss_weights  (**traced options) -> the method
    aggregation   (**traced options) -> the method; None: the plain sum, in one joint pass
    shared       what several tasks share, where their gradients are told apart; else None
    meta         of meta-learning; None: one pass over all examples
    slices       {path: owner group of each slice}, see `owners.slice_owners`
    multipliers  {path: factor on the learning rate} of the trained paths; others are frozen
    clip         largest gradient norm by owner, 0 = off
    max_bad_steps  after so many non-finite steps in a row the state stays as it is
    """

    objective: Objective
    loss_weights: Callable[..., LossWeights]
    aggregation: Callable[..., Aggregation] | None
    shared: Shared | None
    meta: MetaSpec | None
    optimizer: OptimizerSpec
    slices: Mapping[str, tuple[int, ...]]
    multipliers: Mapping[str, float]
    clip: float
    max_bad_steps: int


def init_state(spec: StepSpec, params: Any, hyper: Hyper, key: jax.Array, needs_anchor: bool) -> TrainState:
    """The state before the first step."""
    trained = _trained(spec, flatten(params))
    step = jnp.zeros((), jnp.int32)
    tasks = len(spec.objective.tasks)
    return TrainState(
        step=step,
        params=params,
        opt_state=spec.optimizer.transformation(hyper, step, spec.multipliers).init(trained),
        balance=_first_balance(spec, trained, tasks),
        anchor={path: jnp.copy(leaf) for path, leaf in flatten(params).items() if not path.startswith("heads/")}
        if needs_anchor
        else {},
        key=jax.random.key_data(key),
        skipped=jnp.zeros((tasks + 1,), jnp.int32),
        left_out=jnp.zeros((), jnp.int32),
        bad_steps=jnp.zeros((), jnp.int32),
    )


def _first_balance(spec: StepSpec, trained, tasks: int) -> Balance:
    method = spec.loss_weights()
    shared = {path: trained[path] for path in spec.shared.owners} if spec.shared else {}
    return Balance(
        loss_weights=method.init(tasks, shared) if "gradients" in method.needs else method.init(tasks),
        aggregation=spec.aggregation().init(tasks, shared) if spec.aggregation else (),
        losses_after=jnp.ones((tasks,), jnp.float32) if "losses_after" in method.needs else None,
        scores=jnp.full((tasks,), jnp.nan, jnp.float32) if "scores" in method.needs else None,
    )


def train_step(spec: StepSpec, state: TrainState, batch: Batch, hyper: Hyper, axis: str | None = None):
    """One optimizer step.

    Args:
      spec: static.
      state: before the step.
      batch: leaves `[A, B, R, ...]`: A micro-batches.
      hyper: traced hyperparameters.
      axis: name of the device axis under pmap, where R is this device's share of the rows.

    Returns:
      the state after it, and metrics: losses [K], alpha [K], penalty {name: Ω}, strength {name: λ}, total,
      gradient_norm [K + 1], learning_rate, skipped [K + 1], bad_steps, present [K], penalty_ratio and column_distance
      {name: see `penalty_effect`}; with an aggregation also `balanced`, see `balanced.data_gradient`; with auxiliary
      losses `auxiliary` {name: value}; with teachers `teaching` {task: their share}; besides what
      `meta.data_gradient` tells.
    """
    objective, tasks = spec.objective, len(spec.objective.tasks)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    flat = flatten(state.params)
    trained = _trained(spec, flat)
    progress = state.step.astype(jnp.float32) / spec.optimizer.steps
    hyper = terms.at_progress(objective, hyper, progress)
    batch = jax.vmap(lambda micro: corrupted(objective, micro, key))(batch)

    total_weight = psum(jax.vmap(lambda micro: terms.counts(objective, micro, hyper))(batch).sum(axis=0), axis)
    find = aggregated.data_gradient if spec.shared else meta_learning.data_gradient if spec.meta else _data_gradient
    losses, alpha, extra, balance, gradient, told_besides = find(
        spec, state, trained, flat, batch, hyper, key, total_weight, axis
    )
    chex.assert_shape([losses, alpha, extra], [(tasks,), (tasks,), ()])
    chex.assert_trees_all_equal_shapes(gradient, trained)

    strength = terms.strengths(objective, hyper, progress)

    penalties, gradient, ratios = _penalised(objective, state, flat, trained, gradient, hyper, strength)
    gradient, norms = clipping.clip(gradient, spec.slices, tasks, spec.clip)

    rate = hyper.learning_rate * spec.optimizer.rate(state.step)
    reach = norms * jnp.maximum(rate * spec.optimizer.gain, 1.0)  # a step of this length must not overflow
    bad = ~jnp.isfinite(reach) | jnp.append(~jnp.isfinite(losses), False)
    ok = ~bad.any() & (state.bad_steps < spec.max_bad_steps)
    optimizer = spec.optimizer.transformation(hyper, state.step, spec.multipliers, ok)
    updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
    for name, penalty in objective.penalties.items():
        if penalty.way != "gradient":
            t = rate * spec.optimizer.gain * strength[name]
            arguments = (updates, trained, state.anchor, hyper.by_layer[name], t)
            acts = hyper.proximal[name] if penalty.way == "either" else True
            entering, updates = updates, _if(acts, penalty.proximal, lambda updates, *_: dict(updates), *arguments)
            paths = [path for path in penalty.stacks(flat) if path in trained]
            moved = penalty_effect.norm(updates[path] - entering[path] for path in paths)
            of_operator = penalty_effect.ratio(moved, penalty_effect.norm(entering[path] for path in paths))
            ratios[name] = jnp.where(acts, of_operator, ratios.get(name, 0.0))
    chex.assert_trees_all_equal_shapes(updates, trained)
    after = optax.apply_updates(trained, updates)
    if hyper.tied is not None:
        after = _if(hyper.tied, _tie, dict, after)

    if balance.losses_after is not None:
        params = with_leaves(state.params, {**flat, **after})
        balance = balance._replace(losses_after=mean_losses(objective, params, batch, hyper, key, total_weight, axis))

    new = TrainState(
        step=state.step + 1,
        params=_where(ok, with_leaves(state.params, {**flat, **after}), state.params),
        opt_state=opt_state,
        balance=_where(ok, balance, state.balance),
        anchor=state.anchor,
        key=state.key,
        skipped=state.skipped + bad.astype(jnp.int32),
        left_out=state.left_out + (~ok).astype(jnp.int32),
        bad_steps=jnp.where(ok, 0, state.bad_steps + 1),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new.params, state.params)
    present = told_besides.get("present", total_weight > 0)
    total = jnp.dot(alpha, jnp.where(present, losses, 0.0)) + extra
    total = total + sum((strength[name] * value for name, value in penalties.items()), jnp.float32(0.0))
    metrics = {
        "losses": losses, "alpha": alpha, "penalty": penalties, "strength": strength, "total": total,
        "gradient_norm": norms, "learning_rate": rate, "skipped": new.skipped, "bad_steps": new.bad_steps,
        "present": present, "penalty_ratio": ratios,
        "column_distance": {n: penalty_effect.column_distance(p.stacks(flat)) for n, p in objective.penalties.items()},
    }  # fmt: skip
    if objective.teaching:
        metrics["teaching"] = hyper.teaching
    return new, metrics | told_besides


def _data_gradient(spec, state, trained, flat, batch, hyper, key, total, axis):
    """The K losses of the whole step, their weights α, and the gradient of Σ α_k·L_k and the auxiliary losses."""
    objective, method = spec.objective, spec.loss_weights(**hyper.loss_weights)
    micro_batches, present = batch.tokens.shape[0], total > 0
    factors = jnp.stack([hyper.alpha[name] for name in objective.tasks])
    names = objective.auxiliary
    of_auxiliary = jnp.stack([hyper.auxiliary[name] for name in names]) if names else jnp.zeros((0,))
    progress = state.step.astype(jnp.float32) / spec.optimizer.steps
    texts = jax.vmap(lambda micro: terms.auxiliary_counts(objective, micro))(batch).sum(axis=0)
    totals = terms.Totals(total, psum(texts, axis))

    def shares(trained, micro):
        params = with_leaves(state.params, {**flat, **trained})
        return terms.shares(objective, params, micro, hyper, key, totals, progress)

    def weigh(losses):
        before = state.balance
        signals = told(objective, method.needs, before, state.params, batch, hyper, key, axis, losses, present)
        alpha, extra, after = method.update(signals, before.loss_weights)
        chex.assert_equal_shape([alpha, losses])  # one number for all tasks would broadcast
        return alpha * factors, extra, before._replace(loss_weights=after)

    def results(found, weighed, gradient):
        losses, auxiliary = psum(found, axis)
        alpha, extra, balance = weighed
        besides = {"auxiliary": dict(zip(names, auxiliary, strict=True))} if names else {}
        return losses, alpha, extra + jnp.dot(of_auxiliary, auxiliary), balance, psum(gradient, axis), besides

    if micro_batches == 1:
        found, pullback = jax.vjp(lambda t: shares(t, jax.tree.map(lambda a: a[0], batch)), trained)
        weighed = weigh(psum(found[0], axis))
        (gradient,) = pullback((jnp.where(present, weighed[0], 0.0), of_auxiliary))
        return results(found, weighed, gradient)

    # α may depend on the losses of the whole step, so these are known first where the method asks for them
    known = jnp.zeros_like(total)
    if method.needs_losses:
        known = mean_losses(objective, state.params, batch, hyper, key, total, axis)
    weighed = weigh(known)

    def add(carry, micro):
        found, pullback = jax.vjp(lambda t: shares(t, micro), trained)
        (gradient,) = pullback((jnp.where(present, weighed[0], 0.0), of_auxiliary))
        return jax.tree.map(jnp.add, carry, (found, gradient)), None

    zero = ((jnp.zeros_like(total), jnp.zeros_like(of_auxiliary)), jax.tree.map(jnp.zeros_like, trained))
    (found, gradient), _ = jax.lax.scan(add, zero, batch)
    return results(found, weighed, gradient)


def _penalised(objective, state, flat, trained, gradient, hyper, strength):
    """{penalty: Ω}, the gradient with those that act by gradient, and {penalty: penalty_ratio} of these."""
    data, values, ratios = gradient, {}, {}
    for name, penalty in objective.penalties.items():

        def value(trained, name=name, penalty=penalty):
            return penalty.value({**flat, **trained}, state.anchor, hyper.by_layer[name])

        if penalty.way == "proximal":
            values[name] = value(trained)
            continue
        factor = strength[name]
        if penalty.way == "either":
            factor = jnp.where(hyper.proximal[name], 0.0, factor)
        values[name], own = jax.value_and_grad(value)(trained)
        own = jax.tree.map(lambda leaf, factor=factor: factor.astype(leaf.dtype) * leaf, own)
        paths = [path for path in penalty.stacks(flat) if path in trained]
        norms = (penalty_effect.norm(tree[path] for path in paths) for tree in (own, data))
        ratios[name] = penalty_effect.ratio(*norms)
        gradient = jax.tree.map(jnp.add, gradient, own)
    return values, gradient, ratios


def _trained(spec: StepSpec, flat):
    return {path: flat[path] for path in spec.multipliers}


def _tie(flat):
    return {
        path: leaf if path.startswith("heads/") else jnp.broadcast_to(leaf.mean(axis=0, keepdims=True), leaf.shape)
        for path, leaf in flat.items()
    }


def _if(condition, then, otherwise, *arguments):
    """`jax.lax.cond`, without the branch where the condition is known."""
    return then(*arguments) if condition is True else jax.lax.cond(condition, then, otherwise, *arguments)


def _where(ok, new, old):
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
