"""Regression without a head: the pooled features are the prediction; and the coefficient of determination."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from mtl_jax.errors import UserError
from mtl_jax.tasks import make_task
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.metrics import METRICS, evaluate


def task(**options):
    return make_task("t", {"kind": "regression", **options}, "text")


def test_without_a_head_the_mean_of_the_features_is_the_prediction():
    hidden = jnp.asarray([[[1.0], [4.0], [7.0], [100.0]]])
    packed = Features(
        hidden, jnp.asarray([[1, 1, 2, 0]]), jnp.asarray([[0, 2, 0]]), jnp.asarray([[2, 1, 0]])
    )  # texts of two tokens and of one, an empty slot
    bare = task(head="none", low=0.0, high=10.0)
    params = bare.init(jax.random.key(0), 1)
    assert params == {}
    logits = jax.jit(bare.logits)(params, packed, {})
    np.testing.assert_allclose(logits, [[2.5, 7.0, 0.0]])
    np.testing.assert_allclose(bare.predict(params, logits, {})["value"], [[25.0, 70.0, 0.0]])
    labels = {"value": jnp.asarray([[30.0, 0.0, jnp.nan]]), "mask": jnp.asarray([[True, True, False]])}

    def loss(hidden):
        return bare.loss(params, bare.logits(params, packed._replace(hidden=hidden), labels), labels).sum()

    # d/dx of (mean - 3)² over two tokens, and of 7² over one
    np.testing.assert_allclose(jax.grad(loss)(hidden)[0, :, 0], [-0.5, -0.5, 14.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, r"config.tasks.t.options.head: 'linear' is not one of 'dense', 'none'"),
        ({"head": "none", "hidden": 3}, "config.tasks.t.options.hidden: there is no head that could have it"),
        ({"head": "none", "pooler": True}, "config.tasks.t.options.pooler: there is no head"),
    ],
)
def test_wrong_heads(options, message):
    with pytest.raises(UserError, match=message):
        task(**options)


def test_a_prediction_is_one_number():
    with pytest.raises(UserError, match=r"config.tasks.t.options.head: .* config.model.hidden_size is 1 then, not 8"):
        task(head="none").init(jax.random.key(0), 8)


def test_r2_is_scikit_learns():
    rng = np.random.default_rng(0)
    gold, predicted = 3.0 + rng.normal(size=(2, 50))
    better = gold + 0.3 * predicted
    for p in (predicted, better):
        assert evaluate("r2", gold, p, ()) == pytest.approx(sklearn.metrics.r2_score(gold, p), abs=1e-12)
    metric = METRICS["r2"]
    parts = [metric.statistics(gold[s], better[s], ()) for s in (slice(20), slice(20, 50))]
    assert metric.value(metric.merge(*parts)) == pytest.approx(evaluate("r2", gold, better, ()), abs=1e-12)
    assert evaluate("r2", np.ones(3), np.ones(3), ()) == 0.0 == evaluate("r2", [], [], ())
    assert task(metrics=("r2",)).metrics == ("r2",)
