"""A transformer decoder over the encoder's features: of whole targets at once, or a token at a time with a cache.

Layers as in Vaswani et al. (2017) with LayerNorm before each part (Xiong et al. 2020): causal self-attention,
cross-attention over the features of the example, feed-forward. Tied embeddings (Press & Wolf 2017), sinusoidal
positions. All float32. S are sequences (each with keys of its own), d = W / H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.tasks.base import Params
from mtl_jax.tasks.heads import dense, dense_init

Array = jax.Array
_INNER = jax.nn.initializers.lecun_normal()
LOWEST = -1e30  # in place of -inf: exp of it is 0, and differences of two are no NaN


class Memory(NamedTuple):
    """What the decoder reads of R packed rows.

    keys, values  [R, T, H, d] of each layer
    pointer       [R, T, W] keys to copy by; None without copying
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    pointer: Array | None


class Scores(NamedTuple):
    """What the decoder says of the next token.

    vocabulary  float32[..., C] unnormalised
    pointer     float32[..., T] log probability of each token of the row as what is copied, LOWEST for those that are
                not; None without copying
    gate        float32[...], logit of writing from the vocabulary against copying; None without
    ids         int32[R, T], what each token of the row is as a target, filled in by the task; None without
    """

    vocabulary: Array
    pointer: Array | None
    gate: Array | None
    ids: Array | None = None


def init(key: Array, classes: int, memory_width: int, width: int, layers: int, intermediate: int, copy: bool) -> Params:
    """Parameters of a decoder of W = `width` over C = `classes` tokens and features of width D = `memory_width`."""
    table_key, layers_key, pointer_key = jax.random.split(key, 3)
    params = {
        "embedding": width**-0.5 * jax.random.normal(table_key, (classes, width), jnp.float32),
        "norm": _norm_init(width),
    }
    for number in range(layers):
        params[f"layer_{number:02d}"] = _layer_init(
            jax.random.fold_in(layers_key, number), memory_width, width, intermediate
        )
    if copy:
        query_key, key_key, gate_key = jax.random.split(pointer_key, 3)
        params["pointer"] = {
            "query": dense_init(query_key, width, width, _INNER),
            "key": dense_init(key_key, memory_width, width, _INNER),
            "gate": dense_init(gate_key, width, 1),
        }
    return params


def read(params: Params, hidden: Array, heads: int) -> Memory:
    """What all steps read of the features `hidden` [R, T, D]."""
    own = layers(params)
    keys, values = (tuple(_split(dense(p["cross"][name], hidden), heads) for p in own) for name in ("key", "value"))
    return Memory(keys, values, dense(params["pointer"]["key"], hidden) if "pointer" in params else None)


def layers(params: Params) -> list[Params]:
    """The layers in their order."""
    return [params[name] for name in sorted(params) if name.startswith("layer_")]


def whole(
    params: Params, memory: Memory, tokens: Array, position: Array, segment: Array, member: Array, copied: Array | None
) -> Scores:
    """Scores of the next tokens of packed sequences whose tokens are all known (teacher forcing).

    Args:
      params, memory: see `init` and `read`.
      tokens: int32[R, Q], what stands before each place; ids from C on count as unknown (0).
      position: int32[R, Q], place in the sequence.
      segment: int32[R, Q], a token attends to earlier ones of its own segment.
      member: bool[R, Q, T], which tokens of the row belong to the sequence's example.
      copied: bool[R, Q, T], which of them may be copied; None without copying.
    """
    heads = memory.keys[0].shape[2]
    places = jnp.arange(tokens.shape[1])
    causal = (segment[:, :, None] == segment[:, None, :]) & (places[:, None] >= places[None, :])[None]
    x = _embed(params, tokens, position)
    for p, keys, values in zip(layers(params), memory.keys, memory.values, strict=True):

        def attend_self(h, p=p):
            query, key, value = (_split(dense(p["self"][n], h), heads) for n in ("query", "key", "value"))
            return _attend(query, key, value, causal)

        x = _layer(p, x, attend_self, keys, values, member)
    return _scores(params, memory, x, copied)


class Cache(NamedTuple):
    """Keys and values [R, S, L, H, d] of each layer, of the L places of S sequences a row."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


def empty_cache(memory: Memory, sequences: int, length: int) -> Cache:
    """The cache before the first token."""
    rows, _, heads, size = memory.keys[0].shape
    zeros = tuple(jnp.zeros((rows, sequences, length, heads, size), jnp.float32) for _ in memory.keys)
    return Cache(zeros, zeros)


def step(
    params: Params, memory: Memory, cache: Cache, tokens: Array, number: Array, member: Array, copied: Array | None
) -> tuple[Scores, Cache]:
    """Scores of the next token of S sequences a row: `whole` for one place.

    Args:
      params, memory, cache: of the tokens before.
      tokens: int32[R, S], the last token of each sequence.
      number: int32 scalar, its place in the sequence.
      member, copied: bool[R, S, T], as in `whole`.
    """
    heads, length = memory.keys[0].shape[2], cache.keys[0].shape[2]
    until = jnp.broadcast_to(jnp.arange(length) <= number, (*tokens.shape, length))
    x = _embed(params, tokens, jnp.broadcast_to(number, tokens.shape))
    kept = []
    for layer, (p, keys, values) in enumerate(zip(layers(params), memory.keys, memory.values, strict=True)):

        def attend_self(h, p=p, layer=layer):
            query, key, value = (_split(dense(p["self"][n], h), heads) for n in ("query", "key", "value"))
            own = cache.keys[layer].at[:, :, number].set(key), cache.values[layer].at[:, :, number].set(value)
            kept.append(own)
            return _attend_own(query, *own, until)

        x = _layer(p, x, attend_self, keys, values, member)
    return _scores(params, memory, x, copied), Cache(*zip(*kept, strict=True))


def _layer_init(key: Array, memory_width: int, width: int, intermediate: int) -> Params:
    keys = iter(jax.random.split(key, 10))

    def attention(of: int) -> Params:
        inputs = {"query": width, "key": of, "value": of, "output": width}
        return {"norm": _norm_init(width)} | {
            name: dense_init(next(keys), size, width, _INNER) for name, size in inputs.items()
        }

    return {
        "self": attention(width),
        "cross": attention(memory_width),
        "feed": {
            "norm": _norm_init(width),
            "inner": dense_init(next(keys), width, intermediate, _INNER),
            "outer": dense_init(next(keys), intermediate, width, _INNER),
        },
    }


def _layer(p: Params, x: Array, attend_self: Callable[[Array], Array], keys: Array, values: Array, member: Array):
    """One layer on x [R, Q, W]; `attend_self` takes the normalised x to [R, Q, H, d]."""
    x = x + dense(p["self"]["output"], _join(attend_self(_norm(p["self"]["norm"], x))))
    query = _split(dense(p["cross"]["query"], _norm(p["cross"]["norm"], x)), keys.shape[2])
    x = x + dense(p["cross"]["output"], _join(_attend(query, keys, values, member)))
    inner = jax.nn.gelu(dense(p["feed"]["inner"], _norm(p["feed"]["norm"], x)))
    return x + dense(p["feed"]["outer"], inner)


def _scores(params: Params, memory: Memory, x: Array, copied: Array | None) -> Scores:
    x = _norm(params["norm"], x)
    vocabulary = jnp.einsum("rqw,cw->rqc", x, params["embedding"])
    if copied is None:
        return Scores(vocabulary, None, None)
    query = dense(params["pointer"]["query"], x) * x.shape[-1] ** -0.5
    match = jnp.where(copied, jnp.einsum("rqw,rtw->rqt", query, memory.pointer), LOWEST)
    pointer = jnp.where(copied, jax.nn.log_softmax(match), LOWEST)
    return Scores(vocabulary, pointer, dense(params["pointer"]["gate"], x)[..., 0])


def _embed(params: Params, tokens: Array, position: Array) -> Array:
    """[R, Q, W]: √W times the token's vector, plus its position (Vaswani et al. 2017, section 3.5)."""
    table = params["embedding"]
    classes, width = table.shape
    vectors = table[jnp.where(tokens < classes, tokens, 0)] * width**0.5
    rate = jnp.exp(-jnp.log(10000.0) / (width // 2) * jnp.arange(width // 2, dtype=jnp.float32))
    angle = position[..., None].astype(jnp.float32) * jnp.broadcast_to(rate, (*position.shape, width // 2))
    return vectors + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """query [R, Q, H, d] over key and value [R, K, H, d] where mask bool[R, Q, K]: [R, Q, H, d]."""
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, LOWEST))
    return jnp.einsum("rhqk,rkhd->rqhd", weights, value)


def _attend_own(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """query [R, S, H, d], each over its own key and value [R, S, L, H, d] where mask bool[R, S, L]: [R, S, H, d]."""
    scores = jnp.einsum("rshd,rslhd->rshl", query, key) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, LOWEST))
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
