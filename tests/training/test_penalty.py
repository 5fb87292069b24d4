"""A penalty that acts by its gradient or by its proximal operator, as an argument of the step says."""

import jax.numpy as jnp
import pytest
from train_steps import largest_difference, steps

from mtl_jax.config import default
from mtl_jax.runs.build import build

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_either_way_is_the_way_that_the_argument_says(tiny):
    changes = {"model__num_layers": 0, "train_tasks": ("color", "long"), "model__column_init": "independent"}
    config = tiny(sharing__trunk="none", optimizer__name="sgd", optimizer__learning_rate=0.3, **changes)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.5)
    experiment = build(config)

    def after(mode, proximal=False):
        objective = experiment.spec.objective
        penalties = {"l2": objective.penalties["l2"]._replace(mode=mode)}
        spec = experiment.spec._replace(objective=objective._replace(penalties=penalties))
        hyper = experiment.hyper._replace(proximal={"l2": jnp.asarray(proximal)})
        state, metrics = steps(experiment._replace(spec=spec), 2, hyper=hyper)
        return state.params, metrics["penalty_ratio"]["l2"]

    (by_gradient, gradient_ratio), (by_proximal, proximal_ratio) = after("gradient"), after("proximal", True)
    assert largest_difference(by_gradient, by_proximal) > 1e-4 and gradient_ratio != proximal_ratio
    for proximal, wanted, ratio in ((False, by_gradient, gradient_ratio), (True, by_proximal, proximal_ratio)):
        params, actual = after("either", proximal)
        assert largest_difference(params, wanted) < 1e-6 and actual == pytest.approx(ratio, rel=1e-4)
