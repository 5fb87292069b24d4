"""Which way to the K gradients a config takes, and what is said of it."""

import pytest

from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.experiment.task_gradients import describe
from mtl_jax.runs.build import build
from mtl_jax.training.gradients.aggregated import AggregatedGradient
from mtl_jax.training.gradients.pullbacks import PullbackGradient


def many(tiny, **changes):
    """Nine tasks on one data set."""
    config = tiny(**{"aggregation__method": "mgda", "model__layer_type": "cnn", **changes})
    for number in range(8):
        default.add_task(config, f"copy_{number}", kind="classification", dataset="texts", label="color")
    config.train_tasks = ("color", *(f"copy_{number}" for number in range(8)))
    return build(config)


def test_the_faster_way_is_taken(tiny):
    experiment = many(tiny)
    assert isinstance(experiment.spec.data_gradient, PullbackGradient)
    message = describe(experiment.spec.data_gradient, experiment.corpus.layout)
    assert message == "gradients of 9 tasks: one forward pass, 9 backward passes; about 6.3 times the plain step"
    for changes in ({"aggregation__jacobian": "taps"}, {"model__layer_type": "transformer", "model__num_heads": 2}):
        experiment = many(tiny, **changes)
        assert isinstance(experiment.spec.data_gradient, AggregatedGradient)
        assert describe(experiment.spec.data_gradient, experiment.corpus.layout) == ""


def test_pullbacks_at_once_need_pullbacks(tiny):
    with pytest.raises(UserError, match=r"config.aggregation.pullbacks_at_once: 2, but here one backward pass"):
        build(tiny(aggregation__method="mgda", aggregation__pullbacks_at_once=2))
