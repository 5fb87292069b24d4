"""Adversarial shared-private columns: reversal, discriminator, orthogonality in float64; what they do in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax.errors import UserError
from mtl_jax.models import apply_owned, forward_pass
from mtl_jax.models.mixers import TaskColumns, mix_by_task
from mtl_jax.models.mixers.base import MixerPlace
from mtl_jax.models.mixers.shared_private import reverse_gradient, shared_private, subspace_overlap
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")
R, T, D, N = 2, 5, 4, 3
SEGMENT = np.asarray([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32)


def test_reversal():
    x = jnp.asarray([1.0, -2.0])
    actual, gradient = jax.value_and_grad(lambda x: (reverse_gradient(x, 0.3) ** 2).sum())(x)
    np.testing.assert_allclose(actual, 5.0)
    np.testing.assert_allclose(gradient, -0.3 * 2 * x, rtol=1e-6)


def test_overlap_is_the_norm_of_the_product(differs):
    rng = np.random.default_rng(0)
    shared, private = rng.normal(size=(2, R, T, D))
    given = (jnp.asarray(x, jnp.float32) for x in (shared, private))
    actual = np.asarray(subspace_overlap(*given, SEGMENT))
    for r in range(R):
        for text in (1, 2):
            own = SEGMENT[r] == text
            if own.any():
                s, p = (x[r, own] / np.linalg.norm(x[r, own], axis=1, keepdims=True) for x in (shared, private))
                wanted = np.linalg.norm(s.T @ p) ** 2 / own.sum() ** 2
                differs("orthogonality of features", actual[r, own].mean(), wanted, 1e-6)
    assert 0 <= actual.min()
    value, gradient = jax.value_and_grad(lambda x: subspace_overlap(x, x, SEGMENT).sum())(jnp.zeros((R, T, D)))
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("hidden", [0, 3])
def test_the_discriminator_in_float64(differs, hidden):
    """Summed over texts, each with the mean of its tokens."""
    rng = np.random.default_rng(1)
    mixer = shared_private(2, hidden=hidden)
    start = mixer.init(jax.random.key(0), MixerPlace(D, D, True, N))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), start)
    outputs = jnp.asarray(rng.normal(size=(2, 3, R, T, D)), jnp.float32)  # [block, column, ...]
    dataset, length = np.asarray([2, 0]), np.asarray([[[2, 2], [3, 0]]] * 2)

    class Batch:
        segment = np.stack([SEGMENT, SEGMENT])

    Batch.dataset, Batch.length = jnp.asarray(dataset), length
    columns = TaskColumns(
        jnp.broadcast_to(jnp.arange(2, dtype=jnp.int32), (2, 2)),
        jnp.ones((2, 2)),
        outputs[:, :1],
        outputs[:, 1:, None],
        outputs[:, 0],
    )
    blocks = np.arange(2)
    mixed, added = mix_by_task(mixer, params, columns, blocks, Batch, jnp.float32(0.5))
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    total = 0.0
    for block in range(2):
        for r, text in ((0, 1), (0, 2), (1, 1)):
            x = np.asarray(outputs[block, 0], np.float64)[r, SEGMENT[r] == text].mean(axis=0)
            if hidden:
                x = np.maximum(x @ own["hidden"]["kernel"] + own["hidden"]["bias"], 0)
            scores = x @ own["kernel"] + own["bias"]
            total -= scores[dataset[block]] - np.log(np.exp(scores).sum())
        for k in range(2):
            joined = np.concatenate([outputs[block, 0], outputs[block, 1 + k]], axis=-1)
            np.testing.assert_array_equal(mixed[block][k], joined)
    differs("discriminator of data sets", added["adversarial"] / total, 1.0, 2e-6)
    assert mix_by_task(mixer, params, columns, blocks, Batch, None)[1] == {}


def config_of(tiny, factors=(), **changes):
    return tiny(
        **{
            "train_tasks": ("color", "long"),
            "sharing__trunk": "embed",
            "sharing__mixer": "shared_private",
            "auxiliary_loss_weights": ConfigDict(dict(factors)),
            **changes,
        }
    )


def test_the_reversed_gradient_reaches_the_shared_column_alone(tiny):
    """With its factor alone changed, the discriminator and the shared column move differently, private ones do not."""
    changes = {
        "optimizer__name": "sgd",
        "optimizer__learning_rate": 0.1,
        "optimizer__clip_norm": 0.0,
        "model__dropout": 0.0,
    }
    changes |= {"optimizer__weight_decay": 0.0}
    options = {"sharing__mixer_options": ConfigDict({"reversal": "constant"}), **changes}
    actual = {}
    for factor in (0.0, 1.0):
        config = config_of(tiny, {"adversarial": factor, "orthogonality": 0.0}, **options)
        experiment = build(config)
        actual[factor] = flatten(steps(experiment, 1)[0].params), flatten(experiment.init_params(0))
    (without, start), (with_, _) = actual[0.0], actual[1.0]
    for path, leaf in with_.items():
        if path.startswith("layer_00"):
            assert not np.array_equal(leaf[0], without[path][0]), path
            np.testing.assert_array_equal(leaf[1:], without[path][1:], err_msg=path)
        if path.startswith("mixer_00"):
            assert not np.array_equal(leaf, start[path]) and np.array_equal(without[path], start[path])
    assert experiment.spec.objective.network.width == {"color": 32, "long": 32}


@pytest.mark.parametrize(("mixing", "wanted"), [("all", 5), ("size", 3)])
@pytest.mark.parametrize("mixer", ["shared_private", "cgc"])
def test_a_private_column_reads_the_texts_of_its_task_alone(tiny, monkeypatch, mixer, mixing, wanted):
    """Streams of a layer: the shared column in each block, and those of its tasks; one task on "texts", two on
    "sentences". Of a drawn block as many as the larger data set has."""
    counted = []

    def count(function, parts, inputs, noises, run_columns):
        counted.append(len(parts[0].owners.known))  # streams
        return apply_owned.apply_owned(function, parts, inputs, noises, run_columns)

    monkeypatch.setattr(forward_pass, "apply_owned", count)
    options = ConfigDict({"shared": 1, "private": 1} if mixer == "cgc" else {})
    config = config_of(tiny, train_tasks=(), sharing__mixer=mixer, sharing__mixer_options=options, data__mixing=mixing)
    experiment = build(config)
    counted.clear()
    jax.eval_shape(experiment.spec.objective.network.apply, experiment.init_params(0), experiment.batches(0).batch(0))
    assert counted == [1 if mixing == "size" else 2, wanted]  # the embeddings, the experts


@pytest.mark.parametrize("changes", [{"data__mixing": "size"}, {"training__grad_accum_steps": 2}])
def test_it_trains(tiny, changes):
    experiment = build(config_of(tiny, **changes))
    state, metrics = steps(experiment)
    assert set(metrics["auxiliary"]) == {"adversarial", "orthogonality"}
    assert all(np.isfinite(v) for v in metrics["auxiliary"].values()) and np.isfinite(metrics["total"])
    before = flatten(experiment.init_params(0))
    assert not [path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, before[path])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tasks": ("tags", "long")}, "there is only one data set"),
        ({"sharing__mixer_options": {"reversal": "never"}}, "reversal must be one of dann, constant"),
        ({"sharing__mixer_layers": ("layer_00", "layer_01"), "model__num_layers": 2}, "joins columns at the top only"),
    ],
)
def test_bad_input(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        build(config_of(tiny, **{k: ConfigDict(v) if isinstance(v, dict) else v for k, v in changes.items()}))
