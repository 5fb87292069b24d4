"""The optimizers that leave their state alone at a bad step, against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.training import optimizer

pytestmark = pytest.mark.usefixtures("standard_promotion")

PAIRS = {
    "adam": (lambda ok: optimizer._adam(0.8, 0.97, 1e-6, ok), optax.scale_by_adam(0.8, 0.97, 1e-6, eps_root=1e-30)),
    "momentum": (lambda ok: optimizer._momentum(0.9, ok), optax.trace(0.9)),
}


def gradients(count):
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(3, 4)), rng.normal()) for _ in range(count)]
    return [{"a": jnp.asarray(a, jnp.float32), "b": jnp.float32(b)} for a, b in draws]


@pytest.mark.parametrize("name", PAIRS)
def test_as_optax_and_a_bad_step_leaves_no_trace(name):
    own, theirs = PAIRS[name]
    update = jax.jit(lambda gradient, state, ok: own(ok).update(gradient, state))
    state, wanted_state = own(True).init(gradients(1)[0]), theirs.init(gradients(1)[0])
    bad = jax.tree.map(lambda x: x * jnp.nan, gradients(1)[0])
    for gradient in gradients(6):
        _, after_bad = update(bad, state, False)  # also before the first good step
        jax.tree.map(np.testing.assert_array_equal, after_bad, state)
        found, state = update(gradient, after_bad, True)
        wanted, wanted_state = theirs.update(gradient, wanted_state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (found, state), (wanted, wanted_state))


def test_moments_are_overwritten_in_place():
    """No copy of an array as large as the parameters stands in the compiled update."""
    params = {"w": jnp.ones((256, 1024))}

    def step(params, state, gradient, ok):
        updates, state = optimizer._adam(0.9, 0.999, 1e-8, ok).update(gradient, state)
        return jax.tree.map(lambda p, u: jnp.where(ok, p - 1e-3 * u, p), params, updates), state

    state = optimizer._adam(0.9, 0.999, 1e-8, True).init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, jnp.asarray(True)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < params["w"].nbytes / 100
