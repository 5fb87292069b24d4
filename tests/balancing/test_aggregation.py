"""Gradient aggregation: goldens in float64, reductions, random orders, halves of a batch, use with optax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from mtl_jax.balancing import AGGREGATION, aggregation, cross_gram, weightings
from mtl_jax.balancing.interior_point import project_on_simplex

JACOBIAN = np.array([[-4.0, 1, 1], [6, 1, 1]])  # rows are tasks
# float64 values computed apart from this code; directions agree with a published library to 1e-4.
GOLDENS = {
    "imtl_g": ({}, [0.5923303169, 0.4076696831], 1e-8),
    "aligned_mtl": ({}, [0.5590719157, 0.4082610681], 1e-8),
    "mgda": ({}, [0.6, 0.4], 1e-8),
    "pcgrad": ({}, [2.2222222222, 1.5789473684], 1e-8),
    "cagrad": ({"c": 0.5}, [0.7041241452, 0.5], 1e-6),
    "nash_mtl": ({}, [0.5914611522, 0.4070714829], 1e-6),
    "fairgrad": ({"alpha": 2.0}, [0.4713629223, 0.3194542282], 1e-6),
    "upgrad": ({}, [1.1109210468, 0.7894310312], 1e-6),
    "dualproj": ({}, [0.6109210468, 0.5], 1e-6),
}
OPTIONS = {"krum": {"tasks": 4}, "trimmed_mean": {}, "graddrop": {}}  # others get tasks=4


def weigh(weighting, gram, present=None, seed=0, state=None):
    present = jnp.ones(len(gram), bool) if present is None else jnp.asarray(present)
    state = weighting.init(len(gram)) if state is None else state
    weights, after = jax.jit(weighting.update)(jnp.asarray(gram), state, key=jax.random.key(seed), present=present)
    return np.asarray(weights), after


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(name, differs):
    options, wanted, most = GOLDENS[name]
    with jax.enable_x64(True):
        actual, _ = weigh(weightings.WEIGHTINGS[name](**options), JACOBIAN @ JACOBIAN.T)
    differs(f"{name}: golden weights", actual, wanted, most)


def test_config_against_the_pseudo_inverse():
    gradients = np.random.default_rng(4).normal(size=(4, 10))
    for preference in (None, [1.0, 2.0, 0.5, 1.0]):
        units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
        direction = np.linalg.pinv(units) @ (np.ones(4) if preference is None else preference)
        direction /= np.linalg.norm(direction)
        with jax.enable_x64(True):
            actual, _ = weigh(weightings.config(preference), gradients @ gradients.T)
        np.testing.assert_allclose(actual @ gradients, (gradients @ direction).sum() * direction, atol=1e-10)


def test_mgda_of_two_equals_a_search_along_the_segment():
    rng = np.random.default_rng(1)
    t, method = np.linspace(0, 1, 100_001), weightings.mgda()
    with jax.enable_x64(True):
        for scale in (1.0, 0.1, 30.0):
            a, b = rng.normal(size=(2, 3)) * [[1.0], [scale]]
            norms = np.linalg.norm(t[:, None] * a + (1 - t[:, None]) * b, axis=1)
            gram = np.stack([a, b]) @ np.stack([a, b]).T
            np.testing.assert_allclose(weigh(method, gram)[0][0], t[norms.argmin()], atol=2e-5)


def test_reductions():
    gradients = np.random.default_rng(6).normal(size=(4, 10)) - 0.3
    gram, small = gradients @ gradients.T, JACOBIAN @ JACOBIAN.T
    with jax.enable_x64(True):
        mean, _ = weigh(weightings.mean(), gram)
        np.testing.assert_array_equal(weigh(weightings.cagrad(0.0), gram)[0], mean)
        traced = jax.jit(
            lambda c: weightings.cagrad(c).update(
                jnp.asarray(gram), (), key=jax.random.key(0), present=jnp.ones(4, bool)
            )[0]
        )
        np.testing.assert_allclose(traced(jnp.float32(0.0)), mean, atol=1e-12)  # a swept c, of another dtype
        np.testing.assert_allclose(traced(jnp.float32(0.5)), weigh(weightings.cagrad(0.5), gram)[0], rtol=1e-7)
        np.testing.assert_array_equal(weigh(weightings.fairgrad(1.0), gram)[0], weigh(weightings.nash_mtl(), gram)[0])
        fair, _ = weigh(weightings.fairgrad(1e6), small)
        np.testing.assert_allclose(fair / fair.sum(), [0.6, 0.4], atol=1e-6)  # the direction of MGDA
        gradvac, pcgrad = weightings.gradvac(0.0), weightings.pcgrad()
        for seed in range(3):
            np.testing.assert_allclose(weigh(gradvac, gram, seed=seed)[0], weigh(pcgrad, gram, seed=seed)[0], rtol=1e-9)
        same, _ = weigh(weightings.cr_mogm(weightings.aligned_mtl(), 0.0), gram)
        np.testing.assert_array_equal(same, weigh(weightings.aligned_mtl(), gram)[0])


def test_pcgrad_equals_the_algorithm_on_gradients_in_some_order():
    gradients = np.random.default_rng(2).normal(size=(3, 4)) - 0.4

    def project(task, order):
        g = gradients[task].copy()
        for other in order:
            if other != task and g @ gradients[other] < 0:
                g -= (g @ gradients[other]) / (gradients[other] @ gradients[other]) * gradients[other]
        return g

    orders = list(itertools.permutations(range(3)))
    options = [{tuple(np.round(project(task, order), 9)) for order in orders} for task in range(3)]
    sums = [np.sum(choice, axis=0) for choice in itertools.product(*options)]
    assert len(sums) > 1, "the order matters in this example"
    pcgrad = weightings.pcgrad()
    with jax.enable_x64(True):
        actual = [weigh(pcgrad, gradients @ gradients.T, seed=seed)[0] @ gradients for seed in range(8)]
    assert all(min(np.abs(s - f).max() for s in sums) < 1e-8 for f in actual)
    assert len({tuple(np.round(f, 6)) for f in actual}) > 1, "the key draws the order"


def test_gradvac_equals_the_algorithm_on_gradients():
    """Three updates with a fast moving average; the orders are those that the key draws."""
    rng, beta, count = np.random.default_rng(3), 0.5, 4
    aims, state, gradvac = np.zeros((count, count)), None, weightings.gradvac(beta)
    raised = 0
    for seed in range(3):
        gradients = rng.normal(size=(count, 6))
        moved = []
        for task, key in enumerate(jax.random.split(jax.random.key(seed), count)):
            g = gradients[task].copy()
            for other in np.asarray(jax.random.permutation(key, count)):
                if other == task:
                    continue
                aim, against = aims[task, other], gradients[other]
                cosine = g @ against / np.linalg.norm(g) / np.linalg.norm(against)
                if cosine < aim:
                    wanted, length = np.sqrt(1 - aim**2), np.linalg.norm(g) / np.linalg.norm(against)
                    g = g + length * (aim * np.sqrt(1 - cosine**2) - cosine * wanted) / wanted * against
                    raised += aim > 0
                aims[task, other] = (1 - beta) * aim + beta * cosine
            moved.append(g)
        with jax.enable_x64(True):
            state = gradvac.init(count) if state is None else state
            weights, state = weigh(gradvac, gradients @ gradients.T, seed=seed, state=state)
        np.testing.assert_allclose(weights @ gradients, np.sum(moved, axis=0), atol=1e-9)
        np.testing.assert_allclose(state, aims, atol=1e-9)
    assert raised > 3, "cosines are raised also where nothing conflicts"


def test_pcd_keeps_moving_averages():
    pcd = weightings.pcd(0.3, beta=0.9)
    state, averages = pcd.init(3), np.zeros(3)
    for step in range(3):
        gradients = np.random.default_rng(step).normal(size=(3, 5))
        here = np.array([True, True, step != 1])
        averages[here] = 0.9 * averages[here] + 0.1 * np.sum(gradients**2, axis=1)[here]
        weights, state = weigh(pcd, (gradients @ gradients.T).astype(np.float32), here, state=state)
        np.testing.assert_allclose(state.squares, averages, rtol=1e-5)
        d = weights @ gradients
        np.testing.assert_allclose(np.linalg.norm(d), np.linalg.norm(gradients[0]), rtol=1e-4)
    assert state.seen.tolist() == [3, 3, 2]
    conflict = np.array([[1.0, 0, 0], [0, 1, -1], [0, -1, 1]], np.float32)  # two others, opposite: not to be had
    np.testing.assert_allclose(weigh(pcd, conflict)[0], [1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(weigh(pcd, conflict, [False, True, True])[0], 0.0)


def test_smoothing_averages_the_weights():
    method = weightings.cr_mogm(weightings.mgda(), 0.9)
    gram = (JACOBIAN @ JACOBIAN.T).astype(np.float32)
    weights, state = weigh(method, gram)
    np.testing.assert_allclose(weights, 0.9 * 0.5 + 0.1 * np.array([0.6, 0.4]), rtol=1e-6)
    weights, state = weigh(method, gram, [True, False], state=state)  # mgda of one task: weight 1
    np.testing.assert_allclose(weights, [0.9 * 0.51 + 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(state.weights, [0.559, 0.49], rtol=1e-6)


def test_projection_on_the_simplex_against_scipy():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for present in ([True] * 4, [True, False, True, True]):
            point, here = rng.normal(size=4), np.array(present)
            actual = np.asarray(project_on_simplex(jnp.asarray(point), jnp.asarray(here), jnp.asarray(0.7)))
            solved = minimize(
                lambda w, aim=point[here]: np.sum((w - aim) ** 2),
                np.full(here.sum(), 0.7 / here.sum()),
                bounds=[(0, None)] * here.sum(),
                constraints={"type": "eq", "fun": lambda w: w.sum() - 0.7},
                options={"ftol": 1e-15},
            )
            np.testing.assert_allclose(actual[here], solved.x, atol=1e-6)
            assert not actual[~here].any()


def halves_of(seed=0, count=3):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, 5))
    return {"a": jnp.asarray(np.stack([first, first + 0.3 * rng.normal(size=(count, 5))]), jnp.float32)}


def test_cross_gram_is_of_the_first_half_with_the_second():
    halves = halves_of()
    first, second = np.asarray(halves["a"])
    np.testing.assert_allclose(cross_gram(halves), first @ second.T, rtol=1e-5)
    with pytest.raises(ValueError, match="two independent halves"):
        cross_gram({"a": jnp.ones((3, 4))})
    with pytest.raises(ValueError, match="two independent halves"):
        aggregation.modo(tasks=3).update({"a": jnp.ones((3, 4))}, aggregation.modo(tasks=3).init({}))


def simplex(point):
    return np.asarray(project_on_simplex(jnp.asarray(point), jnp.ones(len(point), bool), jnp.float32(1.0)))


def test_modo_and_sdmgrad_take_halves():
    modo, sdmgrad = aggregation.modo(0.1, 0.2, tasks=3), aggregation.sdmgrad(0.3, 1.0, 0.5, 4, tasks=3)
    states = modo.init({}), sdmgrad.init({})
    weights = w = np.full(3, 1 / 3, np.float32)
    for seed in range(3):
        halves = halves_of(seed)
        first, second = np.asarray(halves["a"])
        products, mean = first @ second.T, (first + second) / 2
        weights = simplex(weights - np.float32(0.1) * (products @ weights + np.float32(0.2) * weights))
        actual, state = modo.update(halves, states[0])
        np.testing.assert_allclose(actual["a"], weights @ mean, atol=1e-5)
        relative = products / np.mean(np.sqrt(np.maximum(np.diag(products), 0))) ** 2
        velocity = np.zeros(3, np.float32)
        for _ in range(4):
            velocity = np.float32(0.5) * velocity + relative @ (w + np.float32(0.1))
            w = simplex(w - velocity)
        actual, states = sdmgrad.update(halves, states[1])[0], (state, sdmgrad.update(halves, states[1])[1])
        np.testing.assert_allclose(actual["a"], (w + 0.1) / 1.3 @ mean, atol=1e-5)
    part, _ = modo.update(halves, states[0], present=jnp.array([True, False, True]))
    remaining = weights * [1, 0, 1] / weights[[0, 2]].sum()
    assert np.linalg.norm(np.asarray(part["a"]) - remaining @ mean) < 0.3 * np.linalg.norm(remaining @ mean)


def test_moco_tracks_gradients():
    for halves in (False, True):
        moco = aggregation.moco(0.5, beta_sigma=0.5, gamma=0.1, gamma_sigma=0.5, rho=0.2, halves=halves, tasks=3)
        state = moco.init({"a": jnp.zeros(5)})
        y, weights = np.zeros((2, 3, 5) if halves else (3, 5), np.float32), np.full(3, 1 / 3, np.float32)
        for step in range(1, 4):
            g = np.asarray(halves_of(step)["a"]) if halves else np.asarray(halves_of(step)["a"])[0]
            y = y + np.float32(0.5 / step**0.5) * (g - y)
            products = y[0] @ y[1].T if halves else y @ y.T
            rate = np.float32(0.1 / step**0.5)
            weights = simplex(weights - rate * (products @ weights + np.float32(0.2) * weights))
            actual, state = moco.update({"a": jnp.asarray(g)}, state)
            np.testing.assert_allclose(actual["a"], weights @ (y.mean(0) if halves else y), atol=1e-5)
    before = state
    _, state = moco.update({"a": jnp.full_like(g, jnp.nan)}, state, present=jnp.array([False] * 3))
    np.testing.assert_array_equal(state.gradients["a"], before.gradients["a"])


def test_db_mtl_scales_to_the_largest_norm():
    transform = aggregation.db_mtl(0.8, 0.5, tasks=3)
    state, y = transform.init({"a": jnp.zeros(5)}), np.zeros((3, 5))
    losses = np.array([0.5, 2.0, 4.0])
    for step in range(1, 3):
        g = np.asarray(halves_of(step)["a"])[0]
        keep = 0.8 / step**0.5
        y = keep * y + (1 - keep) * g / losses[:, None]
        norms = np.linalg.norm(y, axis=1)
        actual, state = transform.update({"a": jnp.asarray(g)}, state, losses=jnp.asarray(losses, jnp.float32))
        np.testing.assert_allclose(actual["a"], norms.max() * (y / norms[:, None]).sum(0), rtol=1e-4)


def test_graddrop_keeps_one_sign_with_its_probability():
    many = 20_000
    g = np.array([3.0, -1.0, 2.0], np.float32)[:, None] * np.ones((1, many), np.float32)  # purity ½ (1 + 4/6) = 5/6
    transform = aggregation.graddrop()
    out, state = transform.update({"a": jnp.asarray(g)}, transform.init({}))
    remaining = np.asarray(out["a"])
    assert set(np.unique(remaining)) == {5.0, -1.0}
    assert abs(np.mean(remaining == 5.0) - 5 / 6) < 0.01
    again, _ = transform.update({"a": jnp.asarray(g)}, state)
    assert np.mean(np.asarray(again["a"]) != remaining) > 0.1, "the key goes on"
    leaky, _ = aggregation.graddrop(leak=[0.5, 1.0, 0.0]).update({"a": jnp.asarray(g)}, transform.init({}))
    np.testing.assert_allclose(leaky["a"], np.where(remaining == 5.0, 3 - 1 + 2, 1.5 - 1), rtol=1e-6)
    g[1] = np.nan
    alone, _ = transform.update({"a": jnp.asarray(g)}, state, present=jnp.array([True, False, True]))
    np.testing.assert_array_equal(alone["a"], 5.0)


def test_trimmed_mean_against_sorting():
    g = np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)
    transform = aggregation.trimmed_mean(2)
    actual, _ = transform.update({"a": jnp.asarray(g)}, transform.init({}))
    np.testing.assert_allclose(actual["a"], np.sort(g, axis=0)[2:4].mean(0), rtol=1e-5)
    g[4:] = np.nan
    for here, remaining in ((4, slice(1, 3)), (3, slice(1, 2)), (1, slice(0, 1))):
        present = np.arange(6) < here
        actual, _ = transform.update({"a": jnp.asarray(g)}, transform.init({}), present=jnp.asarray(present))
        np.testing.assert_allclose(actual["a"], np.sort(g[:here], axis=0)[remaining].mean(0), rtol=1e-5)


def test_multi_krum_leaves_out_the_stranger():
    gradients = np.random.default_rng(0).normal(size=(5, 8)) * 0.1 + 1
    gradients[2] *= -50
    weights, _ = weigh(weightings.krum(1, 4), (gradients @ gradients.T).astype(np.float32))
    np.testing.assert_allclose(weights, [0.25, 0.25, 0, 0.25, 0.25])


def test_a_preference_may_leave_a_task_out():
    gram = JACOBIAN @ JACOBIAN.T
    preferred, _ = weigh(weightings.config([1.0, 0.0] + [1.0] * (len(gram) - 2)), gram)
    assert np.isfinite(preferred).all()


def test_both_registries_are_counted():
    assert len(AGGREGATION) == len(list(AGGREGATION)) > len(weightings.WEIGHTINGS)


@pytest.mark.parametrize("name", AGGREGATION)
def test_in_an_optax_chain(name):
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)}
    factors = (1.0, 2.0, 0.5, 1.5)
    gradients = jax.tree.map(lambda x: jnp.stack([f * x + f - 1 for f in factors]).astype(x.dtype), params)
    if name in ("modo", "sdmgrad"):
        gradients = jax.tree.map(lambda x: jnp.stack([x, x]), gradients)
    optimizer = optax.chain(AGGREGATION[name](**OPTIONS.get(name, {"tasks": 4})), optax.sgd(1.0))

    @jax.jit
    def step(gradients, state, present):
        return optimizer.update(gradients, state, params, present=present)

    state = optimizer.init(params)
    updates, after = step(gradients, state, jnp.ones(4, bool))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(a.dtype == b.dtype for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))
    axis = 1 if name in ("modo", "sdmgrad") else 0
    broken = jax.tree.map(
        lambda x: jnp.where(jnp.arange(4).reshape(-1, *(1,) * (x.ndim - axis - 1)) == 1, jnp.nan, x), gradients
    )
    only, _ = step(broken, after, jnp.array([True, False, True, True]))
    assert all(jnp.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(only)), (
        "who is absent is left out"
    )
    none, _ = step(broken, after, jnp.zeros(4, bool))
    assert not any(leaf.astype(jnp.float32).any() for leaf in jax.tree.leaves(none))
    if name == "mean":  # what stands for all tasks is no method's own
        without, _ = optimizer.update(gradients, state, params)
        np.testing.assert_allclose(without["w"], updates["w"], rtol=1e-5)
        np.testing.assert_allclose(only["w"], -gradients["w"][jnp.array([0, 2, 3])].mean(0), rtol=1e-5)


def test_random_orders_go_on_from_the_state():
    transform = aggregation.pcgrad(seed=3)
    state = transform.init({})
    _, after = transform.update({"w": jnp.asarray(JACOBIAN)}, state)
    assert (jax.random.key_data(after.key) != jax.random.key_data(state.key)).any()


def test_smoothing_as_an_option():
    transform = aggregation.aligned_mtl("rmse", tasks=2, smoothing=0.9)
    actual, _ = transform.update({"w": jnp.asarray(JACOBIAN, jnp.float32)}, transform.init({}))
    weights, _ = weigh(
        weightings.cr_mogm(weightings.aligned_mtl("rmse"), 0.9), (JACOBIAN @ JACOBIAN.T).astype(np.float32)
    )
    np.testing.assert_allclose(actual["w"], weights @ JACOBIAN, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weightings.cagrad(1.5), r"c must lie in \[0.0, 1.0\), not 1.5"),
        (lambda: weightings.fairgrad(0.0), "alpha must be > 0"),
        (lambda: weightings.upgrad(regularisation=0.0), "regularisation must be > 0"),
        (lambda: weightings.upgrad(preference=[1.0, -1.0]), "preference must be one finite number ≥ 0"),
        (lambda: weightings.upgrad(preference=[0.0, 0.0]), "preference must not be 0"),
        (lambda: weigh(weightings.config([1.0, 2.0, 3.0]), np.eye(2, dtype=np.float32)), "3 numbers for 2 tasks"),
        (lambda: weightings.aligned_mtl("mean"), "scale must be one of min, median, rmse"),
        (lambda: weightings.gradvac(2.0), "beta must lie"),
        (lambda: weightings.pcd(1.5), "tau must lie"),
        (lambda: weigh(weightings.pcd(primary=2), np.eye(2, dtype=np.float32)), "primary must be one of the 2 tasks"),
        (lambda: weightings.krum(-1), "byzantine must be a whole number ≥ 0"),
        (lambda: weigh(weightings.krum(1), np.eye(3, dtype=np.float32)), "at least 4 tasks"),
        (lambda: aggregation.trimmed_mean(1).update({"a": jnp.ones((2, 3))}, ()), "more than 2 tasks"),
        (lambda: aggregation.graddrop([0.5, 2.0]), r"leak must be one number in \[0, 1\]"),
        (lambda: aggregation.moco().init({"a": jnp.ones(2)}), "tasks=K"),
        (lambda: aggregation.gradvac().init({}), "gradvac keeps a state for each task"),
        (
            lambda: aggregation.mean().update(
                {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}, aggregation.mean().init({})
            ),
            "first axis",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
