"""Merging against closed forms and float64 numpy, and the reductions that must hold between the methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.sharing import merging

SHAPES = {"a": (3, 4), "b": {"c": (5,), "d": (2, 2, 2)}}


def trees(count, seed=0, scale=1.0):
    """A stack [K, ...], its base [...], and both as float64 vectors [K, n] and [n]."""
    rng = np.random.default_rng(seed)
    base = jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    stack = jax.tree.map(lambda b: (b + scale * rng.normal(size=(count, *b.shape))).astype(np.float32), base)
    return jax.tree.map(jnp.asarray, stack), jax.tree.map(jnp.asarray, base), vector(stack, count), vector(base)


def vector(tree, count=None):
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*(() if count is None else (count,)), -1) for leaf in leaves], axis=-1)


def merged(name, stack, base, **options):
    return vector(merging.MERGING[name].merge(stack, base, key=jax.random.key(0), **options))


def test_linear_and_task_arithmetic_against_numpy(differs):
    stack, base, x, b = trees(3)
    weights = np.asarray([1.0, 2.0, 5.0])
    differs("soup", merged("linear", stack, base, weights=weights), weights @ x / weights.sum(), 1e-6)
    for scale in (0.0, 0.3, 1.0):
        differs(
            "task arithmetic", merged("task_arithmetic", stack, base, scale=scale), b + scale * (x - b).sum(0), 2e-6
        )
    uniform = merged("linear", stack, base)
    differs("task arithmetic at 1/K = soup", merged("task_arithmetic", stack, base, scale=1 / 3), uniform, 1e-6)


@pytest.mark.parametrize("vectors", [False, True])
def test_slerp_of_two_divides_the_angle(differs, vectors):
    stack, base, x, b = trees(2)
    origin = b if vectors else np.zeros_like(b)
    u, v = x - origin
    angle = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    for t in (0.0, 0.25, 0.5, 1.0):
        actual = merged("slerp", stack, base, weights=(1 - t, t), vectors=vectors) - origin
        direction = np.sin((1 - t) * angle) * u / np.linalg.norm(u) + np.sin(t * angle) * v / np.linalg.norm(v)
        norm = (1 - t) * np.linalg.norm(u) + t * np.linalg.norm(v)
        differs("slerp of two", actual, norm * direction / np.sin(angle), 1e-5)
        cosine = actual @ u / np.linalg.norm(actual) / np.linalg.norm(u)
        differs("angle of slerp", np.arccos(np.clip(cosine, -1, 1)), t * angle, 2e-3)


def test_slerp_of_many_is_where_the_weighted_angles_balance(differs):
    stack, base, x, _ = trees(4)
    weights = np.asarray([0.1, 0.2, 0.3, 0.4])
    actual = merged("slerp", stack, base, weights=weights)
    m, u = actual / np.linalg.norm(actual), x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = u @ m
    pull = (weights * np.arccos(cosine) / np.sqrt(1 - cosine**2)) @ (u - cosine[:, None] * m)
    differs("pull on the mean of the sphere", pull, 0.0, 1e-5)
    differs("norm of slerp", np.linalg.norm(actual), weights @ np.linalg.norm(x, axis=1), 1e-5)


def ties_by_hand(x, b, scale, density):
    tau = x - b
    remaining = np.zeros_like(tau)
    for k, row in enumerate(tau):
        top = np.argsort(-np.abs(row))[: round(density * len(row))]
        remaining[k, top] = row[top]
    result = np.zeros_like(b)
    for i, column in enumerate(remaining.T):
        agree = column[np.sign(column) == np.sign(column.sum())]
        agree = agree[agree != 0]
        result[i] = agree.mean() if len(agree) else 0.0
    return b + scale * result


def test_ties_by_hand_and_its_reductions(differs):
    stack, base, x, b = trees(3)
    for density in (0.2, 0.5, 1.0):
        actual = merged("ties", stack, base, density=density, scale=0.7)
        differs("ties", actual, ties_by_hand(x, b, 0.7, density), 2e-6)
    # no conflict of signs, nothing trimmed: the mean of the task vectors
    one_sided = jax.tree.map(lambda leaf, start: start[None] + jnp.abs(leaf - start[None]), stack, base)
    actual = merged("ties", one_sided, base, density=1.0, scale=1.0)
    differs("ties without conflict", actual, merged("task_arithmetic", one_sided, base, scale=1 / 3), 1e-6)


def test_dare_without_dropping_is_task_arithmetic_and_keeps_the_mean(differs):
    stack, base, x, b = trees(3)
    actual = merged("dare", stack, base, drop=0.0, scale=0.4)
    np.testing.assert_array_equal(actual, merged("task_arithmetic", stack, base, scale=0.4))
    # each entry is a sum of τ_k / (1 − p) over a subset of the tasks, and in the mean that of task arithmetic
    p, draws = 0.5, 400
    keys = jax.random.split(jax.random.key(1), draws)
    actual = jax.vmap(lambda key: merging.dare(stack, base, key=key, drop=p, scale=1.0))(keys)
    actual = vector(actual, draws) - b
    subsets = np.asarray([[(s >> k) & 1 for k in range(3)] for s in range(8)]) @ (x - b) / (1 - p)
    nearest = np.abs(actual[:, None] - subsets[None]).min(axis=1)
    differs("dare: entries are sums over subsets", nearest, 0.0, 1e-5)
    deviation = np.sqrt((p / (1 - p)) * ((x - b) ** 2).sum(0) / draws)
    assert (np.abs(actual.mean(0) - (x - b).sum(0)) < 4.5 * deviation).all()


@pytest.mark.parametrize("name", merging.MERGING)
def test_equal_trees_give_that_tree_and_parallel_ones_stay_on_their_line(name, differs):
    _, base, _, b = trees(1)
    step = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), base)
    options = {"task_arithmetic": {"scale": 1 / 3}, "dare": {"scale": 1 / 3, "drop": 0.0}, "ties": {"density": 1.0}}
    options = options.get(name, {"vectors": True} if name == "slerp" else {})

    def stacked(*factors):
        return jax.tree.map(lambda start, d: jnp.stack([start + f * d for f in factors]), base, step)

    differs("merging equal trees", merged(name, stacked(1.0, 1.0, 1.0), base, **options), b + vector(step), 2e-6)
    differs(
        "merging parallel vectors", merged(name, stacked(1.0, 2.0, 3.0), base, **options), b + 2 * vector(step), 5e-6
    )


def test_slerp_and_linear_at_the_edges_of_their_domain(differs):
    a, b = jnp.arange(1.0, 5.0), jnp.asarray([2.0, -1.0, 0.0, 0.0])

    def stacked(*trees):
        return {"w": jnp.stack(trees)}

    # no direction at all: zeros, the base of task vectors; beside others a tree of zeros counts in the norm alone
    np.testing.assert_array_equal(merging.slerp(stacked(0 * a, 0 * a))["w"], 0 * a)
    np.testing.assert_array_equal(merging.slerp(stacked(a, a), {"w": a}, vectors=True)["w"], a)
    differs("slerp beside zeros", merging.slerp(stacked(a, 3 * a), {"w": a}, vectors=True)["w"], 2 * a, 1e-6)
    differs("slerp of small trees", 1e20 * merging.slerp(stacked(1e-20 * a, 2e-20 * a))["w"], 1.5 * a, 1e-6)
    differs("slerp of large trees", 1e-20 * merging.slerp(stacked(1e20 * a, 2e20 * a))["w"], 1.5 * a, 1e-6)
    np.testing.assert_array_equal(merging.slerp(stacked(a, -a), weights=(1, 0))["w"], a)
    # near to opposite, and two opposite ones that a third lies between
    near = merging.slerp(stacked(a, -a + 0.1 * b))["w"]
    assert np.isfinite(near).all() and abs(np.dot(near, a)) < 0.05 * np.linalg.norm(a) * np.linalg.norm(near)
    between = merging.slerp(stacked(a, -a, b))["w"]
    differs("slerp between opposite trees", between / jnp.linalg.norm(between), b / jnp.linalg.norm(b), 1e-5)
    turned = [jnp.asarray([np.cos(x), np.sin(x)], jnp.float32) for x in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    for trees, weights in (((a, -a), ()), ((a, -2 * a), (0.7, 0.3)), (turned, ()), ((a, a, -a), ())):
        with pytest.raises(ValueError, match="point in opposite directions"):
            merging.slerp(stacked(*trees), weights=weights)
    with pytest.raises(ValueError, match="task vectors that point in opposite directions"):
        merging.slerp(stacked(a + b, a - b), {"w": a}, vectors=True)
    for weights in ((1, -1), (0, 0), (-1, -2), (float("nan"), 1)):
        for method in (merging.linear, merging.slerp):
            with pytest.raises(ValueError, match="should have a sum above 0"):
                method(stacked(a, 2 * a), weights=weights)
    # nothing can be seen under jit; it stays finite
    assert np.isfinite(jax.jit(lambda x: merging.slerp({"w": x}))(jnp.stack([a, -a]))["w"]).all()
    traced = jax.jit(lambda w: merging.linear(stacked(a, 2 * a), weights=w))
    assert np.isfinite(traced(jnp.asarray([1.0, -1.0]))["w"]).all()


@pytest.mark.parametrize("name", merging.MERGING)
def test_merging_zeros_equal_and_single_trees_is_finite(name):
    for stack in (jnp.zeros((3, 4)), jnp.ones((3, 4)), jnp.ones((1, 4)), jnp.eye(3, 4)):
        for base in (jnp.zeros(4), jnp.ones(4)):
            assert np.isfinite(merged(name, {"x": stack}, {"x": base})).all()


def test_wrong_options_and_differing_trees():
    stack, base, _, _ = trees(2)
    with pytest.raises(ValueError, match="density 0"):
        merging.ties(stack, base, density=0)
    with pytest.raises(ValueError, match="drop 1"):
        merging.dare(stack, base, key=jax.random.key(0), drop=1.0)
    with pytest.raises(ValueError, match="3 weights for 2 trees"):
        merging.linear(stack, weights=(1, 2, 3))
    one, ones = {"x/w": jnp.zeros((2, 3))}, {"x/w": jnp.ones((2, 3))}
    assert merging.first_difference({"a": one, "b": ones}) is None
    differs = merging.first_difference
    assert differs({"a": one, "b": ones}, same_values=True) == "x/w started from other values in a than in b"
    assert differs({"a": one, "b": {"x/w": jnp.zeros((2, 4))}}) == "x/w has shape (2, 3) in a and (2, 4) in b"
    assert differs({"a": one, "b": {**one, "y": ones["x/w"]}}) == "y is in b and not in a"
