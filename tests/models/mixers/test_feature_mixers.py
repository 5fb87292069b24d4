"""Mixers over a list of features, against their formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.mixers.features import init_mixer, mix_features

FEATURES = list(jax.random.normal(jax.random.key(0), (2, 5, 6)))


def test_cross_stitch_of_vectors_and_of_tokens():
    mixer = MIXERS["cross_stitch"](2, own=0.7)
    params = init_mixer(mixer, jax.random.key(1), FEATURES)
    mixed = mix_features(mixer, params, FEATURES)
    np.testing.assert_allclose(mixed[0], 0.7 * FEATURES[0] + 0.3 * FEATURES[1], rtol=1e-5)
    tokens = [jnp.stack([f, 2 * f], axis=1) for f in FEATURES]
    np.testing.assert_allclose(mix_features(mixer, params, tokens)[1][:, 1], 2 * mixed[1], rtol=1e-5)


def test_experts_with_gates_from_the_trunk():
    mixer = MIXERS["mmoe"](2, experts=3)
    experts = list(jax.random.normal(jax.random.key(2), (3, 5, 6)))
    trunk = jax.random.normal(jax.random.key(3), (5, 4))
    params = init_mixer(mixer, jax.random.key(1), experts, inputs=4)
    mixed = mix_features(mixer, params, experts, [trunk] * mixer.streams)
    stack = np.stack(experts)
    low, high = stack.min(axis=0), stack.max(axis=0)  # a convex combination
    assert len(mixed) == 2 and all(((m >= low - 1e-5) & (m <= high + 1e-5)).all() for m in mixed)
    with pytest.raises(ValueError, match="the mixer has 3 features, not 2"):
        mix_features(mixer, params, experts[:2], [trunk] * 2)
