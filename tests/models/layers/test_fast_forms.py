"""Forms that are written for speed, against what they stand for, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtl_jax.models.attention import attend
from mtl_jax.models.dense import Dense
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.layers.transformer import gelu


def test_dense_is_an_affine_map_with_the_parameters_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 7))
    layer = Dense(4, kernel_init=nn.initializers.normal(1.0), bias_init=nn.initializers.normal(1.0))
    params = layer.init(jax.random.key(1), x)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {"kernel": (7, 4), "bias": (4,)}
    weights = np.cos(np.arange(2 * 3 * 5 * 4.0)).reshape(2, 3, 5, 4)
    value, gradient = jax.value_and_grad(
        lambda params, x: jnp.sum(layer.apply({"params": params}, x) * jnp.asarray(weights, jnp.float32)), (0, 1)
    )(params, x)
    x64, kernel, bias = (np.asarray(a, np.float64) for a in (x, params["kernel"], params["bias"]))
    np.testing.assert_allclose(value, ((x64 @ kernel + bias) * weights).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient[0]["kernel"], np.einsum("abci,abco->io", x64, weights), atol=1e-5)
    np.testing.assert_allclose(gradient[0]["bias"], weights.sum((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(gradient[1], weights @ kernel.T, atol=1e-5)


def test_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-12, 12, 1001)
    phi = np.asarray([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
    value, slope = jax.vmap(jax.value_and_grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, x * phi, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(slope, phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi), atol=1e-6)
    assert gelu(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def attention_inputs(scale=1.0):
    query, key, value, weights = jax.random.normal(jax.random.key(3), (4, 2, 6, 3, 4)) * scale
    return (query, key, value), jnp.asarray([[1, 1, 2, 2, 2, 0], [1, 2, 3, 4, 0, 0]]), weights


def reference(query, key, value, segment):
    """Attention in float64, token by token."""
    out = np.zeros(query.shape)
    for r, t, h in np.ndindex(query.shape[:3]):
        own = segment[r] == segment[r, t]
        scores = key[r, own, h] @ query[r, t, h] / math.sqrt(query.shape[-1])
        weight = np.exp(scores - scores.max())
        out[r, t, h] = weight @ value[r, own, h] / weight.sum()
    return out


@pytest.mark.parametrize("scale", [1.0, 30.0])  # scores up to thousands
def test_attention_against_float64(scale):
    arrays, segment, _ = attention_inputs(scale)
    expected = reference(*(np.asarray(a, np.float64) for a in arrays), np.asarray(segment))
    np.testing.assert_allclose(attend(*arrays, segment, None), expected, rtol=1e-4, atol=1e-5 * scale)


def test_attention_weights_dropped_at_rate_0_are_all_kept():
    arrays, segment, _ = attention_inputs()
    noise = Noise(jax.random.split(jax.random.key(0), 2), None, jnp.float32(0.0))
    np.testing.assert_array_equal(attend(*arrays, segment, noise), attend(*arrays, segment, None))


def test_attention_in_bfloat16_and_under_vmap():
    arrays, segment, _ = attention_inputs()
    low = attend(*(a.astype(jnp.bfloat16) for a in arrays), segment, None)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attend(*arrays, segment, None), atol=0.05)
    lanes = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), arrays)
    batched = jax.vmap(lambda q, k, v: attend(q, k, v, segment, None))(*lanes)
    np.testing.assert_allclose(batched[1], attend(*(2 * a for a in arrays), segment, None), atol=1e-6)


def test_dropout_bits_of_neighbours_are_independent():
    """Neighbouring features, tokens, rows and salts, and features that are a power of two apart."""
    rows, tokens, width = 64, 32, 128
    noise = Noise(jax.random.split(jax.random.key(5), rows), jnp.float32(0.5))
    x = jnp.ones((rows, tokens, width))
    a, b = (np.asarray(jax.jit(dropout, static_argnums=1)(noise, salt, x)) == 0 for salt in (0, 1))
    flat = a.reshape(rows, -1)
    pairs = [(a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1])]
    pairs += [(flat[:, 2**i :], flat[:, : -(2**i)]) for i in range(12)]
    for left, right in pairs:
        assert abs((left == right).mean() - 0.5) < 5 * 0.5 / math.sqrt(left.size)
    third = (flat[:, :-2] ^ flat[:, 1:-1] ^ flat[:, 2:]).mean()
    assert abs(third - 0.5) < 5 * 0.5 / math.sqrt(flat.size)
