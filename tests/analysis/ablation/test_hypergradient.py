"""The gradient of the dev loss with respect to log λ, against differences of whole solo runs."""

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import hypergradient, lane_program, lanes, plan
from mtl_jax.analysis.ablation.device_rows import draws, resident_rows
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.training import objective as terms
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def built(tiny, **changes):
    config = tiny(sharing__trunk="none", model__dropout=0.2, training__steps=10, training__eval_every=10, **changes)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.3)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.3,))
    config.ablation.method = "hypergradient"
    config.ablation.limits = False
    (one,) = plan.make_plan(config, lambda c: None).programs
    return lane_program.build(one, lane_program.Sources()), one


@pytest.mark.parametrize(("optimizer", "rate", "proximal"), [("adamw", 0.02, True), ("sgd", 1.0, False)])
def test_gradient_against_finite_differences(tiny, differs, optimizer, rate, proximal):
    tasks = ("color", "long") if proximal else ()  # by gradient descent two tasks move λ too little for float32
    made, one = built(
        tiny,
        optimizer__name=optimizer,
        optimizer__learning_rate=rate,
        model__column_init="independent",
        tasks__tags__options__crf=False,
        train_tasks=tasks,
    )
    if proximal:
        penalty = made.spec.objective.penalties["l2"]._replace(mode="proximal")
        made = made._replace(spec=made.spec._replace(objective=made.spec.objective._replace(penalties={"l2": penalty})))
    experiment, spec = made.experiment, made.spec
    assert spec.objective.penalties["l2"].mode == ("proximal" if proximal else "gradient")
    batches = experiment.batches(0)
    dev = hypergradient.dev_batches(made, 0)
    step = jax.jit(lambda state, batch, hyper: train_step(spec, state, batch, hyper))

    def batch(number):
        return jax.tree.map(lambda leaf: leaf[None], batches.batch(number))

    state = experiment.init(0)
    for number in range(4):
        state, _ = step(state, batch(number), made.hypers[0])

    quiet, held_out = spec.objective._replace(dropout=False, attention_dropout=False), dev.batch(0)

    @jax.jit
    def mean_loss(params, hyper):
        total = terms.loss_denominators(quiet, held_out, hyper)
        return terms.loss_contributions(quiet, params, held_out, hyper, None, total).mean()

    def dev_loss(log):
        """By whole steps and the plain evaluation of the loss."""
        hyper = made.hypers[0]._replace(strength={"l2": jnp.exp(log)})
        after = state
        for number in range(4, 7):
            after, _ = step(after, batch(number), hyper)
        return float(mean_loss(after.params, hyper))

    h, log = 0.1, jnp.log(jnp.float32(0.3))
    numeric = (dev_loss(log + h) - dev_loss(log - h)) / (2 * h)

    # with gradient descent the move is minus rate times the gradient
    descent = optax.sgd(100.0)
    rows = jax.tree.map(jnp.asarray, resident_rows(batches))
    lane = hypergradient.TunedLane(state, lanes.no_losses(len(experiment.tasks)), {"strength": log}, descent.init(log))
    inputs = hypergradient.Inputs(draws(batches, 4, 3, 1), draws(dev, 0, 1, 1))
    moved = hypergradient.move(
        hypergradient.Move(spec, one.moves, descent, unroll=3),
        lane,
        made.hypers[0],
        jnp.asarray(True),
        jax.tree.map(jnp.asarray, inputs),
        hypergradient.Sources(rows, jax.tree.map(jnp.asarray, resident_rows(dev))),
    )
    gradient = float(log - moved.logs["strength"]) / 100.0
    assert abs(gradient) > 1e-6
    differs(f"hypergradient against differences, {optimizer}, relative", gradient / numeric, 1.0, 0.02)
    assert int(moved.state.step) == 7


def test_what_it_cannot_do_is_said(tiny):
    made, _ = built(tiny)
    del made.experiment.corpus.rows["texts"]["dev"]
    with pytest.raises(UserError, match="'texts' has none"):
        hypergradient.dev_batches(made, 0)
    config = default.get_config()
    config.ablation.options = ConfigDict({"unroll": 9, "every": 5})
    with pytest.raises(UserError, match="unroll"):
        hypergradient.options(config)
    config.ablation.options = ConfigDict({"every": 7})
    with pytest.raises(UserError, match=r"config.training.steps: 1000 should be a multiple"):
        hypergradient.options(config)
