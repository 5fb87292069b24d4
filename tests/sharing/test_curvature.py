"""Gradient descent on each quadratic penalty diverges just above lr · curvature = 2 and converges just below."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import sharing

K = 4
GRAPH = np.array([[0, 1, 0.5, 0], [1, 0, 0.2, 0], [0.5, 0.2, 0, 0], [0, 0, 0, 0]])
CASES = {
    "l2_to_mean": ("l2_to_mean", {}),
    "l2_to_anchor": ("l2_to_anchor", {}),
    "l2_pairwise": ("l2_pairwise", {}),
    "l2_pairwise_weights": ("l2_pairwise", {"weights": GRAPH}),
    "laplacian": ("laplacian", {"adjacency": GRAPH.tolist()}),
    "kernel": ("kernel", {}),
    "kernel_given": ("kernel", {"kernel": np.cov(np.random.default_rng(9).normal(size=(K, 20))) + 0.1}),
    "subspace": ("subspace", {"dim": 2}),
    "subspace_mean": ("subspace", {"center": "mean"}),
}


def test_the_registry():
    assert {kind for kind, _ in CASES.values()} == set(sharing.CURVATURE)
    assert set(sharing.CURVATURE) <= set(sharing.PROXIMAL) <= set(sharing.PENALTIES)
    assert sharing.curvature("l2_pairwise", {}, 5) == pytest.approx(10)  # 2K
    assert sharing.curvature("kernel", {}, 5) == pytest.approx(2)  # K⁻¹ has eigenvalues 1 and 1/(1 + K)
    for kind in set(sharing.PENALTIES) - set(sharing.CURVATURE):
        assert sharing.curvature(kind, {}, 5) is None
    with pytest.raises(ValueError, match="symmetric"):
        sharing.curvature("laplacian", {"adjacency": [[0, 1], [2, 0]]}, 2)


@pytest.mark.parametrize("name", CASES)
def test_descent_on_either_side(name):
    kind, options = CASES[name]
    bound = 2.0 / sharing.curvature(kind, options, K)
    arguments = dict(options, **({"anchor": jnp.ones((8,))} if kind == "l2_to_anchor" else {}))
    with jax.enable_x64(True):
        penalty = lambda x: sharing.PENALTIES[kind](x, **arguments)  # noqa: E731
        start = jnp.asarray(np.random.default_rng(0).normal(size=(K, 8)))
        descend = jax.jit(lambda rate: jax.lax.fori_loop(0, 400, lambda _, x: x - rate * jax.grad(penalty)(x), start))
        below, above = (penalty(descend(factor * bound)) for factor in (0.97, 1.03))
        assert below < 1e-3 * penalty(start) and above > 1e3 * penalty(start)


def test_zero_where_the_penalty_is():
    for kind, options, tasks in (
        ("l2_to_mean", {}, 1),
        ("l2_pairwise", {}, 1),
        ("laplacian", {"adjacency": np.zeros((3, 3))}, 3),
        ("subspace", {"dim": 3}, 3),
        ("subspace", {"dim": 2, "center": "mean"}, 3),
    ):
        assert sharing.curvature(kind, options, tasks) == 0.0
