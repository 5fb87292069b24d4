"""A transformer decoder over the encoder's features: of whole targets at once, or a token at a time with a cache.

Layers as in Vaswani et al. (2017) with LayerNorm before each part (Xiong et al. 2020): causal self-attention,
cross-attention over the features of the example, feed-forward. Tied embeddings (Press & Wolf 2017), sinusoidal
positions. Dropout on the embeddings and on what each part adds. All float32. S are sequences (each with keys of its
own), d = W / H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
_SALTS = 8  # of a layer


class Memory(NamedTuple):
    """What the decoder reads of R packed rows.

    keys, values  [R, T, H, d] of each layer
    pointer       [R, T, W] keys to copy by; None without copying
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    pointer: Array | None


def init(key: Array, sizes: DecoderSizes) -> Params:
    """Parameters of a decoder."""
    output_key, layers_key = jax.random.split(key)
    params = decoder.output_init(output_key, sizes) | {"norm": _norm_init(sizes.width)}
    for number in range(sizes.layers):
        params[f"layer_{number:02d}"] = _layer_init(
            jax.random.fold_in(layers_key, number), sizes.memory_width, sizes.width, sizes.intermediate
        )
    return params


def encode_memory(params: Params, hidden: Array, heads: int) -> Memory:
    """What all steps read of the features `hidden` [R, T, D]."""
    layers = decoder.layer_params(params)
    keys, values = (tuple(_split(dense(p["cross"][name], hidden), heads) for p in layers) for name in ("key", "value"))
    return Memory(keys, values, decoder.pointer_keys(params, hidden))


def score_targets(
    params: Params, memory: Memory, targets: Targets, source: SourceMasks, noise: Noise | None = None
) -> TokenScores:
    """See `decoder.Decoder`: a token attends to the earlier ones of its own segment."""
    heads = memory.keys[0].shape[2]
    segment, places = targets.segment, jnp.arange(targets.tokens.shape[1])
    causal = (segment[:, :, None] == segment[:, None, :]) & (places[:, None] >= places[None, :])[None]
    x = drop_features(noise, 0, _embed(params, targets.tokens, targets.position))
    layers = zip(decoder.layer_params(params), memory.keys, memory.values, strict=True)
    for layer, (p, keys, values) in enumerate(layers):
        salt = 1 + _SALTS * layer

        def attend_self(h, p=p, salt=salt):
            query, key, value = (_split(dense(p["self"][n], h), heads) for n in ("query", "key", "value"))
            return _attend(query, key, value, causal, noise, salt)

        x = _layer(p, x, attend_self, _Cross(keys, values, source.member), noise, salt + 1)
    return decoder.scores(params, memory.pointer, _norm(params["norm"], x), source.copied)


class Cache(NamedTuple):
    """Keys and values [R, S, L, H, d] of each layer, of the L places of S sequences a row."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


def initial_cache(params: Params, memory: Memory, member: Array, length: int) -> Cache:
    """The cache before the first token of S sequences a row, see `decoder.Decoder`."""
    del params
    rows, _, heads, size = memory.keys[0].shape
    zeros = tuple(jnp.zeros((rows, member.shape[1], length, heads, size), jnp.float32) for _ in memory.keys)
    return Cache(zeros, zeros)


def step(
    params: Params, memory: Memory, cache: Cache, tokens: Array, number: Array, source: SourceMasks
) -> tuple[TokenScores, Cache]:
    """Scores of the next token of S sequences a row, see `decoder.Decoder`."""
    heads, length = memory.keys[0].shape[2], cache.keys[0].shape[2]
    until = jnp.broadcast_to(jnp.arange(length) <= number, (*tokens.shape, length))
    x = _embed(params, tokens, jnp.broadcast_to(number, tokens.shape))
    updated = []
    for layer, (p, keys, values) in enumerate(
        zip(decoder.layer_params(params), memory.keys, memory.values, strict=True)
    ):

        def attend_self(h, p=p, layer=layer):
            query, key, value = (_split(dense(p["self"][n], h), heads) for n in ("query", "key", "value"))
            keys_values = cache.keys[layer].at[:, :, number].set(key), cache.values[layer].at[:, :, number].set(value)
            updated.append(keys_values)
            return _attend_to_cache(query, *keys_values, until)

        x = _layer(p, x, attend_self, _Cross(keys, values, source.member))
    scores = decoder.scores(params, memory.pointer, _norm(params["norm"], x), source.copied)
    return scores, Cache(*zip(*updated, strict=True))


def _layer_init(key: Array, memory_width: int, width: int, intermediate: int) -> Params:
    keys = iter(jax.random.split(key, 10))

    def attention(source_width: int) -> Params:
        inputs = {"query": width, "key": source_width, "value": source_width, "output": width}
        return {"norm": _norm_init(width)} | {
            name: dense_init(next(keys), size, width, INNER_INIT) for name, size in inputs.items()
        }

    return {
        "self": attention(width),
        "cross": attention(memory_width),
        "feed": {
            "norm": _norm_init(width),
            "inner": dense_init(next(keys), width, intermediate, INNER_INIT),
            "outer": dense_init(next(keys), intermediate, width, INNER_INIT),
        },
    }


class _Cross(NamedTuple):
    """What cross-attention reads: keys and values [R, T, H, d] of a layer, and which tokens bool[R, Q, T]."""

    keys: Array
    values: Array
    member: Array


def _layer(
    p: Params,
    x: Array,
    attend_self: Callable[[Array], Array],
    cross: _Cross,
    noise: Noise | None = None,
    salt: int = 0,
) -> Array:
    """One layer on x [R, Q, W]; `attend_self` maps the normalised x to [R, Q, H, d]."""
    self_attention = dense(p["self"]["output"], _join(attend_self(_norm(p["self"]["norm"], x))))
    x = x + drop_features(noise, salt, self_attention)
    query = _split(dense(p["cross"]["query"], _norm(p["cross"]["norm"], x)), cross.keys.shape[2])
    attended = _attend(query, *cross, noise, salt + 1)
    x = x + drop_features(noise, salt + 2, dense(p["cross"]["output"], _join(attended)))
    inner = jax.nn.gelu(dense(p["feed"]["inner"], _norm(p["feed"]["norm"], x)))
    return x + drop_features(noise, salt + 3, dense(p["feed"]["outer"], inner))


def _embed(params: Params, tokens: Array, position: Array) -> Array:
    """[R, Q, W]: the token's vector plus its position (Vaswani et al. 2017, section 3.5)."""
    vectors = decoder.embed_tokens(params, tokens)
    half = vectors.shape[-1] // 2
    rate = jnp.exp(-jnp.log(10000.0) / half * jnp.arange(half, dtype=jnp.float32))
    angle = position[..., None].astype(jnp.float32) * jnp.broadcast_to(rate, (*position.shape, half))
    return vectors + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _attend(query: Array, key: Array, value: Array, mask: Array, noise: Noise | None = None, salt: int = 0) -> Array:
    """query [R, Q, H, d] over key and value [R, K, H, d] where mask bool[R, Q, K]: [R, Q, H, d]."""
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED_SCORE))
    if noise is not None:
        weights = noise.drop_attention(salt, weights)
    return jnp.einsum("rhqk,rkhd->rqhd", weights, value)


def _attend_to_cache(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """query [R, S, H, d], each over its own key and value [R, S, L, H, d] where mask bool[R, S, L]: [R, S, H, d]."""
    scores = jnp.einsum("rshd,rslhd->rshl", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, MASKED_SCORE))
    return jnp.einsum("rshl,rslhd->rshd", weights, value)


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _join(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def _norm_init(width: int) -> Params:
    return {"scale": jnp.ones((width,), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)}


def _norm(params: dict[str, Any], x: Array) -> Array:
    """LayerNorm (Ba et al. 2016)."""
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x * jnp.broadcast_to(params["scale"], x.shape) + jnp.broadcast_to(params["bias"], x.shape)


TRANSFORMER = decoder.Decoder(init, encode_memory, score_targets, initial_cache, step, multi_head=True)
