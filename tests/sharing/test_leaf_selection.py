"""Choosing leaves by path, grouping them, and what is said where that cannot be done."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import sharing

PARAMS = {
    "embed": {"table": jnp.ones((1, 5, 2))},
    "layer_00": {"query": {"kernel": jnp.arange(12.0).reshape(3, 2, 2), "bias": jnp.arange(6.0).reshape(3, 2)}},
    "layer_01": {"query": {"kernel": jnp.arange(12.0).reshape(3, 2, 2) ** 2}},
}
KERNEL_0, KERNEL_1 = PARAMS["layer_00"]["query"]["kernel"], PARAMS["layer_01"]["query"]["kernel"]
BIAS_0 = PARAMS["layer_00"]["query"]["bias"]


def test_scopes():
    tree = sharing.build("trace_norm", "^layer_", "tree")(PARAMS)
    layer = sharing.build("trace_norm", "^layer_", "layer", {"center": "mean"})(PARAMS)
    leaf = jax.jit(sharing.build("l2_to_mean", "kernel", "leaf"))(sharing.flatten_paths(PARAMS))
    np.testing.assert_allclose(tree["tree"], sharing.trace_norm([KERNEL_0, BIAS_0, KERNEL_1]), rtol=1e-6)
    np.testing.assert_allclose(layer["layer_00"], sharing.trace_norm([KERNEL_0, BIAS_0], center="mean"), rtol=1e-6)
    np.testing.assert_allclose(layer["layer_01"], sharing.trace_norm(KERNEL_1, center="mean"), rtol=1e-6)
    assert set(leaf) == {"layer_00/query/kernel", "layer_01/query/kernel"}
    np.testing.assert_allclose(leaf["layer_01/query/kernel"], sharing.l2_to_mean(KERNEL_1), rtol=1e-6)


def test_groups_of_different_k_are_fine_apart():
    values = sharing.build("l2_pairwise", ".*", "layer")(PARAMS)
    assert values["embed"] == 0 and values["layer_00"] > 0


def test_anchor():
    anchor = {path: leaf[0] for path, leaf in sharing.flatten_paths(PARAMS).items()}
    value = sharing.build("l2_to_anchor", "layer_01", "layer")(PARAMS, anchor)["layer_01"]
    np.testing.assert_allclose(value, jnp.sum((KERNEL_1 - KERNEL_1[:1]) ** 2), rtol=1e-6)
    flat = sharing.flatten_paths(PARAMS)
    transform = sharing.build_proximal("l2_to_anchor", "layer_01")(jnp.inf, anchor)
    moved, _ = transform.update(flat, optax.EmptyState(), flat)
    drawn = flat["layer_01/query/kernel"] + moved["layer_01/query/kernel"]
    np.testing.assert_allclose(drawn, jnp.broadcast_to(KERNEL_1[:1], KERNEL_1.shape), atol=1e-4)
    centred = sharing.build("subspace", "layer_01", options={"center": "anchor", "dim": 0})(PARAMS, anchor)["tree"]
    np.testing.assert_allclose(centred, value, rtol=1e-5)


@pytest.mark.parametrize("kind", sharing.PENALTIES)
def test_every_penalty_can_be_built_by_name(kind):
    options = {"adjacency": np.ones((3, 3))} if kind == "laplacian" else {}
    anchor = jax.tree.map(jnp.ones_like, PARAMS)
    value = sharing.build(kind, "layer", "layer", options)(PARAMS, anchor)
    assert all(v.shape == () and jnp.isfinite(v) for v in value.values())
    if kind in sharing.PROXIMAL:
        transform = sharing.build_proximal(kind, "layer_01", "layer", options)(0.3, anchor)
        moved, _ = transform.update(jax.tree.map(jnp.zeros_like, PARAMS), transform.init(PARAMS), PARAMS)
        leaf = {"layer_01/query/kernel": KERNEL_1}
        given = {"anchor": jax.tree.map(jnp.ones_like, leaf)} if kind == "l2_to_anchor" else options
        expected = sharing.PROXIMAL[kind](leaf, 0.3, **given)["layer_01/query/kernel"]
        np.testing.assert_allclose(KERNEL_1 + moved["layer_01"]["query"]["kernel"], expected, rtol=1e-5, atol=1e-5)
        assert not moved["layer_00"]["query"]["bias"].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sharing.build("l2_to_mean", "layre")(PARAMS), "matches no leaf.*layer_00/query/bias"),
        (lambda: sharing.build("l2_to_mean")(PARAMS), r"different shapes.*embed/table \(1, 5, 2\).*layer_00"),
        (lambda: sharing.build("l2"), "no penalty named 'l2'.*l2_to_mean"),
        (lambda: sharing.build("l2_to_mean", "("), "not a regular expression"),
        (lambda: sharing.build("l2_to_mean", scope="block"), "scope"),
        (lambda: sharing.build("trace_norm", options={"centre": "mean"}), "no option centre.*center"),
        (lambda: sharing.build("laplacian"), "needs the option adjacency"),
        (lambda: sharing.build("l2_to_anchor", "layer")(PARAMS), "needs an anchor"),
        (lambda: sharing.build_proximal("schatten"), "no proximal operator"),
        (lambda: sharing.build_proximal("l2_to_anchor", "layer")(0.1).update(PARAMS, None, PARAMS), "needs an anchor"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_proximal_by_path_with_a_strength_by_layer():
    updates = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), PARAMS)
    make = sharing.build_proximal("trace_norm", "kernel", "layer")

    @jax.jit
    def apply(params, first):
        transform = make({"layer_00": first, "layer_01": 0.0})
        moved, _ = transform.update(updates, transform.init(params), params)
        return optax.apply_updates(params, moved)

    actual = apply(PARAMS, 2.0)
    np.testing.assert_allclose(
        actual["layer_00"]["query"]["kernel"], sharing.prox_trace_norm(KERNEL_0 + 0.1, 2.0), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(actual["layer_01"]["query"]["kernel"], KERNEL_1 + 0.1, rtol=1e-6)
    np.testing.assert_array_equal(actual["layer_00"]["query"]["bias"], BIAS_0 + 0.1)
    np.testing.assert_array_equal(actual["embed"]["table"], PARAMS["embed"]["table"] + 0.1)
