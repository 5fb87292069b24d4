"""Positions as attention sees them, against their definitions and the published buckets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_encoder_goldens import GOLDENS

from mtl_jax.models import relative_positions as positions
from mtl_jax.models.attention import attend
from mtl_jax.models.families.deberta import Disentangled
from mtl_jax.models.rotary import base_rotary, rotate


def test_buckets_are_the_published_ones():
    published, distance = json.loads(GOLDENS.read_text(encoding="utf-8"))["buckets"], np.arange(-600, 601)
    for name in ("t5 32 128", "t5 8 16"):
        buckets = positions.logarithmic_buckets(distance, *map(int, name.split()[1:]))
        np.testing.assert_array_equal(buckets, published[name], err_msg=name)
    rows = Disentangled(256, 512, True, True, True, True).rows(distance)
    np.testing.assert_array_equal(rows, np.clip(np.asarray(published["deberta 256 512"]) + 256, 0, 511))


def test_positions_begin_anew_in_each_segment():
    segment = jnp.asarray([[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 5, 5, 5, 5, 5, 5]], jnp.int32)
    wanted = [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(positions.segment_positions(segment), wanted)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_values_by_distance_at_places(length):
    values = np.random.default_rng(0).normal(size=(3, length, 2 * length - 1)).astype(np.float32)
    placed = positions.by_place(jnp.asarray(values))
    for t in range(length):
        for s in range(length):
            at = positions.distances(length).tolist().index(s - t)
            np.testing.assert_array_equal(placed[:, t, s], values[:, t, at])


def test_rotated_products_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    rotary = base_rotary(100.0, 8)

    def product(a, b):
        at = (jnp.full((1, 1), place, jnp.int32) for place in (a, b))
        return float(jnp.sum(rotate(query, next(at), rotary) * rotate(key, next(at), rotary)))

    assert product(5, 2) == pytest.approx(product(9, 6), abs=1e-5)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-3)
    assert product(4, 4) == pytest.approx(float(jnp.sum(query * key)), abs=1e-5)


def test_attention_with_bias_window_scale_and_fewer_keys():
    rng, length, heads, keys, width = np.random.default_rng(1), 6, 4, 2, 3
    query = rng.normal(size=(2, length, heads, width)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, length, keys, width)).astype(np.float32)
    bias = rng.normal(size=(heads, length, length)).astype(np.float32)
    segment = np.asarray([[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 0]], np.int32)
    actual = jax.jit(lambda *a: attend(*a, None, bias=jnp.asarray(bias), scale=0.7, window=2))(
        query, key, value, segment
    )
    for r, t, h in np.ndindex(2, length, heads):
        near = [s for s in range(length) if segment[r, s] == segment[r, t] and abs(s - t) <= 2]
        scores = [0.7 * query[r, t, h] @ key[r, s, h // 2] + bias[h, t, s] for s in near]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual[r, t, h], weights @ value[r, near, h // 2], atol=1e-5)
