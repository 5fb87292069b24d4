"""The head that looks at patches in the light of the words, against each example alone in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import make_task
from mtl_jax.tasks.base import Features

D, E = 4, 4


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def packed():
    """Examples of two patches and two words, of words alone, of patches alone; padding; an empty slot and row."""
    rng = np.random.default_rng(0)
    segment = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3, 0], [0] * 10], np.int32)
    patch = np.array([[1, 1, 0, 0, 0, 0, 1, 1, 1, 0], [0] * 10], bool)
    start, length = np.array([[0, 4, 6, 0], [0] * 4], np.int32), np.array([[4, 2, 3, 0], [0] * 4], np.int32)
    hidden = rng.normal(size=(2, 10, D)).astype(np.float32)
    return Features(*map(jnp.asarray, (hidden, segment, start, length)), patch=jnp.asarray(patch))


def alone(params, patches, words, pool):
    """Logits of one example from the vectors of its patches and words, each a list."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    q = getattr(np, pool)(words, axis=0) if len(words) else np.zeros(D)
    z = [dense("patch", gelu(dense("hidden", np.concatenate([h, q, h * q])))) for h in patches]
    width = p["patch"]["bias"].size
    parts = [np.mean(z, axis=0), np.max(z, axis=0)] if z else [np.zeros(width)] * 2
    return dense("output", gelu(dense("joined", np.concatenate([*parts, q]))))


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_each_example_as_if_alone(pool):
    settings = {"kind": "grounded_classification", "hidden": 5, "pool": pool}
    task, features = make_task("t", settings, "text", ("false", "true", "?")), packed()
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: task.init(key, D), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    logits = jax.jit(lambda p, f: task.logits(p, f, {}))(params, features)
    assert logits.shape == (2, E, 3) and logits.dtype == jnp.float32
    rows = np.asarray(features.hidden[0], np.float64)
    for e, (patches, words) in enumerate([((0, 1), (2, 3)), ((), (4, 5)), ((6, 7, 8), ())]):
        message = alone(params, rows[list(patches)], rows[list(words)], pool)
        np.testing.assert_allclose(logits[0, e], message, rtol=2e-5, atol=2e-5)

    def total(params, hidden):
        return (task.logits(params, features._replace(hidden=hidden), {}) ** 2).sum()

    grads = jax.jit(jax.grad(total, (0, 1)))(params, features.hidden)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grads))
    assert not np.asarray(grads[1][0, 9]).any() and not np.asarray(grads[1][1]).any()
