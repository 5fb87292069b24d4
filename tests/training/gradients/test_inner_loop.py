"""Meta-gradients against closed forms and finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.layers import recurrent
from mtl_jax.training.gradients import inner_loop
from mtl_jax.training.parameter_paths import flatten

RATE, STEPS = 0.3, 4


def quadratic(seed, size=5):
    """½ xᵀAx − bᵀx: (A, b, loss)."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    a, b = root @ root.T, rng.normal(size=size)
    return a, b, lambda x: 0.5 * x @ jnp.asarray(a) @ x - jnp.asarray(b) @ x


def closed(a, b, x):
    """x after the inner steps, and the Jacobian of that in x: (I − rA)^n."""
    shrink = np.eye(len(b)) - RATE * a
    jacobian = np.linalg.matrix_power(shrink, STEPS)
    optimum = np.linalg.solve(a, b)
    return optimum + jacobian @ (x - optimum), jacobian


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_second_and_first_order_on_quadratics(x64, differs):
    (a, b, support), (c, d, query) = quadratic(0), quadratic(1)
    x = np.random.default_rng(2).normal(size=5)
    after, jacobian = closed(a, b, x)
    for first_order, wanted in ((False, jacobian.T @ (c @ after - d)), (True, c @ after - d)):
        actual = inner_loop.maml(
            lambda fast, slow, i: support(fast),
            lambda fast, slow: query(fast),
            jnp.asarray(x),
            (),
            jnp.asarray(RATE),
            STEPS,
            first_order=first_order,
        )
        differs("meta-gradients on quadratics", actual.fast, wanted, 1e-12)
        differs("their losses", actual.loss, 0.5 * after @ c @ after - d @ after, 1e-12)
        differs("losses before", actual.loss_before, 0.5 * x @ a @ x - b @ x, 1e-12)


def test_reptile_on_quadratics(x64, differs):
    a, b, loss = quadratic(0)
    x = np.random.default_rng(2).normal(size=5)
    after, _ = closed(a, b, x)
    actual = inner_loop.reptile(lambda fast, slow, i: loss(fast), jnp.asarray(x), (), jnp.asarray(RATE), STEPS)
    differs("Reptile against (Θ − Θ') / rate", actual.fast, (x - after) / RATE, 1e-12)
    still = inner_loop.reptile(lambda fast, slow, i: loss(fast), jnp.asarray(x), (), jnp.asarray(0.0), STEPS)
    differs("Reptile at rate 0 is the sum of gradients", still.fast, STEPS * (a @ x - b), 1e-12)


def test_what_does_not_adapt_still_learns_through_what_does(x64, differs):
    """ANIL: query(θ' , φ) with θ' = θ − r ∇_θ support(θ, φ); support = ½‖θ − φ‖², query = ½‖θ'‖² + 2φ."""
    theta, phi = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 3.0])
    actual = inner_loop.maml(
        lambda fast, slow, i: 0.5 * jnp.sum((fast - slow) ** 2),
        lambda fast, slow: 0.5 * jnp.sum(fast**2) + 2.0 * jnp.sum(slow),
        theta,
        phi,
        jnp.asarray(RATE),
        1,
    )
    moved = (1 - RATE) * theta + RATE * phi
    differs("gradient of what adapts", actual.fast, (1 - RATE) * moved, 1e-12)
    differs("gradient of what does not", actual.slow, RATE * moved + 2.0, 1e-12)


def classifier(params, x):
    """Log-probabilities of a layer of tanh units."""
    return jax.nn.log_softmax(jnp.tanh(x @ params["hidden"]) @ params["output"])


@pytest.mark.parametrize("first_order", [False, True])
def test_a_classifier_against_finite_differences(x64, first_order):
    """Central differences of the loss after adaptation; the gradient of first order must fail them."""
    rng = np.random.default_rng(0)
    params = {"hidden": jnp.asarray(rng.normal(size=(4, 6))), "output": jnp.asarray(rng.normal(size=(6, 3)))}
    sides = [(jnp.asarray(rng.normal(size=(9, 4))), jnp.asarray(rng.integers(0, 3, 9))) for _ in range(2)]

    def loss(params, side):
        return -jnp.mean(jnp.take_along_axis(classifier(params, side[0]), side[1][:, None], axis=1))

    @jax.jit
    def found(params):
        return inner_loop.maml(
            lambda fast, slow, i: loss(fast, sides[0]),
            lambda fast, slow: loss(fast, sides[1]),
            params,
            (),
            jnp.asarray(0.8),
            3,
            first_order=first_order,
        )

    gradient, errors = found(params).fast, []
    for _ in range(4):
        way = {name: jnp.asarray(rng.normal(size=leaf.shape)) for name, leaf in params.items()}
        up, down = (
            float(found({name: leaf + sign * 1e-5 * way[name] for name, leaf in params.items()}).loss)
            for sign in (1, -1)
        )
        slope = sum(float(jnp.vdot(gradient[name], way[name])) for name in params)
        errors.append(abs((up - down) / 2e-5 - slope) / abs(slope))
    assert max(errors) < 1e-7 if not first_order else max(errors) > 1e-2, errors


def test_the_rule_of_the_recurrence_at_second_order(monkeypatch, differs):
    """Its gradient by hand, differentiated again, against autodiff of the plain scan."""
    rng = np.random.default_rng(0)
    module, segment = recurrent.BiLSTM(3), jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]])
    draw = [jnp.asarray(rng.normal(size=(2, 6, d)), jnp.float32) for d in (4, 6, 4, 6)]
    params = module.init(jax.random.key(0), draw[0], segment)["params"]

    def found():
        def loss(params, x, y):
            return jnp.mean((module.apply({"params": params}, x, segment) - y) ** 2)

        return inner_loop.maml(
            lambda fast, slow, i: loss(fast, *draw[:2]),
            lambda fast, slow: loss(fast, *draw[2:]),
            params,
            (),
            jnp.float32(2.0),
            1,
        ).fast

    by_rule = jax.jit(found)()
    monkeypatch.setattr(recurrent, "_over_time", recurrent._over_time.fun)
    plain = jax.jit(lambda: found())()
    for path, leaf in flatten(plain).items():
        size = jnp.abs(leaf).max()
        differs("second order through the recurrence, relative", flatten(by_rule)[path] / size, leaf / size, 2e-5)
