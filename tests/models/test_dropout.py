"""Dropout with a traced rate and a key for each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.dropout import Noise, attention_dropout, dropout


def noise(rows, rate, seed=0):
    return Noise(jax.random.split(jax.random.key(seed), rows), jnp.float32(rate))


apply = jax.jit(dropout, static_argnums=1)


def test_rate_zero_is_exact_and_rate_one_is_zero():
    x = jax.random.normal(jax.random.key(1), (3, 5, 7))
    np.testing.assert_array_equal(apply(noise(3, 0.0), 0, x), x)
    np.testing.assert_array_equal(apply(noise(3, 1.0), 0, x), jnp.zeros_like(x))
    gradient = jax.grad(lambda x, rate: jnp.sum(dropout(noise(3, rate), 0, x)))(x, jnp.float32(1.0))
    np.testing.assert_array_equal(gradient, jnp.zeros_like(x))


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_share_dropped_and_mean(rate, dtype):
    out = np.asarray(apply(noise(20, rate), 0, jnp.ones((20, 50, 101), dtype)).astype(jnp.float32))
    size = out.size
    sigma = np.sqrt(rate * (1 - rate) / size)
    assert abs((out == 0).mean() - rate) < 5 * sigma + 2**-16
    assert np.unique(out).size == 2
    # the values kept are 1 / (1 − rate) to the precision of the dtype
    np.testing.assert_allclose(out.max(), 1 / (1 - rate), rtol=2**-8 if dtype == jnp.bfloat16 else 2e-4)
    for axis in range(3):  # no row, token or feature is privileged
        other = tuple(a for a in range(3) if a != axis)
        share = (out == 0).mean(other)
        assert np.abs(share - rate).max() < 6 * np.sqrt(rate * (1 - rate) * out.shape[axis] / size)


def test_bits_follow_the_row_not_its_place():
    x = jnp.ones((4, 6, 8))
    whole = noise(4, 0.5)
    out = apply(whole, 3, x)
    order = jnp.asarray([2, 0, 3, 1])
    moved = apply(whole._replace(keys=whole.keys[order]), 3, x)
    np.testing.assert_array_equal(moved, out[order])
    part = apply(whole._replace(keys=whole.keys[1:3]), 3, x[1:3])
    np.testing.assert_array_equal(part, out[1:3])


def test_salts_and_keys_give_other_bits():
    x = jnp.ones((2, 40, 50))
    kinds = [np.asarray(apply(noise(2, 0.5, seed), salt, x)) == 0 for seed, salt in ((0, 0), (0, 1), (1, 0))]
    for a in range(3):
        for b in range(a):
            assert abs((kinds[a] == kinds[b]).mean() - 0.5) < 0.05
    assert abs((kinds[0][0] == kinds[0][1]).mean() - 0.5) < 0.05
    halves = kinds[0][..., :25] == kinds[0][..., 25:]  # both halves of a random word are independent
    assert abs(halves.mean() - 0.5) < 0.05


def test_no_noise_and_no_rate_change_nothing():
    x = jnp.ones((2, 3))
    assert dropout(None, 0, x) is x
    assert attention_dropout(None, 0, x) is x
    assert attention_dropout(noise(2, 0.5), 0, x) is x
    assert dropout(noise(2, 0.5)._replace(rate=None), 0, x) is x
