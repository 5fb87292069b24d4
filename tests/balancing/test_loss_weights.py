"""Loss weights: the papers' formulas, gradients, missing tasks, traced options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.balancing import LOSS_WEIGHTS, Signals, aggregation, loss_weights
from mtl_jax.balancing.loss_weights import class_divergence

OPTIONS = {"fixed": {"weights": [1.0, 2.0, 3.0]}, "by_size": {"sizes": [10, 20, 30]}}
SHARED = {"w": jnp.zeros((2, 2))}
TRACED = [  # (method, option, value in one lane, in another) for every option that is a number
    ("by_size", "temperature", 2, 0.5),
    ("dwa", "temperature", 1, 0.25),
    ("stch", "mu", 0.5, 0.125),
    ("uncertainty", "learning_rate", 0.1, 0.025),
    ("imtl_l", "learning_rate", 0.1, 0.025),
    ("gradnorm", "alpha", 4, 0),
    ("gradnorm", "learning_rate", 0.1, 0.025),
    ("famo", "learning_rate", 0.1, 0.025),
    ("famo", "decay", 0.1, 0.025),
    ("famo", "lowest", 0.01, 0.0025),
    ("excess_mtl", "step_size", 0.5, 0.125),
    ("db_mtl", "beta", 0.5, 0.125),
    ("db_mtl", "beta_sigma", 1, 0.25),
    ("kl", "decay", 0.5, 0.125),
    ("dtp", "gamma", 2, 0.5),
    ("dtp", "decay", 0.5, 0.125),
]


def start(method, count=3):
    return method.init(count, SHARED) if "gradients" in method.needs else method.init(count)


def signals(losses, present=None, **others):
    losses = jnp.asarray(losses, jnp.float32)
    present = jnp.ones(losses.shape, bool) if present is None else jnp.asarray(present)
    return Signals(losses, present, **{name: to_float32(value) for name, value in others.items()})


def to_float32(value):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), value, is_leaf=lambda x: not isinstance(x, dict))


def full(losses, present=None, seed=0):
    """Signals of all kinds, for three tasks."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(3, 2, 2)).astype(np.float32)
    flat = gradients.reshape(3, 4)
    return signals(
        losses,
        present,
        gradient_norms=np.linalg.norm(flat, axis=1),
        gram=flat @ flat.T,
        gradients={"w": gradients},
        losses_after=0.9 * np.asarray(losses),
        divergences=[0.1 + 0.05 * seed, 0.3, np.nan],
        scores=[0.5 + 0.05 * seed, 0.9, np.nan],
    )


def weigh(method, losses, present=None, state=None, **others):
    state = method.init(len(losses)) if state is None else state
    return jax.jit(method.update)(signals(losses, present, **others), state)


def test_equal_fixed_and_by_size():
    np.testing.assert_array_equal(weigh(loss_weights.equal(), [1.0, 9.0])[0], [1, 1])
    np.testing.assert_allclose(weigh(loss_weights.fixed([0.2, 3]), [1.0, 9.0])[0], [0.2, 3])
    np.testing.assert_allclose(weigh(loss_weights.by_size([100, 300]), [1.0, 9.0])[0], [0.5, 1.5])
    np.testing.assert_allclose(weigh(loss_weights.by_size([100, 300], 1e6), [1.0, 9.0])[0], [1, 1], atol=1e-5)


def test_dwa():
    """K softmax((L[t−1] / L[t−2]) / temperature), and 1 until there are two losses."""
    method = loss_weights.dwa(2.0)
    alpha, _, state = weigh(method, [4.0, 1.0, 1.0])
    np.testing.assert_allclose(alpha, 1.0)
    alpha, _, state = weigh(method, [2.0, 1.0, 3.0], [True, True, False], state)
    np.testing.assert_allclose(alpha, 1.0)
    alpha, _, state = weigh(method, [1.0, 1.0, 1.0], None, state)
    ratio = np.array([0.5, 1.0, 1.0])  # the third task has one loss only
    np.testing.assert_allclose(alpha, 3 * np.exp(ratio / 2) / np.exp(ratio / 2).sum(), rtol=1e-6)
    alpha, _, _ = weigh(method, [1.0, 1.0, 5.0], None, state)
    np.testing.assert_allclose(
        alpha, 3 * np.exp(np.array([0.5, 1, 1]) / 2) / np.exp(np.array([0.5, 1, 1]) / 2).sum(), rtol=1e-6
    )


def test_gls_has_the_value_and_the_gradient_of_the_geometric_mean():
    method = loss_weights.gls()
    losses = jnp.array([0.5, 2.0])
    alpha, _, _ = weigh(method, losses)
    np.testing.assert_allclose(jnp.sum(alpha * losses), 1.0, rtol=1e-6)
    losses = jnp.array([0.3, 4.0])
    np.testing.assert_allclose(slope(method, losses), jax.grad(lambda x: jnp.sqrt(x[0] * x[1]))(losses), rtol=1e-5)
    alpha, _, _ = weigh(method, [0.5, 123.0, 2.0], [True, False, True])
    np.testing.assert_allclose(alpha, [1.0, 0.0, 0.25], rtol=1e-6)


def slope(method, losses, state=()):
    """Gradient of the whole objective in the losses: what training descends."""

    def objective(x):
        alpha, extra, _ = method.update(Signals(x, jnp.ones(x.shape, bool)), state)
        return jnp.sum(alpha * x) + extra

    return jax.grad(objective)(losses)


def test_stch_is_the_smooth_maximum():
    losses = jnp.array([0.3, 1.0, 0.8])
    for preference, ideal, mu in ((None, None, 0.5), ([1.0, 0.2, 2.0], [0.1, 0.2, 0.3], 0.1)):
        p, z = (np.ones(3) if preference is None else preference), (np.zeros(3) if ideal is None else ideal)
        p, z = jnp.asarray(p, jnp.float32), jnp.asarray(z, jnp.float32)

        def smooth(x, p=p, z=z, mu=mu):
            return mu * jnp.log(jnp.sum(jnp.exp(p * (x - z) / mu)))

        method = loss_weights.stch(mu, preference, ideal)
        alpha, extra, _ = weigh(method, losses)
        np.testing.assert_allclose(jnp.sum(alpha * losses) + extra, smooth(losses), rtol=1e-5)
        np.testing.assert_allclose(slope(method, losses), jax.grad(smooth)(losses), rtol=1e-5)
    alpha, extra, _ = weigh(loss_weights.stch(1e-4), losses)  # the maximum, at last
    np.testing.assert_allclose(jnp.sum(alpha * losses) + extra, 1.0, rtol=1e-6)
    np.testing.assert_allclose(alpha, [0, 1, 0], atol=1e-6)
    alpha, extra, _ = weigh(loss_weights.stch(1e-4), losses, [True, False, True])
    np.testing.assert_allclose(jnp.sum(alpha[::2] * losses[::2]) + extra, 0.8, rtol=1e-6)


def test_rlw_draws_anew_and_repeats_by_seed():
    method = loss_weights.rlw(seed=1)
    first, _, state = weigh(method, [1.0, 1.0, 1.0])
    second, _, _ = weigh(method, [1.0, 1.0, 1.0], None, state)
    np.testing.assert_allclose([first.sum(), second.sum()], 1.0, rtol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, weigh(loss_weights.rlw(seed=1), [2.0, 3.0, 4.0])[0])


def run(method, steps, make, state=None):
    """α, extra and state after `steps` updates with make(step) -> Signals."""
    state, update = start(method) if state is None else state, jax.jit(method.update)
    for step in range(steps):
        alpha, extra, state = update(make(step), state)
    return alpha, extra, state


@pytest.mark.parametrize(
    ("name", "options", "wanted", "objective"),
    [
        (
            "uncertainty",
            {"regression": [False, True, False]},
            [0.5, 0.5, 0.5],
            lambda s, x: jnp.sum(jnp.array([1, 0.5, 1]) * jnp.exp(-s) * x + s / 2),
        ),
        ("imtl_l", {}, [1.0, 1.0, 1.0], lambda s, x: jnp.sum(jnp.exp(s) * x - s)),
    ],
)
def test_learned_scales(name, options, wanted, objective):
    """Value and gradients are those of the paper's objective; at its optimum all weighted losses are equal."""
    method, losses = LOSS_WEIGHTS[name](learning_rate=0.05, **options), jnp.array([0.5, 2.0, 10.0])
    alpha, extra, state = run(method, 5, lambda step: signals(losses))
    s = run(method, 4, lambda step: signals(losses))[2].values  # what the fifth update had
    np.testing.assert_allclose(jnp.sum(alpha * losses) + extra, objective(s, losses), rtol=1e-5)
    np.testing.assert_allclose(slope(method, losses, state), jax.grad(objective, 1)(state.values, losses), rtol=1e-5)
    descent = -jnp.sign(jax.grad(objective)(jnp.zeros(3), losses))  # Adam's first step
    first = run(method, 1, lambda step: signals(losses))[2]
    np.testing.assert_allclose(first.values, 0.05 * descent, rtol=1e-4)
    alpha, _, _ = run(method, 400, lambda step: signals(losses))
    np.testing.assert_allclose(alpha * losses, wanted, rtol=0.01)
    _, _, state = run(method, 700, lambda step: signals([0.0, 1.0, 1e30]))
    assert jnp.isfinite(state.values).all() and jnp.abs(state.values).max() <= 15


def test_an_absent_task_is_not_learned():
    for name in ("uncertainty", "imtl_l", "gradnorm", "famo"):
        method = LOSS_WEIGHTS[name]()
        _, _, before = run(method, 2, lambda step: full([2.0, 1.5, 3.0], seed=step))
        _, _, state = run(method, 1, lambda step: full([2.0, 1.5, 3.0], [True, True, False]), before)
        old, new = (getattr(s, "learned", s) for s in (before, state))
        assert new.first[0] != old.first[0] and new.seen[0] == old.seen[0] + 1, name
        if name != "famo":  # which learns of a step at the next
            assert new.first[2] == old.first[2] and new.seen[2] == old.seen[2], name


def test_gradnorm_follows_the_algorithm():
    """Against the derivative of the paper's loss by autodiff, and Adam and rescaling written out."""
    alpha, rate = 1.5, 0.1
    method, w, first, second = loss_weights.gradnorm(alpha, rate), np.ones(3), np.zeros(3), np.zeros(3)
    state, update, before = method.init(3), jax.jit(method.update), None
    for step in range(1, 6):
        losses, norms = np.array([1.0, 2.0, 0.5]) * np.array([0.9, 0.5, 1.0]) ** step, np.array([1.0, 3.0, 0.1 * step])
        before = losses if before is None else before
        actual, extra, state = update(signals(losses, gradient_norms=norms), state)
        np.testing.assert_allclose(actual, w, rtol=1e-5)
        assert extra == 0
        rates = losses / before / np.mean(losses / before)
        goal = np.mean(w * norms) * rates**alpha

        def loss(w, norms=norms, goal=goal):
            return jnp.sum(jnp.abs(w * norms - goal))

        slopes = np.asarray(jax.grad(loss)(jnp.asarray(w)))
        first, second = 0.9 * first + 0.1 * slopes, 0.999 * second + 0.001 * slopes**2
        w = w - rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        w = 3 * np.maximum(w, 1e-3) / np.maximum(w, 1e-3).sum()
    gram = np.diag(norms**2)
    np.testing.assert_allclose(update(signals(losses, gram=gram), state)[0], w, rtol=1e-5)  # a Gram does as well


def test_famo_follows_the_algorithm():
    """ξ by autodiff of softmax(ξ)·δ, δ the fall of the logarithms on the same batch, and Adam written out."""
    rate, decay = 0.025, 1e-3
    method, logits, first, second, last = loss_weights.famo(rate, decay), np.zeros(3), np.zeros(3), np.zeros(3), None
    state, update = method.init(3), jax.jit(method.update)
    for step in range(5):
        rng = np.random.default_rng(step)
        losses, after = rng.uniform(0.5, 2.0, 3), np.zeros(3) if last is None else last * rng.uniform(0.5, 1.0, 3)
        if last is not None:
            fell = jnp.asarray(np.log(last) - np.log(after))

            def gain(x, fell=fell):
                return jnp.dot(jax.nn.softmax(x), fell)

            slopes = np.asarray(jax.grad(gain)(jnp.asarray(logits))) + decay * logits
            first, second = 0.9 * first + 0.1 * slopes, 0.999 * second + 0.001 * slopes**2
            logits = logits - rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        z = np.exp(logits) / np.exp(logits).sum()
        actual, _, state = update(signals(losses, losses_after=after), state)
        np.testing.assert_allclose(actual, z / losses / np.sum(z / losses), rtol=1e-4)
        last = losses


def test_excess_mtl_follows_the_algorithm():
    method = loss_weights.excess_mtl(0.5)
    state, update, squares, weights = method.init(3, SHARED), jax.jit(method.update), np.zeros((3, 4)), np.ones(3)
    for step in range(4):
        given = full([1.0, 2.0, 3.0], seed=step)
        g = np.asarray(given.gradients["w"]).reshape(3, 4)
        squares += g**2
        risk = np.sum(g**2 / np.sqrt(squares + 1e-7), axis=1)
        if step == 0:
            baseline = risk
        else:
            weights = weights * np.exp(0.5 * risk / baseline)
            weights = weights * 3 / weights.sum()
        alpha, _, state = update(given, state)
        np.testing.assert_allclose(alpha, weights, rtol=1e-4)


def test_excess_mtl_learns_nothing_of_an_absent_task():
    method = loss_weights.excess_mtl(0.5)
    given = full([1.0, 2.0, 3.0])
    absent = given._replace(present=jnp.asarray([True, False, True]))
    _, _, state = method.update(absent, method.init(3, SHARED))
    np.testing.assert_array_equal(state.squares["w"][1], np.zeros_like(state.squares["w"][1]))
    np.testing.assert_array_equal(state.squares["w"][0], given.gradients["w"][0] ** 2)


def test_db_mtl_makes_the_gradients_of_the_logarithms_equally_long():
    given = full([0.5, 2.0, 4.0])
    method = loss_weights.db_mtl(0.0)
    alpha, _, _ = jax.jit(method.update)(given, method.init(3))
    lengths = np.asarray(alpha * given.gradient_norms)
    np.testing.assert_allclose(lengths, np.max(given.gradient_norms / given.losses), rtol=1e-5)
    together = aggregation.db_mtl(0.0, tasks=3)  # for shared parameters the same
    combined, _ = together.update(given.gradients, together.init(SHARED), losses=given.losses)
    wanted = np.einsum("k,kij->ij", alpha, given.gradients["w"])
    np.testing.assert_allclose(combined["w"], wanted, rtol=1e-4)
    keep, averages = 0.9, 0.1 * np.asarray(given.gradient_norms / given.losses)  # the second update, averaged
    method = loss_weights.db_mtl()
    alpha, _, _ = run(method, 2, lambda step: full([0.5, 2.0, 4.0], seed=0) if step == 0 else full([1.0] * 3, seed=1))
    keep = 0.9 / 2**0.5
    averages = keep * averages + (1 - keep) * np.asarray(full([1.0] * 3, seed=1).gradient_norms)
    np.testing.assert_allclose(alpha, averages.max() / averages, rtol=1e-4)


def test_kl_weighs_by_divergence():
    method = loss_weights.kl(0.5)
    alpha, _, state = weigh(method, [1.0, 1.0, 1.0], divergences=[0.1, 0.3, np.nan])
    np.testing.assert_allclose(alpha, [0.5, 1.5, 1.0], rtol=1e-5)  # the third task has no classes
    alpha, _, _ = weigh(method, [1.0, 1.0, 1.0], None, state, divergences=[0.4, 0.0, np.nan])
    averages = np.array([0.5 * 0.05 + 0.5 * 0.4, 0.5 * 0.15]) / 0.75
    np.testing.assert_allclose(alpha[:2], 2 * averages / averages.sum(), rtol=1e-5)
    np.testing.assert_allclose(weigh(method, [1.0, 1.0], divergences=[0.0, 0.0])[0], 1.0)


def test_class_divergence_against_scipy():
    from scipy.stats import entropy

    labels, predictions = np.array([3.0, 0.0, 5.0]), np.array([2.0, 1.5, 4.5])
    actual = class_divergence(jnp.asarray(labels, jnp.float32), jnp.asarray(predictions, jnp.float32))
    np.testing.assert_allclose(actual, entropy(labels, predictions), rtol=1e-5)
    assert class_divergence(jnp.ones(2), jnp.ones(2)) == 0
    assert jnp.isnan(class_divergence(jnp.zeros(3), jnp.ones(3)))
    assert jnp.isfinite(class_divergence(jnp.array([1.0, 1]), jnp.array([2.0, 0])))


def test_dtp_is_the_focal_loss_of_the_score():
    method = loss_weights.dtp(2.0, 0.5)
    alpha, _, state = weigh(method, [1.0, 1.0, 1.0], scores=[0.5, 0.9, np.nan])
    np.testing.assert_allclose(alpha, [-0.25 * np.log(0.5), -0.01 * np.log(0.9), 1.0], rtol=1e-4)
    alpha, _, _ = weigh(method, [1.0, 1.0, 1.0], None, state, scores=[0.7, 1.0, 1.0])
    np.testing.assert_allclose(alpha, [-0.16 * np.log(0.6), -(0.05**2) * np.log(0.95), 0.0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", LOSS_WEIGHTS)
def test_absent_tasks_and_corners_stay_finite_and_alpha_is_a_constant(name):
    method = LOSS_WEIGHTS[name](**OPTIONS.get(name, {}))
    state, update = start(method), jax.jit(method.update)
    nothing = jax.tree.map(jnp.zeros_like, full([0.0, 0.0, 0.0]))
    for given in (
        nothing,
        nothing._replace(present=jnp.ones(3, bool)),
        full([0.0, 1.0, 1e30]),
        full([1.0, 0.0, 2.0], [True, False, True]),
        full([1.0, 1.0, 1.0]),
    ):
        alpha, extra, after = update(given, state)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert new.shape == old.shape and new.dtype == old.dtype
            assert jnp.isfinite(new).all() or not jnp.issubdtype(new.dtype, jnp.floating)
        assert alpha.shape == (3,) and alpha.dtype == jnp.float32 and jnp.isfinite(alpha).all()
        assert extra.dtype == jnp.float32 and jnp.isfinite(extra) and (alpha >= 0).all()
        state = after

    def through(given):
        alpha, extra, _ = method.update(given._replace(present=jnp.ones(3, bool)), state)
        return alpha.sum() + extra

    slopes = jax.grad(through, allow_int=True)(full([1.0, 2.0, 3.0]))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(slopes) if leaf.dtype == jnp.float32)


@pytest.mark.parametrize(("name", "option", "value", "other"), TRACED)
def test_numbers_may_be_traced_and_swept(name, option, value, other):
    """Two lanes under vmap equal the methods built with the numbers."""

    def updates(**options):
        method = LOSS_WEIGHTS[name](**OPTIONS.get(name, {}), **options)
        state = start(method)
        for seed in range(5):
            alpha, extra, state = method.update(full([1.0, 2.0 - 0.4 * seed, 0.5 + seed], seed=seed), state)
        return alpha, extra

    lanes = jax.jit(jax.vmap(lambda x: updates(**{option: x})))(jnp.array([value, other]))
    alone = [jax.jit(functools.partial(updates, **{option: x}))() for x in (value, other)]
    for lane, one in enumerate(alone):
        for actual, wanted in zip(lanes, one, strict=True):
            # extra is what is left of an objective of order 5 after the weighted losses: its rounding is that of 5
            np.testing.assert_allclose(actual[lane], wanted, rtol=1e-5, atol=1e-6)
    assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-7 for a, b in zip(*alone, strict=True)), "it acts"


def test_what_is_needed():
    fields = set(Signals._fields) - {"present"}
    for name, make in LOSS_WEIGHTS.items():
        method = make(**OPTIONS.get(name, {}))
        assert method.needs <= fields and method.needs_losses == ("losses" in method.needs)
        given = full([1.0, 2.0, 3.0])
        for field in fields - method.needs - {"losses"}:
            given = given._replace(**{field: None})
        method.update(given, start(method))  # what it does not name it does not read
        for field in method.needs - {"losses"}:
            with pytest.raises(ValueError, match=rf"{name} needs Signals.{field}"):
                method.update(given._replace(**{field: None}), start(method))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss_weights.fixed([1.0, -1.0]), "≥ 0"),
        (lambda: loss_weights.fixed([0.0, 0.0]), "all be 0"),
        (lambda: loss_weights.by_size([1, 0]), "> 0"),
        (lambda: loss_weights.by_size([1, 2], 0.0), "temperature must be > 0"),
        (lambda: loss_weights.dwa(0.0), "temperature"),
        (lambda: loss_weights.dwa(np.float32("nan")), "temperature"),
        (lambda: loss_weights.stch(0.0), "mu must be > 0"),
        (lambda: loss_weights.stch(preference=[1.0, -1.0]), "preference"),
        (lambda: loss_weights.uncertainty(0.0), "learning_rate"),
        (lambda: loss_weights.gradnorm(alpha=-1.0), "alpha must be ≥ 0"),
        (lambda: loss_weights.excess_mtl(warmup=0), "warmup must be a whole number ≥ 1"),
        (lambda: loss_weights.db_mtl(1.0), r"beta must lie in \[0.0, 1.0\), not 1.0"),
        (lambda: loss_weights.dtp(decay=1.0), "decay"),
        (lambda: weigh(loss_weights.fixed([1.0, 1.0]), [1.0, 1.0, 1.0]), "2 numbers for 3 tasks"),
        (lambda: weigh(loss_weights.uncertainty(regression=[True]), [1.0, 1.0]), "regression has 1 numbers for 2"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
