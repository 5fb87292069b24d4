"""Penalties on products of factors, which are not formed, against the same on the products themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import sharing
from mtl_jax.sharing.low_rank_stack import LowRankStack

K = 4
GRAPH = np.asarray([[0, 1, 2, 0], [1, 0, 0, 3], [2, 0, 0, 1], [0, 3, 1, 0]], np.float32)
OPTIONS = {"laplacian": {"adjacency": GRAPH}, "subspace": {"dim": 2}}
CASES = [
    *((kind, {}) for kind in sharing.OF_PRODUCTS if kind not in ("l2_to_anchor", "laplacian", "subspace")),
    *OPTIONS.items(),
    ("l2_to_anchor", {"anchor": True}),
    *((kind, {"center": center}) for kind in ("trace_norm", "log_det", "subspace") for center in ("mean", True)),
]


def factors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": ((K, 6, 2), (K, 2, 5)), "b": ((K, 3, 2), (K, 2, 7))}
    return {
        name: LowRankStack(*(jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in pair))
        for name, pair in shapes.items()
    }


def formed(tree):
    return {name: jnp.matmul(stack.left, stack.right, precision="highest") for name, stack in tree.items()}


def value(kind, options, tree, anchor):
    options = {name: anchor if entry is True else entry for name, entry in options.items()}
    return sharing.PENALTIES[kind](tree, **options)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_penalties_of_products(kind, options, differs):
    tree, anchor = factors(0), factors(1)
    by_factors = jax.value_and_grad(lambda tree: value(kind, options, tree, anchor))
    by_products = jax.value_and_grad(lambda tree: value(kind, options, formed(tree), formed(anchor)))
    actual, wanted = by_factors(tree), by_products(tree)
    differs(f"{kind} of products", actual[0] / wanted[0], 1.0, 2e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1]))
    for own, other in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(wanted[1]), strict=True):
        differs(f"gradient of {kind} of products", own / scale, other / scale, 1e-4)
    shapes = {v.aval.shape for e in jax.make_jaxpr(by_factors)(tree).eqns for v in e.outvars}
    assert not shapes & {(K, 6, 5), (K, 3, 7)}  # none is formed


@pytest.mark.parametrize("kind", ["l2_to_mean", "laplacian", "trace_norm"])
def test_small_differences_keep_their_digits(kind, differs):
    """Products that differ by 1e-5: in float64 and in float32."""
    tree, change = factors(0), factors(1, 1e-5)
    close = {
        name: LowRankStack(stack.left[:1] + change[name].left, stack.right[:1] + change[name].right)
        for name, stack in tree.items()
    }
    options = {"laplacian": {"adjacency": GRAPH}, "trace_norm": {"center": "mean"}}.get(kind, {})
    exact = [np.asarray(s.left, np.float64) @ np.asarray(s.right, np.float64) for s in close.values()]
    flat = np.concatenate([x.reshape(K, -1) for x in exact], axis=1)
    flat = flat - flat.mean(axis=0)
    wanted = {
        "l2_to_mean": np.sum(flat**2),
        "laplacian": np.trace((np.diag(GRAPH.sum(0)) - GRAPH) @ flat @ flat.T),
        "trace_norm": np.linalg.svd(flat, compute_uv=False).sum(),
    }[kind]
    differs(f"{kind} of close products", sharing.PENALTIES[kind](close, **options) / wanted, 1.0, 2e-3)


def test_what_needs_entries_is_refused():
    for call in (sharing.group_lasso, sharing.subspace_orthogonality, lambda t: sharing.trace_norm(t, "tucker")):
        with pytest.raises(ValueError, match="products of factors are not formed"):
            call(factors(0))
    chosen = sharing.build("l2_to_mean", "^a", "leaf")(factors(0))
    assert set(chosen) == {"a"}
