"""Loss weights: the papers' formulas, gradients, missing tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.balancing import LOSS_WEIGHTS, Signals, loss_weights

ALL = jnp.array([True, True, True])


def weigh(method, losses, present=None, state=None):
    losses = jnp.asarray(losses, jnp.float32)
    present = jnp.ones(losses.shape, bool) if present is None else jnp.asarray(present)
    state = method.init(losses.shape[0]) if state is None else state
    return jax.jit(method.update)(Signals(losses, present), state)


def test_equal_fixed_and_by_size():
    np.testing.assert_array_equal(weigh(loss_weights.equal(), [1.0, 9.0])[0], [1, 1])
    np.testing.assert_allclose(weigh(loss_weights.fixed([0.2, 3]), [1.0, 9.0])[0], [0.2, 3])
    np.testing.assert_allclose(weigh(loss_weights.by_size([100, 300]), [1.0, 9.0])[0], [0.5, 1.5])
    np.testing.assert_allclose(weigh(loss_weights.by_size([100, 300], 1e6), [1.0, 9.0])[0], [1, 1], atol=1e-5)


def test_dwa():
    """K softmax((L[t−1] / L[t−2]) / temperature), and 1 until there are two losses."""
    method = loss_weights.dwa(2.0)
    alpha, _, state = weigh(method, [4.0, 1.0, 1.0])
    np.testing.assert_allclose(alpha, 1.0)
    alpha, _, state = weigh(method, [2.0, 1.0, 3.0], [True, True, False], state)
    np.testing.assert_allclose(alpha, 1.0)
    alpha, _, state = weigh(method, [1.0, 1.0, 1.0], None, state)
    ratio = np.array([0.5, 1.0, 1.0])  # the third task has one loss only
    np.testing.assert_allclose(alpha, 3 * np.exp(ratio / 2) / np.exp(ratio / 2).sum(), rtol=1e-6)
    alpha, _, _ = weigh(method, [1.0, 1.0, 5.0], None, state)
    np.testing.assert_allclose(
        alpha, 3 * np.exp(np.array([0.5, 1, 1]) / 2) / np.exp(np.array([0.5, 1, 1]) / 2).sum(), rtol=1e-6
    )


def test_gls_has_the_value_and_the_gradient_of_the_geometric_mean():
    method = loss_weights.gls()
    losses = jnp.array([0.5, 2.0])
    alpha, _, _ = weigh(method, losses)
    np.testing.assert_allclose(jnp.sum(alpha * losses), 1.0, rtol=1e-6)

    def objective(x):
        alpha, extra, _ = method.update(Signals(x, jnp.array([True, True])), ())
        return jnp.sum(alpha * x) + extra

    losses = jnp.array([0.3, 4.0])
    np.testing.assert_allclose(
        jax.grad(objective)(losses), jax.grad(lambda x: jnp.sqrt(x[0] * x[1]))(losses), rtol=1e-5
    )
    alpha, _, _ = weigh(method, [0.5, 123.0, 2.0], [True, False, True])
    np.testing.assert_allclose(alpha, [1.0, 0.0, 0.25], rtol=1e-6)


def test_rlw_draws_anew_and_repeats_by_seed():
    method = loss_weights.rlw(seed=1)
    first, _, state = weigh(method, [1.0, 1.0, 1.0])
    second, _, _ = weigh(method, [1.0, 1.0, 1.0], None, state)
    np.testing.assert_allclose([first.sum(), second.sum()], 1.0, rtol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, weigh(loss_weights.rlw(seed=1), [2.0, 3.0, 4.0])[0])


@pytest.mark.parametrize("name", LOSS_WEIGHTS)
def test_absent_tasks_and_corners_stay_finite_and_alpha_is_a_constant(name):
    options = {"fixed": [[1.0, 2.0, 3.0]], "by_size": [[10, 20, 30]]}.get(name, [])
    method = LOSS_WEIGHTS[name](*options)
    state = method.init(3)
    for losses, present in (
        ([0.0, 0.0, 0.0], [False] * 3),
        ([0.0, 1.0, 1e30], [True] * 3),
        ([1.0, 0.0, 2.0], [True, False, True]),
    ):
        alpha, extra, state = weigh(method, losses, present, state)
        assert alpha.shape == (3,) and alpha.dtype == jnp.float32 and jnp.isfinite(alpha).all() and extra == 0
    through = jax.grad(lambda x: method.update(Signals(x, ALL), state)[0].sum())(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(through, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_weights.fixed([1.0, -1.0]), "≥ 0"),
        (lambda: loss_weights.fixed([0.0, 0.0]), "all be 0"),
        (lambda: loss_weights.by_size([1, 0]), "> 0"),
        (lambda: loss_weights.dwa(0.0), "temperature"),
        (lambda: weigh(loss_weights.fixed([1.0, 1.0]), [1.0, 1.0, 1.0]), "2 numbers for 3 tasks"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
