"""Proximal operators: closed forms, brute-force minimisation, limits, derivatives, exact zeros, use with optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from mtl_jax import sharing

K = 4  # of the tests over all operators
GRAPH = np.array([[0, 1, 0.5, 0], [1, 0, 0.2, 0], [0.5, 0.2, 0, 0], [0, 0, 0, 0]])  # task 3 stands alone
KERNEL = np.cov(np.random.default_rng(9).normal(size=(K, 20))) + 0.1
ANCHOR = np.random.default_rng(8).normal(size=(2, 3))
IMPORTANCE = np.random.default_rng(7).uniform(size=(K, 2, 3))
CHOICES = {  # name of the case -> kind, options
    "l2_to_mean": ("l2_to_mean", {}),
    "l2_to_anchor": ("l2_to_anchor", {"anchor": ANCHOR}),
    "l2_to_anchor_weighted": ("l2_to_anchor", {"anchor": ANCHOR, "importance": IMPORTANCE}),
    "l2_pairwise": ("l2_pairwise", {}),
    "l2_pairwise_weights": ("l2_pairwise", {"weights": GRAPH + np.eye(K)}),
    "laplacian": ("laplacian", {"adjacency": GRAPH}),
    "kernel": ("kernel", {}),
    "kernel_given": ("kernel", {"kernel": KERNEL}),
    "trace_norm": ("trace_norm", {}),
    "trace_norm_mean": ("trace_norm", {"center": "mean"}),
    "subspace": ("subspace", {}),
    "subspace_mean": ("subspace", {"dim": 2, "center": "mean"}),
    "mtrl": ("mtrl", {}),
    "group_lasso": ("group_lasso", {}),
    "group_lasso_row": ("group_lasso", {"groups": "row"}),
}
OPERATORS = {
    name: tuple(functools.partial(registry[kind], **options) for registry in (sharing.PROXIMAL, sharing.PENALTIES))
    for name, (kind, options) in CHOICES.items()
}
CONVEX = [name for name in OPERATORS if not name.startswith("subspace")]


@functools.cache
def compiled(name):
    return jax.jit(OPERATORS[name][0])


def samples(seed):
    return np.random.default_rng(seed).normal(size=(K, 2, 3))


def test_every_operator_is_tested():
    assert {kind for kind, _ in CHOICES.values()} == set(sharing.PROXIMAL)


def graph_laplacian(adjacency):
    return np.diag(adjacency.sum(1)) - adjacency


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, 1e12])
def test_quadratic_ones_by_dense_matrices(t, differs):
    x = samples(1)
    pairs = np.triu(GRAPH, 1) + np.triu(GRAPH, 1).T
    for name, matrix in {
        "l2_to_mean": np.eye(K) - 1 / K,
        "l2_pairwise": graph_laplacian(np.ones((K, K))),
        "l2_pairwise_weights": graph_laplacian(pairs),
        "laplacian": graph_laplacian(GRAPH),
        "kernel": np.linalg.inv(np.eye(K) + 1),
        "kernel_given": np.linalg.inv(KERNEL),
    }.items():
        values, vectors = np.linalg.eigh(matrix)
        remaining = 1 / (1 + 2 * t * np.where(values > 1e-12, values, 0))
        expected = np.tensordot(vectors * remaining @ vectors.T, x, 1)
        with jax.enable_x64(True):
            differs("proximal operators of quadratic penalties", OPERATORS[name][0](jnp.asarray(x), t), expected, 1e-14)


def sum_that_mtrl_leaves(sigma, t):
    return scipy.optimize.brentq(lambda s: s - np.maximum(sigma - 2 * t * s, 0).sum(), 0, sigma.sum(), xtol=1e-15)


@pytest.mark.parametrize("center", [None, "mean", "anchor"])
def test_spectral_ones_by_an_svd(center, differs):
    x = samples(2)
    middle = {None: np.zeros_like(x), "mean": x.mean(0) + np.zeros_like(x), "anchor": ANCHOR + np.zeros_like(x)}[center]
    u, sigma, vt = np.linalg.svd((x - middle).reshape(K, -1), full_matrices=False)
    shrunk = {
        "mtrl": lambda t: np.maximum(sigma - 2 * t * sum_that_mtrl_leaves(sigma, t), 0),
        "subspace": lambda t: np.where(np.arange(K) >= 1, sigma / (1 + 2 * t), sigma),
        "trace_norm": lambda t: np.maximum(sigma - t, 0),
    }
    for kind, values in shrunk.items():
        prox = jax.jit(functools.partial(sharing.PROXIMAL[kind], center=ANCHOR if center == "anchor" else center))
        for t in (0.0, 0.05, 0.4, 1e12):
            expected = middle + (u * values(t) @ vt).reshape(x.shape)
            if kind == "mtrl" and t > 1:  # the root finder knows 2tS no better than 1e-3 there; 1e-12 is left
                expected = middle
            with jax.enable_x64(True):
                differs("proximal operators of spectral penalties", prox(x, t), expected, 1e-11)


def test_group_lasso_by_its_closed_form():
    x = samples(0)
    by_entry = np.maximum(1 - 1.5 / np.linalg.norm(x, axis=0), 0) * x
    by_row = np.maximum(1 - 1.5 / np.sqrt((x**2).sum((0, 2), keepdims=True)), 0) * x
    with jax.enable_x64(True):
        np.testing.assert_allclose(sharing.prox_group_lasso(jnp.asarray(x), 1.5), by_entry, atol=1e-12)
        np.testing.assert_allclose(sharing.prox_group_lasso(jnp.asarray(x), 1.5, "row"), by_row, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_against_brute_force_minimisation(name):
    """f is 1-strongly convex: z* is its minimiser if and only if f(z) ≥ f(z*) + ½‖z − z*‖² for all z."""
    prox, penalty = OPERATORS[name]
    rng = np.random.default_rng(1)
    x = samples(1)
    with jax.enable_x64(True):
        objective = jax.jit(lambda z: 0.4 * penalty(z.reshape(x.shape)) + 0.5 * jnp.sum((z - x.reshape(-1)) ** 2))
        actual = np.asarray(prox(jnp.asarray(x), 0.4)).reshape(-1)
        least = objective(actual)
        best = scipy.optimize.minimize(objective, x.reshape(-1), jac=jax.jit(jax.grad(objective)), method="BFGS")
        around = [actual + 10.0**scale * rng.normal(size=actual.size) for scale in np.linspace(-4, 1, 200)]
        for z in (best.x, x.reshape(-1), *around):
            margin = 0.5 * np.sum((z - actual) ** 2) if name in CONVEX else 0.0
            assert objective(z) >= least + margin - 1e-12


@pytest.mark.parametrize("name", OPERATORS)
def test_identity_at_zero_and_lanes_of_t_and_nonexpansive(name):
    prox = compiled(name)
    x, y = (jnp.asarray(samples(seed), jnp.float32) for seed in (2, 3))
    np.testing.assert_array_equal(prox(x, 0.0), x)
    if "anchor" not in name:
        np.testing.assert_allclose(prox(jnp.zeros_like(x), 0.5), 0.0)
    if name in CONVEX:
        assert jnp.linalg.norm(prox(x, 0.5) - prox(y, 0.5)) <= jnp.linalg.norm(x - y) * (1 + 1e-5)
    strengths = jnp.array([0.0, 1e-6, 0.2, 1e12, jnp.inf])
    lanes = jax.jit(jax.vmap(OPERATORS[name][0], (None, 0)))(x, strengths)
    for lane, t in zip(lanes, strengths, strict=True):
        np.testing.assert_allclose(lane, prox(x, t), atol=2e-6)
    np.testing.assert_allclose(lanes[-2], lanes[-1], atol=1e-6)


@pytest.mark.parametrize("name", ["l2_pairwise", "laplacian", "mtrl", "group_lasso"])
def test_a_tree_is_one_matrix_and_keeps_its_dtypes(name):
    x = jnp.asarray(samples(2), jnp.float32)
    tree = {"a": x[..., :1].astype(jnp.bfloat16), "b": [x[..., 1:]]}
    actual = compiled(name)(tree, 0.3)
    assert actual["a"].dtype == jnp.bfloat16 and actual["b"][0].dtype == jnp.float32
    expected = compiled(name)(jnp.concatenate([tree["a"].astype(jnp.float32), x[..., 1:]], -1), 0.3)
    np.testing.assert_allclose(actual["a"].astype(jnp.float32), expected[..., :1], rtol=2**-8)
    np.testing.assert_allclose(actual["b"][0], expected[..., 1:], atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_by_finite_differences(name):
    prox = OPERATORS[name][0]
    x, direction, weights = (samples(seed) for seed in (4, 5, 6))

    @jax.jit
    def compute(x, t):
        value, by_x = jax.jvp(lambda x: prox(x, t), (x,), (direction,))
        by_t = jax.jvp(lambda t: prox(x, t), (t,), (1.0,))[1]
        return value, by_x, by_t, *jax.grad(lambda x, t: jnp.vdot(weights, prox(x, t)), (0, 1))(x, t)

    with jax.enable_x64(True):
        h = 1e-6
        for t in (0.05, 0.4):
            _, tangent_x, tangent_t, gradient_x, gradient_t = compute(x, t)
            by_x = (compute(x + h * direction, t)[0] - compute(x - h * direction, t)[0]) / (2 * h)
            by_t = (compute(x, t + h)[0] - compute(x, t - h)[0]) / (2 * h)
            np.testing.assert_allclose(tangent_x, by_x, atol=1e-8)
            np.testing.assert_allclose(tangent_t, by_t, atol=1e-8)
            np.testing.assert_allclose(jnp.vdot(gradient_x, direction), np.vdot(weights, by_x), atol=1e-7)
            np.testing.assert_allclose(gradient_t, np.vdot(weights, by_t), atol=1e-7)
        _, tangent_x, tangent_t, *_ = compute(x, 0.0)
        np.testing.assert_allclose(tangent_x, direction, atol=1e-12)
        one_sided = (4 * compute(x, h)[0] - compute(x, 2 * h)[0] - 3 * x) / (2 * h)
        np.testing.assert_allclose(tangent_t, one_sided, atol=1e-7)


@pytest.mark.parametrize("name", OPERATORS)
def test_finite_at_corners(name):
    prox = OPERATORS[name][0]

    direction = np.ones((K, 2, 3), np.float32)
    direction[0] = -0.5

    @jax.jit
    def compute(x, t):
        value, by_x = jax.jvp(lambda x: prox(x, t), (x,), (direction,))
        return value, by_x, jax.grad(lambda x, t: jnp.sum(jnp.sin(prox(x, t))), (0, 1))(x, t)

    rows = np.eye(K, 6).reshape(K, 2, 3)
    corners = {
        "zeros": np.zeros_like(rows),
        "equal": np.ones_like(rows),
        "two equal": np.stack([rows[0], rows[0], rows[1], rows[2]]),
        "repeated singular values": rows,
        "tiny": 1e-14 * samples(0),
        "huge": 1e14 * samples(0),
    }
    for corner, x in corners.items():
        for t in (0.0, 1e-12, 0.5, 1.0, 1e12, np.inf):
            actual = compute(x.astype(np.float32), jnp.float32(t))
            for what in jax.tree.leaves(actual):
                assert what.dtype == jnp.float32 and jnp.isfinite(what).all(), (corner, t)
            if t == 0.0:
                np.testing.assert_array_equal(actual[0], x.astype(np.float32), corner)
                np.testing.assert_array_equal(actual[1], direction, corner)


def test_derivatives_where_singular_values_repeat():
    """Of the trace norm and MTRL, at an orthogonal matrix: both are differentiable there."""
    x, direction = 2.0 * np.eye(K, 6), samples(7).reshape(K, 6)
    with jax.enable_x64(True):
        for prox in (sharing.prox_trace_norm, sharing.prox_mtrl):
            at = jax.jit(lambda x, prox=prox: jax.jvp(lambda x: prox(x, 0.1), (x,), (direction,)))
            actual = at(x)[1]
            expected = (at(x + 1e-6 * direction)[0] - at(x - 1e-6 * direction)[0]) / 2e-6
            np.testing.assert_allclose(actual, expected, atol=1e-8)


def test_one_task_and_two_derivatives():
    one = jnp.arange(6.0).reshape(1, 2, 3)
    matrices = {"laplacian": {"adjacency": np.zeros((1, 1))}, "l2_to_anchor": {"anchor": ANCHOR}}

    @jax.jit
    def compute(x, t):
        total = lambda kind, x, t: jnp.sum(sharing.PROXIMAL[kind](x, t, **matrices.get(kind, {})))  # noqa: E731
        return {kind: jax.value_and_grad(total, (1, 2))(kind, x, t) for kind in sharing.PROXIMAL}

    for kind, actual in compute(one, 0.3).items():
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(actual)), kind
    with pytest.raises(NotImplementedError, match="once"):
        jax.hessian(lambda x: sharing.prox_trace_norm(x, 0.1).sum())(one)


def test_matrices_of_the_tasks_may_be_traced():
    """The same values as from NumPy, and derivatives by the matrix."""
    x, change = samples(1), np.random.default_rng(0).uniform(size=(K, K))
    change = change + change.T
    with jax.enable_x64(True):
        for name, key, given in (
            ("l2_pairwise", "weights", GRAPH + 0.1),
            ("laplacian", "adjacency", GRAPH + 0.1),
            ("kernel", "kernel", KERNEL),
        ):
            call = jax.jit(lambda given, name=name, key=key: sharing.PROXIMAL[name](x, 0.4, **{key: given}))
            seen = sharing.PROXIMAL[name](jnp.asarray(x), 0.4, **{key: given})
            np.testing.assert_allclose(call(given), seen, atol=1e-13)
            actual = jax.jvp(call, (jnp.asarray(given),), (jnp.asarray(change),))[1]
            expected = (call(given + 1e-6 * change) - call(given - 1e-6 * change)) / 2e-6
            np.testing.assert_allclose(actual, expected, atol=1e-8)


@pytest.mark.parametrize("traced", [False, True])
def test_infinite_strength_on_a_graph_is_the_mean_of_each_component(traced):
    """In float32, for columns 1e-5 apart: no part of what they share leaks into their differences."""
    rng = np.random.default_rng(5)
    base, deviations = rng.normal(size=50), 1e-5 * rng.normal(size=(5, 50))
    x = (base + deviations).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide.copy()
    for component in ([0, 2, 4], [1, 3]):
        expected[component] = wide[component].mean(0)
    prox = lambda t, adjacency: sharing.prox_laplacian(jnp.asarray(x), t, adjacency)  # noqa: E731
    prox = jax.jit(prox) if traced else prox
    for _ in range(8):  # the rounding of an eigenvalue that should be zero may fall on either side
        adjacency = np.zeros((5, 5), np.float32)
        for i, j in ((0, 2), (2, 4), (1, 3)):
            adjacency[i, j] = adjacency[j, i] = 10 ** rng.uniform(-3, 0)
        for t in (1e12, np.inf):
            # half a unit in the last place of numbers near 4
            np.testing.assert_allclose(prox(t, adjacency), expected, atol=3e-7)


@pytest.mark.parametrize("name", ["l2_to_mean", "l2_to_anchor", "l2_pairwise", "laplacian", "kernel", "kernel_given"])
def test_a_small_strength_is_exact_in_float32(name):
    """t = lr·λ = 1e-9 moves a task at zero by 1e-9 times what it is drawn to; 1 − 1/(1 + 2t) would be 0."""
    x = samples(6)
    x[0] = 0.0
    actual = compiled(name)(x.astype(np.float32), 1e-9)[0]
    with jax.enable_x64(True):
        expected = compiled(name)(x.astype(np.float32).astype(np.float64), 1e-9)[0]
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max())


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
    u, sigma, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    expected = u * np.maximum(sigma - 1e-4, 0) @ vt
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
