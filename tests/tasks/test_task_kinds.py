"""Every kind of task on packed rows: equal to its examples one by one, silent without labels, right in its dtypes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import crf, make_task
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.features import pool

D, E, T, Q = 6, 3, 13, 12
BIO = ("O", "B-X", "I-X", "B-Y")
TASKS = {
    "classification": ("text", "abcd", {"kind": "classification", "pooler": True, "hidden": 5, "pool": "first"}),
    "focal": ("text", "abcd", {"kind": "classification", "focal_gamma": 0.5, "label_smoothing": 0.1, "pool": "max"}),
    "multilabel": ("text", "abcd", {"kind": "multilabel", "class_weights": (1.0, 2.0, 0.5, 1.0)}),
    "regression": ("text", "", {"kind": "regression", "low": 0.0, "high": 5.0}),
    "softmax": ("word", BIO, {"kind": "tagging", "class_weights": {"O": 0.5}, "scheme": "iob2"}),
    "crf": ("word", BIO, {"kind": "tagging", "crf": True, "scheme": "iob2", "hidden": 5}),
    "srl": ("predicate", BIO, {"kind": "tagging", "hidden": 7, "distance": 2}),
    "srl_crf": ("predicate", BIO, {"kind": "tagging", "crf": True, "scheme": "iob2"}),
}
# one row: texts of 4, 2 and 5 tokens, two of padding; in each text the words start at its even positions
LENGTHS = (4, 2, 5)
PREDICATES = ((0,), (), (1, 2))  # of each text, as words


def build(name):
    level, names, options = TASKS[name]
    return make_task(name, options, level, tuple(names))


def rows(name, packed, seed=0):
    """Features and labels of the three texts: in one packed row before two empty ones, or one in each row.

    Both in the same shapes, so that a task is compiled once.
    """
    level, names, _ = TASKS[name]
    rng = np.random.default_rng(seed)
    texts = []
    for n, predicates in zip(LENGTHS, PREDICATES, strict=True):
        words = (n + 1) // 2
        count = {"text": 1, "word": words, "predicate": words * len(predicates)}[level]
        if name == "multilabel":
            value = rng.integers(0, 2, (count, 4)).astype(np.float32)
        elif name == "regression":
            value = rng.normal(size=count).astype(np.float32)
        else:
            value = rng.integers(0, len(names), count).astype(np.int32)
        texts.append((rng.normal(size=(n, D)).astype(np.float32), value, rng.random(count) < 0.8, predicates))

    groups = [texts, [], []] if packed else [[t] for t in texts]
    size = E if level == "text" else Q
    shape = (len(groups), size, 4) if name == "multilabel" else (len(groups), size)
    out = {
        "hidden": rng.normal(size=(len(groups), T, D)).astype(np.float32),
        "segment": np.zeros((len(groups), T), np.int32),
        "start": np.zeros((len(groups), E), np.int32),
        "length": np.zeros((len(groups), E), np.int32),
    }
    labels = {"value": np.zeros(shape, texts[0][1].dtype), "mask": np.zeros((len(groups), size), bool)}
    for key in ("token", "segment", "slot", "predicate") if level != "text" else ():
        labels[key] = np.zeros((len(groups), size), np.int32)
    for r, group in enumerate(groups):
        at = q = sequence = 0
        for e, (hidden, value, mask, predicates) in enumerate(group):
            n = len(hidden)
            out["hidden"][r, at : at + n], out["segment"][r, at : at + n] = hidden, e + 1
            out["start"][r, e], out["length"][r, e] = at, n
            span = slice(e, e + 1) if level == "text" else slice(q, q + len(value))
            labels["value"][r, span], labels["mask"][r, span] = value, mask
            words = at + 2 * np.arange((n + 1) // 2)
            for p in {"text": (), "word": (0,), "predicate": predicates}[level]:
                sequence += 1
                here = slice(q, q + len(words))
                labels["token"][r, here], labels["segment"][r, here], labels["slot"][r, here] = words, sequence, e
                labels["predicate"][r, here] = at + 2 * p
                q += len(words)
            at += n
    return Features(**jax.tree.map(jnp.asarray, out)), jax.tree.map(jnp.asarray, labels)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for each task, whatever the test
def run(task, params, features, labels):
    """(loss [R, E], weight [R, E], predictions)"""
    slots = () if task.level == "text" else (features.start.shape[1],)
    logits = task.logits(params, features, labels)
    assert logits.dtype == jnp.float32
    return task.loss(params, logits, labels, *slots), task.weight(labels, *slots), task.predict(params, logits, labels)


def noisy(task, seed=3):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda k: task.init(k, D), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


@pytest.mark.parametrize("name", TASKS)
def test_a_packed_row_gives_what_its_texts_give_alone(name):
    task = build(name)
    params = noisy(task)
    features, labels = rows(name, packed=True)
    loss, weight, predicted = run(task, params, features, labels)
    alone, alone_labels = rows(name, packed=False)
    loss_alone, weight_alone, predicted_alone = run(task, params, alone, alone_labels)
    assert loss.shape == weight.shape == (3, E)
    np.testing.assert_allclose(loss[0], loss_alone[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weight[0], weight_alone[:, 0], rtol=1e-6)
    assert np.asarray(weight).sum() > 0
    for key, value in predicted.items():
        if task.level == "text":
            np.testing.assert_allclose(value[0], predicted_alone[key][:, 0], rtol=1e-5, atol=1e-6)
        else:
            real, real_alone = labels["segment"] > 0, alone_labels["segment"] > 0
            np.testing.assert_allclose(value[real], predicted_alone[key][real_alone], rtol=1e-5, atol=1e-6)
    if task.level != "text":
        # at their own places the same sums
        in_place = jax.jit(lambda p, f, y: task.loss(p, task.logits(p, f, y), y))(params, features, labels)
        np.testing.assert_allclose(in_place.sum(), loss.sum(), rtol=1e-5)
        np.testing.assert_allclose(task.weight(labels).sum(), weight.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_without_labels_all_is_zero_and_with_them_every_parameter_learns(name):
    task = build(name)
    params = noisy(task)
    features, labels = rows(name, packed=True)
    value = labels["value"]
    unknown = {**labels, "mask": jnp.zeros_like(labels["mask"])}
    if jnp.issubdtype(value.dtype, jnp.floating):
        unknown["value"] = jnp.full_like(value, jnp.nan)

    def total(params, hidden, labels):
        loss, weight, _ = run(task, params, features._replace(hidden=hidden), labels)
        return loss.sum(), weight.sum()

    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    grads, weight = grad(params, features.hidden, unknown)
    assert weight == 0 and not np.asarray(run(task, params, features, unknown)[0]).any()
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads))
    grads, weight = grad(params, features.hidden, labels)
    assert weight > 0
    assert all(np.isfinite(g).all() and np.asarray(g).any() for g in jax.tree.leaves(grads))
    assert not np.asarray(grads[1])[np.asarray(features.segment) == 0].any()


@pytest.mark.parametrize("name", ["classification", "focal", "softmax", "srl"])
def test_one_hot_distributions_equal_class_ids(name):
    task = build(name)
    params = noisy(task)
    features, labels = rows(name, packed=True)
    soft = {**labels, "value": jax.nn.one_hot(labels["value"], 4)}
    for a, b in zip(run(task, params, features, labels)[:2], run(task, params, features, soft)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_crf_on_sequences_of_one_word_takes_distributions_as_softmax_does():
    task = make_task("t", {"kind": "tagging", "crf": True}, "word", BIO)
    softmax = make_task("t", {"kind": "tagging"}, "word", BIO)
    params = noisy(softmax)
    features, labels = rows("softmax", packed=True)
    labels["segment"] = jnp.tile(jnp.arange(1, Q + 1, dtype=jnp.int32), (3, 1))
    labels["value"] = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(4), (3, Q)), jnp.float32)
    expected = run(softmax, params, features, labels)
    out = run(task, {**params, "crf": crf.init_params(4)}, features, labels)
    for a, b in zip(out[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_heads_lanes_and_low_precision_features():
    """vmap over stacked heads, as ablation lanes do; bf16 features enter a float32 head."""
    task = build("srl_crf")
    features, labels = rows("srl_crf", packed=True)
    half = features._replace(hidden=features.hidden.astype(jnp.bfloat16))
    params = [noisy(task, s) for s in (1, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    lanes = jax.vmap(lambda p: run(task, p, half, labels)[0])(stacked)
    exact = half._replace(hidden=half.hidden.astype(jnp.float32))
    for p, lane in zip(params, lanes, strict=True):
        np.testing.assert_allclose(run(task, p, exact, labels)[0], lane, rtol=1e-5, atol=1e-6)
    hash(task)


def test_srl_head_is_an_affine_map_of_the_joined_vectors():
    task = build("srl")
    params = noisy(task)
    features, labels = rows("srl", packed=True)
    logits = np.asarray(task.logits(params, features, labels))
    kernel = np.concatenate([params["word"]["kernel"], params["predicate"]["kernel"], params["distance"]["embedding"]])
    h = np.asarray(features.hidden[0])
    for q in range(7):
        token, predicate = int(labels["token"][0, q]), int(labels["predicate"][0, q])
        joined = np.concatenate([h[token], h[predicate], np.eye(5)[np.clip(token - predicate, -2, 2) + 2]])
        inner = jax.nn.gelu(jnp.asarray(joined @ kernel + params["word"]["bias"]))
        expected = inner @ params["output"]["kernel"] + params["output"]["bias"]
        np.testing.assert_allclose(logits[0, q], expected, rtol=1e-4, atol=1e-4)


def test_text_loss_is_the_weighted_mean_of_numpy():
    task = make_task("t", {"kind": "classification", "class_weights": "balanced"}, "text", "abcd", (1, 2, 3, 4))
    params = noisy(task)
    features, labels = rows("classification", packed=True)
    loss, weight, _ = run(task, params, features, labels)
    kernel, bias = (np.asarray(params["output"][k], np.float64) for k in ("kernel", "bias"))
    x = np.asarray(pool(features, "mean")) @ kernel + bias
    log_p = (x - np.log(np.exp(x).sum(-1, keepdims=True)))[0]
    w = 10 / (4 * np.array([1, 2, 3, 4]))
    y, mask = np.asarray(labels["value"][0]), np.asarray(labels["mask"][0])
    expected = -(w[y] * log_p[range(E), y])[mask].sum() / w[y][mask].sum()
    np.testing.assert_allclose(loss.sum() / weight.sum(), expected, rtol=1e-5)


def test_regression_is_scaled_inside_and_not_outside():
    for options, offset, unit in (({"low": 1.0, "high": 5.0}, 1, 4), ({"mean": 2.0, "scale": 0.5}, 2, 0.5), ({}, 0, 1)):
        task = make_task("t", {"kind": "regression", **options}, "text")
        labels = {"value": jnp.asarray([[3.0, jnp.nan]]), "mask": jnp.asarray([[True, False]])}
        scaled = jnp.asarray([[0.25, 7.0]])
        np.testing.assert_allclose(task.loss({}, scaled, labels), [[(0.25 - (3 - offset) / unit) ** 2, 0]], rtol=1e-6)
        np.testing.assert_allclose(task.predict({}, scaled, labels)["value"], scaled * unit + offset)


def test_a_gold_label_that_breaks_the_scheme_counts_as_unknown():
    task = make_task("t", {"kind": "tagging", "crf": True, "scheme": "iob2"}, "word", BIO)
    features, labels = rows("crf", packed=True)
    labels["value"] = jnp.full_like(labels["value"], 2)  # I-X everywhere: wrong at the first word of each text
    labels["mask"] = labels["segment"] > 0
    loss, weight, _ = run(task, noisy(task), features, labels)
    np.testing.assert_array_equal(weight, [[1, 0, 2], [0, 0, 0], [0, 0, 0]])
    assert np.isfinite(loss).all() and np.asarray(loss)[0, 1] == 0 and (np.asarray(loss) < 1e3).all()


def test_the_first_predictions_are_near_uniform_and_parameters_float32():
    for name in ("classification", "srl_crf"):
        task = build(name)
        params = jax.jit(task.init, static_argnums=1)(jax.random.key(0), D)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
        logits = jax.jit(task.logits)(params, *rows(name, packed=False))
        assert np.ptp(logits) > 0 and jax.nn.softmax(logits).max() < 0.5  # of four classes


@pytest.mark.parametrize("name", TASKS)
def test_decoded_predictions_are_json(name):
    task = build(name)
    features, labels = rows(name, packed=True)
    predicted = jax.tree.map(np.asarray, run(task, noisy(task), features, labels)[2])
    if task.level == "text":
        record = {k: v[0, 0] for k, v in predicted.items()}
    else:
        record = {k: v[0][np.asarray(labels["segment"][0]) == 1] for k, v in predicted.items()}
    out = json.loads(json.dumps(task.decode(**record)))
    if name == "classification":
        assert out["label"] == max(out["probabilities"], key=out["probabilities"].get)
        assert sum(out["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    elif name == "multilabel":
        assert set(out["labels"]) == {n for n, p in out["probabilities"].items() if p >= 0.5}
    elif task.level != "text":
        assert len(out["tags"]) == 2 and all(0 < p <= 1.000001 for p in out["probabilities"])


def test_decoded_spans():
    task = make_task("t", {"kind": "tagging"}, "word", BIO)
    out = task.decode(np.array([1, 2, 0, 3, -1]), np.full(5, 0.5))
    assert out["tags"] == ["B-X", "I-X", "O", "B-Y", None] and out["probabilities"][4] is None
    assert out["spans"] == [{"start": 0, "end": 1, "type": "X"}, {"start": 3, "end": 3, "type": "Y"}]
    assert "spans" not in make_task("t", {"kind": "tagging"}, "word", ("NOUN", "VERB")).decode([0], [1.0])
