"""Scaled dot-product attention inside the segments of packed rows (Vaswani et al. 2017, eq. 1)."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.activation_sharding import axis_size, gather_tokens
from mtl_jax.models.dropout import Noise, attention_dropout
from mtl_jax.models.key_values import LayerMemory
from mtl_jax.models.relative_positions import segment_positions

LONG_ROW = 1024  # tokens of a row from which on the scores are formed for a block of queries at a time
BLOCK = 256  # of queries


class Prefix(NamedTuple):
    """Keys and values [P, D'] before those of every text, see `adapters.prefix`."""

    key: jax.Array
    value: jax.Array


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment: jax.Array,
    noise: Noise | None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    window: int = 0,
    causal: bool = False,
    softcap: float = 0.0,
    prefix: Prefix | None = None,
) -> jax.Array:
    """Attention of each token to the tokens of its own segment.

    Args:
      query: [R, T, H, D/H].
      key, value: the same, or with a divisor of H as number of heads: each serves as many consecutive queries.
      segment: int32[R, T]. Padding (segment 0) attends to padding, so that no row of the softmax is empty.
      noise: drops attention weights.
      bias: float32 [H, T, T] or [R, H, T, T], added to the scores.
      scale: of the products; None: (D/H)^−½.
      window: the largest distance between tokens that attend to each other; 0: any.
      causal: whether tokens attend to none that follow.
      softcap: c of c · tanh(scores / c), which the scaled products become (Gemma 2); 0: they stay.
      prefix: further keys and values, which all tokens attend to.

    Returns:
      [R, T, H, D/H], in the dtype of the values. Scores and softmax are float32. Memory is linear in T in rows of more
      than `LONG_ROW` tokens, unless weights are dropped or a bias of T × T is given.
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    chex.assert_shape(segment, query.shape[:2])
    chex.assert_type(segment, int)
    key, value = gather_tokens(key), gather_tokens(value)
    first = 0 if prefix is None else len(prefix.key)
    if prefix is not None:
        key, value = (_after_prefix(*pair) for pair in ((prefix.key, key), (prefix.value, value)))
    if (groups := query.shape[2] // key.shape[2]) > 1:
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # heads first: faster products on CPU
    if bias is not None:
        bias = jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(first, 0)]) if first else bias
        bias = bias if bias.ndim == 4 else bias[None]
    form = _Form(query.shape[-1] ** -0.5 if scale is None else scale, softcap, window, causal, first)
    drops = noise is not None and noise.attention_rate is not None
    length = query.shape[2]
    fixed = isinstance(length, int)  # an exported program may have rows of any length
    if fixed and length > LONG_ROW and not drops and axis_size("sequence") == 1:
        return jnp.swapaxes(_in_blocks(form, query, key, value, segment, bias), 1, 2)
    place = np.arange(length) if fixed else jnp.arange(length)
    weights = _weights(form, query, key, bias, _allowed(form, segment, place, segment, place))
    weights = attention_dropout(noise, 0, weights.astype(value.dtype))
    return jnp.swapaxes(jnp.einsum("rhts,rhsd->rhtd", weights, value), 1, 2)


class _Form(NamedTuple):
    """Arguments of `attend`; `first` is the number of keys of the prefix."""

    scale: float
    softcap: float
    window: int
    causal: bool
    first: int


def _in_blocks(
    form: _Form, query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Attention of `BLOCK` queries at a time, which forms no T × T scores, forward or backward: [R, H, T, D/H].

    Where there is a window, a block of queries is compared with the keys that it may reach alone.
    """
    length, before = query.shape[2], form.window
    reach = BLOCK + before + (0 if form.causal else before)
    narrow = bool(before) and not form.first and bias is None and reach < length
    padding = -length % BLOCK
    query = jnp.pad(query, [(0, 0), (0, 0), (0, padding), (0, 0)])
    of_query = jnp.pad(segment, [(0, 0), (0, padding)], constant_values=-1)
    bias = bias if bias is None else jnp.pad(bias, [(0, 0), (0, 0), (0, padding), (0, 0)])

    def cut(array: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, start, size, axis)

    @jax.checkpoint
    def block(number: jax.Array) -> jax.Array:
        start = number * BLOCK
        begin, size = (jnp.clip(start - before, 0, length - reach), reach) if narrow else (jnp.int32(0), length)
        keys, values = (cut(array, begin, size + form.first, 2) if narrow else array for array in (key, value))
        of_key = cut(segment, begin, size, 1)
        places = (start + jnp.arange(BLOCK), begin + jnp.arange(size))
        allowed = _allowed(form, cut(of_query, start, BLOCK, 1), places[0], of_key, places[1])
        some = bias if bias is None else cut(bias, start, BLOCK, 2)
        weights = _weights(form, cut(query, start, BLOCK, 2), keys, some, allowed)
        return jnp.einsum("rhts,rhsd->rhtd", weights.astype(values.dtype), values)

    blocks = jax.lax.map(block, jnp.arange(query.shape[2] // BLOCK))  # [N, R, H, BLOCK, D/H]
    return jnp.moveaxis(blocks, 0, 2).reshape(query.shape)[:, :, :length]


def _weights(form: _Form, query: jax.Array, key: jax.Array, bias: jax.Array | None, allowed: jax.Array) -> jax.Array:
    """float32 [R, H, T, S] of query [R, H, T, D/H] and key [R, H, S, D/H]; `allowed` bool [R, 1, T, S]."""
    product = jnp.einsum("rhtd,rhsd->rhts", query, key, preferred_element_type=jnp.float32)
    scores = product * jnp.asarray(form.scale, jnp.float32)
    if form.softcap:
        scores = jnp.tanh(scores / jnp.float32(form.softcap)) * jnp.float32(form.softcap)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, scores.shape)
    return jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(jnp.float32).min), axis=-1)


def attend_to_memory(
    query: jax.Array,
    prompt: tuple[jax.Array, jax.Array],
    written: tuple[jax.Array, jax.Array],
    segment: jax.Array,
    memory: LayerMemory,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    prefix: Prefix | None = None,
) -> jax.Array:
    """Attention of one new token of each of S sequences of a row, as `attend` with `causal` computes it.

    Args:
      query: [R, S, H, D/H].
      prompt: keys and values of the row, [R, T, heads, D/H].
      written: those of the tokens that each sequence has generated, the new one included, [R, S, L, heads, D/H].
      segment: int32[R, S], of the sequences.
      memory: of the layer.
      scale, window, softcap, prefix: as in `attend`.

    Returns:
      [R, S, H, D/H], in the dtype of the values.
    """
    first = 0 if prefix is None else len(prefix.key)
    if prefix is not None:
        prompt = (_after_prefix(prefix.key, prompt[0]), _after_prefix(prefix.value, prompt[1]))
    groups, length = query.shape[2] // prompt[0].shape[2], written[0].shape[2]
    grouped = query.reshape(*query.shape[:2], -1, groups, query.shape[-1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    products = [
        jnp.einsum("rskgd,rtkd->rskgt", grouped, prompt[0], preferred_element_type=jnp.float32),
        jnp.einsum("rskgd,rstkd->rskgt", grouped, written[0], preferred_element_type=jnp.float32),
    ]
    scores = jnp.concatenate(products, axis=-1) * jnp.asarray(scale, jnp.float32)
    if softcap:
        scores = jnp.tanh(scores / jnp.float32(softcap)) * jnp.float32(softcap)
    back = memory.number[:, None, None] - jnp.arange(length)[None, None]
    distance = memory.position[:, :, None] - segment_positions(memory.segment)[:, None, :]
    of_prompt = memory.segment[:, None, :] == segment[:, :, None]
    of_written = jnp.broadcast_to(back >= 0, (*query.shape[:2], length))
    if window:
        of_prompt, of_written = of_prompt & (distance <= window), of_written & (back <= window)
    of_prompt = jnp.pad(of_prompt, [(0, 0), (0, 0), (first, 0)], constant_values=True)
    allowed = jnp.concatenate([of_prompt, of_written], axis=-1)[:, :, None, None, :]
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(jnp.float32).min), axis=-1)
    to_prompt, to_written = jnp.split(weights.astype(prompt[1].dtype), [weights.shape[-1] - length], axis=-1)
    result = jnp.einsum("rskgt,rtkd->rskgd", to_prompt, prompt[1])
    result = result + jnp.einsum("rskgt,rstkd->rskgd", to_written, written[1])
    return result.reshape(query.shape)


def _after_prefix(prefix: jax.Array, array: jax.Array) -> jax.Array:
    """[R, P + T, H, D/H] of a prefix [P, D] and keys or values [R, T, H, D/H]."""
    rows = prefix.reshape(1, -1, *array.shape[2:]).astype(array.dtype)
    return jnp.concatenate([jnp.broadcast_to(rows, (array.shape[0], *rows.shape[1:])), array], axis=1)


def _allowed(form: _Form, of_query: jax.Array, at: jax.Array, of_key: jax.Array, place: jax.Array) -> jax.Array:
    """bool [R, 1, T, P + S], which keys a query sees: of its segment, within the window and, with `causal`, none that
    follows; and those of the prefix. Segments int32[R, T] and [R, S], places int[T] and [S].
    """
    allowed = of_query[:, None, :, None] == of_key[:, None, None, :]
    if form.window or form.causal:
        back = at[:, None] - place[None, :]
        near = abs(back) <= form.window if form.window else back == back
        allowed = allowed & jnp.asarray(near & (back >= 0) if form.causal else near)[None, None]
    return jnp.pad(allowed, [(0, 0)] * 3 + [(form.first, 0)], constant_values=True) if form.first else allowed
