"""Layers: a packed row gives example by example what the unpacked one gives, and what a plain numpy loop gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.dropout import Noise
from mtl_jax.models.layers import LAYERS, recurrent

D = 24
FIELDS = {
    "transformer": {"hidden_size": D, "num_heads": 4, "intermediate_size": 40},
    "lstm": {"hidden_size": 7},
    "bilstm": {"hidden_size": 7},
    "rnn": {"hidden_size": 7},
    "cnn": {"hidden_size": D, "kernel_size": 4},
}
# of the examples in each row; as many rows as examples: packed and one by one they run in the same program
LENGTHS = [[5, 1, 4], [9], [3, 3, 2, 1], [], [], [], [], []]
T = 12


@functools.cache
def build(kind, **fields):
    """Module and params with every parameter, the biases too, away from zero."""
    module = LAYERS[kind](**{**FIELDS[kind], **fields})
    inputs = (jnp.zeros((1, 2, D)), jnp.zeros((1, 2), jnp.int32))
    params = jax.jit(module.init)(jax.random.key(1), *inputs)["params"]
    random = np.random.default_rng(2)
    shaken = jax.tree.map(lambda leaf: leaf + 0.2 * random.normal(size=leaf.shape).astype(np.float32), params)
    return module, shaken


def packed(seed=0):
    """x [R, T, D], segment [R, T] and the list of (row, slice) of the examples."""
    x = np.random.default_rng(seed).normal(size=(len(LENGTHS), T, D)).astype(np.float32)
    segment, places = np.zeros((len(LENGTHS), T), np.int32), []
    for row, lengths in enumerate(LENGTHS):
        end = 0
        for slot, length in enumerate(lengths):
            segment[row, end : end + length] = slot + 1
            places.append((row, slice(end, end + length)))
            end += length
    return jnp.asarray(x), jnp.asarray(segment), places


def test_registry_is_complete():
    assert set(FIELDS) == set(LAYERS)


def unpacked(x, segment, places):
    """The same examples, one in each row [N, T]; padding is other noise than in the packed rows."""
    alone = np.random.default_rng(9).normal(size=(len(places), *x.shape[1:])).astype(np.float32)
    segment_alone = np.zeros((len(places), x.shape[1]), np.int32)
    for number, (row, place) in enumerate(places):
        length = place.stop - place.start
        alone[number, :length] = x[row, place]
        segment_alone[number, :length] = 1
    return jnp.asarray(alone), jnp.asarray(segment_alone)


@functools.cache
def forward(module):
    return jax.jit(lambda params, x, segment: module.apply({"params": params}, x, segment))


@functools.cache
def runner(module):
    """Jitted output, and gradients by params and x of a loss over the real tokens."""

    def loss(params, x, segment):
        y = module.apply({"params": params}, x, segment)
        return jnp.sum(jnp.sin(y) * (segment > 0)[..., None].astype(y.dtype)), y

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_equals_unpacked_and_padding_does_not_matter(kind, differs):
    module, params = build(kind)
    x, segment, places = packed()
    run = runner(module)
    (by_params, by_x), y = run(params, x, segment)
    (alone_params, alone_x), alone_y = run(params, *unpacked(x, segment, places))
    for number, (row, place) in enumerate(places):
        length = place.stop - place.start
        differs(f"packed against alone, layer {kind}", y[row, place], alone_y[number, :length], 1e-5)
        np.testing.assert_allclose(by_x[row, place], alone_x[number, :length], rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), by_params, alone_params)

    real = np.asarray(segment > 0)
    (other_params, _), other_y = run(params, jnp.where(real[..., None], x, 1e3), segment)
    np.testing.assert_array_equal(np.asarray(y)[real], np.asarray(other_y)[real])
    jax.tree.map(np.testing.assert_array_equal, by_params, other_params)
    np.testing.assert_array_equal(np.asarray(by_x)[~real], 0)

    gradients, _ = run(params, x, jnp.zeros_like(segment))  # rows of nothing but padding
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("kind", LAYERS)
def test_columns_by_vmap_and_map(kind):
    module, one = build(kind)
    x, segment, _ = packed()
    other = jax.tree.map(lambda leaf: 0.5 * leaf, one)
    params = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, other)

    def column(p):
        return module.apply({"params": p}, x, segment)

    wanted = np.stack([forward(module)(p, x, segment) for p in (one, other)])
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1
    np.testing.assert_allclose(jax.jit(jax.vmap(column))(params), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda p: jax.lax.map(column, p))(params), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_in_layers(kind):
    module, params = build(kind)
    x, segment, _ = packed()
    keys = jax.random.split(jax.random.key(3), x.shape[0])

    @jax.jit
    def run(rate, attention_rate):
        def loss(p):
            y = module.apply({"params": p}, x, segment, Noise(keys, rate, attention_rate))
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, has_aux=True)(params)

    zero, some = jnp.float32(0), jnp.float32(0.4)
    _, at_zero = run(zero, zero)
    np.testing.assert_allclose(at_zero, forward(module)(params, x, segment), rtol=0, atol=1e-5)
    gradients, dropped = run(some, some)
    assert np.abs(dropped - at_zero).max() > 0.1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    attention = np.abs(run(zero, some)[1] - at_zero).max()
    assert bool(attention > 0.01) == (kind == "transformer")


@pytest.mark.parametrize("kind", LAYERS)
def test_bfloat16_is_close(kind):
    module, params = build(kind)
    half = LAYERS[kind](**FIELDS[kind], dtype=jnp.bfloat16)
    x, segment, _ = packed()
    _, full = runner(module)(params, x, segment)
    (by_params, _), low = runner(half)(params, x.astype(jnp.bfloat16), segment)
    assert low.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(by_params)} == {jnp.dtype(jnp.float32)}
    difference = np.abs(np.asarray(low.astype(jnp.float32) - full))
    assert 0 < difference.max() < 0.05 * np.abs(full).max()  # 8 bits of mantissa, a few products deep


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def recurrent_loop(kind, params, x):
    """Float64 loop over one text x [T, D], one direction."""
    kernel, bias = (np.asarray(params["input"][n], np.float64) for n in ("kernel", "bias"))
    recurrent = np.asarray(params["recurrent"]["kernel"], np.float64)
    h, c, out = np.zeros(len(recurrent)), np.zeros(len(recurrent)), []
    for x_t in np.asarray(x, np.float64):
        z = x_t @ kernel + bias + h @ recurrent
        if kind == "rnn":
            h = np.tanh(z)
        else:
            i, f, g, o = np.split(z, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.asarray(out)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "bilstm"])
def test_recurrence_equals_a_numpy_loop(kind):
    module, params = build(kind)
    x, segment, places = packed()
    actual = forward(module)(params, x, segment)
    for row, place in places:
        wanted = recurrent_loop(kind, params["forward"], x[row, place])
        if kind == "bilstm":
            right = recurrent_loop(kind, params["backward"], x[row, place][::-1])[::-1]
            wanted = np.concatenate([wanted, right], axis=-1)
        np.testing.assert_allclose(actual[row, place], wanted, rtol=0, atol=1e-5)


def test_lstm_starts_with_forget_bias_one_and_orthogonal_gates():
    init = jax.jit(LAYERS["lstm"](hidden_size=7).init)
    params = init(jax.random.key(0), jnp.zeros((1, 2, D)), jnp.zeros((1, 2), jnp.int32))
    forward = params["params"]["forward"]
    np.testing.assert_array_equal(forward["input"]["bias"], [0] * 7 + [1] * 7 + [0] * 14)
    for gate in np.split(np.asarray(forward["recurrent"]["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(7), atol=1e-5)


@pytest.mark.parametrize(("window", "residual"), [(1, False), (3, False), (4, True), (15, False)])
def test_convolution_equals_a_numpy_loop(window, residual):
    module, params = build("cnn", kernel_size=window, residual=residual)
    x, segment, places = packed()
    actual = forward(module)(params, x, segment)
    kernel, bias = (np.asarray(params[n], np.float64) for n in ("kernel", "bias"))
    for row, place in places:
        text = np.asarray(x[row, place], np.float64)
        for t in range(len(text)):
            wanted = bias.copy()
            for tap in range(window):
                source = t + tap - (window - 1) // 2
                if 0 <= source < len(text):
                    wanted = wanted + text[source] @ kernel[tap]
            wanted = np.maximum(wanted, 0) + (text[t] if residual else 0)
            np.testing.assert_allclose(actual[row, place.start + t], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "bilstm"])
def test_gradient_by_hand_of_the_recurrence_and_its_own_gradient(kind, monkeypatch):
    module, params = build(kind)
    x, segment, _ = packed()
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), params)

    def loss(p):
        return jnp.sum(jnp.sin(module.apply({"params": p}, x, segment)))

    def along(p):
        gradient = jax.grad(loss)(p)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))

    slope = jax.jit(along)
    by_hand = jax.jit(jax.grad(loss))(params)
    _, curvature = jax.jit(lambda p: jax.jvp(along, (p,), (direction,)))(params)
    step = 1e-3
    ahead, behind = (jax.tree.map(lambda p, d, s=s: p + s * d, params, direction) for s in (step, -step))
    np.testing.assert_allclose(curvature, (slope(ahead) - slope(behind)) / (2 * step), rtol=1e-2)
    monkeypatch.setattr(recurrent, "_over_time", recurrent._over_time.fun)
    by_autodiff = jax.jit(lambda p: jax.grad(loss)(p))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), by_hand, by_autodiff)
    _, forward = jax.jit(lambda p: jax.jvp(loss, (p,), (direction,)))(params)
    np.testing.assert_allclose(forward, slope(params), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("transformer", {"hidden_size": 16}, "width 16"),
        ("transformer", {"num_heads": 5}, "5 attention heads"),
        ("transformer", {"activation": "gleu"}, "gleu"),
        ("cnn", {"hidden_size": 16}, "width 16"),
    ],
)
def test_wrong_fields_say_so(kind, fields, message):
    x, segment, _ = packed()
    with pytest.raises(UserError, match=message):
        jax.eval_shape(LAYERS[kind](**{**FIELDS[kind], **fields}).init, jax.random.key(0), x, segment)
