"""Spans, relations, choices and hidden tokens against brute force and closed forms in float64, on packed rows."""

import collections
import functools
import json
import math
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.tasks import make_task, segment_softmax
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.metrics import METRICS, evaluate

D, E = 6, 3
BOTH = ("answer", "no answer")


def softmax(x):
    x = np.exp(np.asarray(x, np.float64) - np.max(x))
    return x / x.sum()


def noisy(task, width=D, seed=3):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda k: task.init(k, width), jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def span_labels(lengths, gold, mask=None):
    """One row of texts of these numbers of tokens, positions of each: "no answer", then its tokens, which begin at
    position 1 of the text on T; a text has one token more. `gold`: (first, last), (-1, -1) = none.
    """
    names = ("value", "token", "segment", "slot", "word")
    rows = {name: [] for name in names} | {"mask": []}
    start = 0
    for e, (n, (first, last)) in enumerate(zip(lengths, gold, strict=True)):
        for word in range(-1, n):
            values = ((word == first) + 2 * (word == last), start + word + 1, e + 1, e, word)
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
            rows["mask"].append(mask is None or mask[e])
        start += n + 1
    padded = {name: np.asarray([*values, 0, 0], np.int32)[None] for name, values in rows.items()}
    padded["mask"] = padded["mask"].astype(bool)
    return {name: jnp.asarray(value) for name, value in padded.items()}


@pytest.mark.parametrize("max_span", [0, 1, 3])
@pytest.mark.parametrize("names", [BOTH, BOTH[:1]])
def test_the_best_span_is_that_of_all_legal_ones(names, max_span):
    task = make_task("t", {"kind": "span", "max_span": max_span, "none_threshold": 0.5}, "span", names)
    rng = np.random.default_rng(0)
    predict = jax.jit(lambda logits, labels: task.predict({}, logits, labels))
    nones = 0
    for seed in range(20):
        lengths = (5, 0, 1, 7)
        labels = span_labels(lengths, [(-1, -1)] * 4)
        logits = rng.normal(size=(*labels["word"].shape, 2)).astype(np.float32) * (1 + seed % 3)
        value = jax.device_get(predict(logits, labels)["value"])
        segment, word = np.asarray(labels["segment"][0]), np.asarray(labels["word"][0])
        assert (value[0, segment == 0] == -1).all()
        actual = task.best_answers(np.arange(4), value[0, [np.flatnonzero(segment == e + 1)[0] for e in range(4)]], 4)
        for e, n in enumerate(lengths):
            at = np.flatnonzero(segment == e + 1)
            s, t = logits[0, at, 0].astype(float), logits[0, at, 1].astype(float)
            spans = [
                (s[1 + i] + t[1 + j], -i, -(j - i), (i, j))
                for i in range(n)
                for j in range(i, min(n, i + (max_span or n)))
            ]
            usable = slice(None) if len(names) == 2 else slice(1, None)
            p, q = (softmax(x[usable]) if len(x[usable]) else np.zeros(1) for x in (s, t))
            best, wanted = (max(spans)[0], max(spans)[-1]) if spans else (-np.inf, (-1, -1))
            offset = 1 if len(names) == 2 else 0
            chance = p[wanted[0] + offset] * q[wanted[1] + offset] if spans else 0.0
            if len(names) == 2 and s[0] + t[0] > best + 0.5:
                wanted, chance = (-1, -1), p[0] * q[0]
                nones += bool(spans)
            assert tuple(actual["value"][e].tolist()) == wanted
            assert actual["probability"][e] == pytest.approx(chance, rel=1e-4, abs=1e-7)
            assert word[at[0]] == -1
    assert nones > 0 or len(names) == 1


@pytest.mark.parametrize("names", [BOTH, ("answer", "elsewhere")])
def test_the_answer_is_the_best_of_all_windows(names):
    """Windows of a record in any order and any rows, against all spans of all of them in float64."""
    task = make_task("t", {"kind": "span", "max_span": 3, "none_threshold": -0.3}, "span", names)
    rng = np.random.default_rng(0)
    lengths, record, begins = (5, 4, 0, 6, 3, 5), np.asarray([1, 0, 3, 1, 2, 1]), (4, 0, 0, 0, 0, 9)
    windows = len(lengths)
    predict = jax.jit(lambda logits, labels: task.predict({}, logits, labels)["value"])
    nones = 0
    for seed in range(20):
        labels = span_labels(lengths, [(-1, -1)] * windows)
        word, segment = np.array(labels["word"]), np.asarray(labels["segment"][0])
        for w, begin in enumerate(begins):
            word[0, (segment == w + 1) & (word[0] >= 0)] += begin
        logits = rng.normal(size=(*word.shape, 2)).astype(np.float32) * (1 + seed % 3)
        value = np.asarray(predict(logits, labels | {"word": jnp.asarray(word)}))[0]
        actual = task.best_answers(record, value[[np.flatnonzero(segment == w + 1)[0] for w in range(windows)]], 4)
        for m in range(4):
            spans, none = [], []
            for w in np.flatnonzero(record == m):
                at = np.flatnonzero(segment == w + 1)
                p, q = (softmax(logits[0, at, k]) for k in (0, 1))
                n, begin = lengths[w], begins[w]
                none.append(p[0] * q[0])
                ends = [(i, j) for i in range(n) for j in range(i, min(n, i + 3))]
                spans += [(p[1 + i] * q[1 + j], (begin + i, begin + j)) for i, j in ends]
            chance, wanted = max(spans, default=(0.0, (-1, -1)))
            if not spans or (names == BOTH and math.log(min(none)) > math.log(chance) - 0.3):
                chance, wanted = min(none), (-1, -1)
                nones += bool(spans)
            assert tuple(actual["value"][m].tolist()) == wanted
            assert actual["probability"][m] == pytest.approx(chance, rel=1e-4)
    assert (nones > 0) == (names == BOTH)
    lost = task.best_answers(
        record, np.asarray([[0, 1, np.nan, np.nan]] * windows, np.float32), 4
    )  # a lane that went astray
    assert lost["value"].shape == (4, 2)


@pytest.mark.parametrize("names", [BOTH, BOTH[:1]])
def test_the_loss_of_spans_is_the_mean_cross_entropy_of_both_ends(names, differs):
    task = make_task("t", {"kind": "span", "hidden": 4}, "span", names)
    lengths, gold = (4, 3, 6, 2), ((1, 2), (-1, -1), (0, 5), (1, 1))
    labels = span_labels(lengths, gold, (True, True, True, False))
    params = noisy(task)
    hidden = np.random.default_rng(1).normal(size=(1, sum(lengths) + 6, D)).astype(np.float32)
    features = Features(jnp.asarray(hidden), None, None, None)
    logits = task.logits(params, features, labels)
    loss_of = jax.jit(task.loss, static_argnums=3)
    loss, weight = loss_of(params, logits, labels, 4), task.weight(labels, 4)
    wanted = np.zeros(4)
    start = 0
    for e, (n, (first, last)) in enumerate(zip(lengths, gold, strict=True)):
        x = hidden[0, start : start + n + 1].astype(float)
        y = x @ np.float64(params["hidden"]["kernel"]) + np.float64(params["hidden"]["bias"])
        y = y * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        y = y @ np.float64(params["output"]["kernel"]) + np.float64(params["output"]["bias"])
        if len(names) == 2:
            scores = np.concatenate([y[:1, 2:], y[1:, :2]])
            wanted[e] = -0.5 * sum(np.log(softmax(scores[:, k])[g + 1]) for k, g in enumerate((first, last)))
        elif first >= 0:
            wanted[e] = -0.5 * sum(np.log(softmax(y[1:, k])[g]) for k, g in enumerate((first, last)))
        start += n + 1
    counted = [1.0, float(len(names) == 2), 1.0, 0.0]
    wanted[3] = 0.0
    differs("loss of spans against float64", loss[0], wanted, 1e-5)
    assert weight[0].tolist() == counted
    assert loss_of(params, logits, labels, None).sum() == pytest.approx(float(loss.sum()), rel=1e-6)
    silent = labels | {"mask": jnp.zeros_like(labels["mask"])}
    assert not np.asarray(loss_of(params, logits, silent, 4)).any() and not np.asarray(task.weight(silent)).any()

    def total(x):
        return task.loss(params, task.logits(params, features._replace(hidden=x), labels), labels).sum()

    slope = jax.jit(jax.grad(total))(features.hidden)
    assert np.isfinite(slope).all() and np.asarray(slope).any()


def test_softmax_in_groups_does_not_see_what_is_not_usable():
    group = jnp.asarray([[1, 1, 2, 2, 2, 0, 3]], jnp.int32)
    scores = jnp.asarray([[1e4, -1e4, 3.0, jnp.inf, 5.0, jnp.nan, 2.0]])
    usable = jnp.asarray([[True, True, True, False, True, False, False]])
    actual = segment_softmax.log_softmax(scores, group, usable)
    np.testing.assert_allclose(
        actual[0], [0, -2e4, *np.log(softmax([3, 5]))[:1], 0, np.log(softmax([3, 5]))[1], 0, 0], rtol=1e-5
    )
    slope = jax.jit(jax.grad(lambda x: segment_softmax.log_softmax(x, group, usable).sum()))(scores)
    assert np.isfinite(slope).all() and not np.asarray(slope)[0, [3, 5, 6]].any()
    assert segment_softmax.first_argmax(jnp.ones((1, 7)), group, group > 0)[0].tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
        True,
    ]


# What SQuAD's evaluation does, written down on its own.
def reference(prediction, golds):
    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    golds = [g for g in golds if " ".join(words(g))] or [""]
    exact, f1 = 0.0, 0.0
    for gold in golds:
        g, p = words(gold), words(prediction)
        exact = max(exact, float(" ".join(g) == " ".join(p)))
        if not g or not p:
            f1 = max(f1, float(g == p))
            continue
        common = sum((collections.Counter(g) & collections.Counter(p)).values())
        if common:
            precision, recall = common / len(p), common / len(g)
            f1 = max(f1, 2 * precision * recall / (precision + recall))
    return exact, f1


def test_metrics_of_answers_are_those_of_squad():
    rng = np.random.default_rng(0)
    parts = ["the", "The", "cat", "cat,", "CATS", "a", "an", "of", "U.S.", "old-new", "—", "...", "4.5%"]

    def text():
        return " ".join(rng.choice(parts, rng.integers(0, 5)))

    golds = [[text() for _ in range(rng.integers(0, 4))] for _ in range(300)]
    message = [text() for _ in golds]
    wanted = np.mean([reference(p, g) for p, g in zip(message, golds, strict=True)], axis=0)
    assert evaluate("answer_exact", golds, message, ()) == pytest.approx(wanted[0], abs=1e-12) and 0 < wanted[0] < 1
    assert evaluate("answer_f1", golds, message, ()) == pytest.approx(wanted[1], abs=1e-12) and wanted[0] < wanted[1]
    metric = METRICS["answer_f1"]
    both = metric.merge(metric.statistics(golds[:9], message[:9], ()), metric.statistics(golds[9:], message[9:], ()))
    assert metric.value(both) == pytest.approx(wanted[1], abs=1e-12)
    words = ([[(1, 2, 3)], [(4,), (5, 6)], [()]], [(2, 3, 4), (5, 6), ()])
    assert evaluate("answer_f1", *words, ()) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert evaluate("answer_exact", *words, ()) == pytest.approx(2 / 3)


def choice_rows():
    """Records of 2, 3 and 4 choices: in two rows, with an empty slot, the third of unknown label."""
    group = np.asarray([[1, 1, 3, 3, 3, 0], [1, 1, 1, 1, 0, 0]], np.int32)
    number = np.asarray([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]], np.int32)
    value = np.asarray([[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]], np.int32)
    mask = np.asarray([[1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)
    return {"group": group, "choice": number, "value": value, "mask": mask}


def test_metrics_of_answers_beyond_english():
    def score(right, message):
        return evaluate("answer_exact", [[right]], [message], ()), evaluate("answer_f1", [[right]], [message], ())

    assert score("दिल्ली।", "दिल्ली") == score("北京", "北京。") == score("café", "cafe\u0301") == (1.0, 1.0)
    assert score("北京大学", "大学") == (0.0, pytest.approx(2 / 3))  # of Han characters each is a word
    assert score("the “Ritz”", "“Ritz”") == (1.0, 1.0) and score("“Ritz”", "Ritz") == (0.0, 0.0)  # as SQuAD's script


def test_choices_compete_within_their_record_alone(differs):
    task = make_task("t", {"kind": "multiple_choice"}, "choice")
    labels = jax.tree.map(jnp.asarray, choice_rows())
    logits = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32) * 3
    loss, weight = task.loss({}, jnp.asarray(logits), labels), task.weight(labels)
    records = [(0, slice(0, 2), 1), (0, slice(2, 5), 0), (1, slice(0, 4), None)]
    wanted = [-np.log(softmax(logits[row, at])[right]) for row, at, right in records if right is not None]
    differs("loss of choices against float64", float(loss.sum()), sum(wanted), 1e-5)
    assert weight.sum() == 2 and loss[0, 1] == pytest.approx(wanted[0], rel=1e-5)
    actual = jax.device_get(task.predict({}, jnp.asarray(logits), labels))
    for row, at, _ in records:
        np.testing.assert_allclose(actual["probability"][row, at], softmax(logits[row, at]), rtol=1e-5)
        assert (actual["value"][row, at] == logits[row, at].argmax()).all()
    assert (actual["value"][np.asarray(labels["group"]) == 0] == -1).all()
    assert task.decode(2, [0.1, 0.2, 0.7]) == {"choice": 2, "probabilities": [0.1, 0.2, 0.7]}
    equal = task.predict({}, jnp.zeros((2, 6)), labels)
    assert (np.asarray(equal["value"])[np.asarray(labels["group"]) > 0] == 0).all()


@pytest.mark.parametrize("pool", ["start", "mean", "first"])
def test_relations_read_the_marked_spans(pool, differs):
    task = make_task("t", {"kind": "relation", "pool": pool}, "pair", ("x", "y", "z"))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, 12, D)).astype(np.float32)
    mark = np.asarray([[[1, 3, 4, 7], [9, 11, 8, 10]]], np.int32)
    labels = {"mark": mark, "value": np.asarray([[2, 0]], np.int32), "mask": np.ones((1, 2), bool)}
    arrays = {
        "segment": np.ones((1, 12), np.int32),
        "start": np.asarray([[0, 8]], np.int32),
        "length": np.asarray([[8, 4]], np.int32),
    }
    features = Features(jnp.asarray(hidden), **jax.tree.map(jnp.asarray, arrays))
    labels = jax.tree.map(jnp.asarray, labels)
    params = noisy(task)
    actual = task.logits(params, features, labels)
    for e, (a, b, c, d) in enumerate(mark[0]):
        joined = {
            "start": np.concatenate([hidden[0, a], hidden[0, c]]),
            "mean": np.concatenate([hidden[0, a + 1 : b].mean(0), hidden[0, c + 1 : d].mean(0)]),
            "first": hidden[0, arrays["start"][0, e]],
        }[pool].astype(float)
        wanted = joined @ np.float64(params["output"]["kernel"]) + np.float64(params["output"]["bias"])
        differs(f"relation of marked spans, {pool}", actual[0, e], wanted, 1e-5)
    assert task.loss(params, actual, labels).shape == (1, 2)
    assert task.decode(1, [0.2, 0.5, 0.3])["label"] == "y"


VOCABULARY = tuple(f"t{i}" for i in range(50))
MASK = 4


def masked(**options):
    given = {"mask_token": MASK, "table_width": 5}
    return make_task("t", {"kind": "masked_lm", **options}, "token", VOCABULARY, given=given)


def rows_of_text(count, length, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 50, (count, length)).astype(np.int32)
    segment = np.minimum(np.arange(length) // 8 + 1, 3)[None].repeat(count, 0).astype(np.int32)
    maskable = (np.arange(length) % 8 != 0)[None].repeat(count, 0)
    maskable[0] = False  # a row with nothing to hide
    segment[:, -3:], maskable[:, -3:] = 0, False
    return tokens, segment, maskable


def test_hidden_tokens_are_drawn_as_bert_does():
    task = masked()
    tokens, segment, maskable = rows_of_text(400, 64)
    corrupt = jax.jit(task.corrupt)
    keys = jax.random.split(jax.random.key(0), 400)
    hidden, labels = jax.device_get(corrupt(tokens, segment, maskable, keys))
    assert labels["value"].shape == (400, math.ceil(0.15 * 64))
    number = maskable.sum(1)
    np.testing.assert_array_equal(
        labels["mask"].sum(1), np.where(number > 0, np.maximum(np.round(0.15 * number), 1), 0)
    )
    row, q = np.nonzero(labels["mask"])
    at = labels["token"][row, q]
    assert len(set(zip(row.tolist(), at.tolist(), strict=True))) == len(row) and maskable[row, at].all()
    np.testing.assert_array_equal(labels["value"][row, q], tokens[row, at])
    np.testing.assert_array_equal(labels["segment"][row, q], segment[row, at])
    np.testing.assert_array_equal(labels["slot"][row, q], segment[row, at] - 1)
    changed = np.zeros_like(maskable)
    changed[row, at] = True
    np.testing.assert_array_equal(hidden[~changed], tokens[~changed])
    became = hidden[row, at]
    # 80 % [MASK]; 10 % drawn from the vocabulary, of which a fiftieth each is [MASK] or the token itself
    n = len(row)
    for share, wanted in (((became == MASK).mean(), 0.8 + 0.002), ((became == tokens[row, at]).mean(), 0.1 + 0.002)):
        assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / n)
    where = np.bincount(at, minlength=64)[maskable[1]]
    assert abs(where / n - 1 / len(where)).max() < 5 * math.sqrt(1 / len(where) / n)
    again, _ = corrupt(tokens, segment, maskable, keys)
    np.testing.assert_array_equal(again, hidden)
    one, _ = corrupt(tokens[7:8], segment[7:8], maskable[7:8], keys[7:8])
    np.testing.assert_array_equal(one[0], hidden[7])
    other, _ = corrupt(tokens, segment, maskable, jax.random.split(jax.random.key(1), 400))
    assert (np.asarray(other) != hidden).any(1)[1:].mean() > 0.9
    remaining, labels = masked(keep=1.0, random=0.0).corrupt(tokens, segment, maskable, keys)
    np.testing.assert_array_equal(remaining, tokens)
    assert labels["mask"].sum() > 0


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"transform": False}], ids=str)
def test_the_scores_of_hidden_tokens(options, differs):
    task = masked(**options)
    params = noisy(task)
    if task.tied:
        assert "output" not in params
        params["table"] = jnp.asarray(np.random.default_rng(5).normal(size=(60, 5)), jnp.float32)
    tokens, segment, maskable = rows_of_text(3, 24)
    keys = jax.random.split(jax.random.key(0), 3)
    _, labels = task.corrupt(tokens, segment, maskable, keys)
    hidden = np.random.default_rng(1).normal(size=(3, 24, D)).astype(np.float32)
    logits = task.logits(params, Features(jnp.asarray(hidden), None, None, None), labels)
    x = np.take_along_axis(hidden, np.asarray(labels["token"])[..., None], 1).astype(float)
    if task.transform:
        x = x @ np.float64(params["transform"]["kernel"]) + np.float64(params["transform"]["bias"])
        x = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        x = x * np.float64(params["layer_norm"]["scale"]) + np.float64(params["layer_norm"]["bias"])
    matrix = params["table"][:50].T if task.tied else params["output"]["kernel"]
    wanted = x @ np.float64(matrix) + np.float64(params["bias"])
    differs("scores of hidden tokens against float64", logits, wanted, 1e-4)
    p = np.apply_along_axis(softmax, -1, wanted)
    gold, known = np.asarray(labels["value"]), np.asarray(labels["mask"])
    surprise = -np.log(np.take_along_axis(p, gold[..., None], -1)[..., 0])
    loss = task.loss(params, logits, labels)
    differs("loss of hidden tokens against float64", loss, np.where(known, surprise, 0), 1e-4)
    assert float(task.weight(labels).sum()) == known.sum()
    differs("the same, by example", task.loss(params, logits, labels, E).sum(), loss.sum(), 1e-4)
    actual = jax.device_get(task.predict(params, logits, labels))
    value = actual["value"].reshape(-1, 4)[known.reshape(-1)]
    assert evaluate("masked_accuracy", value[:, 1].astype(int), value[:, [0, 2]], VOCABULARY) == pytest.approx(
        (wanted.argmax(-1) == gold)[known].mean()
    )
    perplexity = evaluate("masked_perplexity", value[:, 1].astype(int), value[:, [0, 2]], VOCABULARY)
    assert perplexity == pytest.approx(np.exp(surprise[known].mean()), rel=1e-4)
    message = task.decode(actual["value"][1], actual["probability"][1], actual["candidates"][1])
    assert message[0]["token"] == VOCABULARY[wanted[1, 0].argmax()] and len(message[0]["probabilities"]) == 5
    json.dumps(message)


def test_wrong_options():
    span, masking = (
        functools.partial(make_task, "t", level="span", names=BOTH),
        functools.partial(make_task, "t", level="token"),
    )
    for build, message in (
        (lambda: span({"kind": "span", "max_span": -1}), r"options\.max_span: -1"),
        (lambda: span({"kind": "span", "metrics": ("accuracy",)}), "'accuracy' is not one of"),
        (lambda: masking({"kind": "masked_lm", "rate": 0.0}, names=VOCABULARY), r"options\.rate: nothing"),
        (lambda: masking({"kind": "masked_lm", "random": 0.6, "keep": 0.6}, names=VOCABULARY), "sum to 1.2"),
        (
            lambda: masking({"kind": "masked_lm", "tied": True, "transform": False}, names=VOCABULARY),
            "needs the transform",
        ),
        (lambda: make_task("t", {"kind": "relation", "pool": "max"}, "pair", ("a", "b")), r"options\.pool: 'max'"),
        (lambda: make_task("t", {"kind": "relation"}, "text", ("a", "b")), "needs two marked spans"),
        (lambda: make_task("t", {"kind": "multiple_choice", "pool": "end"}, "choice"), r"options\.pool: 'end'"),
    ):
        with pytest.raises(UserError, match=message):
            build()
