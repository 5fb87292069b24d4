"""Distillation against closed forms, float64 numpy and the plain loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.tasks import distillation
from mtl_jax.tasks.distillation import Distillation

ONES = {"color": ("a", "b", "c"), "topics": ("a", "b", "c"), "tags": ("O", "B-X", "I-X"), "score": ()}


def made(name):
    """A task, its head's parameters, and labels of one row with a teacher; the last label has no gold value."""
    rng = np.random.default_rng(3)
    kind = {"color": "classification", "topics": "multilabel", "tags": "tagging", "score": "regression"}[name]
    settings = {"kind": kind, **({"crf": True, "scheme": "iob2"} if kind == "tagging" else {})}
    task = tasks.make_task(name, settings, "word" if kind == "tagging" else "text", ONES[name], None)
    params = {}
    if kind == "tagging":
        shapes = {"move": (3, 3), "start": (3,), "end": (3,)}
        params = {"crf": {part: jnp.asarray(rng.normal(size=s), jnp.float32) for part, s in shapes.items()}}
    shape = (1, 4) if kind == "regression" else (1, 4, 3)
    logits = jnp.asarray(rng.normal(size=shape), jnp.float32)
    soft = rng.dirichlet(np.ones(3), size=(1, 4)) if kind in ("classification", "tagging") else rng.random(shape)
    value = {
        "classification": np.asarray([[0, 2, 1, 0]], np.int32),
        "multilabel": np.asarray([[[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]]], np.float32),
        "tagging": np.asarray([[1, 2, 0, 0]], np.int32),
        "regression": np.asarray([[0.5, 2.0, -1.0, 0.0]], np.float32),
    }[kind]
    labels = {
        "value": jnp.asarray(value),
        "mask": jnp.asarray([[True, True, True, False]]),
        "teacher": jnp.asarray(soft, jnp.float32),
        "teacher_mask": jnp.ones((1, 4), bool),
    }
    if kind == "tagging":
        labels |= {"segment": jnp.ones((1, 4), jnp.int32), "slot": jnp.zeros((1, 4), jnp.int32)}
    return task, params, logits, labels


def without_teacher(labels):
    return {name: array for name, array in labels.items() if not name.startswith("teacher")}


@pytest.mark.parametrize("name", ONES)
def test_no_weight_is_the_plain_loss_and_gradient(name):
    task, params, logits, labels = made(name)
    plain = without_teacher(labels)
    of = Distillation(1.0 if name == "score" else 2.0, True)
    for weight, progress in ((0.0, 0.0), (1.0, 1.0)):
        share = distillation.teacher_share(of, jnp.float32(weight), jnp.float32(progress))
        actual, gradient = jax.value_and_grad(
            lambda z, share=share: distillation.loss(task, of, params, z, labels, share).sum()
        )(logits)
        wanted, slope = jax.value_and_grad(lambda z: task.loss(params, z, plain).sum())(logits)
        np.testing.assert_array_equal(actual, wanted)
        np.testing.assert_array_equal(gradient, slope)
        np.testing.assert_array_equal(distillation.weight(task, labels, share), task.weight(plain))


@pytest.mark.parametrize("name", ["color", "topics", "score"])
def test_a_teacher_that_says_gold_is_gold(name, differs):
    task, params, logits, labels = made(name)
    labels["mask"] = jnp.ones((1, 4), bool)
    value = labels["value"]
    labels["teacher"] = jax.nn.one_hot(value, 3) if name == "color" else value
    of, share = Distillation(1.0, False), jnp.float32(0.3)
    plain = without_teacher(labels)
    actual = distillation.loss(task, of, params, logits, labels, share)
    differs("teacher = gold, loss", actual, task.loss(params, logits, plain), 1e-6)
    differs("teacher = gold, weight", distillation.weight(task, labels, share), task.weight(plain), 1e-6)


def test_closed_form_of_the_gradient(differs):
    """(1 − s)(p − y) + s·T·(softmax(z/T) − q); without a gold label the second part alone."""
    task, params, logits, labels = made("color")
    temperature, share = 3.0, 0.4
    of = Distillation(temperature, False)

    def loss(z):
        return distillation.loss(task, of, params, z, labels, jnp.float32(share)).sum()

    z, q = np.asarray(logits, np.float64), np.asarray(labels["teacher"], np.float64)
    y = np.eye(3)[np.asarray(labels["value"])] * np.asarray(labels["mask"])[..., None]

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    known = np.asarray(labels["mask"])[..., None]
    wanted = (1 - share) * known * (softmax(z) - y) + share * temperature * (softmax(z / temperature) - q)
    differs("gradient of distillation", jax.grad(loss)(logits), wanted, 1e-6)
    weight = distillation.weight(task, labels, jnp.float32(share))
    differs("weight of an example without gold", weight, [[1.0, 1.0, 1.0, share]], 1e-6)


def test_annealed_loss_is_that_of_the_mixed_target(differs):
    """Clark et al. (2019): cross-entropy with progress·gold + (1 − progress)·teacher."""
    task, params, logits, labels = made("color")
    labels["mask"] = jnp.ones((1, 4), bool)
    of, progress = Distillation(1.0, True), 0.7
    share = distillation.teacher_share(of, jnp.float32(1.0), jnp.float32(progress))
    target = progress * np.eye(3)[np.asarray(labels["value"])] + (1 - progress) * np.asarray(labels["teacher"])
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    actual = distillation.loss(task, of, params, logits, labels, share)
    differs("loss of the mixed target", actual, -(target * log_p).sum(-1), 1e-6)


def test_a_crf_at_a_temperature_is_the_chain_of_scores_divided_by_it(differs):
    """Marginals by enumeration of all paths of four words, in float64."""
    import itertools

    task, params, logits, labels = made("tags")
    moves = tasks.tags.legal_transitions(task.names, "iob2")
    temperature, z = 2.5, np.asarray(logits, np.float64)[0]
    crf = {name: np.asarray(score, np.float64) for name, score in params["crf"].items()}
    total, marginals = 0.0, np.zeros((4, 3))
    for path in itertools.product(range(3), repeat=4):
        legal = moves.start[path[0]] and moves.end[path[-1]]
        legal = legal and all(moves.move[a, b] for a, b in itertools.pairwise(path))
        if not legal:
            continue
        score = crf["start"][path[0]] + crf["end"][path[-1]] + sum(z[t, c] for t, c in enumerate(path))
        score += sum(crf["move"][a, b] for a, b in itertools.pairwise(path))
        mass = np.exp(score / temperature)
        total += mass
        for t, c in enumerate(path):
            marginals[t, c] += mass
    actual = distillation.soften_targets(task, params, logits, labels, temperature)[0]
    differs("marginals of a CRF at a temperature", actual, marginals / total, 1e-6)
    of = Distillation(temperature, False)
    actual = distillation.loss(task, of, params, logits, labels, jnp.float32(1.0)).sum()
    q = np.asarray(labels["teacher"], np.float64)[0]
    wanted = -(temperature**2) * (q * np.log(np.maximum(marginals / total, 1e-9))).sum()
    differs("loss of a CRF at a temperature, relative", float(actual) / wanted, 1.0, 1e-5)


def test_average_over_those_who_say_something():
    rng = np.random.default_rng(0)
    message = [rng.dirichlet(np.ones(4), size=5).astype(np.float32) for _ in range(3)]
    known = [np.asarray(k, bool) for k in ([1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0])]
    message[0][2] = np.nan  # what is said where nothing is known does not matter
    value, any_known = distillation.average_predictions(message, known, (1.0, 2.0, 5.0))
    for i in range(5):
        own = [(w, s[i].astype(np.float64)) for w, s, k in zip((1.0, 2.0, 5.0), message, known, strict=True) if k[i]]
        wanted = sum(w * s for w, s in own) / sum(w for w, _ in own) if own else np.zeros(4)
        np.testing.assert_allclose(value[i], wanted, atol=1e-7)
        assert any_known[i] == bool(own)
    numbers, _ = distillation.average_predictions(
        [np.asarray([1.0, 2.0]), np.asarray([3.0, 5.0])], [np.ones(2, bool)] * 2
    )
    np.testing.assert_array_equal(numbers, np.asarray([2.0, 3.5], np.float32))
