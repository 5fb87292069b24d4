"""Mixers between columns: float64 numpy, single-task training as the identity, gradients of what tasks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax import checks
from mtl_jax.errors import UserError
from mtl_jax.models.mixers import column_mixers
from mtl_jax.models.mixers.base import MixerPlace
from mtl_jax.runs.build import build
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import make_placement

pytestmark = pytest.mark.usefixtures("standard_promotion")
K, R, T, D = 3, 2, 5, 4
PLACE = MixerPlace(inputs=D, width=D, top=True, datasets=2)
SEGMENT = np.asarray([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32)


@pytest.fixture
def hidden():
    return np.random.default_rng(0).normal(size=(K, R, T, D)).astype(np.float32)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_cross_stitch(hidden, differs, blocks):
    mixer = column_mixers.cross_stitch(K, blocks)
    start = mixer.init(jax.random.key(0), PLACE)
    np.testing.assert_allclose(start["alpha"], np.tile(0.05 + 0.85 * np.eye(K), (blocks, 1, 1)), atol=1e-7)
    alpha = np.random.default_rng(1).normal(size=(blocks, K, K))
    wanted = np.empty(hidden.shape)
    for i in range(K):
        for d in range(D):
            wanted[i, ..., d] = sum(alpha[d // (D // blocks), i, j] * hidden[j, ..., d].astype(float) for j in range(K))
    actual = jax.jit(mixer.apply)({"alpha": jnp.asarray(alpha, jnp.float32)}, hidden, hidden, SEGMENT)
    differs("cross-stitch", actual, wanted, 1e-6)


def test_sluice(hidden, differs):
    mixer = column_mixers.sluice(K, 2)
    alpha = mixer.init(jax.random.key(0), PLACE)["alpha"]
    np.testing.assert_allclose(alpha, 0.02 + 0.88 * np.eye(2 * K), atol=1e-7)
    alpha = np.random.default_rng(3).normal(size=(2 * K, 2 * K))
    parts = [hidden[j, ..., 2 * u : 2 * u + 2].astype(float) for j in range(K) for u in range(2)]  # (j, u) is 2 j + u
    mixed = [sum(a * part for a, part in zip(row, parts, strict=True)) for row in alpha]
    wanted = np.stack([np.concatenate([mixed[2 * i], mixed[2 * i + 1]], axis=-1) for i in range(K)])
    actual = mixer.apply({"alpha": jnp.asarray(alpha, jnp.float32)}, hidden, hidden, SEGMENT)
    differs("sluice", actual, wanted, 2e-6)
    one = {"alpha": jnp.asarray(alpha[:K, :K], jnp.float32)}
    stitched = column_mixers.cross_stitch(K).apply({"alpha": one["alpha"][None]}, hidden, hidden, SEGMENT)
    differs(
        "one subspace is cross-stitch", column_mixers.sluice(K, 1).apply(one, hidden, hidden, SEGMENT), stitched, 1e-6
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_attention(hidden, differs, level):
    mixer = column_mixers.attention(K, level, own=0.8)
    rng = np.random.default_rng(2)
    params = {"kernel": rng.normal(size=(K, K * D, K)), "bias": rng.normal(size=(K, K))}
    h = hidden.astype(float)
    features = h.copy()
    if level == "sequence":
        for r in range(R):
            for t in range(T):
                features[:, r, t] = h[:, r, SEGMENT[r] == SEGMENT[r, t]].mean(axis=1)
    wanted = np.zeros(h.shape)
    for i in range(K):
        for r in range(R):
            for t in range(T):
                scores = np.concatenate(list(features[:, r, t])) @ params["kernel"][i] + params["bias"][i]
                weights = np.exp(scores - scores.max())
                wanted[i, r, t] = (weights / weights.sum()) @ h[:, r, t]
    actual = mixer.apply(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), hidden, hidden, SEGMENT)
    differs("attention over columns", actual, wanted, 2e-6)
    start = mixer.init(jax.random.key(0), PLACE)
    weights = column_mixers.attention_weights(
        {**start, "kernel": 0 * start["kernel"]}, jnp.asarray(hidden), SEGMENT, level
    )
    wanted = np.broadcast_to((0.1 + 0.7 * np.eye(K))[:, None, None], weights.shape)
    differs("attention at the start", weights, wanted, 1e-6)
    assert weights.shape == (K, R, T, K)


def config_of(tiny, kind="cross_stitch", options=(), **changes):
    return tiny(
        **{
            "train_tasks": ("color", "long"),
            "sharing__trunk": "none",
            "sharing__mixer": kind,
            "sharing__mixer_options": ConfigDict(dict(options)),
            **changes,
        }
    )


@pytest.mark.parametrize("layer", ["bilstm", "transformer"])
def test_the_identity_is_single_task_training(tiny, differs, layer):
    changes = {"model__layer_type": layer, "model__num_heads": 2, "model__intermediate_size": 16}
    changes |= {"optimizer__name": "sgd", "optimizer__learning_rate": 0.3}  # Adam enlarges rounding of zero gradients
    mixed = build(config_of(tiny, options={"own": 1.0}, optimizer__freeze=("^mixer_",), **changes))
    plain = build(tiny(sharing__trunk="none", train_tasks=("color", "long"), **changes))
    (actual, metrics), (wanted, expected) = steps(mixed), steps(plain)
    assert any(path.startswith("mixer_00") for path in flatten(actual.params))
    for path, leaf in flatten(wanted.params).items():
        differs("cross-stitch with the identity against alone", flatten(actual.params)[path], leaf, 1e-6)
    differs("their losses", metrics["losses"], expected["losses"], 1e-7)


@pytest.mark.parametrize("kind", ["attention", "cross_stitch", "sluice"])
def test_what_is_mixed_trains_and_ties_the_tasks(tiny, kind):
    changes = {"model__num_layers": 2, "sharing__mixer_layers": ("embed", "layer_00"), "data__mixing": "size"}
    experiment = build(config_of(tiny, kind, **changes))
    state, metrics = steps(experiment)
    assert np.isfinite(metrics["losses"]).all()
    before = flatten(experiment.init_params(0))
    moved = {path for path, leaf in flatten(state.params).items() if not np.array_equal(leaf, before[path])}
    assert {path for path in before if path.startswith("mixer_")} <= moved
    assert {path.split("/")[0] for path in before if path.startswith("mixer_")} == {"mixer_embed", "mixer_00"}


def test_a_loss_reaches_the_columns_of_other_tasks_through_the_mixer_only(tiny):
    experiment = build(config_of(tiny, model__num_layers=2, sharing__mixer_layers=("layer_00",)))
    objective = experiment.spec.objective
    params = experiment.init_params(0)
    batch = experiment.batches(0).batch(0)

    def color(params):
        total = terms.loss_denominators(objective, batch, experiment.hyper)
        return terms.loss_contributions(objective, params, batch, experiment.hyper, jax.random.key(0), total)[0]

    gradient = flatten(jax.jit(jax.grad(color))(params))
    for path, leaf in gradient.items():
        if path.startswith("layer_00"):
            assert np.abs(leaf[1]).max() > 0, path  # below the mixer: the columns of the others too
        if path.startswith("layer_01"):
            assert np.abs(leaf[0]).max() > 0 and not np.abs(leaf[1:]).any(), path


def test_eight_devices_as_one(tiny, differs):
    experiment = build(config_of(tiny, "attention", optimizer__name="sgd", optimizer__learning_rate=0.3))
    mesh = {"data": jax.device_count(), "task": 1, "model": 1}
    alone, _ = steps(experiment)
    spread, _ = steps(experiment, placement=make_placement("jit", mesh, experiment.spec.slices, len(experiment.tasks)))
    for path, leaf in flatten(alone.params).items():
        differs("mixed columns on 8 devices against one", flatten(spread.params)[path], leaf, 1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing__mixer": "cross_stich"}, "did you mean 'cross_stitch'"),
        ({"sharing__trunk": "all"}, "no layer has a column for each task"),
        ({"sharing__mixer_layers": ("layer_07",)}, "no layer 'layer_07'"),
        ({"sharing__trunk": "embed", "sharing__mixer_layers": ("embed",)}, "'embed' is shared by tasks"),
        ({"sharing__mixer_options": {"blocks": 5}}, "16 channels cannot be cut into 5 blocks"),
        ({"sharing__mixer_options": {"block": 5}}, "unexpected keyword argument 'block'"),
        ({"sharing__mixer_options": {"own": 1.5}}, r"own must lie in \[0, 1\]"),
        ({"sharing__mixer": "", "sharing__mixer_layers": ("layer_00",)}, "does nothing"),
        ({"sharing__mixer": "sluice", "sharing__mixer_options": {"subspaces": 3}}, "cannot be cut into 3 subspaces"),
    ],
)
def test_bad_input(tiny, changes, message):
    config = config_of(tiny, **{k: ConfigDict(v) if isinstance(v, dict) else v for k, v in changes.items()})
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)
