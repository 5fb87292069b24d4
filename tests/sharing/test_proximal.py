"""Proximal operators: closed forms, brute-force minimisation, nonexpansiveness, exact zeros, use with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from mtl_jax import sharing

OPERATORS = {
    "l2_to_mean": (sharing.prox_l2_to_mean, sharing.l2_to_mean),
    "trace_norm": (sharing.prox_trace_norm, sharing.trace_norm),
    "trace_norm_mean": (
        lambda x, t: sharing.prox_trace_norm(x, t, "mean"),
        lambda x: sharing.trace_norm(x, center="mean"),
    ),
    "group_lasso": (sharing.prox_group_lasso, sharing.group_lasso),
    "group_lasso_row": (
        lambda x, t: sharing.prox_group_lasso(x, t, "row"),
        lambda x: sharing.group_lasso(x, "row"),
    ),
}


def soft_thresholded(x, t):
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    return u * np.maximum(sigma - t, 0) @ vt


def test_closed_forms():
    x = np.random.default_rng(0).normal(size=(4, 6))
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            sharing.prox_l2_to_mean(jnp.asarray(x), 0.7), x.mean(0) + (x - x.mean(0)) / 2.4, rtol=1e-12
        )
        np.testing.assert_allclose(sharing.prox_trace_norm(jnp.asarray(x), 1.1), soft_thresholded(x, 1.1), atol=1e-12)
        centred = x.mean(0) + soft_thresholded(x - x.mean(0), 1.1)
        np.testing.assert_allclose(sharing.prox_trace_norm(jnp.asarray(x), 1.1, "mean"), centred, atol=1e-12)
        anchor = np.ones(6)
        anchored = anchor + soft_thresholded(x - anchor, 1.1)
        np.testing.assert_allclose(sharing.prox_trace_norm(jnp.asarray(x), 1.1, anchor), anchored, atol=1e-12)
        norms = np.linalg.norm(x, axis=0)
        np.testing.assert_allclose(
            sharing.prox_group_lasso(jnp.asarray(x), 1.5), np.maximum(1 - 1.5 / norms, 0) * x, atol=1e-12
        )


@pytest.mark.parametrize("name", OPERATORS)
def test_against_brute_force_minimisation(name):
    """f is 1-strongly convex: z* is its minimiser if and only if f(z) ≥ f(z*) + ½‖z − z*‖² for all z."""
    prox, penalty = OPERATORS[name]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 2, 2))
    with jax.enable_x64(True):
        objective = jax.jit(lambda z: 0.4 * penalty(z.reshape(x.shape)) + 0.5 * jnp.sum((z - x.reshape(-1)) ** 2))
        found = np.asarray(prox(jnp.asarray(x), 0.4)).reshape(-1)
        least = objective(found)
        best = scipy.optimize.minimize(objective, x.reshape(-1), jac=jax.jit(jax.grad(objective)), method="BFGS")
        around = [found + 10.0**scale * rng.normal(size=found.size) for scale in np.linspace(-4, 1, 200)]
        for z in (best.x, x.reshape(-1), *around):
            assert objective(z) >= least + 0.5 * np.sum((z - found) ** 2) - 1e-12


@pytest.mark.parametrize("name", OPERATORS)
def test_nonexpansive_and_identity_at_zero(name):
    prox = jax.jit(OPERATORS[name][0])
    rng = np.random.default_rng(2)
    for _ in range(5):
        x, y = jnp.asarray(rng.normal(size=(2, 3, 2, 2)), jnp.float32)
        assert jnp.linalg.norm(prox(x, 0.5) - prox(y, 0.5)) <= jnp.linalg.norm(x - y) * (1 + 1e-5)
    np.testing.assert_array_equal(prox(x, 0.0), x)
    np.testing.assert_allclose(prox(jnp.zeros_like(x), 0.5), 0.0)


def test_infinite_strength_ties_the_tasks_and_large_strength_gives_exact_zeros():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    tied = sharing.prox_l2_to_mean(x, jnp.inf)
    np.testing.assert_allclose(tied, jnp.broadcast_to(x.mean(0), x.shape), atol=1e-6)
    assert not sharing.prox_group_lasso(x, 100.0).any()
    params, updates = {"w": x}, {"w": 0.1 * jax.random.normal(jax.random.key(1), (3, 4))}
    transform = sharing.as_transform(sharing.prox_group_lasso, 100.0)
    moved, _ = transform.update(updates, transform.init(params), params)
    assert not optax.apply_updates(params, moved)["w"].any()


def test_small_differences_survive_in_float32():
    """Columns 1e-5 apart: the step of the trace norm's operator, against an SVD in float64."""
    rng = np.random.default_rng(3)
    x = (rng.normal(size=400) + 1e-5 * rng.normal(size=(3, 400))).astype(np.float32)
    expected = soft_thresholded(x.astype(np.float64), 1e-4)
    np.testing.assert_allclose(sharing.prox_trace_norm(jnp.asarray(x), 1e-4), expected, atol=3e-7)


def test_behind_an_optimizer_with_traced_strength():
    params = {"layer_00": {"kernel": jax.random.normal(jax.random.key(0), (3, 4, 2)), "bias": jnp.ones((3, 2))}}
    gradients = jax.tree.map(lambda x: 0.3 * x + 0.1, params)

    @jax.jit
    def step(params, strength):
        optimizer = optax.chain(optax.sgd(0.1), sharing.as_transform(sharing.prox_trace_norm, 0.1 * strength))
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    plain = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    for strength in (0.0, 3.0):
        expected = sharing.prox_trace_norm(plain, 0.1 * strength)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), step(params, strength), expected)
    with pytest.raises(ValueError, match="params"):
        sharing.as_transform(sharing.prox_trace_norm, 0.1).update(gradients, optax.EmptyState())
