"""Losses against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from mtl_jax.tasks import losses

WEIGHTS = (0.5, 1.0, 3.0, 0.0)


def data(seed=0, n=7, c=4):
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(n, c)), rng.integers(0, c, n), rng.dirichlet(np.ones(c), n)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy(smoothing, gamma, weights):
    x, y, q = data()
    log_p = log_softmax(x)
    w = np.ones(4) if weights is None else np.array(weights)
    for target in (np.eye(4)[y], q):
        smooth = (1 - smoothing) * target + smoothing / 4
        expected = -(w * smooth * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)
        args = jnp.asarray(x, jnp.float32), jnp.asarray(target, jnp.float32)
        out = jax.jit(losses.cross_entropy, static_argnums=(2, 3, 4))(*args, weights, smoothing, gamma)
        np.testing.assert_allclose(out, expected, rtol=2e-5)
        np.testing.assert_allclose(losses.item_weight(args[1], weights), (w * target).sum(-1), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy(smoothing, gamma, weights):
    x, y, _ = data(1)
    y = (data(2)[0] > 0).astype(float)
    s = 1 / (1 + np.exp(-x))
    w = np.ones(4) if weights is None else np.array(weights)
    z = (1 - smoothing) * y + smoothing / 2
    expected = (-w * z * (1 - s) ** gamma * np.log(s) - (1 - z) * s**gamma * np.log(1 - s)).mean(-1)
    args = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(losses.binary_cross_entropy(*args, weights, smoothing, gamma), expected, rtol=2e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_gradients_are_finite_where_the_model_is_certain(gamma):
    x = jnp.asarray([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    q = jnp.asarray([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    for loss in (losses.cross_entropy, losses.binary_cross_entropy):
        value, grad = jax.jit(jax.value_and_grad(lambda x, f=loss: f(x, q, None, 0.1, gamma).sum()))(x)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_targets_of_ids_distributions_and_unknown_labels():
    mask = jnp.asarray([True, False, True])
    ids = losses.soft_targets({"value": jnp.asarray([1, 5, 0], jnp.int32), "mask": mask}, 3)
    np.testing.assert_array_equal(ids, [[0, 1, 0], [0, 0, 0], [1, 0, 0]])
    nan = jnp.asarray([[0.0, 1.0, 0.0], [jnp.nan] * 3, [1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(losses.soft_targets({"value": nan, "mask": mask}, 3), ids)
    assert not np.asarray(losses.cross_entropy(jnp.ones((3, 3)), ids, None, 0.1, 1.0))[1]


def test_balanced_weights_are_scikit_learns():
    y = np.repeat([0, 1, 2], [5, 1, 14])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(losses.balanced_weights((5, 1, 14)), expected)
