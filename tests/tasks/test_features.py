"""Pooling of packed rows against the examples one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks.base import Features
from mtl_jax.tasks.features import gather_tokens, pool, sum_by_example


def packed(dtype=jnp.float32):
    """Two rows: examples of 3, 1 and 4 tokens with a gap of padding behind, and an empty row. E = 4."""
    hidden = np.random.default_rng(0).normal(size=(2, 10, 5)).astype(np.float32)
    segment = np.array([[1, 1, 1, 2, 3, 3, 3, 3, 0, 0], [0] * 10], np.int32)
    start = np.array([[0, 3, 4, 0], [0, 0, 0, 0]], np.int32)
    length = np.array([[3, 1, 4, 0], [0, 0, 0, 0]], np.int32)
    return Features(jnp.asarray(hidden, dtype), *map(jnp.asarray, (segment, start, length)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("how", "one"),
    [("mean", lambda x: x.mean(0)), ("max", lambda x: x.max(0)), ("first", lambda x: x[0]), ("last", lambda x: x[-1])],
)
def test_pooled_reads_each_example_alone_and_leaves_empty_slots_zero(how, one, dtype):
    features = packed(dtype)
    out = jax.jit(pool, static_argnums=1)(features, how)
    assert out.dtype == jnp.float32 and out.shape == (2, 4, 5)
    hidden = np.asarray(features.hidden, np.float32)
    for e, (a, n) in enumerate([(0, 3), (3, 1), (4, 4)]):
        np.testing.assert_allclose(out[0, e], one(hidden[0, a : a + n]), rtol=1e-6)
    assert not np.asarray(out[0, 3]).any() and not np.asarray(out[1]).any()

    grad = jax.jit(jax.grad(lambda h: (pool(features._replace(hidden=h), how) ** 2).sum()))(features.hidden)
    assert np.isfinite(np.asarray(grad, np.float32)).all()
    assert not np.asarray(grad[0, 8:], np.float32).any() and not np.asarray(grad[1], np.float32).any()


def test_at_tokens_and_to_examples():
    hidden = packed().hidden
    index = jnp.asarray([[4, 0, 9], [1, 1, 0]], jnp.int32)
    out = gather_tokens(hidden, index)
    np.testing.assert_array_equal(out[0, 0], hidden[0, 4])
    np.testing.assert_array_equal(out[1], hidden[1][np.array([1, 1, 0])])
    values = jnp.asarray([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]])
    slot = jnp.asarray([[2, 0, 2], [1, 0, 0]], jnp.int32)
    np.testing.assert_array_equal(sum_by_example(values, slot, 3), [[2, 0, 5], [0, 8, 0]])
    assert sum_by_example(values, slot, None) is values
