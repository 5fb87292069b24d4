"""GAN-BERT's two losses in float64, whom each of them moves, and texts without a label."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax.errors import UserError
from mtl_jax.runs.build import build
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.gan_classification import AdversarialClassification
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

R, T, D, E = 2, 6, 5, 3
TASK = AdversarialClassification("x", ("a", "b", "c"), hidden=4, noise=7, drop=0.0)
SEGMENT = np.asarray([[1, 1, 2, 2, 3, 0], [1, 1, 1, 1, 0, 0]], np.int32)
LENGTH = np.asarray([[2, 2, 1], [4, 0, 0]], np.int32)
START = np.asarray([[0, 2, 4], [0, 0, 0]], np.int32)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), TASK.init(jax.random.key(0), D))
    hidden = rng.normal(size=(R, T, D)).astype(np.float32)
    return params, Features(jnp.asarray(hidden), SEGMENT, START, LENGTH), jax.random.split(jax.random.key(3), R)


def test_both_losses_in_float64(given, differs):
    params, actual, keys = given
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer(p, x):
        return x @ p["kernel"] + p["bias"]

    def inner(p, x):
        y = layer(p["hidden"], x)
        return np.where(y > 0, y, 0.2 * y)

    def is_fake(x):
        scores = layer(own["discriminator"]["output"], inner(own["discriminator"], x))
        return np.exp(scores[-1]) / np.exp(scores).sum()

    texts, fakes = [], []
    for r in range(R):
        z = np.asarray(jax.random.normal(jax.random.split(keys[r], 4)[0], (E, 7), jnp.float32), np.float64)
        for e in range(E):
            if LENGTH[r, e]:
                texts.append(np.asarray(actual.hidden[r], np.float64)[SEGMENT[r] == e + 1].mean(axis=0))
                fakes.append(layer(own["generator"]["output"], inner(own["generator"], z[e])))
    real, fake = (np.asarray([is_fake(x) for x in xs]) for xs in (texts, fakes))
    features = [np.mean([inner(own["discriminator"], x) for x in xs], axis=0) for xs in (texts, fakes)]
    wanted = {
        "discriminator": -np.log(1 - real).sum() - np.log(fake).sum(),
        "generator": -np.log(1 - fake).sum() + len(texts) * np.square(features[0] - features[1]).mean(),
    }
    for name, value in jax.jit(TASK.auxiliary_losses)(*given).items():
        differs(f"GAN-BERT, {name}", value / wanted[name], 1.0, 2e-6)
    logits = TASK.logits(params, actual, {})
    scores = [layer(own["discriminator"]["output"], inner(own["discriminator"], x))[:-1] for x in texts]
    differs("GAN-BERT, logits", logits.reshape(-1, 3)[np.flatnonzero(LENGTH)], scores, 5e-6)


def test_each_loss_moves_its_own_side(given):
    params, actual, keys = given

    def total(params, hidden, name):
        return TASK.auxiliary_losses(params, actual._replace(hidden=hidden), keys)[name]

    for name, other in (("discriminator", "generator"), ("generator", "discriminator")):
        of_params, of_hidden = jax.grad(total, (0, 1))(params, actual.hidden, name)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params[name]))
        assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(of_params[other]))
        assert (np.abs(of_hidden).max() > 0) == (name == "discriminator")


def test_no_text_at_all(given):
    params, actual, keys = given
    empty = actual._replace(length=np.zeros_like(LENGTH))
    value, gradient = jax.value_and_grad(lambda p: sum(TASK.auxiliary_losses(p, empty, keys).values()))(params)
    assert value == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.usefixtures("standard_promotion")
def test_texts_without_a_label_are_used(tiny):
    """The labelled loss is of few texts; the two others are of all, and reach the encoder."""
    config = tiny(train_tasks=("color", "long"), data__mixing="size")
    config.tasks.color.kind = "gan_classification"
    config.tasks.color.options = ConfigDict({"hidden": 6, "noise": 4})
    file = pathlib.Path(config.datasets.texts.path) / "texts.train.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**x, "color": x["color"] if i < 12 else ""}) for i, x in enumerate(lines)))
    experiment = build(config)
    assert set(experiment.hyper.auxiliary) == {"color/discriminator", "color/generator"}
    state, step = experiment.init(0), jax.jit(lambda s, b: train_step(experiment.spec, s, b, experiment.hyper))
    for number in range(4):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(number))
        state, metrics = step(state, batch)
    assert all(np.isfinite(v) for v in metrics["auxiliary"].values())
    before = flatten(experiment.init_params(0))
    moved = {p for p, leaf in flatten(state.params).items() if not np.array_equal(leaf, before[p])}
    assert {p for p in before if p.startswith("heads/color")} <= moved


@pytest.mark.parametrize("options", [{"noise": 0}, {"drop": 1.0}, {"pooler": True}])
def test_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        AdversarialClassification("x", ("a", "b"), **options)
