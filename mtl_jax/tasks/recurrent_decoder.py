"""An LSTM decoder with attention over the encoder's features (Luong et al. 2015, with input feeding).

    h_t = LSTM([e(y_{t-1}); a_{t-1}], h_{t-1})      layers on top of each other read h_t of the one below
    α_t = softmax over the example's tokens of h_t · W_k x       "general" (section 3.1)
    a_t = tanh(W_c [Σ α_t x; h_t]),  p(y_t) from a_t             (equations 5 and 6)

The states start from the mean of the example's features, h_0 = tanh(W_s x̄) (Bahdanau et al. 2015 take the backward
state of the first word, which features of any encoder need not have), a_0 = 0. Dropout on what a layer reads and on a_t
before the scores, not along time (Zaremba et al. 2014).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.tasks import decoder
from mtl_jax.tasks.base import Noise, Params
from mtl_jax.tasks.decoder import (
    INNER_INIT,
    MASKED_SCORE,
    DecoderSizes,
    SourceMasks,
    Targets,
    TokenScores,
    drop_features,
)
from mtl_jax.tasks.heads import dense, dense_init

Array = jax.Array
_GATES = 4  # input, forget, cell, output
_RECURRENT = jax.nn.initializers.orthogonal()


class Memory(NamedTuple):
    """What the decoder reads of R packed rows.

    hidden   [R, T, D] the features
    keys     [R, T, W]
    pointer  [R, T, W] keys to copy by; None without copying
    """

    hidden: Array
    keys: Array
    pointer: Array | None


class State(NamedTuple):
    """The state of S sequences a row: h and c [R, S, W] of each layer, and a [R, S, W]."""

    hidden: tuple[Array, ...]
    cell: tuple[Array, ...]
    attended: Array


class DropoutFactors(NamedTuple):
    """Dropout as factors: on the attention weights [R, S, T], and on what each layer but the first reads [R, S, W]."""

    attention: Array
    inputs: tuple[Array, ...]


def init(key: Array, sizes: DecoderSizes) -> Params:
    """Parameters of a decoder."""
    memory_width, width = sizes.memory_width, sizes.width
    output_key, layers_key, key_key, attended_key = jax.random.split(key, 4)
    params = decoder.output_init(output_key, sizes)
    params["attention"] = {
        "key": {"kernel": INNER_INIT(key_key, (memory_width, width), jnp.float32)},
        "output": dense_init(attended_key, memory_width + width, width, INNER_INIT),
    }
    for number in range(sizes.layers):
        keys = jax.random.split(jax.random.fold_in(layers_key, number), 3)
        recurrent = [_RECURRENT(k, (width, width), jnp.float32) for k in jax.random.split(keys[1], _GATES)]
        inputs = dense_init(keys[0], width if number else 2 * width, _GATES * width, INNER_INIT)
        # a forget bias of 1 preserves the memory initially (Jozefowicz et al. 2015)
        inputs["bias"] = inputs["bias"].at[width : 2 * width].set(1.0)
        params[f"layer_{number:02d}"] = {
            "input": inputs,
            "recurrent": {"kernel": jnp.concatenate(recurrent, axis=1)},
            "start": dense_init(keys[2], memory_width, width, INNER_INIT),
        }
    return params


def encode_memory(params: Params, hidden: Array, heads: int) -> Memory:
    """What all steps read of the features `hidden` [R, T, D]."""
    del heads
    hidden = hidden.astype(jnp.float32)
    return Memory(hidden, hidden @ params["attention"]["key"]["kernel"], decoder.pointer_keys(params, hidden))


def score_targets(
    params: Params, memory: Memory, targets: Targets, source: SourceMasks, noise: Noise | None = None
) -> TokenScores:
    """See `decoder.Decoder`: one scan over Q, the state restarts at the first place of each sequence."""
    inputs = drop_features(noise, 0, decoder.embed_tokens(params, targets.tokens))
    count = len(decoder.layer_params(params))
    factors = None
    if noise is not None:
        between = tuple(noise.drop(2 + n, jnp.ones_like(inputs)) for n in range(count - 1))
        factors = DropoutFactors(noise.drop_attention(1, jnp.ones(source.member.shape, jnp.float32)), between)
    start = _start(params, memory, source.member)

    def advance(state, at):
        x, first, initial, member, factors = jax.tree.map(lambda leaf: leaf[:, None], at)
        state = jax.tree.map(lambda old, new: jnp.where(first[:, :, None], new, old), state, initial)
        state = _advance(params, memory, state, x, member, factors)
        return state, state.attended[:, 0]

    arrays = (inputs, targets.position == 0, start, source.member, factors)
    by_time = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), arrays)
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, :1]), start)
    _, attended = jax.lax.scan(advance, zeros, by_time)
    attended = drop_features(noise, 1 + count, jnp.swapaxes(attended, 0, 1))
    return decoder.scores(params, memory.pointer, attended, source.copied)


def initial_cache(params: Params, memory: Memory, member: Array, length: int) -> State:
    """The states before the first token of S sequences a row, see `decoder.Decoder`."""
    del length
    return _start(params, memory, member)


def step(
    params: Params, memory: Memory, state: State, tokens: Array, number: Array, source: SourceMasks
) -> tuple[TokenScores, State]:
    """Scores of the next token of S sequences a row, see `decoder.Decoder`."""
    del number
    state = _advance(params, memory, state, decoder.embed_tokens(params, tokens), source.member, None)
    return decoder.scores(params, memory.pointer, state.attended, source.copied), state


def _start(params: Params, memory: Memory, member: Array) -> State:
    """The state before the first token of sequences whose examples have the tokens `member` bool[R, S, T]."""
    weight = member.astype(jnp.float32)
    mean = jnp.einsum("rst,rtd->rsd", weight, memory.hidden) / jnp.maximum(weight.sum(-1, keepdims=True), 1.0)
    hidden = tuple(jnp.tanh(dense(layer["start"], mean)) for layer in decoder.layer_params(params))
    zeros = jnp.zeros_like(hidden[0])
    return State(hidden, (zeros,) * len(hidden), zeros)


def _advance(
    params: Params, memory: Memory, state: State, x: Array, member: Array, factors: DropoutFactors | None
) -> State:
    """The state after reading x [R, S, W]."""
    hidden, cell = [], []
    x = jnp.concatenate([x, state.attended], axis=-1)
    for number, layer in enumerate(decoder.layer_params(params)):
        if number and factors is not None:
            x = x * factors.inputs[number - 1]
        z = dense(layer["input"], x) + state.hidden[number] @ layer["recurrent"]["kernel"]
        i, f, g, o = jnp.split(z, _GATES, axis=-1)
        c = jax.nn.sigmoid(f) * state.cell[number] + jax.nn.sigmoid(i) * jnp.tanh(g)
        x = jax.nn.sigmoid(o) * jnp.tanh(c)
        hidden.append(x)
        cell.append(c)
    match = jnp.einsum("rsw,rtw->rst", x, memory.keys)
    weights = jax.nn.softmax(jnp.where(member, match, MASKED_SCORE))
    if factors is not None:
        weights = weights * factors.attention
    context = jnp.einsum("rst,rtd->rsd", weights, memory.hidden)
    attended = jnp.tanh(dense(params["attention"]["output"], jnp.concatenate([context, x], axis=-1)))
    return State(tuple(hidden), tuple(cell), attended)


LSTM = decoder.Decoder(init, encode_memory, score_targets, initial_cache, step, multi_head=False)
