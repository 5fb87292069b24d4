"""Optimizers and schedules by name: each as optax has it, for each owner by itself; what does not fit is refused."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import checks
from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.build import build
from mtl_jax.training import optimizer
from mtl_jax.training.optimizer import OPTIMIZERS, OptimizerSpec
from mtl_jax.training.schedules import SCHEDULES, ScheduleSpec
from mtl_jax.training.step import train_step

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated"),
]

RATE, DECAY, STEPS = 0.1, 0.01, 10
OPTIONS = {"galore": {"rank": 2}, "adafactor": {"min_dim_size_to_factor": 2}, "sgd": {"momentum": 0.9}}
SCHEDULE_OPTIONS = {
    "exponential_decay": {"decay_rate": 0.5},
    "linear_schedule": {"end_value": 0.2},
    "polynomial_schedule": {"end_value": 0.2, "power": 2},
    "warmup_exponential_decay_schedule": {"decay_rate": 0.5},
    "piecewise_constant_schedule": {"boundaries_and_scales": {"3": 0.5}},
    "piecewise_interpolate_schedule": {"interpolate_type": "linear", "boundaries_and_scales": {"3": 0.5}},
    "sgdr_schedule": {
        "cosine_kwargs": ({"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 1, "decay_steps": 4},) * 2
    },
}


def spec_of(name="adamw", options=None, schedule="constant", schedule_options=None, warmup_steps=0):
    return OptimizerSpec(name, options or {}, ScheduleSpec(schedule, schedule_options or {}, warmup_steps, STEPS))


def draw(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "layer_00/kernel": (2, 6, 4),
        "layer_00/bias": (2, 4),
        "embed/table": (1, 5, 4),
        "heads/a/kernel": (2, 4, 3),
    }
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


MULTIPLIERS = {"layer_00/kernel": 1.0, "layer_00/bias": 1.0, "embed/table": 0.5, "heads/a/kernel": 2.0}


def ours(name, gradients):
    """Parameters after two steps; between them a bad one, which has to leave no trace."""
    spec, params = spec_of(name, OPTIONS.get(name)), draw(0)
    hyper = SimpleNamespace(learning_rate=jnp.float32(RATE), weight_decay=jnp.float32(DECAY))

    @jax.jit
    def step(params, state, gradient, ok):
        made = spec.transformation(hyper, jnp.int32(0), MULTIPLIERS, ok)
        updates, state = made.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = spec.transformation(hyper, jnp.int32(0), MULTIPLIERS).init(params)
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, gradients[0])
    for gradient, ok in ((bad, False), (gradients[0], True), (bad, False), (gradients[1], True)):
        params, state = step(params, state, gradient, jnp.asarray(ok))
    return params


def theirs(name, path, gradients):
    """The same two steps of one leaf by optax, the columns of a layer, or the heads of a group, one after another."""
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    signature = inspect.signature(make).parameters
    rate, decay = RATE * MULTIPLIERS[path], 0.0 if path.endswith("bias") else DECAY
    options = {a: decay for a in ("weight_decay", "adam_weight_decay") if a in signature} | OPTIONS.get(name, {})
    if name == "muon":
        by_adam = None if path != "layer_00/kernel" else optax.contrib.MuonDimensionNumbers()
        options["muon_weight_dimension_numbers"] = {path: by_adam}
    transform = make(rate, **options)
    if "weight_decay" not in signature:  # decoupled
        transform = optax.chain(transform, optax.stateless(lambda u, p: {path: u[path] - rate * decay * p[path]}))
    columns = []
    for column in range(len(draw(0)[path])):
        leaf = {path: draw(0)[path][column]}
        state = transform.init(leaf)
        for gradient in gradients:
            part = {path: gradient[path][column]}
            updates, state = jax.jit(transform.update)(part, state, leaf)
            leaf = optax.apply_updates(leaf, updates)
        columns.append(leaf[path])
    return jnp.stack(columns)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_is_that_of_optax_and_a_bad_step_leaves_no_trace(name):
    gradients = [draw(1), draw(2)]
    actual = ours(name, gradients)
    for path in actual:
        wanted = theirs(name, path, gradients)
        np.testing.assert_allclose(actual[path], wanted, rtol=2e-5, atol=1e-6, err_msg=path)


def test_every_optimizer_of_optax_is_there_or_says_why_not():
    makers = {**vars(optax.contrib), **vars(optax)}
    taking_a_rate = {
        name
        for name, make in makers.items()
        if inspect.isfunction(make) and "learning_rate" in inspect.signature(make).parameters
    }
    helpers = {name for name in taking_a_rate if name.startswith(("_", "scale_by_"))}
    assert taking_a_rate - helpers == {*OPTIMIZERS, *optimizer.UNSUPPORTED}
    assert {"lion", "adafactor", "lamb", "sgd", "muon", "adamw", "prodigy"} <= {*OPTIMIZERS}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_is_that_of_optax(name):
    """Values are factors; a warm-up of ours stands before those that have none."""
    spec = spec_of(schedule=name, schedule_options=SCHEDULE_OPTIONS.get(name), warmup_steps=2)
    actual = np.asarray([spec.schedule.rate(jnp.int32(step)) for step in range(STEPS)])
    assert actual.dtype == np.float32 and (actual >= 0).all() and (actual <= 1).all()
    if "warmup" not in name:
        np.testing.assert_allclose(actual[:2], [0.5, 1.0])
    wanted = {
        "linear": lambda step: 1 - (step - 2) / 8,
        "cosine": lambda step: optax.cosine_decay_schedule(1.0, 8)(step - 2),
        "constant": lambda step: 1.0,
        "exponential_decay": lambda step: 0.5 ** ((step - 2) / 8),
        "piecewise_constant_schedule": lambda step: 1.0 if step - 2 < 3 else 0.5,
        "warmup_cosine_decay_schedule": optax.warmup_cosine_decay_schedule(0.0, 1.0, 2, STEPS),
    }.get(name)
    if wanted:
        np.testing.assert_allclose(actual[2:], [wanted(step) for step in range(2, STEPS)], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adam_w"}, r"config\.optimizer\.name: 'adam_w' is none of .*; did you mean 'adamw'"),
        ({"options": {"beta": 0.9}}, r"options\.beta: 'adamw' has no such option; it has b1, b2, eps"),
        ({"options": {"weight_decay": 0.1}}, r"options\.weight_decay: .* config\.optimizer\.weight_decay"),
        ({"name": "lbfgs"}, r"config\.optimizer\.name: 'lbfgs' .* evaluates the loss"),
        ({"schedule": "exponential_decay"}, r"schedule_options: 'exponential_decay' needs 'decay_rate'"),
        ({"schedule_options": {"floor": 0.1}}, r"schedule_options\.floor: 'linear' has no such option"),
        ({"name": "rprop"}, r"config\.optimizer\.schedule: .* 'rprop' is the size of its first step"),
        ({"options": {"b1": "high"}}, r"config\.optimizer\.options"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, changes, message):
    config = tiny()
    for field, value in changes.items():
        config.optimizer[field] = value
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)


def test_one_of_the_users_own_is_a_line(tiny, monkeypatch):
    def signs(learning_rate, scale=1.0):
        return optax.chain(optax.scale_by_sign(), optax.scale(-scale * learning_rate))

    monkeypatch.setitem(OPTIMIZERS, "signs", signs)
    monkeypatch.setitem(SCHEDULES, "half", lambda decay_steps, floor: lambda step: jnp.float32(floor))
    config = tiny(
        optimizer__name="signs",
        optimizer__schedule="half",
        optimizer__warmup_ratio=0.0,
        optimizer__weight_decay=0.0,
        model__layer_type="cnn",
        train_tasks=("color",),
    )
    config.optimizer.options, config.optimizer.schedule_options = {"scale": 2.0}, {"floor": 0.5}
    experiment = build(config)
    state = experiment.init(0)
    batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0))
    after, _ = jax.jit(lambda s, b: train_step(experiment.spec, s, b, experiment.hyper))(state, batch)
    moved = np.abs(after.params["heads"]["color"]["output"]["bias"] - state.params["heads"]["color"]["output"]["bias"])
    np.testing.assert_allclose(moved, 1e-2, rtol=1e-5)  # 1e-2 · 0.5 · 2


def test_moments_are_overwritten_in_place():
    """The updates are the only array as large as the parameters that the compiled update adds."""
    params = {"embed/w": jnp.ones((1, 256, 1024))}
    hyper = SimpleNamespace(learning_rate=jnp.float32(RATE), weight_decay=jnp.float32(DECAY))

    def step(params, state, gradient, ok):
        made = spec_of().transformation(hyper, jnp.int32(0), {"embed/w": 1.0}, ok)
        updates, state = made.update(gradient, state, params)
        return jax.tree.map(lambda p, u: jnp.where(ok, p + u, p), params, updates), state

    state = spec_of().transformation(hyper, jnp.int32(0), {"embed/w": 1.0}).init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, jnp.asarray(True)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.01 * params["embed/w"].nbytes


def test_options_belong_to_the_program_and_the_learning_rate_does_not():
    assert traced_fields.is_traced("optimizer.learning_rate") and traced_fields.is_traced("optimizer.weight_decay")
    assert not traced_fields.is_traced("optimizer.schedule_options.decay_rate")
    config = default.get_config()
    assert traced_fields.with_values(config, {"optimizer.options.b1": 0.8}).optimizer.options.b1 == 0.8
