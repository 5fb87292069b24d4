"""Gradient aggregation: goldens in float64, optimality conditions on hard Gramians, reductions, use with optax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.balancing import AGGREGATION, aggregation, weightings

JACOBIAN = np.array([[-4.0, 1, 1], [6, 1, 1]])  # rows are tasks
METHODS = {  # made once: `jax.jit` recognises their updates and compiles each once for a K
    "mean": weightings.mean(),
    "sum": weightings.sum(),
    "mgda": weightings.mgda(),
    "pcgrad": weightings.pcgrad(),
    "imtl_g": weightings.imtl_g(),
    "aligned_mtl": weightings.aligned_mtl(),
    "cagrad": weightings.cagrad(0.5),
}
# float64 values computed apart from this code; directions agree with a published library to 1e-4.
GOLDENS = {
    "imtl_g": [0.5923303169, 0.4076696831],
    "aligned_mtl": [0.5590719157, 0.4082610681],
    "mgda": [0.6, 0.4],
    "cagrad": [0.7041241452, 0.5],
    "pcgrad": [2.2222222222, 1.5789473684],
}


def weigh(weighting, gram, present=None, seed=0):
    present = jnp.ones(len(gram), bool) if present is None else jnp.asarray(present)
    weights, _ = jax.jit(weighting.update)(jnp.asarray(gram), (), key=jax.random.key(seed), present=present)
    return np.asarray(weights)


def gramians(dtype=np.float64):
    """Well behaved, correlated, rank deficient and badly scaled gradients [K, n] of norm about 1."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 8, 16):
        plain = rng.normal(size=(count, 50))
        few = rng.normal(size=(count, max(count // 2, 1)))
        bad = plain * 10 ** rng.uniform(-4, 4, size=(count, 1))
        for gradients in (plain, plain + 3 * rng.normal(size=50), few, bad):
            yield (gradients / np.linalg.norm(gradients, axis=1).max()).astype(dtype)


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(name):
    with jax.enable_x64(True):
        np.testing.assert_allclose(weigh(METHODS[name], JACOBIAN @ JACOBIAN.T), GOLDENS[name], atol=1e-9)


def test_mgda_is_optimal():
    """w is the least-norm point if and only if min_k (G w)_k = wᵀGw: the duality gap bounds the error."""
    with jax.enable_x64(True):
        for gradients in gramians():
            gram = gradients @ gradients.T
            w = weigh(METHODS["mgda"], gram)
            assert w.min() >= 0 and abs(w.sum() - 1) < 1e-12
            assert w @ gram @ w - (gram @ w).min() < 1e-9


def test_mgda_of_two_equals_a_search_along_the_segment():
    rng = np.random.default_rng(1)
    t = np.linspace(0, 1, 100_001)
    with jax.enable_x64(True):
        for scale in (1.0, 0.1, 30.0):
            a, b = rng.normal(size=(2, 3)) * [[1.0], [scale]]
            norms = np.linalg.norm(t[:, None] * a + (1 - t[:, None]) * b, axis=1)
            np.testing.assert_allclose(
                weigh(METHODS["mgda"], np.stack([a, b]) @ np.stack([a, b]).T)[0], t[norms.argmin()], atol=2e-5
            )


def test_cagrad_is_optimal():
    """Its direction's worst improvement, over ‖d − g_0‖ ≤ c‖g_0‖, meets the bound that the dual gives."""
    c = 0.5
    with jax.enable_x64(True):
        for gradients in gramians():
            weights = weigh(METHODS["cagrad"], gradients @ gradients.T)
            mean, direction = gradients.mean(0), weights @ gradients
            assert np.linalg.norm(direction - mean) <= c * np.linalg.norm(mean) * (1 + 1e-9)
            w = weights - 1 / len(weights)
            combined = (w / w.sum()) @ gradients
            bound = combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined)
            assert bound - (gradients @ direction).min() < 1e-9


def test_cagrad_of_zero_is_the_mean():
    gram = (JACOBIAN @ JACOBIAN.T).astype(np.float32)
    np.testing.assert_array_equal(weigh(weightings.cagrad(0.0), gram), weigh(METHODS["mean"], gram))


def test_pcgrad_equals_the_algorithm_on_gradients_in_some_order():
    gradients = np.random.default_rng(2).normal(size=(3, 4)) - 0.4

    def project(task, order):
        g = gradients[task].copy()
        for other in order:
            if other != task and g @ gradients[other] < 0:
                g -= (g @ gradients[other]) / (gradients[other] @ gradients[other]) * gradients[other]
        return g

    orders = list(itertools.permutations(range(3)))
    options = [{tuple(np.round(project(task, order), 9)) for order in orders} for task in range(3)]
    sums = [np.sum(choice, axis=0) for choice in itertools.product(*options)]
    assert len(sums) > 1, "the order matters in this example"
    with jax.enable_x64(True):
        found = [weigh(METHODS["pcgrad"], gradients @ gradients.T, seed=seed) @ gradients for seed in range(8)]
    assert all(min(np.abs(s - f).max() for s in sums) < 1e-8 for f in found)
    assert len({tuple(np.round(f, 6)) for f in found}) > 1, "the key draws the order"


def test_imtl_g_projections_are_equal():
    gradients = np.random.default_rng(3).normal(size=(5, 20))
    with jax.enable_x64(True):
        direction = weigh(METHODS["imtl_g"], gradients @ gradients.T) @ gradients
    np.testing.assert_allclose(
        np.ptp(gradients / np.linalg.norm(gradients, axis=1)[:, None] @ direction), 0, atol=1e-12
    )


def test_aligned_mtl_against_an_svd():
    gradients = np.random.default_rng(4).normal(size=(5, 20))
    u, sigma, vt = np.linalg.svd(gradients, full_matrices=False)
    with jax.enable_x64(True):
        direction = weigh(METHODS["aligned_mtl"], gradients @ gradients.T) @ gradients
    np.testing.assert_allclose(direction, sigma.min() * (u @ vt).mean(0), atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_an_absent_task_is_as_if_it_were_not_there(name):
    gradients = np.random.default_rng(5).normal(size=(4, 6))
    gradients[1] = np.nan  # what is computed for an absent task must not matter
    present = np.array([True, False, True, True])
    rest = gradients[present]
    with jax.enable_x64(True):
        weights = weigh(METHODS[name], gradients @ gradients.T, present)
        assert weights[1] == 0
        if name != "pcgrad":  # whose random order depends on K
            np.testing.assert_allclose(weights[present], weigh(METHODS[name], rest @ rest.T), atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_finite_on_hard_gramians_in_float32_and_under_vmap(name):
    corners = [np.zeros((4, 4)), np.ones((4, 4)), np.diag([1.0, 0, 0, 0]), 1e8 * np.eye(4), 1e-8 * np.eye(4)]
    opposite = np.outer([1, -1, 1, -1], [1, -1, 1, -1])
    many = jnp.asarray(np.stack([*corners, opposite, np.diag([1e8, 1, 1, 1e-8])]), jnp.float32)
    present = jnp.ones(4, bool)
    update = lambda gram: METHODS[name].update(gram, (), key=jax.random.key(0), present=present)[0]  # noqa: E731
    together = jax.jit(jax.vmap(update))(many)
    assert jnp.isfinite(together).all()
    alone = np.stack([weigh(METHODS[name], gram) for gram in many])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(weigh(METHODS[name], many[1], np.zeros(4, bool)), 0.0)


@pytest.mark.parametrize("name", AGGREGATION)
def test_in_an_optax_chain(name):
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)}
    gradients = jax.tree.map(lambda x: jnp.stack([x, 2 * x + 0.5]).astype(x.dtype), params)
    optimizer = optax.chain(AGGREGATION[name](), optax.sgd(1.0))

    @jax.jit
    def step(state, present):
        return optimizer.update(gradients, state, params, present=present)

    state = optimizer.init(params)
    updates, after = step(state, jnp.array([True, True]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    only, _ = step(after, jnp.array([False, True]))
    scale = only["w"][0, 0] / -gradients["w"][1, 0, 0]
    np.testing.assert_allclose(only["w"], -scale * gradients["w"][1], rtol=1e-4)
    if name == "mean":  # what stands for all tasks is no method's own
        without, _ = optimizer.update(gradients, state, params)
        np.testing.assert_allclose(without["w"], updates["w"], rtol=1e-5)


def test_random_orders_go_on_from_the_state():
    transform = aggregation.pcgrad(seed=3)
    state = transform.init({})
    _, after = transform.update({"w": jnp.asarray(JACOBIAN)}, state)
    assert (jax.random.key_data(after.key) != jax.random.key_data(state.key)).any()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="c must lie"):
        weightings.cagrad(1.5)
    with pytest.raises(ValueError, match="first axis"):
        aggregation.mean().update({"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}, aggregation.mean().init({}))
