"""Attention in rows of many tokens: a block of queries at a time, against the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import attention
from mtl_jax.models.attention import Prefix, attend

CASES = {
    "both directions": {},
    "causal": {"causal": True, "softcap": 2.0},
    "window": {"window": 3},
    "causal window": {"window": 4, "causal": True},
    "bias": {"bias": True, "scale": 0.3},
    "prefix": {"prefix": True, "causal": True},
}


def inputs(length, heads=2, keys=1, width=4):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, length, heads, width)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, length, keys, width)).astype(np.float32)
    segment = np.sort(rng.integers(1, 4, (2, length)), axis=1).astype(np.int32)
    segment[1, -3:] = 0
    return query, key, value, segment


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [16, 21])
def test_blocks_equal_the_plain_form(monkeypatch, case, length):
    query, key, value, segment = inputs(length)
    options, rng = dict(CASES[case]), np.random.default_rng(1)
    if options.get("bias"):
        options["bias"] = jnp.asarray(rng.normal(size=(2, length, length)), jnp.float32)
    if options.get("prefix"):
        options["prefix"] = Prefix(*jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32))

    def both(query, key, value):
        result = attend(query, key, value, segment, None, **options)
        return (result**2).sum(), result

    def outputs():
        (_, result), gradients = jax.jit(jax.value_and_grad(both, (0, 1, 2), has_aux=True))(query, key, value)
        return result, *gradients

    plain = outputs()
    monkeypatch.setattr(attention, "LONG_ROW", 8)
    monkeypatch.setattr(attention, "BLOCK", 4)
    for one, other in zip(outputs(), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("window", [0, 64])
def test_memory_is_linear_in_the_row(window):
    def bytes_of(length):
        query = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        segment = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(query, segment):
            return attend(query, query, query, segment, None, window=window, causal=True).sum()

        compiled = jax.jit(jax.grad(loss)).lower(query, segment).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = map(functools.cache(bytes_of), (2048, 8192))
    assert large < 4.5 * small
    assert large < 2 * 8192 * 8192  # the scores of both heads alone take four times that
