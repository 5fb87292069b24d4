"""The train step: pure, and the same under jit on a mesh, pmap, vmap over lanes and scan over steps."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from mtl_jax.data.batch import Batch
from mtl_jax.training import objective as terms
from mtl_jax.training import penalty_effect
from mtl_jax.training.clipping import clip
from mtl_jax.training.collectives import psum
from mtl_jax.training.gradients.base import DataStep, StepInputs
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.loss_weighting import mean_losses
from mtl_jax.training.parameter_paths import PyTree, flatten, with_leaves
from mtl_jax.training.penalty import PenaltyStep, penalty_gradient
from mtl_jax.training.state import StepSpec, TrainState, trained_leaves
from mtl_jax.training.token_corruption import corrupt_batch
from mtl_jax.training.update import Update, update


def train_step(
    spec: StepSpec, state: TrainState, batch: Batch, hyper: Hyperparameters, axis: str | None = None
) -> tuple[TrainState, dict[str, PyTree]]:
    """One optimizer step on Σ_k α_k·L_k + λ·Ω.

    Args:
      spec: static.
      state: before the step.
      batch: leaves `[A, B, R, ...]`: A micro-batches.
      hyper: traced hyperparameters.
      axis: name of the device axis under pmap, where R is this device's share of the rows.

    Returns:
      the state after it, and metrics: losses [K], alpha [K], penalty {name: Ω}, strength {name: λ}, total,
      gradient_norm [K + 1], learning_rate, skipped [K + 1], bad_steps, present [K], penalty_ratio and column_distance
      {name: see `penalty_effect`}; with teachers `teaching` {task: their weight}; and those of the data gradient, see
      `training/gradients/`.
    """
    inputs = _inputs(spec, state, batch, hyper, axis)
    data = spec.data_gradient.update(inputs)
    chex.assert_shape([data.losses, data.alpha, data.extra], [(len(spec.objective.tasks),)] * 2 + [()])
    chex.assert_trees_all_equal_shapes(data.gradient, inputs.trained)
    penalty = penalty_gradient(inputs, data.gradient)
    gradient = spec.without_frozen(jax.tree.map(jnp.add, data.gradient, penalty.gradient))
    gradient, norms = clip(gradient, spec.slices, len(spec.objective.tasks), spec.clip_norm)
    after = update(
        spec,
        inputs,
        state.opt_state,
        gradient,
        penalty.strengths,
        norms=norms,
        losses=data.losses,
        bad_steps=state.bad_steps,
    )
    new = _next_state(state, inputs, data, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(new.params, state.params)
    return new, _metrics(inputs, data, penalty, after, new) | {"gradient_norm": norms}


def _inputs(spec: StepSpec, state: TrainState, batch: Batch, hyper: Hyperparameters, axis: str | None) -> StepInputs:
    objective, flat = spec.objective, flatten(state.params)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    progress = state.step.astype(jnp.float32) / spec.optimizer.schedule.steps
    hyper = terms.hyper_at_progress(objective, hyper, progress)
    batch = jax.vmap(lambda micro: corrupt_batch(objective, micro, key))(batch)
    counts = jax.vmap(lambda micro: terms.loss_denominators(objective, micro, hyper))(batch).sum(axis=0)
    return StepInputs(
        objective=objective,
        params=state.params,
        flat=flat,
        trained=trained_leaves(spec, flat),
        anchor=state.anchor,
        balance=state.balance,
        batch=batch,
        hyper=hyper,
        key=key,
        step=state.step,
        progress=progress,
        total=psum(counts, axis),
        axis=axis,
    )


def _next_state(state: TrainState, inputs: StepInputs, data: DataStep, after: Update) -> TrainState:
    """The state after the step; parameters and balance are unchanged where the step does not count."""
    params, balance = with_leaves(state.params, {**inputs.flat, **after.trained}), data.balance
    if balance.losses_after is not None:
        balance = balance._replace(losses_after=mean_losses(inputs, params))

    def where_ok(new, old):
        return jax.tree.map(lambda a, b: jnp.where(after.ok, a, b), new, old)

    return TrainState(
        step=state.step + 1,
        params=where_ok(params, state.params),
        opt_state=after.opt_state,
        balance=where_ok(balance, state.balance),
        anchor=state.anchor,
        key=state.key,
        skipped=state.skipped + after.bad.astype(jnp.int32),
        left_out=state.left_out + (~after.ok).astype(jnp.int32),
        bad_steps=jnp.where(after.ok, 0, state.bad_steps + 1),
    )


def _metrics(
    inputs: StepInputs, data: DataStep, penalty: PenaltyStep, after: Update, new: TrainState
) -> dict[str, PyTree]:
    total = jnp.dot(data.alpha, jnp.where(data.present, data.losses, 0.0)) + data.extra
    total = total + sum((penalty.strengths[name] * omega for name, omega in penalty.values.items()), jnp.float32(0.0))
    penalties = inputs.objective.penalties
    metrics = {
        "losses": data.losses,
        "alpha": data.alpha,
        "penalty": penalty.values,
        "strength": penalty.strengths,
        "total": total,
        "learning_rate": after.rate,
        "skipped": new.skipped,
        "bad_steps": new.bad_steps,
        "present": data.present,
        "penalty_ratio": _ratios(inputs, penalty, after),
        "column_distance": {n: penalty_effect.column_distance(p.stacks(inputs.flat)) for n, p in penalties.items()},
    }
    if inputs.objective.teaching:
        metrics["teaching"] = inputs.hyper.teaching
    return metrics | data.metrics


def _ratios(inputs: StepInputs, penalty: PenaltyStep, after: Update) -> dict[str, jax.Array]:
    """{penalty: penalty_ratio}, by gradient or by the proximal operator, whichever acts in this step."""
    ratios = dict(penalty.ratios)
    for name, ratio in after.ratios.items():
        either = inputs.objective.penalties[name].mode == "either"
        ratios[name] = jnp.where(inputs.hyper.proximal[name], ratio, ratios[name]) if either else ratio
    return ratios
