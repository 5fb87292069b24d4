"""Values against goldens in float64, derivatives against finite differences, float32 against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import sharing

# Values in float64 from independent implementations (SVD, loops over pairs); columns are tasks.
W = np.array([[1, 2, 0], [0, 1, 1], [2, 1, -1], [1, 0, 3]], float)
ADJACENCY = np.array([[0, 1, 0.5], [1, 0, 0.2], [0.5, 0.2, 0]])
GOLDENS = [
    ("l2_to_mean", {}, 12.0),
    ("l2_pairwise", {}, 36.0),
    ("l2_pairwise", {"weights": ADJACENCY}, 14.9),
    ("laplacian", {"adjacency": ADJACENCY}, 14.9),
    ("trace_norm", {}, 7.8780473368),
    ("mtrl", {}, 62.0636298412),
    ("subspace", {"dim": 1}, 11.5917933773),
    ("subspace", {"dim": 2}, 1.9444044582),
    ("group_lasso", {}, 9.2620489428),
    ("schatten", {"p": 0.5}, 4.781072745),
    ("log_det", {}, 5.9635793436),
]
SPECTRAL = ("trace_norm", "subspace", "mtrl", "schatten", "log_det")


def penalties(anchor):
    """Every penalty as a function of the tree alone, the spectral ones also with each center."""
    made = {
        "l2_to_anchor": lambda x: sharing.l2_to_anchor(x, anchor),
        "laplacian": lambda x: sharing.laplacian(x, np.ones((x.shape[0],) * 2) + np.eye(x.shape[0])),
        "tucker": lambda x: sharing.trace_norm(x, "tucker"),
        "tt": lambda x: sharing.trace_norm(x, "tt", "mean"),
        "group_lasso_row": lambda x: sharing.group_lasso(x, "row"),
    }
    made |= {name: f for name, f in sharing.PENALTIES.items() if name not in made}
    for name in SPECTRAL:
        made[name + "_mean"] = lambda x, f=sharing.PENALTIES[name]: f(x, center="mean")
    made["trace_norm_anchor"] = lambda x: sharing.trace_norm(x, center=anchor)
    return made


@pytest.mark.parametrize(("name", "options", "expected"), GOLDENS)
def test_goldens(name, options, expected, differs):
    with jax.enable_x64(True):
        # 1e-8 is how closely the reference values themselves are given (that of schatten is 4.8e-9 from NumPy's)
        differs("penalties against the goldens", sharing.PENALTIES[name](jnp.asarray(W.T), **options), expected, 1e-8)


def test_tensor_trace_norms():
    tasks_last = np.arange(12.0).reshape(2, 3, 2)
    with jax.enable_x64(True):
        leaf = jnp.asarray(np.moveaxis(tasks_last, -1, 0))
        np.testing.assert_allclose(sharing.trace_norm(leaf, "last"), 23.3877703739, atol=1e-9)
        np.testing.assert_allclose(
            sharing.trace_norm(leaf, "tucker"), 25.0791429118 + 25.0039459967 + 23.3877703739, atol=1e-9
        )
        np.testing.assert_allclose(sharing.trace_norm(leaf, "tt"), 25.0791429118 + 23.3877703739, atol=1e-9)
        both = {"a": leaf, "b": 2 * leaf}  # leaf by leaf
        np.testing.assert_allclose(sharing.trace_norm(both, "tt"), 3 * sharing.trace_norm(leaf, "tt"), rtol=1e-12)


def test_remaining_formulas_by_brute_force():
    rng = np.random.default_rng(0)
    x, anchor = rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 2))
    columns = x.reshape(4, -1)
    with jax.enable_x64(True):
        tree = jnp.asarray(x)
        np.testing.assert_allclose(sharing.l2_to_anchor(tree, anchor), ((x - anchor) ** 2).sum(), rtol=1e-12)
        kernel = np.cov(rng.normal(size=(4, 9)))
        expected = np.trace(np.linalg.inv(kernel) @ columns @ columns.T)
        np.testing.assert_allclose(sharing.kernel(tree, kernel), expected, rtol=1e-10)
        shared = columns.sum(0) / 5  # the minimiser of ‖θ_0‖² + Σ‖θ_k − θ_0‖²
        np.testing.assert_allclose(
            sharing.kernel(tree), (shared**2).sum() + ((columns - shared) ** 2).sum(), rtol=1e-12
        )
        pairs = sum(((x[i].T @ x[j]) ** 2).sum() for i in range(4) for j in range(i + 1, 4))
        np.testing.assert_allclose(sharing.orthogonality(tree), pairs, rtol=1e-12)
        tall = rng.normal(size=(2, 9, 3))  # the other order of products
        np.testing.assert_allclose(
            sharing.orthogonality(jnp.asarray(tall)), ((tall[0].T @ tall[1]) ** 2).sum(), rtol=1e-12
        )
        rows = np.sqrt((x**2).sum(axis=(0, 2))).sum()
        np.testing.assert_allclose(sharing.group_lasso(tree, "row"), rows, rtol=1e-12)
        for center, centred in (
            (None, columns),
            ("mean", columns - columns.mean(0)),
            (anchor, columns - anchor.reshape(-1)),
        ):
            sigma = np.linalg.svd(centred, compute_uv=False)
            np.testing.assert_allclose(sharing.trace_norm(tree, center=center), sigma.sum(), rtol=1e-10)
            np.testing.assert_allclose(sharing.subspace(tree, 2, center), (sigma[2:] ** 2).sum(), rtol=1e-10)
            np.testing.assert_allclose(sharing.schatten(tree, 1.5, center), (sigma**1.5).sum(), rtol=1e-10)
            np.testing.assert_allclose(sharing.log_det(tree, 0.3, center), np.log(0.3 + sigma**2).sum(), rtol=1e-10)


def test_low_rank_is_the_trace_norm_at_the_best_factors():
    u, sigma, vt = np.linalg.svd(W, full_matrices=False)
    with jax.enable_x64(True):
        factors = (jnp.asarray(u * np.sqrt(sigma)), jnp.asarray(np.sqrt(sigma)[:, None] * vt))
        np.testing.assert_allclose(sharing.low_rank(*factors), sharing.trace_norm(jnp.asarray(W.T)), rtol=1e-12)
        np.testing.assert_allclose(sharing.low_rank({"u": factors[0], "v": factors[1]}), sharing.low_rank(*factors))


def test_mtrl_covariance_minimises_the_mtrl_objective():
    with jax.enable_x64(True):
        best = np.asarray(sharing.mtrl_covariance(jnp.asarray(W.T)))
    np.testing.assert_allclose(np.trace(best), 1.0)
    objective = lambda covariance: np.trace(W @ np.linalg.inv(covariance) @ W.T)  # noqa: E731
    np.testing.assert_allclose(objective(best), 62.0636298412, rtol=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = np.cov(rng.normal(size=(3, 12)))
        assert objective(other / np.trace(other)) > 62.07


def test_a_tree_is_one_vector_per_task():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7)).astype(np.float32)
    tree = {"a": x[:, :1].reshape(3), "b": [x[:, 1:5].reshape(3, 2, 2), x[:, 5:]]}
    names = ("gram", "normalised_gram", "l2_to_mean", "trace_norm", "log_det", "kernel", "group_lasso")
    values = jax.jit(lambda tree: {name: getattr(sharing, name)(tree) for name in names})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), values(tree), values(x))


SHAPE = (5, 500, 4)  # one shape for all tests of derivatives: a penalty is compiled once for each precision


@functools.cache
def derivatives(name):
    """Compiled (x, direction, anchor) -> value, gradient, Hessian times direction by forward over reverse."""

    @jax.jit
    def compute(x, direction, anchor):
        penalty = penalties(anchor)[name]
        return penalty(x), *jax.jvp(jax.grad(penalty), (x,), (direction,))

    return compute


@pytest.mark.parametrize("name", penalties(None))
def test_derivatives_by_finite_differences(name):
    rng = np.random.default_rng(1)
    x, direction, anchor = (rng.normal(size=shape) for shape in (SHAPE, SHAPE, SHAPE[1:]))
    with jax.enable_x64(True):
        at = functools.partial(derivatives(name), direction=direction, anchor=anchor)
        _, gradient, forward_over_reverse = at(x)
        ahead, behind = at(x + 1e-5 * direction), at(x - 1e-5 * direction)
        slope, curvature = ((a - b) / 2e-5 for a, b in zip(ahead[:2], behind[:2], strict=True))
        np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(forward_over_reverse, curvature, rtol=1e-5, atol=1e-6)


CORNERS = {
    "equal": np.ones(SHAPE),
    "zeros": np.zeros(SHAPE),
    "two equal": np.stack([np.eye(*SHAPE[1:]), np.ones(SHAPE[1:])] * 3)[: SHAPE[0]],
    "repeated singular values": np.eye(SHAPE[0], 2000).reshape(SHAPE),
    "tiny": 1e-12 * np.random.default_rng(3).normal(size=SHAPE),
}


@pytest.mark.parametrize("name", penalties(None))
def test_finite_at_corners(name):
    anchor, direction = np.ones(SHAPE[1:], np.float32), np.ones(SHAPE, np.float32)
    direction[0] = -0.5
    for corner, x in CORNERS.items():
        for what in derivatives(name)(x.astype(np.float32), direction=direction, anchor=anchor):
            assert what.dtype == jnp.float32 and jnp.isfinite(what).all(), corner


def test_finite_for_one_task():
    one = jnp.arange(6.0).reshape(1, 3, 2)
    made = penalties(jnp.ones((3, 2)))
    for name, gradient in jax.jit(lambda x: {n: jax.grad(f)(x) for n, f in made.items()})(one).items():
        assert jnp.isfinite(gradient).all(), name


def test_reverse_over_reverse_and_more_tasks_than_features():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(9, 4)), jnp.float32)
    direction = jnp.ones_like(x).at[0].set(-0.5)
    gradient = jax.grad(sharing.trace_norm)
    forward = jax.jit(lambda y: jax.jvp(gradient, (y,), (direction,))[1])(x)
    reverse = jax.jit(jax.grad(lambda y: jnp.vdot(gradient(y), direction)))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-4)
    assert jnp.isfinite(reverse).all()


def test_gradient_of_trace_norm_at_rank_deficiency_is_the_polar_factor():
    x = CORNERS["two equal"].reshape(SHAPE[0], -1)
    u, sigma, vt = np.linalg.svd(x, full_matrices=False)
    expected = u[:, sigma > 1e-9] @ vt[sigma > 1e-9]
    actual = jax.grad(sharing.trace_norm)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in penalties(None) if n not in ("tucker", "tt", "orthogonality", "low_rank")])
def test_float32_is_right_for_columns_from_one_pretrained_tree(name):
    """Deviations of 1e-5 from parameters of size 1; the same numbers computed in float64."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=SHAPE[1:])
    # one direction stands out: where the largest singular values are close, `subspace` is ill conditioned
    deviations = rng.normal(size=SHAPE) + np.array([0, 1, -1, 1, -1])[:, None, None] * rng.normal(size=SHAPE[1:])
    x, anchor = (base + 1e-5 * deviations).astype(np.float32), base.astype(np.float32)
    direction = np.zeros(SHAPE, np.float32)
    value, gradient, _ = derivatives(name)(x, direction=direction, anchor=anchor)
    with jax.enable_x64(True):
        x, anchor, direction = (array.astype(np.float64) for array in (x, anchor, direction))
        wide_value, wide_gradient, _ = derivatives(name)(x, direction=direction, anchor=anchor)
    assert wide_value.dtype == np.float64
    np.testing.assert_allclose(value, wide_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, wide_gradient, atol=1e-5 * np.abs(wide_gradient).max())


def test_the_same_against_an_svd_in_float64():
    rng = np.random.default_rng(5)
    x = (rng.normal(size=2000) + 1e-5 * rng.normal(size=(6, 2000))).astype(np.float32)
    u, sigma, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    value, gradient = jax.value_and_grad(sharing.trace_norm)(jnp.asarray(x))
    np.testing.assert_allclose(value, sigma.sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, u @ vt, atol=1e-5)
    np.testing.assert_allclose(sharing.subspace(jnp.asarray(x)), (sigma[1:] ** 2).sum(), rtol=1e-5)


def test_vmap_bfloat16_and_many_tasks():
    rng = np.random.default_rng(6)
    lanes = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: sharing.schatten(x, center="mean")))
    together, alone = jax.vmap(gradient)(lanes), jnp.stack([gradient(lane) for lane in lanes])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    half = lanes[0].astype(jnp.bfloat16)
    assert sharing.gram(half).dtype == jnp.float32
    assert jax.jit(jax.grad(sharing.trace_norm))(half).dtype == jnp.bfloat16
    for count in (31, 40):  # an odd number by Jacobi, and beyond its limit
        x = rng.normal(size=(count, 100)).astype(np.float32)
        np.testing.assert_allclose(sharing.trace_norm(x), np.linalg.svd(x)[1].sum(), rtol=1e-5)


def test_normalised_gram():
    x = jnp.array([[1.0, 0.0], [3.0, 3.0], [0.0, 0.0]])
    cosines = sharing.normalised_gram(x)
    np.testing.assert_allclose(cosines, [[1, 2**-0.5, 0], [2**-0.5, 1, 0], [0, 0, 0]], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda y: sharing.normalised_gram(y).sum())(x)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sharing.trace_norm({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}), "different shapes"),
        (lambda: sharing.gram({}), "no leaves"),
        (lambda: sharing.gram(jnp.ones((2, 2)), center="median"), "center"),
        (lambda: sharing.trace_norm(jnp.ones((2, 2)), unfolding="cp"), "unfolding"),
        (lambda: sharing.l2_to_anchor(jnp.ones((2, 3)), jnp.ones((4,))), "anchor"),
        (lambda: sharing.l2_to_anchor({"a": jnp.ones((2, 3))}, {"b": jnp.ones(3)}), "structure"),
        (lambda: sharing.laplacian(jnp.ones((2, 3)), np.ones((3, 3))), r"\[K, K\]"),
        (lambda: sharing.laplacian(jnp.ones((2, 3)), [[0, 1], [2, 0]]), "symmetric"),
        (lambda: sharing.l2_pairwise(jnp.ones((2, 3)), -np.ones((2, 2))), "≥ 0"),
        (lambda: sharing.kernel(jnp.ones((2, 3)), np.ones((2, 2))), "positive definite"),
        (lambda: sharing.schatten(jnp.ones((2, 3)), 0), "p must"),
        (lambda: sharing.log_det(jnp.ones((2, 3)), -1.0), "eps must"),
        (lambda: sharing.subspace(jnp.ones((2, 3)), -1), "dim must"),
        (lambda: sharing.group_lasso(jnp.ones((2, 3)), "column"), "groups"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sharded_features_need_one_small_all_reduce():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (3, 64, 5))
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model")))
    compiled = jax.jit(lambda y: sharing.trace_norm(y, center="mean")).lower(sharded).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(sharded), sharing.trace_norm(x, center="mean"), rtol=1e-5)


@pytest.mark.parametrize(("subspaces", "gates"), [(2, 1), (2, 4), (4, 2)])
def test_subspaces_orthogonal_by_brute_force(subspaces, gates):
    """Both directions of a layer joined, gate by gate, every pair of parts."""
    rng = np.random.default_rng(0)
    count, inputs, width = 3, 5, 4  # D of one direction
    leaves = {f"layer_00/{d}": rng.normal(size=(count, inputs, gates * width)) for d in ("backward", "forward")}
    total = 0.0
    for k in range(count):
        for g in range(gates):
            own = [leaf[k, :, g * width : (g + 1) * width] for leaf in leaves.values()]
            parts = np.split(np.concatenate(own, axis=1), subspaces, axis=1)
            total += sum(
                np.linalg.norm(parts[s].T @ parts[u]) ** 2 for s in range(subspaces) for u in range(s + 1, subspaces)
            )
    with jax.enable_x64(True):
        actual = sharing.PENALTIES["subspace_orthogonality"](
            {k: jnp.asarray(v) for k, v in leaves.items()}, subspaces=subspaces, gates=gates
        )
    np.testing.assert_allclose(actual, total, rtol=1e-12)


def test_subspaces_of_one_layer_only():
    kind, rng = sharing.PENALTIES["subspace_orthogonality"], np.random.default_rng(1)
    leaves = {f"layer_0{i}/kernel": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for i in range(2)}
    np.testing.assert_allclose(kind(leaves), sum(kind({k: v}) for k, v in leaves.items()), rtol=1e-6)
    with pytest.raises(ValueError, match="cannot be cut into 3 subspaces"):
        kind(leaves, subspaces=3)


def test_orthogonality_of_vectors_is_of_their_inner_products():
    vectors = np.asarray([[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 2.0, 3.0], [2.0, -1.0, 1.0, 0.5]])
    expected = sum((vectors[i] @ vectors[j]) ** 2 for i in range(3) for j in range(i))
    value = sharing.orthogonality({"bias": jnp.asarray(vectors, jnp.float32)})
    np.testing.assert_allclose(value, expected, rtol=1e-6)
