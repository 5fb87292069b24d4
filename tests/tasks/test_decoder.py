"""The decoder: cached steps against whole targets, packed rows against single ones, copying against float64 sums."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.dropout import Noise
from mtl_jax.tasks import make_task
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.decoder import SourceMasks
from mtl_jax.tasks.generation import BEGIN, DECODERS, END, _distribution

D, E, T, Q = 6, 3, 10, 12
NAMES = ("[UNK]", "[BOS]", "[EOS]", "a", "b", "c")
C = len(NAMES)
# token ids of the input: 0 [CLS], never copied; 1 "a", 2 "b"; 3 has no place in the vocabulary
SOURCE = (-2, 3, 4, -1)
TEXTS = ((0, 1, 3, 2), (0, 3), (0, 2, 2))
TARGETS = ((3, C + 2, 4, END), (C + 1, END), (4, 0, 3))  # the last is cut: no end


@functools.cache
def build(copy=True, decoder="transformer", **settings):
    own = {"heads": 2} if decoder == "transformer" else {}
    settings = {"decoder": decoder, "layers": 2, "width": 8, "max_length": 5, "label_smoothing": 0.0, **own, **settings}
    given = {"source": SOURCE if copy else ()}
    return make_task("t", {"kind": "generation", "copy": copy, **settings}, "sequence", NAMES, None, given)


@functools.cache
def params(copy=True, decoder="transformer"):
    return jax.jit(lambda key: build(copy, decoder).init(key, D))(jax.random.key(0))


both = pytest.mark.parametrize("decoder", DECODERS)


def rows(packed, copy=True):
    """The three texts in one row before two empty ones, or one in each row; in the same shapes."""
    rng = np.random.default_rng(0)
    hidden = [rng.normal(size=(len(text), D)).astype(np.float32) for text in TEXTS]
    groups = [[0, 1, 2], [], []] if packed else [[0], [1], [2]]
    f = {n: np.zeros((3, T), np.int32) for n in ("segment", "tokens")}
    f |= {n: np.zeros((3, E), np.int32) for n in ("start", "length")}
    f["hidden"] = rng.normal(size=(3, T, D)).astype(np.float32)
    labels = {n: np.zeros((3, Q), np.int32) for n in ("value", "segment", "slot", "position")}
    for r, group in enumerate(groups):
        at = q = 0
        for e, n in enumerate(group):
            size, count = len(TEXTS[n]), len(TARGETS[n])
            f["hidden"][r, at : at + size], f["tokens"][r, at : at + size] = hidden[n], TEXTS[n]
            f["segment"][r, at : at + size] = e + 1
            f["start"][r, e], f["length"][r, e] = at, size
            target = np.asarray(TARGETS[n])
            labels["value"][r, q : q + count] = target if copy else np.where(target < C, target, 0)
            labels["segment"][r, q : q + count], labels["slot"][r, q : q + count] = e + 1, e
            labels["position"][r, q : q + count] = np.arange(count)
            at, q = at + size, q + count
    labels["mask"] = labels["segment"] > 0
    return Features(**jax.tree.map(jnp.asarray, f)), jax.tree.map(jnp.asarray, labels)


@functools.partial(jax.jit, static_argnums=0)
def run(task, p, features, labels):
    logits = task.logits(p, features, labels)
    actual = task.generate(p, features)
    return task.loss(p, logits, labels, E), task.weight(labels, E), actual, task.metric_sums(logits, labels), logits


@both
@pytest.mark.parametrize("copy", [True, False])
def test_packed_rows_say_what_single_rows_say(copy, decoder):
    task, p = build(copy, decoder), params(copy, decoder)
    packed, single = (run(task, p, *rows(packed, copy)) for packed in (True, False))
    np.testing.assert_allclose(packed[0][0], np.asarray(single[0])[:, 0], atol=1e-5)
    np.testing.assert_array_equal(packed[1][0], [len(t) for t in TARGETS])
    np.testing.assert_array_equal(packed[2]["value"][0], np.asarray(single[2]["value"])[:, 0])
    np.testing.assert_allclose(packed[2]["score"][0], np.asarray(single[2]["score"])[:, 0], atol=1e-5)
    np.testing.assert_allclose(packed[3], single[3], rtol=1e-5)
    assert (np.asarray(packed[0])[1:] == 0).all() and (np.asarray(packed[2]["value"])[1:] == -1).all()


@both
def test_cached_steps_are_the_whole_target_at_once(decoder, differs):
    task, p, functions = build(decoder=decoder), params(decoder=decoder), DECODERS[decoder]
    features, labels = rows(packed=False)
    logits = run(task, p, features, labels)[-1]
    memory = jax.jit(lambda hidden: functions.encode_memory(p, hidden, task.heads))(features.hidden)
    member = (features.segment == 1)[:, None]
    cache = jax.jit(lambda memory: functions.initial_cache(p, memory, member, Q))(memory)
    source = SourceMasks(member, member & (features.tokens != 0)[:, None])
    step = jax.jit(lambda cache, last, number: functions.step(p, memory, cache, last, number, source))
    last = jnp.full((3, 1), BEGIN, jnp.int32)
    for number in range(4):
        scores, cache = step(cache, last, jnp.int32(number))
        for n, target in enumerate(TARGETS):
            if number < len(target):
                for name in ("vocabulary", "pointer", "gate"):
                    whole, cached = getattr(logits, name)[n, number], getattr(scores, name)[n, 0]
                    differs(f"{decoder} decoder: {name} with a cache", cached, whole, 2e-5)
        last = labels["value"][:, number : number + 1]


def teacher_forced(task, p, features, sequences):
    """Labels of three sequences, one for each row of the features."""
    value, segment = np.zeros((3, Q), np.int32), np.zeros((3, Q), np.int32)
    for i, s in enumerate(sequences):
        value[i, : len(s)], segment[i, : len(s)] = s, 1
    y = {
        "value": value,
        "segment": segment,
        "slot": np.zeros_like(value),
        "mask": segment > 0,
        "position": np.broadcast_to(np.arange(Q, dtype=np.int32), (3, Q)),
    }
    return run(task, p, features, jax.tree.map(jnp.asarray, y))


@both
def test_greedy_search_with_a_cache_is_greedy_search_without(decoder):
    task, p, (features, _) = build(decoder=decoder), params(decoder=decoder), rows(packed=False)
    written = [[], [], []]
    for number in range(5):
        logits = teacher_forced(task, p, features, [[*s, 0] for s in written])[-1]
        likeliest = np.array(_distribution(logits)[:, number])
        likeliest[:, :2] = -np.inf  # neither [UNK] nor [BOS] is written
        for s, token in zip(written, likeliest.argmax(-1).tolist(), strict=True):
            if END not in s:
                s.append(token)
    value = np.asarray(run(task, p, features, rows(packed=False)[1])[2]["value"][:, 0])
    assert [[t for t in s if t != END] for s in written] == [[t for t in v.tolist() if t >= 0] for v in value]
    assert len({len(s) for s in written} | {5}) > 1 or any(END not in s for s in written)


@both
def test_a_wide_beam_writes_what_scoring_all_texts_would_choose(decoder):
    """Each text of up to two tokens and its end, and each of three, scored by teacher forcing."""
    plain, p, (features, _) = build(decoder=decoder), params(decoder=decoder), rows(packed=False)
    task = build(decoder=decoder, beam=150, length_penalty=0.0, max_length=3)
    actual = np.asarray(jax.jit(task.generate)(p, features)["value"][:, 0])
    for n, text in enumerate(TEXTS[:2]):
        tokens = [3, 4, 5, *(C + place for place, t in enumerate(text) if SOURCE[t] == -1)]
        every = [(*s, END) for length in range(3) for s in itertools.product(tokens, repeat=length)]
        every += itertools.product(tokens, repeat=3)
        same = jax.tree.map(lambda a, n=n: jnp.repeat(a[n : n + 1], 3, axis=0), features)
        nll = {}
        for begin in range(0, len(every), 3):
            part = every[begin : begin + 3]
            loss = np.asarray(teacher_forced(plain, p, same, part)[0])[:, 0]
            nll |= dict(zip(part, loss.tolist(), strict=False))
        assert [t for t in min(nll, key=nll.get) if t != END] == [t for t in actual[n].tolist() if t >= 0]


def test_copying_adds_up_and_is_the_mixture_in_float64(differs):
    task, p = build(), params()
    features, labels = rows(packed=True)
    loss, *_, logits = jax.device_get(run(task, p, features, labels))
    log_p = np.asarray(_distribution(jax.tree.map(jnp.asarray, logits)), np.float64)
    real = np.asarray(labels["segment"]) > 0
    np.testing.assert_allclose(np.exp(log_p)[real].sum(-1), 1.0, atol=1e-5)
    nll = np.asarray(task.loss(p, jax.tree.map(jnp.asarray, logits), labels))
    np.testing.assert_allclose(nll.sum(1), loss.sum(1), rtol=1e-5)
    for q in np.flatnonzero(real[0]):
        example, value = int(labels["slot"][0, q]), int(labels["value"][0, q])
        z = logits.vocabulary[0, q].astype(np.float64)
        gate = 1.0 / (1.0 + np.exp(-np.float64(logits.gate[0, q])))
        wanted = gate * np.exp(z[value]) / np.exp(z).sum() if value < C else 0.0
        begin = int(features.start[0, example])
        for place, token in enumerate(TEXTS[example]):
            target = C + place if SOURCE[token] == -1 else SOURCE[token]
            if target == value:
                wanted += (1 - gate) * np.exp(np.float64(logits.pointer[0, q, begin + place]))
        differs("p of a token, copied or written", np.exp(-nll[0, q]), wanted, 1e-6)
        differs("p of a token in the distribution of the search", np.exp(log_p[0, q, value]), wanted, 1e-6)
    outside = np.exp(logits.pointer[0, 0])
    assert (outside[np.asarray(features.segment[0]) != 1] == 0).all() and outside[0] == 0  # others' tokens, [CLS]


@both
def test_a_token_sees_none_that_follow_and_gradients_are_finite(decoder):
    task, p = build(decoder=decoder, label_smoothing=0.1), params(decoder=decoder)
    features, labels = rows(packed=True)
    logits = run(task, p, features, labels)[-1]
    later = labels | {"value": labels["value"].at[0, 2:4].set(5)}  # the first target from its third token on
    changed = run(task, p, features, later)[-1]
    np.testing.assert_array_equal(logits.vocabulary[0, :3], changed.vocabulary[0, :3])
    assert np.abs(logits.vocabulary[0, 3] - changed.vocabulary[0, 3]).max() > 0
    np.testing.assert_array_equal(logits.vocabulary[0, 4:], changed.vocabulary[0, 4:])  # another example

    def total(p, f):
        return task.loss(p, task.logits(p, f, labels), labels, E).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(p, features)):
        assert np.isfinite(leaf).all()
    nothing = {name: jnp.zeros_like(array) for name, array in labels.items()}
    assert all((np.asarray(part) == 0).all() for part in run(task, p, features, nothing)[:2])


def test_smoothing_is_the_mean_over_the_vocabulary():
    features, labels = rows(packed=True, copy=False)
    plain, smooth = build(False), build(False, label_smoothing=0.3)
    logits = run(plain, params(False), features, labels)[-1]
    log_p = np.asarray(jax.nn.log_softmax(logits.vocabulary), np.float64)
    wanted = 0.7 * np.asarray(plain.loss({}, logits, labels)) - 0.3 * log_p.mean(-1) * np.asarray(labels["mask"])
    np.testing.assert_allclose(smooth.loss({}, logits, labels), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, r"config\.tasks\.t\.options\.layers: 0 leaves no decoder"),
        ({"decoder": "gru"}, r"options\.decoder: 'gru' is not one of 'lstm', 'transformer'"),
        ({"decoder": "lstm", "heads": 2}, r"options\.heads: belongs to decoders with several heads"),
        ({"decoder": "lstm", "intermediate": 8}, r"options\.intermediate: belongs to decoders with several heads"),
        ({"beam": 0}, r"options\.beam: 0 should be a whole number >= 1"),
        ({"width": 9, "heads": 3}, r"options\.width: a decoder of width 9 with 3 heads"),
        ({"width": 0, "heads": 4}, r"options\.heads: a decoder of width 6 with 4 heads"),
        ({"tokens": "word"}, r"options\.tokens: 'word' is not one of"),
        ({"join": str}, r"options\.join: this kind of task has no such option"),
        ({"metrics": ("accuracy",)}, r"metrics: 'accuracy' is not one of"),
        ({"metrics": ("perplexity",)}, r"metrics: the first metric is the task's score"),
    ],
)
def test_wrong_options_are_told_by_field(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings).init(jax.random.key(0), D)


def lstm_in_float64(p, hidden, tokens):
    """a_t after each of `tokens`, of one sequence over the features `hidden` [n, D]: the published equations."""
    p, hidden = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), np.asarray(hidden, np.float64)

    def affine(of, x):
        return x @ of["kernel"] + of["bias"]

    def sigmoid(x):
        return 1.0 / (1.0 + np.exp(-x))

    layers = [p["layer_00"], p["layer_01"]]
    h = [np.tanh(affine(layer["start"], hidden.mean(0))) for layer in layers]
    c, a, actual = [np.zeros(8), np.zeros(8)], np.zeros(8), []
    for token in tokens:
        x = np.concatenate([p["embedding"][token] * 8**0.5, a])
        for n, layer in enumerate(layers):
            i, f, g, o = np.split(affine(layer["input"], x) + h[n] @ layer["recurrent"]["kernel"], 4)
            c[n] = sigmoid(f) * c[n] + sigmoid(i) * np.tanh(g)
            x = h[n] = sigmoid(o) * np.tanh(c[n])
        weights = np.exp(hidden @ p["attention"]["key"]["kernel"] @ x)
        a = np.tanh(affine(p["attention"]["output"], np.concatenate([weights / weights.sum() @ hidden, x])))
        actual.append(a)
    return np.stack(actual)


def test_the_recurrent_decoder_is_luongs_in_float64(differs):
    task, p = build(False, "lstm"), params(False, "lstm")
    features, labels = rows(packed=True, copy=False)
    logits = run(task, p, features, labels)[-1].vocabulary
    for e, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        at = int(features.start[0, e])
        before = [BEGIN, *(t if t < C else 0 for t in target[:-1])]
        wanted = lstm_in_float64(p, features.hidden[0, at : at + len(text)], before) @ np.asarray(p["embedding"]).T
        differs("LSTM decoder against float64", logits[0, np.asarray(labels["segment"][0]) == e + 1], wanted, 1e-5)


@both
def test_dropout_is_keyed_by_row_and_vanishes_at_rate_zero(decoder):
    task, p = build(decoder=decoder), params(decoder=decoder)
    features, labels = rows(packed=False)
    keys = jax.random.split(jax.random.key(1), 3)

    @jax.jit
    def said(keys, rate, attention, features, labels):
        noise = Noise(keys, rate, attention)
        return task.logits(p, features._replace(noise=noise), labels).vocabulary

    def at(rate, attention=0.0, order=(0, 1, 2), keys=keys):
        part = jnp.asarray(order)
        args = jax.tree.map(lambda leaf: leaf[part], (keys, features, labels))
        return np.asarray(said(args[0], jnp.float32(rate), jnp.float32(attention), *args[1:]))

    real = np.asarray(labels["segment"]) > 0
    plain = np.asarray(run(task, p, features, labels)[-1].vocabulary)
    np.testing.assert_allclose(at(0.0)[real], plain[real], atol=1e-5)  # the rate is traced
    half = at(0.5)
    assert all(np.abs(half[r][real[r]] - plain[r][real[r]]).max() > 0.01 for r in range(3))
    np.testing.assert_array_equal(at(0.5, order=(2, 0, 1)), half[[2, 0, 1]])
    np.testing.assert_array_equal(at(0.5, order=(1, 1)), half[[1, 1]])
    assert np.abs(at(0.0, 0.5)[real] - plain[real]).max() > 1e-3  # attention weights by their own rate
    assert np.abs(at(0.5, keys=keys[::-1])[0] - half[0]).max() > 0.01
    assert (at(1.0)[real] == 0).all()  # each part drops
