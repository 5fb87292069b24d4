"""What decoders have in common: their interface, the scores of the next token, and copying.

A new decoder is one module with the functions of `Decoder` and one line in `generation.DECODERS`. All float32. W is the
width of a decoder; S sequences of a row are generated in parallel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.tasks.base import Noise, Params
from mtl_jax.tasks.heads import dense, dense_init

Array = jax.Array
INNER_INIT = jax.nn.initializers.lecun_normal()
MASKED_SCORE = -1e30  # in place of -inf: exp of it is 0, and differences of two are no NaN


class TokenScores(NamedTuple):
    """Scores of the next token.

    vocabulary  float32[..., C] unnormalised
    pointer     float32[..., T] log probability of each token of the row as what is copied, MASKED_SCORE for those that
                are not; None without copying
    gate        float32[...], logit of writing from the vocabulary against copying; None without
    ids         int32[R, T], the target id of each token of the row, filled in by the task; None without
    """

    vocabulary: Array
    pointer: Array | None
    gate: Array | None
    ids: Array | None = None


class DecoderSizes(NamedTuple):
    """Sizes of a decoder: C target tokens, D features of the encoder, W features of its own, layers, and width of the
    feed-forward layers; `copy`: whether it may copy tokens of the input.
    """

    classes: int
    memory_width: int
    width: int
    layers: int
    intermediate: int
    copy: bool


class Targets(NamedTuple):
    """Packed target sequences whose tokens are all known (teacher forcing).

    tokens    int32[R, Q], the token before each place; ids from C on count as unknown (0)
    position  int32[R, Q], place in the sequence
    segment   int32[R, Q], number of the sequence; no sequence reads another
    """

    tokens: Array
    position: Array
    segment: Array


class SourceMasks(NamedTuple):
    """The tokens of a row that a sequence reads.

    member  bool[R, Q, T], tokens of the sequence's example
    copied  bool[R, Q, T], those of them that may be copied; None without copying
    """

    member: Array
    copied: Array | None


class Decoder(NamedTuple):
    """A decoder as pure functions.

    init           (key, sizes: DecoderSizes) -> params
    encode_memory  (params, hidden [R, T, D], heads) -> memory, what all steps read of the features
    score_targets  (params, memory, targets: Targets, source: SourceMasks, noise) -> TokenScores [R, Q, ...]; `noise` is
                   that of training, else None
    initial_cache  (params, memory, member bool[R, S, T], length) -> cache of S sequences before their first token,
                   leaves [R, S, ...]
    step           (params, memory, cache, tokens int32[R, S], number, source) -> (TokenScores [R, S, ...], cache):
                   `score_targets` for one place, after the tokens before; `number` int32 scalar is the place
    multi_head     whether it has attention of several heads and feed-forward layers: then the options `heads` and
                   `intermediate` of a task are its, and its width is even and a multiple of the heads
    """

    init: Callable[..., Params]
    encode_memory: Callable[..., Any]
    score_targets: Callable[..., TokenScores]
    initial_cache: Callable[..., Any]
    step: Callable[..., tuple[TokenScores, Any]]
    multi_head: bool


def output_init(key: Array, sizes: DecoderSizes) -> Params:
    """The tied table of C vectors for inputs and scores (Press & Wolf 2017), and the pointer."""
    width = sizes.width
    table_key, pointer_key = jax.random.split(key)
    params = {"embedding": width**-0.5 * jax.random.normal(table_key, (sizes.classes, width), jnp.float32)}
    if sizes.copy:
        query_key, key_key, gate_key = jax.random.split(pointer_key, 3)
        params["pointer"] = {
            "query": dense_init(query_key, width, width, INNER_INIT),
            "key": dense_init(key_key, sizes.memory_width, width, INNER_INIT),
            "gate": dense_init(gate_key, width, 1),
        }
    return params


def pointer_keys(params: Params, hidden: Array) -> Array | None:
    """[R, T, W] keys to copy by; None without copying."""
    return dense(params["pointer"]["key"], hidden) if "pointer" in params else None


def scores(params: Params, keys: Array | None, x: Array, copied: Array | None) -> TokenScores:
    """Scores from x [R, Q, W]; `keys` from `pointer_keys`, `copied` bool[R, Q, T]."""
    vocabulary = jnp.einsum("rqw,cw->rqc", x, params["embedding"])
    if copied is None:
        return TokenScores(vocabulary, None, None)
    query = dense(params["pointer"]["query"], x) * x.shape[-1] ** -0.5
    match = jnp.where(copied, jnp.einsum("rqw,rtw->rqt", query, keys), MASKED_SCORE)
    pointer = jnp.where(copied, jax.nn.log_softmax(match), MASKED_SCORE)
    return TokenScores(vocabulary, pointer, dense(params["pointer"]["gate"], x)[..., 0])


def embed_tokens(params: Params, tokens: Array) -> Array:
    """[..., W]: √W times each token's vector (Vaswani et al. 2017, section 3.4); ids from C on are unknown (0)."""
    table = params["embedding"]
    classes, width = table.shape
    return table[jnp.where(tokens < classes, tokens, 0)] * width**0.5


def layer_params(params: Params) -> list[Params]:
    """Parameters of the layers, in their order."""
    return [params[name] for name in sorted(params) if name.startswith("layer_")]


def drop_features(noise: Noise | None, salt: int, x: Array) -> Array:
    """x [R, ...] with the dropout of training."""
    return x if noise is None else noise.drop(salt, x)
