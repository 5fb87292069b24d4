"""Clipping by owner against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.training.clipping import clip


@pytest.mark.parametrize("largest", [0.0, 2.0])
def test_only_the_norm_of_an_owner_that_is_too_large_is_cut_to_the_limit(largest):
    """Two tasks: slice 0 of `layer` is of task 0, slice 1 of task 1, slice 2 and `embed` are shared."""
    rng = np.random.default_rng(0)
    gradient = {
        "layer": (rng.normal(size=(3, 4, 2)) * np.array([10.0, 0.1, 1.0])[:, None, None]).astype(np.float32),
        "embed": rng.normal(size=(1, 5)).astype(np.float32),
    }
    owners = {"layer": np.array([0, 1, 2]), "embed": np.array([2])}
    norms = np.zeros(3)
    for path, leaf in gradient.items():
        for number, owner in enumerate(owners[path]):
            norms[owner] += (leaf[number].astype(np.float64) ** 2).sum()
    norms = np.sqrt(norms)
    assert norms[0] > 2 and norms[1] < 2 and norms[2] > 2
    slices = {path: tuple(int(o) for o in numbers) for path, numbers in owners.items()}
    clipped, actual = clip({path: jnp.asarray(leaf) for path, leaf in gradient.items()}, slices, 2, largest)
    np.testing.assert_allclose(actual, norms, rtol=1e-6)
    factors = np.minimum(1.0, largest / norms) if largest else np.ones(3)
    for path, leaf in gradient.items():
        wanted = leaf * factors[owners[path]].reshape(-1, *(1,) * (leaf.ndim - 1))
        np.testing.assert_allclose(clipped[path], wanted, rtol=1e-6)


def test_a_gradient_of_zero_stays_zero():
    clipped, norms = clip({"embed": jnp.zeros((1, 3))}, {"embed": (0,)}, 1, 1.0)
    assert not clipped["embed"].any() and not norms.any()
